#include "aggregator/state/payload.h"

#include <rocksdb/convenience.h>
#include <rocksdb/metadata.h>
#include <rocksdb/sst_file_writer.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "aggregator/state/rocksdb_status.h"
#include "aggregator/state/rows.h"

namespace tributary::aggregator {
namespace {

rocksdb::Slice SliceOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Calls put(key, value) for every shard of `pieces`, in key order.
template <typename Put>
absl::Status ForEachShard(const std::string& payload, const Pieces& pieces, const std::string& what, Put put) {
  for (size_t piece = 0; piece < pieces.size(); ++piece) {
    const auto bytes = pieces[piece];
    for (size_t begin = 0, shard = 0; begin < bytes.size(); begin += kShardBytes, ++shard) {
      const std::string key = keys::Shard(payload, static_cast<uint16_t>(piece), static_cast<uint32_t>(shard));
      const auto value = bytes.subspan(begin, std::min<size_t>(kShardBytes, bytes.size() - begin));
      TRIB_RETURN_IF_ERROR(FromRocksDb(put(key, SliceOf(value)), what));
    }
  }
  return absl::OkStatus();
}

// Removes a scratch file on every way out; after an adoption it is gone already.
struct ScratchFile {
  explicit ScratchFile(std::string path) : path(std::move(path)) {}
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
  std::string path;
};

}  // namespace

uint64_t TotalBytes(const Pieces& pieces) {
  uint64_t total = 0;
  for (const auto& piece : pieces) total += piece.size();
  return total;
}

PayloadStore::PayloadStore(rocksdb::DB* db, rocksdb::ColumnFamilyHandle* bulk, rocksdb::Options bulk_options,
                           std::string scratch_dir)
    : db_(db), bulk_(bulk), options_(std::move(bulk_options)), scratch_dir_(std::move(scratch_dir)) {}

absl::Status PayloadStore::WriteBulk(const std::string& payload, const Pieces& pieces, const std::string& what) {
  const ScratchFile scratch(fmt::format("{}/{}.sst", scratch_dir_, next_file_.fetch_add(1)));
  // The page cache keeps what was written: the new version is read again at once by evaluators and late clients.
  rocksdb::SstFileWriter writer(rocksdb::EnvOptions(options_), options_, bulk_, /*invalidate_page_cache=*/false);
  TRIB_RETURN_IF_ERROR(FromRocksDb(writer.Open(scratch.path), what));
  TRIB_RETURN_IF_ERROR(ForEachShard(payload, pieces, what, [&](const std::string& key, const rocksdb::Slice& value) {
    return writer.Put(key, value);
  }));
  TRIB_RETURN_IF_ERROR(FromRocksDb(writer.Finish(), what));   // synced
  rocksdb::IngestExternalFileOptions ingest;
  ingest.move_files = true;                  // a link, not a copy
  ingest.failed_move_fall_back_to_copy = false;   // same folder tree: a failing link is an error worth seeing
  ingest.allow_blocking_flush = false;       // the family has no memtable
  return FromRocksDb(db_->IngestExternalFile(bulk_, {scratch.path}, ingest), what);
}

absl::Status PayloadStore::AppendInline(rocksdb::WriteBatch& batch, rocksdb::ColumnFamilyHandle* family, const std::string& payload,
                                        const Pieces& pieces, const std::string& what) {
  return ForEachShard(payload, pieces, what,
                      [&](const std::string& key, const rocksdb::Slice& value) { return batch.Put(family, key, value); });
}

absl::Status PayloadStore::DropBulk(const std::string& payload, const std::string& what) {
  const std::string end = keys::PrefixEnd(payload);
  const rocksdb::Slice first(payload), last(end);
  const rocksdb::RangePtr range(&first, &last);
  return FromRocksDb(rocksdb::DeleteFilesInRanges(db_, bulk_, &range, 1, /*include_end=*/false), what);
}

absl::Status PayloadStore::ReadPiece(rocksdb::ColumnFamilyHandle* inline_family, bool bulk, const std::string& payload, uint16_t piece,
                                     uint64_t bytes, uint64_t shard_bytes, const std::string& what,
                                     const std::function<absl::Status(std::span<const std::byte>)>& sink) const {
  rocksdb::ReadOptions read;
  read.fill_cache = false;   // shards would only push rows out
  read.verify_checksums = true;
  rocksdb::ColumnFamilyHandle* family = bulk ? bulk_ : inline_family;
  const uint64_t shards = ShardsOf(bytes, shard_bytes);
  for (uint64_t shard = 0; shard < shards; ++shard) {
    const std::string name = fmt::format("{}, piece {}, shard {} of {}", what, piece, shard, shards);
    rocksdb::PinnableSlice value;
    const rocksdb::Status status = db_->Get(read, family, keys::Shard(payload, piece, static_cast<uint32_t>(shard)), &value);
    if (status.IsNotFound()) return DataLoss("{}: the shard is missing", name);
    TRIB_RETURN_IF_ERROR(FromRocksDb(status, name));
    const uint64_t expected = std::min(shard_bytes, bytes - shard * shard_bytes);
    if (value.size() != expected) return DataLoss("{}: expected {} bytes, got {}", name, expected, value.size());
    TRIB_RETURN_IF_ERROR(sink({reinterpret_cast<const std::byte*>(value.data()), value.size()}));
  }
  return absl::OkStatus();
}

std::vector<PayloadStore::BulkFile> PayloadStore::ListBulk() const {
  rocksdb::ColumnFamilyMetaData metadata;
  db_->GetColumnFamilyMetaData(bulk_, &metadata);
  std::vector<BulkFile> files;
  for (const auto& level : metadata.levels) {
    for (const auto& file : level.files) {
      files.push_back({.first_key = file.smallestkey, .payload = keys::ParseShard(file.smallestkey), .bytes = file.size});
    }
  }
  return files;
}

}  // namespace tributary::aggregator
