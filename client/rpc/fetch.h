// Downloads: a model version or a job's artifact, chunk by chunk, resumed at its offset after any failure, each chunk checked by
// CRC32C and the whole by XXH3-128 (a version) or SHA-256 (an artifact, which keeps that name on disk). From a server on the same host
// a version comes as a mapping of the server's own memory instead (local_transfer.h).
//
// ModelCache keeps the latest version of up to four jobs, so that the identities of one daemon share one download and one buffer.
// ArtifactStore keeps artifacts in STATE/artifacts/<sha256>.
// Both block, retry with backoff while the error is one that passes, and stop when `cancelled()` is true (CANCELLED).
// Errors else: what the server said; INVALID_ARGUMENT or DATA_LOSS for an object of another size or hash than promised.
// Threads: safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "client/core/eggroll_fitness.h"
#include "client/rpc/connection.h"
#include "client/rpc/local_transfer.h"
#include "common/large_bytes.h"
#include "common/status.h"

namespace tributary::client {

// Immutable once fetched; not zeroed before it is filled.
class FetchedObject {
 public:
  explicit FetchedObject(size_t size) : data_(size) {}
  explicit FetchedObject(std::unique_ptr<MappedModel> mapped) : mapped_(std::move(mapped)) {}
  std::span<const std::byte> bytes() const { return mapped_ != nullptr ? mapped_->bytes() : std::span(data_); }
  std::span<std::byte> writable() { return data_; }  // empty for a mapped one

 private:
  LargeBytes data_;
  std::unique_ptr<MappedModel> mapped_;
};

struct FetchRequest {
  std::string job;
  uint64_t version = 0;
  bool artifact = false;
  bool client_row = false;   // the server's copy of this client's state
  bool vectors = false;      // what goes down with the version besides the model
  std::optional<uint64_t> fitness_after{};  // instead: what makes the version of this one (FetchModelRequest)
  uint64_t bytes = 0;        // what the object must measure
  std::string sha256;        // of an artifact: what it must hash to. A version must hash to what the server's first chunk says
};

using CancelCheck = std::function<bool()>;

absl::StatusOr<std::shared_ptr<const FetchedObject>> FetchObject(Connection& connection, const Identity& identity,
                                                                 const FetchRequest& request, const CancelCheck& cancelled);

class ModelCache {
 public:
  // `vectors`: keeps what goes down with versions besides the models.
  explicit ModelCache(Connection& connection, bool vectors = false) : connection_(connection), vectors_(vectors) {}
  // `replay`: of a job whose versions follow from fitness; borrowed for the call. A version that is a few after the one here is then made here,
  // checked by its hash; where it cannot be, or the server is on the same host and hands out its memory, it is fetched.
  absl::StatusOr<std::shared_ptr<const FetchedObject>> Get(const Identity& identity, const std::string& job, uint64_t version, uint64_t bytes,
                                                           const CancelCheck& cancelled, const FitnessReplay* replay = nullptr);

 private:
  struct Latest {
    uint64_t version = 0;
    uint64_t used = 0;  // by use_, for eviction
    std::shared_ptr<const FetchedObject> model;
  };
  // nullptr: fetch it.
  std::shared_ptr<const FetchedObject> Replay(const Identity& identity, const std::string& job, uint64_t version, const Latest& from, const FitnessReplay& replay,
                                              const CancelCheck& cancelled);

  Connection& connection_;
  const bool vectors_;
  absl::Mutex mutex_;
  std::map<std::string, Latest> latest_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<std::string, uint64_t>> fetching_ ABSL_GUARDED_BY(mutex_);
  uint64_t use_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::CondVar fetched_;
};

class ArtifactStore {
 public:
  ArtifactStore(Connection& connection, std::filesystem::path state) : connection_(connection), folder_(std::move(state) / "artifacts") {}
  // The path of a file that hashes to `sha256` (64 hex digits).
  absl::StatusOr<std::string> Get(const Identity& identity, const std::string& job, const std::string& sha256, uint64_t bytes,
                                  const CancelCheck& cancelled);

 private:
  Connection& connection_;
  const std::filesystem::path folder_;
  absl::Mutex mutex_;  // held over a download: the second identity waits for the first
  std::set<std::string> verified_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tributary::client
