// Large values: tensors, strategy vectors, accumulator sums, artifacts. A payload is a list of pieces, each cut into shards.
//
// Up to kInlineBytes the shards go into the caller's synced batch, beside their row. Above that they are written once, straight
// into a table file that the `bulk` family adopts (SstFileWriter + IngestExternalFile): no WAL copy, no memtable copy, no later
// flush or compaction of them; the file and RocksDB's MANIFEST are synced when WriteBulk returns. The row that names a payload is
// committed after that, so a row implies its shards over kill -9 and power loss; a bulk file without a row is an orphan.
// One payload is one file, and no key of the family is ever overwritten or deleted singly: Drop removes whole files.
//
// Borrows the database and its families. Threads: safe, if two threads do not write or drop the same payload.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "aggregator/state/keys.h"
#include "common/status.h"

namespace tributary::aggregator {

inline constexpr uint64_t kInlineBytes = 256 << 10;

using Pieces = std::vector<std::span<const std::byte>>;
uint64_t TotalBytes(const Pieces& pieces);

class PayloadStore {
 public:
  // `bulk_options` are the database's and the family's, for the files it writes into `scratch_dir` (same file system).
  PayloadStore(rocksdb::DB* db, rocksdb::ColumnFamilyHandle* bulk, rocksdb::Options bulk_options, std::string scratch_dir);

  // `payload` is a key by keys::Payload.
  absl::Status WriteBulk(const std::string& payload, const Pieces& pieces, const std::string& what);
  static absl::Status AppendInline(rocksdb::WriteBatch& batch, rocksdb::ColumnFamilyHandle* family, const std::string& payload,
                                   const Pieces& pieces, const std::string& what);

  // The payload's files in bulk, if any. Rows first: after a crash in between they are orphans.
  absl::Status DropBulk(const std::string& payload, const std::string& what);

  // Calls `sink` with the shards of one piece in order; the bytes are valid during the call. DATA_LOSS naming the shard when one is
  // missing, damaged or of the wrong size.
  absl::Status ReadPiece(rocksdb::ColumnFamilyHandle* inline_family, bool bulk, const std::string& payload, uint16_t piece,
                         uint64_t bytes, uint64_t shard_bytes, const std::string& what,
                         const std::function<absl::Status(std::span<const std::byte>)>& sink) const;

  // Payloads that have a file in bulk, with the first key of the file.
  struct BulkFile {
    std::string first_key;
    std::optional<keys::ParsedPayload> payload;   // nullopt: a key nobody wrote
    uint64_t bytes = 0;
  };
  std::vector<BulkFile> ListBulk() const;

 private:
  rocksdb::DB* db_;
  rocksdb::ColumnFamilyHandle* bulk_;
  rocksdb::Options options_;
  std::string scratch_dir_;
  std::atomic<uint64_t> next_file_{1};
};

}  // namespace tributary::aggregator
