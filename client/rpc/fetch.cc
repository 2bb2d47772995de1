#include "client/rpc/fetch.h"

#include <absl/strings/escaping.h>

#include <algorithm>

#include "client/core/backoff.h"
#include "client/rpc/raw_call.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/log.h"
#include "proto/chunk_codec.h"

namespace tributary::client {
namespace {

constexpr size_t kCachedJobs = 4;
constexpr int kHashMismatches = 3;  // whole downloads with a wrong hash before giving up
constexpr uint64_t kMaxArtifactBytes = uint64_t{4} << 30;

// Generous: a dead link is found by keep-alive long before; this bounds a server that sends a byte now and then.
absl::Duration TransferTimeout(uint64_t bytes) { return absl::Minutes(10) + absl::Seconds(static_cast<double>(bytes) / 65536.0); }

bool IsSha256Hex(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// A download in progress: what is here stays when a call fails.
class Download {
 public:
  Download(Connection& connection, const Identity& identity, const FetchRequest& request)
      : connection_(connection), identity_(identity), request_(request), expected_(request.sha256),
        object_(std::make_shared<FetchedObject>(request.bytes)) {}

  // One call from the present offset to the end.
  CallError Continue() {
    Connection::Call call(connection_, identity_, TransferTimeout(request_.bytes - offset_));
    v1::FetchModelRequest message;
    message.set_job(request_.job);
    message.set_version(request_.version);
    message.set_offset(offset_);
    message.set_artifact(request_.artifact);
    message.set_client_row(request_.client_row);
    message.set_vectors(request_.vectors);
    if (request_.fitness_after) message.set_fitness_after(*request_.fitness_after);
    grpc::ByteBuffer buffer;
    bool own = false;
    if (const grpc::Status made = grpc::SerializationTraits<v1::FetchModelRequest>::Serialize(message, &buffer, &own); !made.ok()) {
      return Connection::ErrorOf(made, "FetchModel");
    }
    RawCall raw(connection_, call, "FetchModel");
    if (raw.Write(buffer) && raw.WritesDone()) {
      buffer.Clear();
      bool first = true;
      while (raw.Read(&buffer)) {
        if (const absl::Status taken = Take(buffer, first); !taken.ok()) {
          call.context().TryCancel();
          return {taken, {}};
        }
        first = false;
        buffer.Clear();
      }
    }
    if (const grpc::Status status = raw.Finish(); !status.ok()) return Connection::ErrorOf(status, "FetchModel");
    if (offset_ != request_.bytes) {
      return {Unavailable("FetchModel ended at {} of {} bytes", offset_, request_.bytes), {}};
    }
    return {};
  }

  // After all bytes came. DATA_LOSS: they are not the promised ones; the download begins again.
  absl::Status CheckHash() {
    const std::string actual = request_.artifact ? sha256_.HexDigest() : xxh3_.Digest();
    if (actual == expected_) return absl::OkStatus();
    const absl::Status problem = DataLoss("{}: hash {} expected, got {}", Name(), Printable(expected_), Printable(actual));
    Restart();
    return problem;
  }

  std::string Name() const {
    if (request_.fitness_after) return fmt::format("fitness of versions {} to {} of job '{}'", *request_.fitness_after + 1, request_.version, request_.job);
    if (request_.client_row) return fmt::format("own row of job '{}'", request_.job);
    return request_.artifact ? fmt::format("artifact of job '{}'", request_.job)
                             : fmt::format("{}version {} of job '{}'", request_.vectors ? "vectors of " : "", request_.version, request_.job);
  }
  uint64_t offset() const { return offset_; }
  std::shared_ptr<const FetchedObject> object() const { return object_; }

 private:
  std::string Printable(const std::string& hash) const { return request_.artifact ? hash : absl::BytesToHexString(hash); }

  void Restart() {
    offset_ = 0;
    sha256_ = Sha256();
    xxh3_ = Xxh3();
    expected_ = request_.sha256;
  }

  absl::Status Take(const grpc::ByteBuffer& buffer, bool first) {
    TRIB_ASSIGN_OR_RETURN(const ChunkReader chunk, ChunkReader::Parse(buffer));
    const ChunkFields& fields = chunk.fields();
    if (first && fields.total_bytes != request_.bytes) {
      return InvalidArgument("{}: {} bytes expected, the server has {}", Name(), request_.bytes, fields.total_bytes);
    }
    if (first) {
      const std::string& hash = request_.artifact ? fields.sha256 : fields.xxh3_128;
      if (request_.artifact && hash != expected_) {
        return InvalidArgument("{}: sha256 {} expected, the server has '{}'", Name(), expected_, hash);
      }
      if (hash.size() != (request_.artifact ? 64u : 16u)) return InvalidArgument("{}: the server's first chunk has no hash", Name());
      if (offset_ != 0 && hash != expected_) {
        Restart();
        return DataLoss("{}: changed while it was being fetched", Name());
      }
      expected_ = hash;
    }
    if (fields.offset != offset_) return DataLoss("{}: chunk at {} expected, got {}", Name(), offset_, fields.offset);
    if (chunk.payload_bytes() > request_.bytes - offset_) {
      return InvalidArgument("{}: {} bytes expected, the server sends more", Name(), request_.bytes);
    }
    const std::span<std::byte> target = object_->writable().subspan(offset_, chunk.payload_bytes());
    if (const uint32_t crc = chunk.CopyPayload(target); crc != fields.crc32c) {
      return DataLoss("{}: chunk at {}: crc32c {:08x} expected, got {:08x}", Name(), offset_, fields.crc32c, crc);
    }
    if (request_.artifact) {
      sha256_.Update(target);
    } else {
      xxh3_.Update(target);
    }
    offset_ += target.size();
    return absl::OkStatus();
  }

  Connection& connection_;
  const Identity& identity_;
  const FetchRequest& request_;
  std::string expected_;  // SHA-256 in hex of an artifact, XXH3-128 of a version; empty until the first chunk
  std::shared_ptr<FetchedObject> object_;
  uint64_t offset_ = 0;
  Sha256 sha256_;
  Xxh3 xxh3_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const FetchedObject>> FetchObject(Connection& connection, const Identity& identity,
                                                                 const FetchRequest& request, const CancelCheck& cancelled) {
  if (!request.artifact && !request.client_row && !request.fitness_after && !connection.local_address().empty()) {
    v1::FetchModelRequest message;
    message.set_job(request.job);
    message.set_version(request.version);
    message.set_vectors(request.vectors);
    absl::StatusOr<std::unique_ptr<MappedModel>> mapped = FetchLocally(connection, identity, std::move(message), request.bytes);
    if (mapped.ok()) return std::make_shared<const FetchedObject>(*std::move(mapped));
    if (!ForgetLocalAddress(connection, mapped.status())) return mapped.status();
  }
  Download download(connection, identity, request);
  Backoff backoff;
  int mismatches = 0;
  for (;;) {
    const uint64_t before = download.offset();
    CallError error = download.Continue();
    if (error.status.ok()) {
      error.status = download.CheckHash();
      if (error.status.ok()) return download.object();
      if (++mismatches == kHashMismatches) return error.status;
    }
    if (cancelled() || connection.cancelled()) return Cancelled("fetching {} was cancelled", download.Name());
    if (!IsRetryable(error.status)) return error.status;
    if (download.offset() > before) backoff.Reset();
    const absl::Duration delay = backoff.Next(RandomU64(), error.push_back);
    TRIB_LOG(warn, "fetching {} stopped at {} of {} bytes: {}; trying again in {:.1f} s", download.Name(), download.offset(),
             request.bytes, MessageOf(error.status), absl::ToDoubleSeconds(delay));
    // In slices, so that a cancelled task does not wait out a long delay.
    for (absl::Duration left = delay; left > absl::ZeroDuration(); left -= absl::Milliseconds(100)) {
      if (cancelled() || !connection.Sleep(std::min(left, absl::Milliseconds(100)))) {
        return Cancelled("fetching {} was cancelled", download.Name());
      }
    }
  }
}

std::shared_ptr<const FetchedObject> ModelCache::Replay(const Identity& identity, const std::string& job, uint64_t version, const Latest& from,
                                                        const FitnessReplay& replay, const CancelCheck& cancelled) {
  const size_t logs_bytes = (version - from.version) * replay.log_bytes();
  const auto logs = FetchObject(connection_, identity, {.job = job, .version = version, .fitness_after = from.version, .bytes = logs_bytes + kEggrollDigestBytes, .sha256 = ""},
                                cancelled);
  if (!logs.ok()) {
    if (!absl::IsCancelled(logs.status())) TRIB_LOG(debug, "job '{}': version {} is fetched: {}", job, version, MessageOf(logs.status()));
    return nullptr;
  }
  const std::span<const std::byte> bytes = (*logs)->bytes();
  const auto model = std::make_shared<FetchedObject>(from.model->bytes().size());
  std::copy(from.model->bytes().begin(), from.model->bytes().end(), model->writable().begin());
  for (size_t at = 0; at < logs_bytes; at += replay.log_bytes()) {
    if (const absl::Status applied = replay.Apply(bytes.subspan(at, replay.log_bytes()), model->writable()); !applied.ok()) {
      TRIB_LOG(warn, "job '{}': version {} is fetched: {}", job, version, MessageOf(applied));
      return nullptr;
    }
  }
  const std::string digest = Xxh3Digest(model->bytes());
  if (!std::ranges::equal(std::as_bytes(std::span(digest)), bytes.subspan(logs_bytes))) {
    TRIB_LOG(warn, "job '{}': version {} is fetched: fitness after version {} makes another model here", job, version, from.version);
    return nullptr;
  }
  return model;
}

absl::StatusOr<std::shared_ptr<const FetchedObject>> ModelCache::Get(const Identity& identity, const std::string& job, uint64_t version, uint64_t bytes,
                                                                     const CancelCheck& cancelled, const FitnessReplay* replay) {
  const std::pair<std::string, uint64_t> key(job, version);
  Latest from;
  {
    absl::MutexLock lock(&mutex_);
    for (;;) {
      if (const auto found = latest_.find(job); found != latest_.end() && found->second.version == version) {
        found->second.used = ++use_;
        return found->second.model;
      }
      if (fetching_.insert(key).second) break;
      fetched_.WaitWithTimeout(&mutex_, absl::Milliseconds(100));
      if (cancelled() || connection_.cancelled()) return Cancelled("fetching version {} of job '{}' was cancelled", version, job);
    }
    if (const auto found = latest_.find(job); found != latest_.end()) from = found->second;
    const bool can = replay != nullptr && from.model != nullptr && from.version < version && connection_.local_address().empty();
    if (!can || !EggrollLogsAreShorter(version - from.version, replay->log_bytes(), bytes)) from.model = nullptr;
  }
  absl::StatusOr<std::shared_ptr<const FetchedObject>> model = nullptr;
  if (from.model != nullptr) model = Replay(identity, job, version, from, *replay, cancelled);
  if (*model == nullptr) model = FetchObject(connection_, identity, {.job = job, .version = version, .artifact = false, .client_row = false, .vectors = vectors_, .bytes = bytes, .sha256 = ""}, cancelled);
  absl::MutexLock lock(&mutex_);
  fetching_.erase(key);
  fetched_.SignalAll();
  if (!model.ok()) return model;
  Latest& latest = latest_[job];
  if (latest.model == nullptr || latest.version < version) latest = {version, ++use_, *model};
  if (latest_.size() > kCachedJobs) {
    latest_.erase(std::min_element(latest_.begin(), latest_.end(),
                                   [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
  return model;
}

absl::StatusOr<std::string> ArtifactStore::Get(const Identity& identity, const std::string& job, const std::string& sha256,
                                               uint64_t bytes, const CancelCheck& cancelled) {
  // The name becomes a path: nothing but hex may.
  if (!IsSha256Hex(sha256)) return InvalidArgument("artifact of job '{}': sha256 of 64 hex digits expected, got '{}'", job, sha256);
  if (bytes > kMaxArtifactBytes) return InvalidArgument("artifact of job '{}': at most {} bytes expected, got {}", job, kMaxArtifactBytes, bytes);
  const std::filesystem::path path = folder_ / sha256;
  absl::MutexLock lock(&mutex_);
  if (verified_.contains(sha256)) return path.string();
  if (absl::StatusOr<MappedFile> file = MappedFile::Open(path); file.ok() && Sha256Hex(file->bytes()) == sha256) {
    verified_.insert(sha256);
    return path.string();
  }
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<const FetchedObject> object,
                        FetchObject(connection_, identity, {.job = job, .version = 0, .artifact = true, .client_row = false, .vectors = false, .bytes = bytes, .sha256 = sha256}, cancelled));
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder_));
  TRIB_RETURN_IF_ERROR(WriteFileAtomically(path, object->bytes()));
  verified_.insert(sha256);
  return path.string();
}

}  // namespace tributary::client
