// Opening: directory lock, RocksDB, format and epoch, orphan sweep. Also the way every write takes.
#include <absl/base/dynamic_annotations.h>
#include <absl/time/clock.h>
#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <sys/file.h>
#include <sys/statvfs.h>

#include <filesystem>

#include "aggregator/state/rocks_store.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr const char* kMetaKey = "meta";
constexpr uint64_t kMiB = 1 << 20;
constexpr absl::Duration kLockPatience = absl::Seconds(1);
constexpr absl::Duration kLockPoll = absl::Milliseconds(5);

// Memory: write buffers 16 MiB + cache 8 MiB + one shard (4 MiB) in a table builder or reader + WAL and file buffers.
constexpr uint64_t kWriteBuffers = 16 * kMiB;
constexpr uint64_t kBlockCache = 8 * kMiB;
constexpr uint64_t kWal = 32 * kMiB;

// RocksDB's own text log is of no use to operators and would be written even by a read-only open.
class SilentLogger final : public rocksdb::Logger {
 public:
  SilentLogger() : Logger(rocksdb::InfoLogLevel::FATAL_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

rocksdb::DBOptions DatabaseOptions() {
  rocksdb::DBOptions options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.paranoid_checks = true;
  options.track_and_verify_wals_in_manifest = true;   // a WAL that was synced and is gone or shorter refuses to open
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;   // a prefix, also over torn unsynced tails
  options.db_write_buffer_size = kWriteBuffers;
  options.max_total_wal_size = kWal;
  options.max_background_jobs = 2;
  options.max_open_files = 512;   // one bulk file per version: do not keep all of a long job's open
  options.max_file_opening_threads = 1;
  options.skip_stats_update_on_db_open = true;   // would read a block of every file
  options.bytes_per_sync = kMiB;       // writeback starts while a large file is being written
  options.wal_bytes_per_sync = kMiB;
  options.info_log = std::make_shared<SilentLogger>();
  return options;
}

std::vector<rocksdb::ColumnFamilyDescriptor> FamilyDescriptors() {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCache);
  table.cache_index_and_filter_blocks = true;   // so that the cache bounds them
  table.checksum = rocksdb::kXXH3;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));   // most dedupe look-ups miss
  rocksdb::ColumnFamilyOptions base;
  base.compression = rocksdb::kNoCompression;   // rows are small, tensors do not compress
  base.write_buffer_size = 4 * kMiB;
  base.max_write_buffer_number = 2;
  base.arena_block_size = 64 << 10;
  base.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (size_t i = 0; i < kFamilies; ++i) {
    rocksdb::ColumnFamilyOptions options = base;
    if (i == kVersions || i == kRounds || i == kJobs) {
      options.enable_blob_files = true;   // inline payloads are not rewritten when rows are compacted
      options.min_blob_size = 16 << 10;
      options.enable_blob_garbage_collection = true;
    }
    if (i == kBulk) options.disable_auto_compactions = true;   // whole files come and go, see payload.h
    descriptors.emplace_back(kFamilyNames[i], options);
  }
  return descriptors;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> StateStore::Open(const Options& options) {
  TRIB_ASSIGN_OR_RETURN(auto store, RocksStateStore::OpenStore(options));
  return std::unique_ptr<StateStore>(std::move(store));
}

absl::StatusOr<std::unique_ptr<RocksStateStore>> RocksStateStore::OpenStore(const Options& options) {
  if (options.dir.empty()) return InvalidArgument("state store: no folder was named");
  std::unique_ptr<RocksStateStore> store(new RocksStateStore(options));
  const bool exists = std::filesystem::exists(std::filesystem::path(options.dir) / "CURRENT");
  if (!exists && (options.mode == Mode::kReadOnly || !options.create)) {
    return NotFound("'{}' is not a state store: it has no file CURRENT", options.dir);
  }
  if (options.mode == Mode::kReadWrite) TRIB_RETURN_IF_ERROR(MakeDirectories(options.dir));
  TRIB_RETURN_IF_ERROR(store->LockDirectory());
  // Opening writes too, and RocksDB aborts the process when the disk fills up beneath it.
  if (options.mode == Mode::kReadWrite) TRIB_RETURN_IF_ERROR(store->HasRoomFor(0));
  TRIB_RETURN_IF_ERROR(store->OpenDatabase());
  TRIB_RETURN_IF_ERROR(store->ReadMeta());
  TRIB_RETURN_IF_ERROR(store->CheckJobRows());
  if (options.mode == Mode::kReadWrite) {
    TRIB_RETURN_IF_ERROR(store->RaiseEpoch());
    TRIB_RETURN_IF_ERROR(store->SweepOrphans());
  }
  return store;
}

RocksStateStore::~RocksStateStore() {
  if (!db_) return;
  // A clean end leaves nothing in the WAL: rows that were written unsynced (metrics, events) are kept, the next open replays
  // nothing, and damage to a store at rest is found by block checksums. (A WAL is recovered up to the first damaged record, as a torn
  // tail looks the same; what came after that would be missing without a word.) Not on a full disk: there RocksDB might abort.
  if (options_.mode == Mode::kReadWrite && HasRoomFor(2 * kWriteBuffers).ok()) {
    const absl::Status status = FromRocksDb(db_->Flush(rocksdb::FlushOptions(), handles_), What("flush at close"));
    if (!status.ok()) TRIB_LOG(warn, "{}", MessageOf(status));
  }
  for (rocksdb::ColumnFamilyHandle* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
}

absl::Status RocksStateStore::LockDirectory() {
  directory_lock_.Reset(::open(options_.dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_lock_.valid()) return ErrnoStatus(errno, fmt::format("state store '{}': open", options_.dir));
  const bool writer = options_.mode == Mode::kReadWrite;
  // A process that was killed while it spawned another leaves the lock with the child until that has come to its exec.
  const absl::Time give_up = absl::Now() + kLockPatience;
  while (true) {
    if (::flock(directory_lock_.get(), (writer ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0) return absl::OkStatus();
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, fmt::format("state store '{}': flock", options_.dir));
    if (absl::Now() >= give_up) break;
    absl::SleepFor(kLockPoll);
  }
  return Unavailable(
      "state store '{}' is in use by another process (an aggregator, or a tributary command); stop it, or ask it instead: "
      "without --store, commands read through the running aggregator",
      options_.dir);
}

absl::Status RocksStateStore::OpenDatabase() {
  const auto options = DatabaseOptions();
  const auto descriptors = FamilyDescriptors();
  rocksdb::DB* db = nullptr;
  const bool writer = options_.mode == Mode::kReadWrite;
  const std::string scratch = options_.dir + "/ingest";
  if (writer) {
    std::error_code error;
    std::filesystem::remove_all(scratch, error);   // half-written files of a predecessor
    TRIB_RETURN_IF_ERROR(MakeDirectories(scratch));
  }
  const rocksdb::Status status = writer ? rocksdb::DB::Open(options, options_.dir, descriptors, &handles_, &db)
                                        : rocksdb::DB::OpenForReadOnly(options, options_.dir, descriptors, &handles_, &db);
  if (!status.ok()) return FromRocksDb(status, fmt::format("state store '{}': open", options_.dir));
  db_.reset(db);
  payloads_ = std::make_unique<PayloadStore>(db, family(kBulk), rocksdb::Options(options, descriptors[kBulk].options), scratch);
  return absl::OkStatus();
}

absl::Status RocksStateStore::ReadMeta() {
  const auto meta = GetRow<v1::MetaRow>(kMeta, kMetaKey, "meta row");
  if (meta.ok()) {
    epoch_ = meta->epoch();
    created_us_ = meta->created_us();
    return absl::OkStatus();
  }
  if (!absl::IsNotFound(meta.status())) return meta.status();
  // New, or killed before the first meta row was written: then nothing else was either.
  const std::unique_ptr<rocksdb::Iterator> jobs(db_->NewIterator(rocksdb::ReadOptions(), family(kJobs)));
  jobs->SeekToFirst();
  if (jobs->Valid()) return DataLoss("{}", What("has jobs but no meta row"));
  created_us_ = WallMicros();
  return absl::OkStatus();
}

absl::Status RocksStateStore::RaiseEpoch() {
  v1::MetaRow meta;
  meta.set_epoch(epoch_ + 1);
  meta.set_created_us(created_us_);
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kMeta), kMetaKey, EncodeRow(meta)), What("meta row")));
  TRIB_RETURN_IF_ERROR(Write(batch, /*synced=*/true, What("meta row")));
  ++epoch_;
  return absl::OkStatus();
}

// A job this release cannot read is a reason not to start, rather than to fail in the middle of its next round.
absl::Status RocksStateStore::CheckJobRows() { return ListJobs().status(); }

bool RocksStateStore::PayloadIsNamed(const keys::ParsedPayload& payload) const {
  switch (payload.owner) {
    case keys::Owner::kArtifact: {
      const auto row = GetRow<v1::ArtifactRow>(kJobs, keys::Row(keys::kArtifact, payload.job), "artifact");
      return !absl::IsNotFound(row.status());   // a damaged row is no licence to delete what it names
    }
    case keys::Owner::kPartial: {
      const auto row = GetRow<v1::PartialRow>(kRounds, keys::Row(keys::kPartial, payload.job), "partial");
      return row.ok() ? row->generation() == payload.number : !absl::IsNotFound(row.status());
    }
    case keys::Owner::kRecord: {
      const auto row = GetRow<v1::RecordRow>(kRounds, keys::Record(payload.job, payload.number), "recorded update");
      return !absl::IsNotFound(row.status());
    }
    case keys::Owner::kVersion: {
      const auto row = GetRow<v1::VersionRow>(kVersions, keys::Version(payload.job, payload.number), "version");
      return row.ok() ? row->info().pruned_us() == 0 : !absl::IsNotFound(row.status());
    }
  }
  return true;
}

absl::Status RocksStateStore::SweepOrphans() {
  for (const auto& file : payloads_->ListBulk()) {
    if (!file.payload || PayloadIsNamed(*file.payload)) continue;
    TRIB_LOG(info, "store '{}': removing {} bytes of job '{}' that a crash left behind", options_.dir, file.bytes, file.payload->job);
    const std::string key = keys::Payload(file.payload->owner, file.payload->job, file.payload->number);
    TRIB_RETURN_IF_ERROR(payloads_->DropBulk(key, What("orphan sweep")));
  }
  return absl::OkStatus();
}

absl::Status RocksStateStore::HasRoomFor(uint64_t bytes, uint64_t keep_free) const {
  if (options_.mode == Mode::kReadOnly) return FailedPrecondition("{}", What("was opened read-only"));
  struct statvfs disk {};
  if (::statvfs(options_.dir.c_str(), &disk) != 0) return ErrnoStatus(errno, What("statvfs"));
  const uint64_t free = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (free < bytes || free - bytes < keep_free) {
    return ResourceExhausted("state store '{}': {} MiB are free on its disk; {} MiB were to be written and {} MiB must stay free: free some space",
                             options_.dir, free / kMiB, bytes / kMiB, keep_free / kMiB);
  }
  return absl::OkStatus();
}

absl::Status RocksStateStore::Write(rocksdb::WriteBatch& batch, bool synced, const std::string& what, uint64_t keep_free) {
  TRIB_RETURN_IF_ERROR(HasRoomFor(batch.GetDataSize(), keep_free));
  rocksdb::WriteOptions options;
  options.sync = synced && options_.synced;
  // One thread may write the batches of several, under locks that ThreadSanitizer sees in a RocksDB built with it only.
  ABSL_ANNOTATE_IGNORE_READS_AND_WRITES_BEGIN();
  const rocksdb::Status written = db_->Write(options, &batch);
  ABSL_ANNOTATE_IGNORE_READS_AND_WRITES_END();
  return FromRocksDb(written, what);
}

absl::StatusOr<std::string> RocksStateStore::GetBytes(Family index, const std::string& key, const std::string& what) const {
  std::string value;
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  TRIB_RETURN_IF_ERROR(FromRocksDb(db_->Get(read, family(index), key, &value), what));
  return value;
}

absl::Status RocksStateStore::Scan(Family index, const std::string& prefix,
                                   const std::function<absl::Status(std::string_view, std::string_view)>& visit) const {
  const std::string end = keys::PrefixEnd(prefix);
  const rocksdb::Slice bound(end);
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  if (!end.empty()) read.iterate_upper_bound = &bound;
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(read, family(index)));
  for (it->Seek(prefix); it->Valid(); it->Next()) {
    TRIB_RETURN_IF_ERROR(visit(it->key().ToStringView(), it->value().ToStringView()));
  }
  return FromRocksDb(it->status(), What(fmt::format("family {}", kFamilyNames[index])));
}

}  // namespace tributary::aggregator
