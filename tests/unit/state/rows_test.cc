#include "aggregator/state/rows.h"

#include <limits>

#include "aggregator/state/rocksdb_status.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using ::tributary::testing::IsOk;
using ::tributary::testing::StatusIs;

v1::VersionRow SoundVersion() {
  v1::VersionRow row;
  row.mutable_info()->set_job("job");
  row.mutable_info()->set_bytes(kShardBytes + 1);
  row.set_shards(2);
  row.set_shard_bytes(kShardBytes);
  return row;
}

TEST(RowsTest, ARowSurvivesTheRoundTrip) {
  const auto row = DecodeRow<v1::VersionRow>(EncodeRow(SoundVersion()), "version");
  ASSERT_THAT(row, IsOk());
  EXPECT_EQ(row->format_version(), kRowFormat);
  EXPECT_EQ(row->shards(), 2u);
}

TEST(RowsTest, AnUnknownFormatVersionIsRefusedByName) {
  v1::JobRow row;
  row.set_id("net");
  row.set_format_version(9);
  EXPECT_THAT(DecodeRow<v1::JobRow>(row.SerializeAsString(), "job 'net'"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("job 'net': format version 9 is not known")));
  EXPECT_THAT(DecodeRow<v1::JobRow>("", "job 'net'"), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(RowsTest, BytesThatAreNoMessageAreDataLoss) {
  EXPECT_THAT(DecodeRow<v1::JobRow>("\xFF\xFF\xFF", "job 'net'"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("job 'net'")));
  const std::string whole = EncodeRow(SoundVersion());
  EXPECT_THAT(DecodeRow<v1::VersionRow>(std::string_view(whole).substr(0, whole.size() - 1), "v"), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(RowsTest, ShardArithmeticThatDoesNotAddUpIsDataLoss) {
  auto row = SoundVersion();
  row.set_shards(3);
  EXPECT_THAT(DecodeRow<v1::VersionRow>(EncodeRow(row), "v"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("2 shards, the row says 3")));
  row = SoundVersion();
  row.set_shard_bytes(0);
  EXPECT_THAT(DecodeRow<v1::VersionRow>(EncodeRow(row), "v"), StatusIs(absl::StatusCode::kDataLoss));
  row = SoundVersion();
  row.mutable_info()->set_bytes(std::numeric_limits<uint64_t>::max());
  EXPECT_THAT(DecodeRow<v1::VersionRow>(EncodeRow(row), "v"), StatusIs(absl::StatusCode::kDataLoss));
  row = SoundVersion();
  row.add_vectors()->set_elements(1ull << 61);
  EXPECT_THAT(DecodeRow<v1::VersionRow>(EncodeRow(row), "v"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("strategy vector")));
}

TEST(RowsTest, AnIdOfTheWrongSizeIsDataLoss) {
  auto row = SoundVersion();
  row.mutable_info()->add_contributors()->set_update_id("short");
  EXPECT_THAT(DecodeRow<v1::VersionRow>(EncodeRow(row), "v"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("expected 16 bytes, got 5")));
}

TEST(RowsTest, ShardsOfRoundsUp) {
  EXPECT_EQ(ShardsOf(0, 4), 0u);
  EXPECT_EQ(ShardsOf(4, 4), 1u);
  EXPECT_EQ(ShardsOf(5, 4), 2u);
  EXPECT_EQ(ShardsOf(~0ull, 2), (~0ull >> 1) + 1);
}

TEST(RocksDbStatusTest, KindsOfErrorsAreKeptApart) {
  using rocksdb::Status;
  EXPECT_THAT(FromRocksDb(Status::OK(), "x"), IsOk());
  EXPECT_THAT(FromRocksDb(Status::NotFound(), "x"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(FromRocksDb(Status::Corruption("bad block"), "job 'a'"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("job 'a'")));
  EXPECT_THAT(FromRocksDb(Status::NoSpace(), "x"), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(FromRocksDb(Status::IOError("While lock file: /s/LOCK", "busy"), "x"), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(FromRocksDb(Status::IOError("read"), "x"), StatusIs(absl::StatusCode::kInternal));
}

}  // namespace
}  // namespace tributary::aggregator
