#include "aggregator/state/state_store.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <thread>

#include "aggregator/state/payload.h"
#include "aggregator/state/rows.h"
#include "tests/integration/state/state_fixture.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::tributary::testing::IsOk;
using ::tributary::testing::StatusIs;
constexpr auto kAlreadyExists = absl::StatusCode::kAlreadyExists;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kInvalidArgument = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kResourceExhausted = absl::StatusCode::kResourceExhausted;
constexpr auto kUnavailable = absl::StatusCode::kUnavailable;

constexpr size_t kBulkSize = (9 << 20) + 8;

class StateStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }
  void Open() {
    store_.reset();
    auto opened = StateStore::Open({.dir = dir_.store()});
    ASSERT_THAT(opened, IsOk());
    store_ = *std::move(opened);
  }
  void Commit(const std::string& job, uint64_t version, size_t bytes = 1024) {
    const auto tensors = TestTensors(version, bytes);
    ASSERT_THAT(store_->CommitVersion(TestCommit(job, version, tensors)), IsOk());
  }
  std::vector<std::string> Findings() {
    auto findings = store_->Verify(nullptr);
    EXPECT_THAT(findings, IsOk());
    return findings.ok() ? *findings : std::vector<std::string>{"Verify failed"};
  }
  // Opens the database with plain RocksDB, all families, for damage that our interface does not offer.
  template <typename Damage>
  void WithRocksDb(Damage damage) {
    store_.reset();
    std::vector<std::string> names;
    rocksdb::Options options;
    ASSERT_TRUE(rocksdb::DB::ListColumnFamilies(options, dir_.store(), &names).ok());
    std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
    for (const auto& name : names) descriptors.emplace_back(name, rocksdb::ColumnFamilyOptions());
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(options, dir_.store(), descriptors, &handles, &raw).ok());
    const std::unique_ptr<rocksdb::DB> db(raw);
    std::map<std::string, rocksdb::ColumnFamilyHandle*> families;
    for (size_t i = 0; i < names.size(); ++i) families[names[i]] = handles[i];
    damage(*db, families);
    for (auto* handle : handles) db->DestroyColumnFamilyHandle(handle);
  }
  std::vector<std::filesystem::path> FilesOver(uintmax_t bytes) const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.store())) {
      if (entry.is_regular_file() && entry.path().extension() == ".sst" && entry.file_size() > bytes) files.push_back(entry.path());
    }
    return files;
  }

  TempDir dir_;
  std::unique_ptr<StateStore> store_;
};

TEST_F(StateStoreTest, RowsOfClientsAreReplacedByTheCommitThatNamesThemAndSurviveAnOpen) {
  const auto state = [](const std::string& client, double sum) {
    v1::ClientStateRow row;
    row.mutable_participation()->set_client(client);
    row.mutable_participation()->set_interval_sum(sum);
    row.mutable_participation()->set_interval_count(1);
    return row;
  };
  const std::vector<std::byte> tensors = TestTensors(0, 1024), one(100, std::byte{1}), two(100, std::byte{2});
  Commit("job", 0);
  VersionCommit first = TestCommit("job", 1, tensors);
  first.client_state = {state("b", 2), state("a", 1)};
  first.client_vectors = {{"a", one}, {"b", one}};
  ASSERT_THAT(store_->CommitVersion(std::move(first)), IsOk());
  VersionCommit second = TestCommit("job", 2, tensors);
  second.client_state = {state("b", 7)};
  second.client_vectors = {{"b", two}};
  ASSERT_THAT(store_->CommitVersion(std::move(second)), IsOk());
  Commit("job-2", 0);
  Open();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto rows, store_->ListClientState("job"));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].participation().client(), "a");
  EXPECT_EQ(rows[0].participation().interval_sum(), 1);
  EXPECT_EQ(rows[1].participation().interval_sum(), 7);
  EXPECT_EQ(*store_->GetClientVector("job", "a", 0), one);
  EXPECT_EQ(*store_->GetClientVector("job", "b", 0), two);
  EXPECT_THAT(store_->GetClientVector("job", "a", 1).status(), StatusIs(kNotFound));  // all began anew with version 1
  EXPECT_EQ(*store_->GetClientVector("job", "b", 1), two);
  EXPECT_THAT(store_->GetClientVector("job", "c", 0).status(), StatusIs(kNotFound));
  EXPECT_THAT(*store_->ListClientState("job-2"), IsEmpty());
  EXPECT_THAT(Findings(), IsEmpty());
}

// Small ones lie beside their row, large ones in a file; both survive an open, are replaced by the same update sent again, and go singly.
TEST_F(StateStoreTest, RecordedUpdatesAreKeptUntilTheyAreDropped) {
  const std::vector<std::byte> small = TestTensors(1, 1000), large = TestTensors(2, 600'000), other = TestTensors(3, 1000);
  Commit("job", 0);
  ASSERT_THAT(store_->PutRecord("job", TestUpdate(1, 0), other), IsOk());
  ASSERT_THAT(store_->PutRecord("job", TestUpdate(1, 0), small), IsOk());
  ASSERT_THAT(store_->PutRecord("job", TestUpdate(1, 1), other), IsOk());
  ASSERT_THAT(store_->PutRecord("job", TestUpdate(1, 1), large), IsOk());
  ASSERT_THAT(store_->PutRecord("job-2", TestUpdate(1, 0), other), IsOk());
  Commit("job", 1);
  Open();
  EXPECT_EQ(*store_->GetRecord("job", TestUpdate(1, 0)), small);
  EXPECT_EQ(*store_->GetRecord("job", TestUpdate(1, 1)), large);
  EXPECT_EQ(*store_->GetRecord("job-2", TestUpdate(1, 0)), other);
  EXPECT_THAT(store_->GetRecord("job", TestUpdate(9, 9)).status(), StatusIs(kNotFound));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto kept, store_->ListRecords("job"));
  EXPECT_THAT(kept, ::testing::UnorderedElementsAre(TestUpdate(1, 0), TestUpdate(1, 1)));
  EXPECT_THAT(Findings(), IsEmpty());
  for (const uint64_t index : {0, 1}) {
    ASSERT_THAT(store_->DropRecord("job", TestUpdate(1, index)), IsOk());
    ASSERT_THAT(store_->DropRecord("job", TestUpdate(1, index)), IsOk()) << "dropping what is gone changes nothing";
    EXPECT_THAT(store_->GetRecord("job", TestUpdate(1, index)).status(), StatusIs(kNotFound));
  }
  EXPECT_THAT(*store_->ListRecords("job"), IsEmpty());
  EXPECT_THAT(FilesOver(500'000), IsEmpty());
  EXPECT_EQ(*store_->GetRecord("job-2", TestUpdate(1, 0)), other);
}

TEST_F(StateStoreTest, EpochRisesByOneAtEachWritableOpen) {
  const uint64_t first = store_->epoch();
  Open();
  EXPECT_EQ(store_->epoch(), first + 1);
  store_.reset();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto reader, StateStore::Open({.dir = dir_.store(), .mode = StateStore::Mode::kReadOnly}));
  EXPECT_EQ(reader->epoch(), first + 1);
}

TEST_F(StateStoreTest, JobsAreListedByTimeOfSubmission) {
  for (const auto& [id, at] : std::vector<std::pair<std::string, int64_t>>{{"b", 20}, {"a", 30}, {"c", 10}}) {
    auto job = TestJob(id);
    job.set_submitted_us(at);
    ASSERT_THAT(store_->PutJob(job), IsOk());
  }
  Open();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto jobs, store_->ListJobs());
  ASSERT_EQ(jobs.size(), 3u);
  EXPECT_EQ(jobs[0].id() + jobs[1].id() + jobs[2].id(), "cba");
  EXPECT_THAT(store_->GetJob("d"), StatusIs(kNotFound, HasSubstr("job 'd'")));
}

TEST_F(StateStoreTest, VersionsOfAllSizesComeBackBitForBit) {
  uint64_t job = 0;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{8192}, size_t{kInlineBytes / 2}, size_t{kInlineBytes + 1}, size_t{kShardBytes},
                             size_t{kShardBytes + 1}, kBulkSize}) {
    SCOPED_TRACE(bytes);
    const std::string id = "job" + std::to_string(job++);
    Commit(id, 0, bytes);
    Open();
    std::vector<std::byte> out(bytes);
    EXPECT_THAT(store_->ReadTensors(id, 0, out, true), IsOk());
    EXPECT_EQ(out, TestTensors(0, bytes));
    TRIB_ASSERT_OK_AND_ASSIGN(const auto row, store_->GetVersion(id, 0));
    EXPECT_EQ(row.info().sha256(), Sha256Hex(out));
    EXPECT_EQ(row.info().bytes(), bytes);
    EXPECT_EQ(row.shards(), ShardsOf(bytes, kShardBytes));
    EXPECT_THAT(row.info().strategy_state(), ::testing::ElementsAre("momentum"));
    TRIB_ASSERT_OK_AND_ASSIGN(const auto state, store_->ReadStrategyState(id, 0));
    ASSERT_EQ(state.size(), 1u);
    EXPECT_EQ(state[0].name, "momentum");
    EXPECT_EQ(state[0].values, std::vector<double>(bytes / 8, 0.5));
  }
  EXPECT_THAT(Findings(), IsEmpty());
}

TEST_F(StateStoreTest, VersionsRiseByOneNeverChangeAndNameTheirParent) {
  Commit("job", 0);
  Commit("job", 1);
  const auto tensors = TestTensors(9, 1024);
  EXPECT_THAT(store_->CommitVersion(TestCommit("job", 1, tensors)), StatusIs(kAlreadyExists, HasSubstr("version 1 is committed already")));
  EXPECT_THAT(store_->CommitVersion(TestCommit("job", 3, tensors)), StatusIs(kFailedPrecondition, HasSubstr("expected version 2")));
  auto other_parent = TestCommit("job", 2, tensors);
  other_parent.version.mutable_info()->set_parent_sha256("00");
  EXPECT_THAT(store_->CommitVersion(std::move(other_parent)), StatusIs(kFailedPrecondition, HasSubstr("parent")));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto first, store_->GetVersion("job", 0));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto second, store_->GetVersion("job", 1));
  EXPECT_EQ(second.info().parent_sha256(), first.info().sha256());
  EXPECT_EQ(second.info().epoch(), store_->epoch());
  TRIB_ASSERT_OK_AND_ASSIGN(const uint64_t latest, store_->LatestVersion("job"));
  EXPECT_EQ(latest, 1u);
  EXPECT_THAT(store_->LatestVersion("jo"), StatusIs(kNotFound));
}

TEST_F(StateStoreTest, AnUpdateIsNeverCountedTwice) {
  Commit("job", 0);
  const auto tensors = TestTensors(1, 1024);
  auto again = TestCommit("job", 1, tensors);
  again.updates.emplace_back(TestUpdate(0, 1), v1::UpdateRow());
  EXPECT_THAT(store_->CommitVersion(std::move(again)), StatusIs(kAlreadyExists, HasSubstr("is counted in version 0")));
  EXPECT_THAT(store_->GetUpdate("job", TestUpdate(1, 0)), StatusIs(kNotFound));   // nothing of the refused commit is there
  TRIB_ASSERT_OK_AND_ASSIGN(const auto row, store_->GetUpdate("job", TestUpdate(0, 1)));
  EXPECT_EQ(row.version(), 0u);
  EXPECT_THAT(store_->GetUpdate("other", TestUpdate(0, 1)), StatusIs(kNotFound));
}

TEST_F(StateStoreTest, ACommitThatContradictsItselfIsRefused) {
  const auto tensors = TestTensors(0, 64);
  auto commit = TestCommit("job", 0, tensors);
  commit.version.mutable_info()->set_bytes(65);
  EXPECT_THAT(store_->CommitVersion(std::move(commit)), StatusIs(kInvalidArgument, HasSubstr("expected 65 bytes of tensors, got 64")));
  commit = TestCommit("job", 0, tensors);
  commit.version.mutable_info()->set_job("other");
  EXPECT_THAT(store_->CommitVersion(std::move(commit)), StatusIs(kInvalidArgument));
  Commit("job", 0, 64);
  std::vector<std::byte> wrong(65);
  EXPECT_THAT(store_->ReadTensors("job", 0, wrong, true), StatusIs(kInvalidArgument, HasSubstr("has 64 bytes of tensors, the buffer 65")));
}

TEST_F(StateStoreTest, ListsAThousandVersionsInOrder) {
  for (uint64_t version = 0; version < 1000; ++version) {
    const auto tensors = TestTensors(version, 64);
    ASSERT_THAT(store_->CommitVersion(TestCommit("job", version, tensors, 1)), IsOk());
  }
  TRIB_ASSERT_OK_AND_ASSIGN(const auto rows, store_->ListVersions("job"));
  ASSERT_EQ(rows.size(), 1000u);
  for (uint64_t version = 0; version < 1000; ++version) ASSERT_EQ(rows[version].info().version(), version);
  EXPECT_THAT(Findings(), IsEmpty());
}

TEST_F(StateStoreTest, APartialReplacesTheFormerOneAndEndsWithTheCommit) {
  for (const size_t bytes : {size_t{4096}, kBulkSize}) {
    SCOPED_TRACE(bytes);
    const std::string job = "job" + std::to_string(bytes);
    EXPECT_THAT(store_->GetPartial(job), StatusIs(kNotFound));
    uint64_t generation = 0;
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      v1::PartialRow row;
      row.set_version(0);
      row.set_sum_weight(static_cast<double>(seed));
      row.add_contributors()->set_update_id(ToBytes(TestUpdate(0, 0)));
      const auto sums = TestTensors(seed, bytes);
      ASSERT_THAT(store_->PutPartial(job, row, sums), IsOk());
      if (seed == 2) Open();
      TRIB_ASSERT_OK_AND_ASSIGN(const auto partial, store_->GetPartial(job));
      EXPECT_EQ(partial.row.sum_weight(), static_cast<double>(seed));
      EXPECT_EQ(partial.sums, sums);
      EXPECT_GT(partial.row.generation(), generation);
      generation = partial.row.generation();
    }
    // Only the last generation takes space.
    if (bytes == kBulkSize) {
      EXPECT_EQ(FilesOver(1 << 20).size(), 1u);
    }
    Commit(job, 0, 1024);
    EXPECT_THAT(store_->GetPartial(job), StatusIs(kNotFound));
    EXPECT_THAT(FilesOver(1 << 20), IsEmpty());
  }
  EXPECT_THAT(Findings(), IsEmpty());
}

TEST_F(StateStoreTest, ArtifactsAreKeptWholeAndNeverReplaced) {
  ASSERT_THAT(store_->PutJob(TestJob("small")), IsOk());
  ASSERT_THAT(store_->PutArtifact("small", "torch script"), IsOk());
  const auto bytes = TestTensors(1, kBulkSize);
  const std::string_view large(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  ASSERT_THAT(store_->PutArtifact("large", large), IsOk());
  ASSERT_THAT(store_->PutArtifact("large", large), IsOk());   // the same again: nothing to do
  EXPECT_THAT(store_->PutArtifact("large", "other"), StatusIs(kAlreadyExists));
  Open();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto first, store_->GetArtifact("small"));
  EXPECT_EQ(first, "torch script");
  TRIB_ASSERT_OK_AND_ASSIGN(const auto second, store_->GetArtifact("large"));
  EXPECT_EQ(second, large);
  EXPECT_THAT(store_->GetArtifact("none"), StatusIs(kNotFound));
}

TEST_F(StateStoreTest, MetricsEventsAndClientsAreKept) {
  for (const uint64_t version : {2, 1}) {
    for (const char* evaluator : {"b", "a"}) {
      v1::Metric metric;
      metric.set_version(version);
      metric.set_evaluator(evaluator);
      metric.set_loss(0.25 * static_cast<double>(version));
      metric.set_accuracy(std::nan(""));
      ASSERT_THAT(store_->PutMetric("job", metric), IsOk());
    }
  }
  for (int i = 0; i < 5; ++i) {
    v1::EventRow event;
    event.set_kind("note");
    event.set_text(std::to_string(i));
    ASSERT_THAT(store_->AppendEvent("job", event), IsOk());
    if (i == 2) Open();   // the sequence goes on
  }
  v1::ClientRow client;
  client.set_id("edge-1");
  client.set_updates_committed(4);
  ASSERT_THAT(store_->PutClient(client, true), IsOk());
  client.set_id("edge-0");
  ASSERT_THAT(store_->PutClient(client, false), IsOk());
  Open();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto metrics, store_->ListMetrics("job"));
  ASSERT_EQ(metrics.size(), 4u);
  EXPECT_EQ(metrics[0].version(), 1u);
  EXPECT_EQ(metrics[0].evaluator(), "a");
  EXPECT_TRUE(std::isnan(metrics[0].accuracy()));
  EXPECT_EQ(metrics[3].loss(), 0.5);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto events, store_->ListEvents("job", 3));
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].text() + events[1].text() + events[2].text(), "234");
  TRIB_ASSERT_OK_AND_ASSIGN(const auto none, store_->ListEvents("jo", 3));
  EXPECT_THAT(none, IsEmpty());
  TRIB_ASSERT_OK_AND_ASSIGN(const auto clients, store_->ListClients());
  ASSERT_EQ(clients.size(), 2u);
  EXPECT_EQ(clients[0].id(), "edge-0");
  TRIB_ASSERT_OK_AND_ASSIGN(const auto edge, store_->GetClient("edge-1"));
  EXPECT_EQ(edge.updates_committed(), 4u);
  EXPECT_THAT(store_->GetClient("edge-2"), StatusIs(kNotFound));
}

TEST_F(StateStoreTest, ASecondOpenerOfEitherKindIsRefusedWithTheWayOut) {
  EXPECT_THAT(StateStore::Open({.dir = dir_.store()}), StatusIs(kUnavailable, HasSubstr("in use by another process")));
  EXPECT_THAT(StateStore::Open({.dir = dir_.store(), .mode = StateStore::Mode::kReadOnly}),
              StatusIs(kUnavailable, HasSubstr("without --store")));
}

TEST_F(StateStoreTest, AHashThatIsComputedMeanwhileIsAskedForOnceTheTensorsAreWritten) {
  for (const size_t bytes : {size_t{1024}, kBulkSize}) {
    const std::string job = "job-" + std::to_string(bytes);
    const auto tensors = TestTensors(7, bytes);
    VersionCommit commit = TestCommit(job, 0, tensors);
    commit.version.mutable_info()->set_sha256("not asked for");
    int asked = 0;
    commit.sha256 = [&] {
      ++asked;
      return Sha256Hex(tensors);
    };
    ASSERT_THAT(store_->CommitVersion(commit), IsOk());
    EXPECT_EQ(asked, 1);
    EXPECT_EQ(store_->GetVersion(job, 0)->info().sha256(), Sha256Hex(tensors));
  }
  EXPECT_THAT(Findings(), IsEmpty());
}

// As of an aggregator that was killed while it started a worker: the child has its lock until its exec.
TEST_F(StateStoreTest, ALockThatIsAboutToGoIsWaitedFor) {
  store_.reset();
  const int held = ::open(dir_.store().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_GE(held, 0);
  ASSERT_EQ(::flock(held, LOCK_EX | LOCK_NB), 0);
  std::jthread child([held] {
    absl::SleepFor(absl::Milliseconds(30));
    ::close(held);
  });
  EXPECT_THAT(StateStore::Open({.dir = dir_.store()}), IsOk());
}

TEST_F(StateStoreTest, ReadersShareAStoreWriteNothingAndKeepWritersOut) {
  Commit("job", 0);
  store_.reset();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto reader, StateStore::Open({.dir = dir_.store(), .mode = StateStore::Mode::kReadOnly}));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto second, StateStore::Open({.dir = dir_.store(), .mode = StateStore::Mode::kReadOnly}));
  std::vector<std::byte> out(1024);
  EXPECT_THAT(reader->ReadTensors("job", 0, out, true), IsOk());
  EXPECT_EQ(out, TestTensors(0, 1024));
  EXPECT_THAT(reader->Writable(), StatusIs(kFailedPrecondition, HasSubstr("read-only")));
  EXPECT_THAT(reader->PutJob(TestJob("x")), StatusIs(kFailedPrecondition));
  EXPECT_THAT(StateStore::Open({.dir = dir_.store()}), StatusIs(kUnavailable));
}

TEST_F(StateStoreTest, AFolderWithoutAStoreIsNotFound) {
  EXPECT_THAT(StateStore::Open({.dir = dir_.path(), .mode = StateStore::Mode::kReadOnly}), StatusIs(kNotFound, HasSubstr("not a state store")));
  EXPECT_THAT(StateStore::Open({.dir = dir_.path() + "/none", .create = false}), StatusIs(kNotFound));
  EXPECT_FALSE(std::filesystem::exists(dir_.path() + "/none"));
}

TEST_F(StateStoreTest, BelowTheWatermarkWritesAreRefusedAndReadsGoOn) {
  Commit("job", 0);
  store_.reset();
  const auto space = std::filesystem::space(dir_.path());
  // Half a GiB of slack, so that other programs on this disk do not decide the test; the commit below is larger than that.
  const uint64_t slack = 512ull << 20;
  ASSERT_GT(space.available, 2 * slack) << "the disk is too full for this test";
  TRIB_ASSERT_OK_AND_ASSIGN(const auto tight, StateStore::Open({.dir = dir_.store(), .min_free_bytes = space.available - slack}));
  EXPECT_THAT(tight->Writable(), IsOk());
  v1::PartialRow row;
  const std::vector<std::byte> large(1ull << 30);
  EXPECT_THAT(tight->PutPartial("job", row, large), StatusIs(kResourceExhausted, HasSubstr("must stay free")));
  std::vector<std::byte> out(1024);
  EXPECT_THAT(tight->ReadTensors("job", 0, out, true), IsOk());
}

TEST_F(StateStoreTest, AFullDiskRefusesToOpenInsteadOfAborting) {
  store_.reset();
  EXPECT_THAT(StateStore::Open({.dir = dir_.store(), .min_free_bytes = 1ull << 62}), StatusIs(kResourceExhausted, HasSubstr("free some space")));
  EXPECT_THAT(StateStore::Open({.dir = dir_.store(), .mode = StateStore::Mode::kReadOnly, .min_free_bytes = 1ull << 62}), IsOk());
}

TEST_F(StateStoreTest, AnUnknownFormatOfTheStoreOrOfAJobIsRefusedAtOpen) {
  ASSERT_THAT(store_->PutJob(TestJob("job")), IsOk());
  v1::JobRow job = TestJob("job");
  job.set_format_version(77);
  WithRocksDb([&](rocksdb::DB& db, auto& families) {
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), families["jobs"], std::string("jjob\0", 5), job.SerializeAsString()).ok());
  });
  EXPECT_THAT(StateStore::Open({.dir = dir_.store()}), StatusIs(kFailedPrecondition, HasSubstr("job 'job': format version 77 is not known")));
  v1::MetaRow meta;
  meta.set_format_version(2);
  WithRocksDb([&](rocksdb::DB& db, auto& families) {
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), families["default"], "meta", meta.SerializeAsString()).ok());
  });
  EXPECT_THAT(StateStore::Open({.dir = dir_.store()}), StatusIs(kFailedPrecondition, HasSubstr("meta row: format version 2")));
}

TEST_F(StateStoreTest, AFlippedByteInATensorIsDataLossThatNamesTheVersion) {
  Commit("job", 0, kBulkSize);
  store_.reset();
  const auto files = FilesOver(8 << 20);
  ASSERT_EQ(files.size(), 1u);
  {
    std::fstream file(files[0], std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(5 << 20);
    const char byte = static_cast<char>(file.get());
    file.seekp(5 << 20);
    file.put(static_cast<char>(byte ^ 1));
  }
  Open();
  std::vector<std::byte> out(kBulkSize);
  EXPECT_THAT(store_->ReadTensors("job", 0, out, false), StatusIs(kDataLoss, HasSubstr("job 'job' version 0, piece 0, shard 1 of 3")));
  EXPECT_THAT(Findings(), Contains(HasSubstr("job 'job' version 0")));
  // Other jobs are not touched by it.
  Commit("other", 0);
  EXPECT_THAT(store_->GetVersion("other", 0), IsOk());
}

TEST_F(StateStoreTest, VerifyNamesEachContradiction) {
  for (uint64_t version = 0; version < 4; ++version) Commit("job", version);
  Commit("stranger", 0);
  TRIB_ASSERT_OK_AND_ASSIGN(auto changed, store_->GetVersion("job", 3));
  changed.mutable_info()->set_sha256(std::string(64, '0'));
  changed.mutable_info()->set_parent_sha256(std::string(64, '1'));
  WithRocksDb([&](rocksdb::DB& db, auto& families) {
    const rocksdb::WriteOptions write;
    const std::string job("job\0", 4), number(7, '\0');
    ASSERT_TRUE(db.Put(write, families["versions"], "v" + job + number + '\3', EncodeRow(changed)).ok());
    // Version 1: its only shard gone. Version 2: a dedupe row gone. A dedupe row that nobody lists. No job row for the stranger.
    ASSERT_TRUE(db.Delete(write, families["versions"], "V" + job + number + '\1' + std::string(6, '\0')).ok());
    ASSERT_TRUE(db.Delete(write, families["updates"], job + ToBytes(TestUpdate(2, 0))).ok());
    v1::UpdateRow update;
    update.set_version(2);
    ASSERT_TRUE(db.Put(write, families["updates"], job + ToBytes(UpdateId{99, 99}), EncodeRow(update)).ok());
    ASSERT_TRUE(db.Delete(write, families["jobs"], std::string("jstranger\0", 10)).ok());
  });
  Open();
  const auto findings = Findings();
  EXPECT_THAT(findings, Contains(HasSubstr("job 'job' version 1, piece 0, shard 0 of 1: the shard is missing")));
  EXPECT_THAT(findings, Contains(HasSubstr("job 'job' version 2: update " + ToHex(TestUpdate(2, 0)))));
  EXPECT_THAT(findings, Contains(HasSubstr("job 'job' version 3: expected SHA-256 0000")));
  EXPECT_THAT(findings, Contains(HasSubstr("job 'job' version 3: names the parent 1111")));
  EXPECT_THAT(findings, Contains(HasSubstr(ToHex(UpdateId{99, 99}) + ": its dedupe row says version 2, which does not list it")));
  EXPECT_THAT(findings, Contains(HasSubstr("job 'stranger': has versions but no job row")));
  EXPECT_EQ(findings.size(), 6u) << ::testing::PrintToString(findings);
}

TEST_F(StateStoreTest, OrphansAreSweptAtOpenAndNamedPayloadsAreNot) {
  Commit("job", 0, kBulkSize);
  Commit("job", 1, kBulkSize);
  ASSERT_THAT(store_->PutPartial("job", {}, TestTensors(5, kBulkSize)), IsOk());
  EXPECT_EQ(FilesOver(8 << 20).size(), 3u);
  // A commit that died between its shards and its batch looks like this: shards, no manifest.
  WithRocksDb([&](rocksdb::DB& db, auto& families) {
    const std::string key = "v" + std::string("job\0", 4) + std::string(7, '\0') + '\1';
    ASSERT_TRUE(db.Delete(rocksdb::WriteOptions(), families["versions"], key).ok());
  });
  Open();
  EXPECT_EQ(FilesOver(8 << 20).size(), 2u);
  TRIB_ASSERT_OK_AND_ASSIGN(const uint64_t latest, store_->LatestVersion("job"));
  EXPECT_EQ(latest, 0u);
  std::vector<std::byte> out(kBulkSize);
  EXPECT_THAT(store_->ReadTensors("job", 0, out, true), IsOk());
  EXPECT_THAT(store_->GetPartial("job"), IsOk());
}

TEST_F(StateStoreTest, ThreadsCommitToDifferentJobsAndListMeanwhile) {
  constexpr uint64_t kVersions = 12;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([this, t] {
        const std::string job = "job" + std::to_string(t);
        for (uint64_t version = 0; version < kVersions; ++version) {
          const auto tensors = TestTensors(version, t % 2 == 0 ? 4096 : 600'000);
          EXPECT_THAT(store_->CommitVersion(TestCommit(job, version, tensors)), IsOk());
          EXPECT_THAT(store_->AppendEvent("shared", {}), IsOk());
          EXPECT_THAT(store_->ListJobs(), IsOk());
        }
      });
    }
  }
  TRIB_ASSERT_OK_AND_ASSIGN(const auto events, store_->ListEvents("shared", 1000));
  EXPECT_EQ(events.size(), 4 * kVersions);   // no two took the same place
  EXPECT_THAT(Findings(), IsEmpty());
}

}  // namespace
}  // namespace tributary::aggregator
