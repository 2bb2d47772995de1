#include "aggregator/state/keys.h"

#include <algorithm>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator::keys {
namespace {

TEST(KeysTest, ByteOrderIsNumberOrder) {
  const std::vector<uint64_t> numbers = {0, 1, 255, 256, 65535, 1ull << 32, ~0ull};
  std::vector<std::string> versions, events;
  for (const uint64_t number : numbers) {
    versions.push_back(Version("job-a", number));
    events.push_back(Event("job-a", number));
  }
  EXPECT_TRUE(std::ranges::is_sorted(versions));
  EXPECT_TRUE(std::ranges::is_sorted(events));
}

TEST(KeysTest, AJobsKeysDoNotMixWithThoseOfALongerName) {
  const std::string prefix = JobPrefix(kVersion, "net");
  EXPECT_TRUE(Version("net", 7).starts_with(prefix));
  EXPECT_FALSE(Version("net2", 7).starts_with(prefix));
  EXPECT_LT(Version("net", ~0ull), PrefixEnd(prefix));
  EXPECT_GT(Version("net2", 0), PrefixEnd(prefix));
}

TEST(KeysTest, PrefixEndIsTheFirstKeyAfterThePrefix) {
  EXPECT_EQ(PrefixEnd("ab"), "ac");
  EXPECT_EQ(PrefixEnd(std::string("a\xFF\xFF", 3)), "b");
  EXPECT_EQ(PrefixEnd(std::string("\xFF", 1)), "");
  EXPECT_EQ(PrefixEnd(""), "");
}

TEST(KeysTest, PayloadNamesAreReadBack) {
  const auto parsed = ParseShard(Shard(Payload(Owner::kPartial, "job", 1ull << 40), 3, 9));
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->owner, Owner::kPartial);
  EXPECT_EQ(parsed->job, "job");
  EXPECT_EQ(parsed->number, 1ull << 40);
  EXPECT_FALSE(ParseShard("").has_value());
  EXPECT_FALSE(ParseShard("X").has_value());
  EXPECT_FALSE(ParseShard(Payload(Owner::kVersion, "job", 1)).has_value());
}

TEST(KeysTest, UpdateAndVersionKeysAreReadBack) {
  const UpdateId id{0x0102030405060708, 0xF0E0D0C0B0A09080};
  const auto update = ParseUpdate(Update("job", id));
  ASSERT_TRUE(update.has_value());
  EXPECT_EQ(update->first, "job");
  EXPECT_EQ(update->second, id);
  const auto version = ParseVersion(Version("job", 77));
  ASSERT_TRUE(version.has_value());
  EXPECT_EQ(version->second, 77u);
  EXPECT_FALSE(ParseVersion(Version("job", 77).substr(1)).has_value());
}

TEST(KeysTest, JobIdsThatWouldBreakAKeyAreRefused) {
  using ::tributary::testing::IsOk;
  using ::tributary::testing::StatusIs;
  EXPECT_THAT(ValidateJobId("net-00aa11"), IsOk());
  EXPECT_THAT(ValidateJobId(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ValidateJobId(std::string("a\0b", 3)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ValidateJobId(std::string(257, 'a')), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace tributary::aggregator::keys
