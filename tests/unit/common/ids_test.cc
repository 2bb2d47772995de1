#include "common/ids.h"

#include <gmock/gmock.h>

#include <set>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(UpdateIdTest, TextAndByteFormsAreBigEndianAndRoundTrip) {
  const UpdateId id{0x0123456789abcdefull, 0xfedcba9876543210ull};
  EXPECT_EQ(ToHex(id), "0123456789abcdeffedcba9876543210");
  EXPECT_EQ(ToBytes(id), "\x01\x23\x45\x67\x89\xab\xcd\xef\xfe\xdc\xba\x98\x76\x54\x32\x10");
  TRIB_ASSERT_OK_AND_ASSIGN(const UpdateId from_hex, UpdateIdFromHex("0123456789ABCDEFfedcba9876543210"));
  TRIB_ASSERT_OK_AND_ASSIGN(const UpdateId from_bytes, UpdateIdFromBytes(ToBytes(id)));
  EXPECT_EQ(from_hex, id);
  EXPECT_EQ(from_bytes, id);
}

TEST(UpdateIdTest, RefusesWrongLengthsAndDigits) {
  EXPECT_THAT(UpdateIdFromHex("0123"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 4 characters")));
  EXPECT_THAT(UpdateIdFromHex("0123456789abcdeffedcba987654321g"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("position 31")));
  EXPECT_THAT(UpdateIdFromBytes("too short"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(UpdateIdFromBytes(""), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(UpdateIdTest, RandomOnesDiffer) {
  std::set<UpdateId> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(RandomUpdateId());
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(RandomHex(3).size(), 6u);
  EXPECT_NE(RandomU64(), RandomU64());
}

TEST(ClientIdTest, AcceptsWhatTheRuleAllows) {
  for (const std::string id : {"a", "edge-1", "A_b.c-9", "0"}) EXPECT_THAT(ValidateClientId(id), IsOk()) << id;
  EXPECT_THAT(ValidateClientId(std::string(64, 'x')), IsOk());
}

TEST(ClientIdTest, NamesTheBrokenRule) {
  EXPECT_THAT(ValidateClientId(""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 0")));
  EXPECT_THAT(ValidateClientId(std::string(65, 'x')), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 65")));
  EXPECT_THAT(ValidateClientId(".hidden"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("start with '.'")));
  EXPECT_THAT(ValidateClientId("-flag"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("start with '-'")));
  for (const std::string id : {"a/b", "a b", "a\n", "<img>", "é", "a:b"}) {
    EXPECT_THAT(ValidateClientId(id), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("letters, digits"))) << id;
  }
  EXPECT_THAT(ValidateJobName(std::string("a\0b", 3)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0x00")));
}

}  // namespace
}  // namespace tributary
