#include "client/rpc/upload.h"

#include <algorithm>
#include <optional>

#include "client/rpc/local_transfer.h"
#include "common/crash_points.h"
#include "common/digest.h"
#include "proto/chunk_codec.h"
#include "proto/codec.h"
#include "proto/moe_codec.h"

namespace tributary::client {
namespace {

constexpr absl::Duration kUnaryTimeout = absl::Seconds(30);
constexpr uint64_t kDefaultChunkBytes = 256 << 10;
constexpr uint64_t kMaxChunkBytes = 2 << 20;  // under gRPC's 4 MiB message limit
constexpr int kMaxPushes = 1000;              // of one attempt: a server may close a healthy stream now and then

class Upload {
 public:
  Upload(Connection& connection, const Identity& identity, const std::shared_ptr<const OutboxEntry>& entry)
      : connection_(connection), identity_(identity), entry_(entry), header_(entry->header) {}

  std::variant<Verdict, CallError> Run(bool retry) {
    std::optional<v1::UpdateStatus> status;
    if (retry) {
      v1::UpdateStatus known;
      if (CallError error = Query(&known); !error.status.ok()) return error;
      status = std::move(known);
    }
    for (int push = 0; push < kMaxPushes; ++push) {
      if (!status.has_value() || status->state() == v1::UPDATE_STATE_UNKNOWN ||
          (status->state() == v1::UPDATE_STATE_PARTIAL && status->upload_id() == 0)) {
        v1::UpdateStatus begun;
        if (CallError error = BeginUpload(connection_, identity_, header_, &begun); !error.status.ok()) return Permanent(std::move(error));
        if (begun.state() == v1::UPDATE_STATE_PARTIAL && begun.upload_id() == 0) {
          return CallError{Internal("BeginUpload of {} answered PARTIAL without an upload id", ToHex(header_.update)), {}};
        }
        status = std::move(begun);
      }
      const Verdict verdict = VerdictFromProto(*status);
      if (verdict.state == UpdateState::kUnknown) {
        return CallError{Internal("upload of {}: the server answered with state {}", ToHex(header_.update),
                                  static_cast<int>(status->state())), {}};
      }
      if (verdict.state != UpdateState::kPartial) return verdict;
      const uint64_t offset = status->next_offset();
      if (offset > header_.bytes) {
        return CallError{Internal("upload of {}: {} bytes, but the server asks for offset {}", ToHex(header_.update), header_.bytes,
                                  offset), {}};
      }
      v1::UpdateStatus pushed;
      if (CallError error = LocallyOrPush(*status, &pushed); !error.status.ok()) return error;
      TRIB_CRASH_POINT(upload_after_answer);
      if (pushed.state() == v1::UPDATE_STATE_PARTIAL) {
        if (pushed.next_offset() <= offset) {
          return CallError{Unavailable("upload of {} did not get beyond {} of {} bytes", ToHex(header_.update), offset, header_.bytes), {}};
        }
        if (pushed.upload_id() == 0) pushed.set_upload_id(status->upload_id());
        if (pushed.chunk_bytes() == 0) pushed.set_chunk_bytes(status->chunk_bytes());
      }
      status = std::move(pushed);
    }
    return CallError{Unavailable("upload of {}: the server ended {} streams early", ToHex(header_.update), kMaxPushes), {}};
  }

 private:
  static std::variant<Verdict, CallError> Permanent(CallError error) {
    switch (error.status.code()) {
      case absl::StatusCode::kInvalidArgument:
      case absl::StatusCode::kAlreadyExists:
        return Verdict{UpdateState::kRejected, 0, MessageOf(error.status)};
      case absl::StatusCode::kNotFound:
        return Verdict{UpdateState::kExpired, 0, MessageOf(error.status)};
      default:
        return error;
    }
  }

  CallError Query(v1::UpdateStatus* status) {
    Connection::Call call(connection_, identity_, kUnaryTimeout);
    v1::QueryUpdateRequest request;
    *request.add_keys() = KeyToProto(header_.job, header_.task, header_.update);
    v1::QueryUpdateResponse response;
    if (const grpc::Status done = connection_.data().QueryUpdate(&call.context(), request, &response); !done.ok()) {
      return Connection::ErrorOf(done, "QueryUpdate");
    }
    if (response.updates_size() != 1) return {Internal("QueryUpdate: 1 answer expected, got {}", response.updates_size()), {}};
    *status = std::move(*response.mutable_updates(0));
    return {};
  }

  CallError LocallyOrPush(const v1::UpdateStatus& from, v1::UpdateStatus* status) {
    if (connection_.local_address().empty()) return Push(from, status);
    absl::StatusOr<v1::UpdateStatus> pushed = PushLocally(connection_, identity_, from.upload_id(), *entry_, header_.bytes, header_.xxh3_128);
    if (!pushed.ok() && ForgetLocalAddress(connection_, pushed.status())) return Push(from, status);
    if (!pushed.ok()) return {pushed.status(), {}};
    *status = *std::move(pushed);
    return {};
  }

  CallError Push(const v1::UpdateStatus& from, v1::UpdateStatus* status) {
    PushStream stream(connection_, identity_, entry_, from);
    stream.Send(header_.bytes, header_.xxh3_128);
    return stream.Finish(status);
  }

  Connection& connection_;
  const Identity& identity_;
  const std::shared_ptr<const OutboxEntry>& entry_;
  const OutboxHeader& header_;
};

}  // namespace

CallError BeginUpload(Connection& connection, const Identity& identity, const OutboxHeader& header, v1::UpdateStatus* status) {
  Connection::Call call(connection, identity, kUnaryTimeout);
  v1::BeginUploadRequest request;
  *request.mutable_key() = KeyToProto(header.job, header.task, header.update);
  request.set_version(header.version);
  request.set_layout(header.layout);
  request.set_codec(header.codec);
  request.set_bytes(header.bytes);
  request.set_xxh3_128(header.xxh3_128);
  request.set_weight(header.weight);
  request.set_examples(header.examples);
  for (const auto& [name, value] : header.metrics) (*request.mutable_metrics())[name] = value;
  for (const auto& [name, value] : header.scalars) (*request.mutable_scalars())[name] = value;
  if (!header.moe.empty()) *request.mutable_moe() = MoeStatsToProto(header.moe);
  if (const grpc::Status done = connection.data().BeginUpload(&call.context(), request, status); !done.ok()) {
    return Connection::ErrorOf(done, "BeginUpload");
  }
  return {};
}

PushStream::PushStream(Connection& connection, const Identity& identity, std::shared_ptr<const OutboxEntry> entry, const v1::UpdateStatus& from)
    : entry_(std::move(entry)), upload_id_(from.upload_id()),
      chunk_bytes_(std::clamp<uint64_t>(from.chunk_bytes() == 0 ? kDefaultChunkBytes : from.chunk_bytes(), 1, kMaxChunkBytes)), offset_(from.next_offset()),
      call_(connection, identity, absl::Minutes(10) + absl::Seconds(static_cast<double>(entry_->header.bytes - offset_) / 65536.0)),
      raw_(connection, call_, "PushUpdate") {}

bool PushStream::Send(uint64_t end, const std::string& xxh3_128) {
  bool announce = !xxh3_128.empty();
  while (writing_ && (offset_ < end || announce)) {
    const std::span<const std::byte> part = entry_->payload.bytes().subspan(offset_, std::min<uint64_t>(chunk_bytes_, end - offset_));
    ChunkFields fields{.upload_id = upload_id_, .offset = offset_, .crc32c = Crc32c(part), .total_bytes = 0, .sha256 = "", .xxh3_128 = ""};
    offset_ += part.size();
    if (offset_ == end) {
      fields.xxh3_128 = xxh3_128;
      announce = false;
    }
    writing_ = raw_.Write(EncodeChunk(fields, part, entry_));
    TRIB_CRASH_POINT(upload_after_first_chunk);
  }
  return writing_;
}

CallError PushStream::Finish(v1::UpdateStatus* status) {
  if (writing_) raw_.WritesDone();
  // A server may answer before it has read all; then the answer is there although writing failed.
  grpc::ByteBuffer answer;
  const bool answered = raw_.Read(&answer);
  if (const grpc::Status done = raw_.Finish(); !done.ok()) return Connection::ErrorOf(done, "PushUpdate");
  if (!answered) return {Internal("PushUpdate of {} ended without an answer", ToHex(entry_->header.update)), {}};
  if (const grpc::Status parsed = grpc::SerializationTraits<v1::UpdateStatus>::Deserialize(&answer, status); !parsed.ok()) {
    return Connection::ErrorOf(parsed, "PushUpdate's answer");
  }
  return {};
}

v1::UpdateKey ToProto(const OutboxKey& key) { return KeyToProto(key.job, key.task, key.update); }

absl::StatusOr<OutboxKey> OutboxKeyFromProto(const v1::UpdateKey& key) {
  TRIB_ASSIGN_OR_RETURN(CheckedKey checked, KeyFromProto(key));
  return OutboxKey{std::move(checked.job), checked.task, checked.update};
}

Verdict VerdictFromProto(const v1::UpdateStatus& status) {
  switch (status.state()) {
    case v1::UPDATE_STATE_PARTIAL: return {UpdateState::kPartial, 0, ""};
    case v1::UPDATE_STATE_ACCEPTED: return {UpdateState::kAccepted, 0, ""};
    case v1::UPDATE_STATE_JOURNALED: return {UpdateState::kJournaled, 0, ""};
    case v1::UPDATE_STATE_COMMITTED: return {UpdateState::kCommitted, status.version(), ""};
    case v1::UPDATE_STATE_REJECTED: return {UpdateState::kRejected, 0, status.reason()};
    case v1::UPDATE_STATE_EXPIRED: return {UpdateState::kExpired, 0, status.reason()};
    default: return {UpdateState::kUnknown, 0, ""};
  }
}

std::variant<Verdict, CallError> UploadUpdate(Connection& connection, const Identity& identity,
                                              const std::shared_ptr<const OutboxEntry>& entry, bool retry) {
  return Upload(connection, identity, entry).Run(retry);
}

}  // namespace tributary::client
