#include "aggregator/ingress/upload_table.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "aggregator/core/coded_kernels.h"
#include "aggregator/ingress/chunk_crcs.h"
#include "common/crash_points.h"
#include "common/digest.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kBeingChecked = absl::Milliseconds(50);

UploadHeader MakeHeader(const Caller& caller, const CheckedUpload& upload) {
  UploadHeader header;
  header.key = {caller.client(), upload.key.task, upload.key.update};
  header.job = upload.key.job;
  header.version = upload.version;
  header.layout = upload.layout;
  header.codec = upload.codec;
  header.bytes = upload.bytes;
  header.xxh3_128 = upload.xxh3_128;
  header.weight = upload.weight;
  header.examples = upload.examples;
  header.metrics = upload.metrics;
  header.scalars = upload.scalars;
  header.moe = upload.moe;
  return header;
}

// Whether a second BeginUpload of the same key says the same thing, but for the digest. Metrics are not compared: they describe, they do not
// bind.
bool SameUpload(const UploadHeader& a, const UploadHeader& b) {
  return a.key == b.key && a.version == b.version && a.layout == b.layout && a.codec == b.codec && a.bytes == b.bytes && a.weight == b.weight &&
         a.examples == b.examples && a.moe == b.moe;
}

}  // namespace

struct UploadTable::Upload {
  enum class State { kOpen, kChecking, kGone };

  Upload(uint64_t id_in, UploadHeader header_in, UploadGrant grant_in, absl::Time now)
      : id(id_in), header(std::move(header_in)), grant(std::move(grant_in)), announced(header.xxh3_128), last_byte(now) {}

  // Copies and checks one chunk. OK: the offset has advanced. `refused`: reason code, the payload can never become right.
  absl::Status Take(const ChunkReader& chunk, size_t chunk_bytes, absl::Time now, std::string* refused)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // The next piece of a file, at most `chunk_bytes`, not beyond `end`.
  absl::Status TakeFrom(int fd, uint64_t end, size_t chunk_bytes, absl::Time now, std::string* refused) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // The digest of the whole, as the client says now; empty: it says nothing. INVALID_ARGUMENT when it has said another.
  absl::Status Announce(const std::string& xxh3_128) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // `bytes` more lie in the object and may stay: digests, scan, offset.
  absl::Status Advance(size_t bytes, uint32_t chunk_crc, absl::Time now, std::string* refused) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // What only all bytes together can show.
  absl::Status Complete(std::string* refused) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  bool whole() const ABSL_SHARED_LOCKS_REQUIRED(mutex) { return next_offset == header.bytes && !announced.empty(); }

  const uint64_t id;
  const UploadHeader header;  // as the upload was begun
  absl::Mutex mutex;
  State state ABSL_GUARDED_BY(mutex) = State::kOpen;
  UploadGrant grant ABSL_GUARDED_BY(mutex);
  uint64_t next_offset ABSL_GUARDED_BY(mutex) = 0;
  uint64_t scanned ABSL_GUARDED_BY(mutex) = 0;  // floats are scanned up to here: whole elements, so it may lag by one
  std::string announced ABSL_GUARDED_BY(mutex);  // the digest that all bytes must have; empty: not known yet
  Xxh3 digest ABSL_GUARDED_BY(mutex);
  uint32_t crc ABSL_GUARDED_BY(mutex) = 0;
  ScanResult scan ABSL_GUARDED_BY(mutex);
  absl::Time last_byte ABSL_GUARDED_BY(mutex);
  std::weak_ptr<StreamEnd> stream ABSL_GUARDED_BY(mutex);
};

absl::Status UploadTable::Upload::Take(const ChunkReader& chunk, size_t chunk_bytes, absl::Time now, std::string* refused) {
  const size_t bytes = chunk.payload_bytes();
  const uint64_t offset = chunk.fields().offset;
  if (offset != next_offset) return Aborted("upload {}: chunk at offset {}, expected {}", id, offset, next_offset);
  if (bytes == 0 && chunk.fields().xxh3_128.empty()) return InvalidArgument("upload {}: empty chunk at offset {}", id, offset);
  if (bytes > chunk_bytes) return InvalidArgument("upload {}: chunk of {} bytes, expected at most {}", id, bytes, chunk_bytes);
  if (bytes > header.bytes - next_offset) {
    return InvalidArgument("upload {}: chunk of {} bytes at offset {} passes the end at {}", id, bytes, offset, header.bytes);
  }
  const uint32_t chunk_crc = chunk.CopyPayload(grant.object.payload().subspan(next_offset, bytes));
  if (chunk_crc != chunk.fields().crc32c) {
    return DataLoss("upload {}: chunk at offset {} has CRC32C {:08x}, announced {:08x}", id, offset, chunk_crc, chunk.fields().crc32c);
  }
  TRIB_RETURN_IF_ERROR(Announce(chunk.fields().xxh3_128));
  return Advance(bytes, chunk_crc, now, refused);
}

absl::Status UploadTable::Upload::Announce(const std::string& xxh3_128) {
  TRIB_RETURN_IF_ERROR(Annotate(CheckUploadDigest(xxh3_128), fmt::format("upload {}", id)));
  if (xxh3_128.empty() || announced == xxh3_128) return absl::OkStatus();
  if (!announced.empty()) return InvalidArgument("upload {}: another XXH3-128 than before is announced", id);
  announced = xxh3_128;
  return absl::OkStatus();
}

absl::Status UploadTable::Upload::TakeFrom(int fd, uint64_t end, size_t chunk_bytes, absl::Time now, std::string* refused) {
  const std::span<std::byte> destination =
      grant.object.payload().subspan(next_offset, std::min<uint64_t>(chunk_bytes, end > next_offset ? end - next_offset : 0));
  for (size_t done = 0; done < destination.size();) {
    const ssize_t count = ::pread(fd, destination.data() + done, destination.size() - done, static_cast<off_t>(next_offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(errno, fmt::format("upload {}: read at offset {}", id, next_offset + done));
    if (count == 0) return InvalidArgument("upload {}: the file ends at {}, expected {} bytes", id, next_offset + done, header.bytes);
    done += static_cast<size_t>(count);
  }
  return Advance(destination.size(), Crc32c(destination), now, refused);
}

absl::Status UploadTable::Upload::Advance(size_t bytes, uint32_t chunk_crc, absl::Time now, std::string* refused) {
  const std::span<std::byte> payload = grant.object.payload();
  digest.Update(payload.subspan(next_offset, bytes));
  crc = CombineCrc32c(crc, chunk_crc, bytes);
  next_offset += bytes;
  last_byte = now;
  const size_t element = DTypeBytes(grant.dtype);
  const uint64_t floats_end = std::min<uint64_t>(next_offset, grant.float_bytes) / element * element;
  if (floats_end > scanned) {
    const ScanResult part = Scan(payload.subspan(scanned, floats_end - scanned), grant.dtype);
    const uint64_t first = scanned / element;
    scanned = floats_end;
    scan.finite = scan.finite && part.finite;
    scan.sum_squares += part.sum_squares;
    scan.max_abs = std::max(scan.max_abs, part.max_abs);
    if (!part.finite) {
      *refused = "non_finite";
      return InvalidArgument("update of client '{}': NaN or Inf between elements {} and {}", header.key.client, first,
                             floats_end / element);
    }
    if (grant.max_abs > 0 && part.max_abs > grant.max_abs) {
      *refused = "range";
      return InvalidArgument("update of client '{}': |x| = {} between elements {} and {}, expected at most {} for weight {}",
                             header.key.client, part.max_abs, first, floats_end / element, grant.max_abs, header.weight);
    }
  }
  return absl::OkStatus();
}

absl::Status UploadTable::Upload::Complete(std::string* refused) {
  if (digest.Digest() != announced) {
    *refused = "digest";
    return InvalidArgument("update of client '{}': the {} bytes differ from the announced XXH3-128", header.key.client, header.bytes);
  }
  if (grant.encoding.codec != Codec::kPlain) {
    const absl::StatusOr<ScanResult> checked = CheckEncoded(grant.encoding, grant.object.payload().first(header.bytes));
    if (!checked.ok()) {
      *refused = "encoding";
      return InvalidArgument("update of client '{}': {}", header.key.client, MessageOf(checked.status()));
    }
    scan = *checked;
    if (!scan.finite) {
      *refused = "non_finite";
      return InvalidArgument("update of client '{}': a decoded value is NaN or Inf", header.key.client);
    }
    if (grant.max_abs > 0 && scan.max_abs > grant.max_abs) {
      *refused = "range";
      return InvalidArgument("update of client '{}': a decoded |x| of {}, expected at most {} for weight {}", header.key.client, scan.max_abs, grant.max_abs,
                             header.weight);
    }
  }
  tb_object_header& object = grant.object.header();
  object.payload_bytes = header.bytes;
  object.crc32c = crc;
  object.sum_squares = scan.sum_squares;
  object.dtype = static_cast<uint32_t>(grant.dtype);
  object.update_hi = header.key.update.hi;
  object.update_lo = header.key.update.lo;
  return absl::OkStatus();
}

UploadTable::UploadTable(const Options& options, FederationBackend* backend, const Clock* clock)
    : options_(options), backend_(backend), clock_(clock) {}

UploadTable::~UploadTable() { Clear(); }

v1::UpdateStatus UploadTable::Partial(const Upload& upload, uint64_t next_offset) const {
  v1::UpdateStatus out;
  *out.mutable_key() = KeyToProto(upload.header.job, upload.header.key.task, upload.header.key.update);
  out.set_state(v1::UPDATE_STATE_PARTIAL);
  out.set_upload_id(upload.id);
  out.set_next_offset(next_offset);
  out.set_chunk_bytes(static_cast<uint32_t>(options_.chunk_bytes));
  return out;
}

absl::StatusOr<v1::UpdateStatus> UploadTable::Begin(const Caller& caller, const CheckedUpload& checked, absl::Duration* retry) {
  UploadHeader header = MakeHeader(caller, checked);
  const Slot slot{header.job, caller.client(), header.key.task};
  // What is there already, or what comes in between, decides; so this is done before and after the backend's answer.
  const auto existing = [&]() -> absl::StatusOr<std::optional<v1::UpdateStatus>> {
    std::shared_ptr<Upload> upload;
    {
      absl::MutexLock lock(&mutex_);
      const auto it = by_slot_.find(slot);
      if (it == by_slot_.end() || it->second->header.key != header.key) return std::nullopt;
      upload = it->second;
    }
    absl::MutexLock lock(&upload->mutex);
    if (!SameUpload(upload->header, header) || !upload->Announce(header.xxh3_128).ok())
      return AlreadyExists("update {}: was begun with another header (digest, size, version or weight)", ToHex(header.key.update));
    if (upload->state == Upload::State::kChecking) {
      *retry = kBeingChecked;
      return Unavailable("update {}: all bytes are here and are being checked", ToHex(header.key.update));
    }
    if (upload->state == Upload::State::kGone) return std::nullopt;
    upload->last_byte = clock_->Now();
    return Partial(*upload, upload->next_offset);
  };
  TRIB_ASSIGN_OR_RETURN(const std::optional<v1::UpdateStatus> before, existing());
  if (before.has_value()) return *before;

  absl::StatusOr<FederationBackend::Admission> admitted = backend_->AdmitUpload(header, retry);
  // What the client sent before for this task it has lost (it was still being made when the client went): that room is this one's.
  if (absl::IsResourceExhausted(admitted.status()) && ForgetTask(caller, header.job, header.key.task)) admitted = backend_->AdmitUpload(header, retry);
  TRIB_ASSIGN_OR_RETURN(FederationBackend::Admission admission, std::move(admitted));
  if (admission.state != v1::UPDATE_STATE_PARTIAL) {
    v1::UpdateStatus out;
    *out.mutable_key() = KeyToProto(header.job, header.key.task, header.key.update);
    out.set_state(admission.state);
    out.set_version(admission.version);
    out.set_reason(admission.reason);
    return out;
  }
  if (!admission.grant.object.valid() || admission.grant.object.payload().size() < header.bytes ||
      admission.grant.float_bytes > header.bytes) {
    return Internal("job '{}': granted a slot of {} bytes for an update of {}", header.job,
                    admission.grant.object.valid() ? admission.grant.object.payload().size() : 0, header.bytes);
  }
  const auto upload = std::make_shared<Upload>(RandomU64() | 1, std::move(header), std::move(admission.grant), clock_->Now());
  std::shared_ptr<Upload> replaced;
  bool lost_race = false;
  {
    absl::MutexLock lock(&mutex_);
    std::shared_ptr<Upload>& entry = by_slot_[slot];
    lost_race = entry != nullptr && entry->header.key == upload->header.key;
    if (!lost_race) {
      replaced = std::exchange(entry, upload);
      if (replaced != nullptr) by_id_.erase(replaced->id);
      by_id_.emplace(upload->id, upload);
    }
  }
  if (lost_race) {  // a concurrent BeginUpload of the same key was first: ours gives its slot back
    TRIB_ASSIGN_OR_RETURN(const std::optional<v1::UpdateStatus> after, existing());
    if (after.has_value()) return *after;
    *retry = kBeingChecked;
    return Unavailable("update {}: another call is settling it", ToHex(upload->header.key.update));
  }
  if (replaced != nullptr) Drop(replaced, Aborted("upload {}: replaced by another update of the same task", replaced->id));
  TRIB_CRASH_POINT(ingress_after_reserve);
  return Partial(*upload, 0);
}

absl::StatusOr<v1::UpdateStatus> UploadTable::Push(const Caller& caller, const std::shared_ptr<StreamEnd>& stream, uint64_t bound,
                                                   const ChunkReader& chunk) {
  const uint64_t id = chunk.fields().upload_id;
  if (bound != 0 && bound != id) return InvalidArgument("a stream carries one upload: expected {}, got a chunk of {}", bound, id);
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<Upload> upload, FindOwn(caller, id));
  return Take(upload, stream, /*takes_over=*/bound == 0, [&](Upload& open, std::string* refused) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return open.Take(chunk, options_.chunk_bytes, clock_->Now(), refused);
  });
}

absl::StatusOr<v1::UpdateStatus> UploadTable::PushFile(const Caller& caller, const v1::LocalPush& push, int fd) {
  const uint64_t upload_id = push.upload_id();
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<Upload> upload, FindOwn(caller, upload_id));
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, fmt::format("upload {}: fstat", upload_id));
  if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) != upload->header.bytes) {
    return InvalidArgument("upload {}: expected a regular file of {} bytes, got {} of {}", upload_id, upload->header.bytes,
                           S_ISREG(info.st_mode) ? "one" : "another kind of file", info.st_size);
  }
  if (push.end() > upload->header.bytes) return InvalidArgument("upload {}: expected an end of at most {}, got {}", upload_id, upload->header.bytes, push.end());
  const uint64_t end = push.end() == 0 ? upload->header.bytes : push.end();
  // Stands for this reader where a stream would stand.
  const auto self = std::make_shared<OnceEnd>([](const absl::Status&) {});
  for (bool first = true;; first = false) {
    absl::StatusOr<v1::UpdateStatus> status =
        Take(upload, self, /*takes_over=*/first, [&](Upload& open, std::string* refused) ABSL_NO_THREAD_SAFETY_ANALYSIS {
          TRIB_RETURN_IF_ERROR(open.Announce(push.xxh3_128()));
          return open.TakeFrom(fd, end, options_.chunk_bytes, clock_->Now(), refused);
        });
    if (!status.ok() || status->state() != v1::UPDATE_STATE_PARTIAL || status->next_offset() >= end) return status;
  }
}

absl::StatusOr<v1::UpdateStatus> UploadTable::Take(const std::shared_ptr<Upload>& upload, const std::shared_ptr<StreamEnd>& stream,
                                                   bool takes_over,
                                                   const std::function<absl::Status(Upload&, std::string*)>& take) {
  std::shared_ptr<StreamEnd> older;
  std::string refused;
  UploadHeader header;
  bool complete = false;
  uint64_t next_offset = 0;
  absl::Status status;
  {
    absl::MutexLock lock(&upload->mutex);
    if (upload->state != Upload::State::kOpen) return Aborted("upload {}: is over; ask QueryUpdate", upload->id);
    older = upload->stream.lock();
    if (older == stream) older = nullptr;
    else if (!takes_over) return Aborted("upload {}: another stream took over", upload->id);
    upload->stream = stream;
    status = take(*upload, &refused);
    next_offset = upload->next_offset;
    complete = status.ok() && upload->whole();
    if (complete) status = upload->Complete(&refused);
    if (complete || !refused.empty()) {
      upload->state = Upload::State::kChecking;
      header = upload->header;
      header.xxh3_128 = upload->announced;
    }
  }
  if (older != nullptr) older->End(Aborted("upload {}: another stream took over", upload->id));
  if (!refused.empty()) {
    backend_->RejectUpdate(header, refused, MessageOf(status));
    Drop(upload, status);
    return status;
  }
  TRIB_RETURN_IF_ERROR(status);
  TRIB_CRASH_POINT(ingress_after_chunk);
  if (complete) return Finish(upload, header);
  return Partial(*upload, next_offset);
}

absl::StatusOr<std::shared_ptr<UploadTable::Upload>> UploadTable::FindOwn(const Caller& caller, uint64_t id) const {
  absl::MutexLock lock(&mutex_);
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return Aborted("upload {}: not known (never given, over, or expired); ask QueryUpdate", id);
  if (it->second->header.key.client != caller.client())
    return PermissionDenied("upload {}: belongs to another client than '{}'", id, caller.client());
  return it->second;
}

absl::StatusOr<v1::UpdateStatus> UploadTable::Finish(const std::shared_ptr<Upload>& upload, const UploadHeader& header) {
  UploadGrant grant;
  ScanResult scan;
  {
    absl::MutexLock lock(&upload->mutex);
    if (!upload->grant.object.valid()) return FailedPrecondition("job '{}' has ended", upload->header.job);  // dropped meanwhile
    grant = std::move(upload->grant);
    scan = upload->scan;
  }
  TRIB_CRASH_POINT(ingress_before_seal);
  const absl::Status status = backend_->AcceptUpdate(header, std::move(grant.object), scan);
  // Only now: until the backend knows the update, the table answers for it.
  Erase(*upload);
  {
    absl::MutexLock lock(&upload->mutex);
    upload->state = Upload::State::kGone;
  }
  TRIB_RETURN_IF_ERROR(status);
  TRIB_CRASH_POINT(ingress_before_answer);
  v1::UpdateStatus out;
  *out.mutable_key() = KeyToProto(header.job, header.key.task, header.key.update);
  out.set_state(v1::UPDATE_STATE_ACCEPTED);
  out.set_next_offset(header.bytes);
  return out;
}

std::optional<v1::UpdateStatus> UploadTable::Find(const Caller& caller, const CheckedKey& key) const {
  std::shared_ptr<Upload> upload;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = by_slot_.find(Slot{key.job, caller.client(), key.task});
    if (it == by_slot_.end() || it->second->header.key.update != key.update) return std::nullopt;
    upload = it->second;
  }
  absl::MutexLock lock(&upload->mutex);
  if (upload->state == Upload::State::kGone) return std::nullopt;
  return Partial(*upload, upload->next_offset);
}

void UploadTable::Erase(const Upload& upload) {
  absl::MutexLock lock(&mutex_);
  by_id_.erase(upload.id);
  const auto it = by_slot_.find(Slot{upload.header.job, upload.header.key.client, upload.header.key.task});
  if (it != by_slot_.end() && it->second.get() == &upload) by_slot_.erase(it);
}

void UploadTable::Drop(const std::shared_ptr<Upload>& upload, const absl::Status& status) {
  Erase(*upload);
  UploadGrant grant;  // goes back to the pool outside the lock
  std::shared_ptr<StreamEnd> stream;
  {
    absl::MutexLock lock(&upload->mutex);
    upload->state = Upload::State::kGone;
    grant = std::move(upload->grant);
    stream = upload->stream.lock();
  }
  if (stream != nullptr) stream->End(status);
}

std::vector<std::shared_ptr<UploadTable::Upload>> UploadTable::All() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Upload>> all;
  all.reserve(by_id_.size());
  for (const auto& entry : by_id_) all.push_back(entry.second);
  return all;
}

bool UploadTable::ForgetTask(const Caller& caller, const std::string& job, uint64_t task) {
  std::shared_ptr<Upload> upload;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = by_slot_.find(Slot{job, caller.client(), task});
    if (it == by_slot_.end()) return false;
    upload = it->second;
  }
  {
    absl::MutexLock lock(&upload->mutex);
    if (upload->state != Upload::State::kOpen) return false;
  }
  Drop(upload, Aborted("upload {}: its client has given it up", upload->id));
  return true;
}

void UploadTable::ForgetJob(const std::string& job) {
  for (const auto& upload : All()) {
    if (upload->header.job == job) Drop(upload, FailedPrecondition("job '{}' has ended", job));
  }
}

void UploadTable::Sweep() {
  const absl::Time now = clock_->Now();
  for (const auto& upload : All()) {
    bool over = false;
    {
      absl::MutexLock lock(&upload->mutex);
      over = upload->state == Upload::State::kOpen && upload->last_byte + options_.lease <= now;
    }
    if (over) Drop(upload, DeadlineExceeded("upload {}: no byte for {}", upload->id, absl::FormatDuration(options_.lease)));
  }
}

void UploadTable::Clear() {
  for (const auto& upload : All()) Drop(upload, Unavailable("the aggregator is going away"));
}

size_t UploadTable::size() const {
  absl::MutexLock lock(&mutex_);
  return by_id_.size();
}

}  // namespace tributary::aggregator
