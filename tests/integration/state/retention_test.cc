// What old versions give up, what they keep, and that a crash in between leaves nothing behind.
#include "aggregator/state/retention.h"

#include <gmock/gmock.h>
#include <rocksdb/db.h>

#include "aggregator/state/keys.h"
#include "aggregator/state/rows.h"
#include "common/digest.h"
#include "tests/integration/state/state_fixture.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::tributary::testing::IsOk;
using ::tributary::testing::StatusIs;

constexpr size_t kRetainedInline = 1024;
constexpr size_t kRetainedBulk = (5 << 20) + 8;

std::vector<v1::VersionRow> Rows(uint64_t count, const std::vector<uint64_t>& kept) {
  std::vector<v1::VersionRow> rows(count);
  for (uint64_t version = 0; version < count; ++version) {
    rows[version].mutable_info()->set_version(version);
    rows[version].mutable_info()->set_pruned_us(std::find(kept.begin(), kept.end(), version) == kept.end() ? 1 : 0);
  }
  return rows;
}

TEST(RetentionTest, KeepsTheNewestEveryNthAndTheFirst) {
  const RetentionOptions options{.newest = 3, .every = 10};
  std::vector<uint64_t> kept;
  for (uint64_t version = 4; version <= 35; ++version) {
    if (KeepsTensors(options, version, /*first=*/4, /*latest=*/35)) kept.push_back(version);
  }
  EXPECT_THAT(kept, ::testing::ElementsAre(4, 10, 20, 30, 33, 34, 35));
  for (uint64_t version = 0; version <= 35; ++version) EXPECT_TRUE(KeepsTensors({}, version, 0, 35)) << "all by default";
}

TEST(RetentionTest, TheKeptAreToldAsRangesAndNeverAtAnyLength) {
  EXPECT_EQ(KeptText(Rows(9, {0, 3, 4, 6, 7, 8})), "0, 3, 4, 6–8");
  EXPECT_EQ(KeptText(Rows(2, {})), "none");
  std::vector<uint64_t> even;
  for (uint64_t version = 0; version < 1000; version += 2) even.push_back(version);
  const std::string text = KeptText(Rows(1000, even));
  EXPECT_THAT(text, HasSubstr("0, 2, "));
  EXPECT_THAT(text, HasSubstr(", …, "));
  EXPECT_TRUE(text.ends_with(", 996, 998")) << text;
  EXPECT_LT(text.size(), 150u);
}

class StoreRetentionTest : public ::testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    Open();
    for (uint64_t version = 0; version < 4; ++version) {
      const auto tensors = TestTensors(version, GetParam());
      ASSERT_THAT(store_->CommitVersion(TestCommit("a", version, tensors)), IsOk());
    }
  }
  void Open() {
    store_.reset();
    auto opened = StateStore::Open({.dir = dir_.store()});
    ASSERT_THAT(opened, IsOk());
    store_ = *std::move(opened);
  }
  absl::Status Read(uint64_t version) {
    std::vector<std::byte> out(GetParam());
    return store_->ReadTensors("a", version, out, /*verify=*/true);
  }
  void ExpectSound() {
    TRIB_ASSERT_OK_AND_ASSIGN(const auto findings, store_->Verify(nullptr));
    EXPECT_THAT(findings, IsEmpty());
  }
  uint64_t DiskBytes() const {
    uint64_t bytes = 0;
    for (const auto& file : std::filesystem::recursive_directory_iterator(dir_.store())) {
      if (file.is_regular_file()) bytes += file.file_size();
    }
    return bytes;
  }

  TempDir dir_;
  std::unique_ptr<StateStore> store_;
};
INSTANTIATE_TEST_SUITE_P(Sizes, StoreRetentionTest, ::testing::Values(kRetainedInline, kRetainedBulk),
                         [](const auto& info) { return info.param == kRetainedInline ? "Inline" : "Bulk"; });

TEST_P(StoreRetentionTest, DroppedTensorsAreGoneAndTheirVersionIsStillTold) {
  const uint64_t before = DiskBytes();
  ASSERT_THAT(store_->DropTensors("a", 1, 1'790'000'000'000'000), IsOk());
  ASSERT_THAT(store_->DropTensors("a", 1, 5), IsOk()) << "once more changes nothing";
  if (GetParam() == kRetainedBulk) {
    EXPECT_LT(DiskBytes() + GetParam(), before);
  }
  for (const bool opened_again : {false, true}) {
    SCOPED_TRACE(opened_again);
    if (opened_again) Open();
    EXPECT_THAT(Read(1), StatusIs(absl::StatusCode::kNotFound, HasSubstr("pruned at 2026-09-21 14:13:20; versions whose tensors are kept: 0, 2, 3")));
    EXPECT_THAT(store_->ReadStrategyState("a", 1), StatusIs(absl::StatusCode::kNotFound, HasSubstr("pruned")));
    for (const uint64_t version : {0, 2, 3}) EXPECT_THAT(Read(version), IsOk()) << version;
    TRIB_ASSERT_OK_AND_ASSIGN(const v1::VersionRow row, store_->GetVersion("a", 1));
    EXPECT_EQ(row.info().contributors_size(), 2);
    EXPECT_EQ(row.info().bytes(), GetParam());
    EXPECT_THAT(store_->GetUpdate("a", TestUpdate(1, 0)), IsOk()) << "dedupe rows are another matter";
    ExpectSound();
  }
}

TEST_P(StoreRetentionTest, TheLatestVersionCannotBeDropped) {
  EXPECT_THAT(store_->DropTensors("a", 3, 1), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("the latest")));
  EXPECT_THAT(store_->DropTensors("a", 9, 1), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Read(3), IsOk());
}

TEST_P(StoreRetentionTest, AVersionAdoptedWithoutItsTensorsIsAManifestThatTheNextOneFollows) {
  const auto tensors = TestTensors(4, GetParam());
  VersionCommit manifest = TestCommit("a", 4, tensors);
  manifest.tensors = {};
  manifest.strategy_state.clear();
  manifest.version.mutable_info()->set_bytes(GetParam());
  manifest.version.mutable_info()->set_pruned_us(1'790'000'000'000'000);
  manifest.version.mutable_info()->clear_sha256();
  EXPECT_THAT(store_->CommitVersion(manifest), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("SHA-256")));
  manifest.version.mutable_info()->set_sha256(Sha256Hex(tensors));
  ASSERT_THAT(store_->CommitVersion(manifest), IsOk());
  const auto next = TestTensors(5, GetParam());
  ASSERT_THAT(store_->CommitVersion(TestCommit("a", 5, next)), IsOk());
  for (const bool opened_again : {false, true}) {
    SCOPED_TRACE(opened_again);
    if (opened_again) Open();
    EXPECT_THAT(Read(4), StatusIs(absl::StatusCode::kNotFound, HasSubstr("pruned")));
    EXPECT_THAT(Read(5), IsOk());
    EXPECT_THAT(store_->GetUpdate("a", TestUpdate(4, 0)), IsOk());
    EXPECT_EQ(store_->GetVersion("a", 4)->info().bytes(), GetParam());
    ExpectSound();
  }
}

TEST_P(StoreRetentionTest, ExpiredDedupeRowsAreGoneAndOthersAreNot) {
  ASSERT_THAT(store_->ExpireUpdates("a", 1, 7), IsOk());
  for (const bool opened_again : {false, true}) {
    SCOPED_TRACE(opened_again);
    if (opened_again) Open();
    for (const uint64_t i : {0, 1}) {
      EXPECT_THAT(store_->GetUpdate("a", TestUpdate(1, i)), StatusIs(absl::StatusCode::kNotFound));
      EXPECT_THAT(store_->GetUpdate("a", TestUpdate(2, i)), IsOk());
    }
    EXPECT_THAT(Read(1), IsOk());
    ExpectSound();
  }
}

TEST_P(StoreRetentionTest, AKillBetweenTheRowAndTheFileLeavesNothingBehind) {
  // The state after the synced batch and before the file goes, as a crash would leave it.
  store_.reset();
  {
    std::vector<std::string> names;
    ASSERT_TRUE(rocksdb::DB::ListColumnFamilies(rocksdb::Options(), dir_.store(), &names).ok());
    std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
    for (const auto& name : names) descriptors.emplace_back(name, rocksdb::ColumnFamilyOptions());
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(rocksdb::Options(), dir_.store(), descriptors, &handles, &raw).ok());
    const std::unique_ptr<rocksdb::DB> db(raw);
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == "versions") {
        std::string value;
        ASSERT_TRUE(db->Get(rocksdb::ReadOptions(), handles[i], keys::Version("a", 1), &value).ok());
        TRIB_ASSERT_OK_AND_ASSIGN(v1::VersionRow row, DecodeRow<v1::VersionRow>(value, "row"));
        row.mutable_info()->set_pruned_us(1);
        ASSERT_TRUE(db->Put(rocksdb::WriteOptions(), handles[i], keys::Version("a", 1), EncodeRow(row)).ok());
      }
    }
    for (auto* handle : handles) db->DestroyColumnFamilyHandle(handle);
  }
  const uint64_t before = DiskBytes();
  Open();
  EXPECT_THAT(Read(1), StatusIs(absl::StatusCode::kNotFound, HasSubstr("0, 2, 3")));
  ExpectSound();
  if (GetParam() == kRetainedBulk) {
    EXPECT_LT(DiskBytes() + GetParam(), before) << "the orphan is still there";
  }
}

}  // namespace
}  // namespace tributary::aggregator
