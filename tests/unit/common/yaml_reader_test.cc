#include "common/yaml_reader.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using testing::IsOk;
using testing::StatusIs;

YamlReader Reader(const std::string& text) {
  auto reader = YamlReader::Parse(text, "f.yaml");
  EXPECT_TRUE(reader.ok()) << reader.status();
  return *std::move(reader);
}

TEST(YamlReaderTest, ReadsEveryType) {
  YamlReader reader = Reader("s: text\nb: true\ni: -7\nd: 1.5e3\nl: [a, 'b c']\nm: {k: v}\np: {x: 1, y: two}\n");
  std::string s, k;
  bool b = false;
  int64_t i = 0;
  double d = 0;
  std::vector<std::string> l;
  std::map<std::string, std::string> p;
  reader.String("s", &s, YamlReader::kRequired);
  reader.Bool("b", &b);
  reader.Int("i", &i);
  reader.Double("d", &d);
  reader.StringList("l", &l);
  bool present = false;
  reader.Map("m", &present).String("k", &k);
  reader.Scalars("p", &p);
  ASSERT_THAT(reader.Finish(), IsOk());
  EXPECT_EQ(s, "text");
  EXPECT_TRUE(b);
  EXPECT_EQ(i, -7);
  EXPECT_EQ(d, 1500);
  EXPECT_THAT(l, ElementsAre("a", "b c"));
  EXPECT_TRUE(present);
  EXPECT_EQ(k, "v");
  EXPECT_THAT(p, ElementsAre(Pair("x", "1"), Pair("y", "two")));
}

TEST(YamlReaderTest, AbsentKeysLeaveValuesAlone) {
  YamlReader reader = Reader("a: 1\n");
  int64_t a = 0, b = 42;
  bool present = true;
  reader.Int("a", &a);
  reader.Int("b", &b);
  reader.Map("m", &present).Int("c", &b);
  EXPECT_THAT(reader.Finish(), IsOk());
  EXPECT_EQ(b, 42);
  EXPECT_FALSE(present);
}

TEST(YamlReaderTest, NamesPlaceKeyExpectedAndGot) {
  YamlReader reader = Reader("a: 1\ncohort:\n  size: ten\n");
  int64_t value = 5;
  reader.Int("a", &value);
  reader.Map("cohort").Int("size", &value);
  EXPECT_THAT(reader.Finish(),
              StatusIs(absl::StatusCode::kInvalidArgument, "f.yaml:3:9: cohort.size: expected an integer, got 'ten'"));
  EXPECT_EQ(value, 1);
}

TEST(YamlReaderTest, UnknownKeysNameTheNearest) {
  YamlReader reader = Reader("a: 1\ncohort:\n  siez: 3\n");
  int64_t value = 0;
  reader.Int("a", &value);
  YamlReader cohort = reader.Map("cohort");
  cohort.Int("size", &value);
  EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kInvalidArgument,
                                        "f.yaml:3:3: cohort: unknown key 'siez' (did you mean 'size'?)"));
}

TEST(YamlReaderTest, TheFirstErrorStays) {
  YamlReader reader = Reader("a: x\nb: y\n");
  int64_t value = 0;
  reader.Int("a", &value);
  reader.Int("b", &value);
  reader.Fail("b", "later");
  EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("f.yaml:1:4: a:")));
}

TEST(YamlReaderTest, RefusesValuesOfAnotherType) {
  for (const std::string text : {"v: 1.5", "v: '1'", "v: [1]", "v: {a: 1}", "v:", "v: ~", "v: 99999999999999999999", "v: 0x1g", "v: true"}) {
    YamlReader reader = Reader(text);
    int64_t value = 0;
    reader.Int("v", &value);
    EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("integer"))) << text;
  }
  for (const std::string text : {"v: .nan", "v: nan", "v: NaN", "v: inf", "v: -inf", "v: .inf", "v: 1e999", "v: one", "v: '1'", "v: []"}) {
    YamlReader reader = Reader(text);
    double value = 0;
    reader.Double("v", &value);
    EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("number"))) << text;
  }
  for (const std::string text : {"v: yes", "v: 1", "v: 'true'", "v: True"}) {
    YamlReader reader = Reader(text);
    bool value = false;
    reader.Bool("v", &value);
    EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("true or false"))) << text;
  }
}

TEST(YamlReaderTest, UnsupportedAndRemainingKeys) {
  YamlReader reader = Reader("later: {x: 1}\n");
  reader.Unsupported("later");
  EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("later: not supported yet")));
  YamlReader rest = Reader("name: n\ncutoff: 50\n");
  std::string name;
  std::map<std::string, std::string> params;
  rest.String("name", &name);
  rest.RemainingScalars(&params);
  EXPECT_THAT(rest.Finish(), IsOk());
  EXPECT_THAT(params, ElementsAre(Pair("cutoff", "50")));
}

TEST(YamlReaderTest, RefusesHostileDocuments) {
  const auto refused = [](const std::string& text, const std::string& why) {
    EXPECT_THAT(YamlReader::Parse(text, "f.yaml"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)))
        << text.substr(0, 100);
  };
  refused("", "empty document");
  refused("# only a comment\n", "got");
  refused("just text", "expected a map");
  refused("[1, 2]", "expected a map");
  refused("a: 1\na: 2\n", "f.yaml:2:1: key 'a' occurs twice");
  refused("a: {b: 1, c: 2, b: 3}", "key 'b' occurs twice");
  refused("a: &x 1\nb: *x\n", "aliases");
  // Each line would multiply the document by nine.
  refused("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n", "aliases");
  refused("a: " + std::string(40, '[') + std::string(40, ']'), "nested deeper");
  refused("a: " + std::string(500'000, '['), "f.yaml");
  refused("a: " + std::string(300'000, '{'), "f.yaml");
  refused(std::string(500'000, '-'), "");
  refused("a: 1\n---\nb: 2\n", "one document");
  refused("a: !!python/object:os.system x\n", "tag");
  refused("? [complex]\n: 1\n", "expected a key");
  refused("a: \"bell \\x07\"\n", "control character");
  refused("a: \"nul \\0\"\n", "control character");
  refused(std::string("a: \0", 4), "UTF-8");
  refused("a: \xff\xfe\n", "UTF-8");
  refused("a: 'unfinished", "f.yaml");
  refused("a: b: c: d", "f.yaml");
  refused("\t- x", "f.yaml");
  refused(std::string((1 << 20) + 1, '#'), "at most");
  std::string many;
  for (int i = 0; i < 1500; ++i) many += fmt::format("k{}: 1\n", i);
  refused(many, "1000 keys");
}

TEST(YamlReaderTest, ALongWrongValueIsCutInTheMessage) {
  YamlReader reader = Reader("v: " + std::string(100'000, 'x'));
  int64_t value = 0;
  reader.Int("v", &value);
  EXPECT_LT(reader.Finish().message().size(), 200u);
}

}  // namespace
}  // namespace tributary
