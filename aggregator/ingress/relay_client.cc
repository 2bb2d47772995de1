#include "aggregator/ingress/relay_client.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/log.h"
#include "proto/grpc_status.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(2);
constexpr size_t kMaxMessage = size_t{64} << 20;            // a manifest of very many contributors
constexpr size_t kMaxArtifactBytes = size_t{64} << 30;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5'000);  // despite its name: the time a connection attempt gets
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessage));
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

}  // namespace

class RelayClient::Call {
 public:
  explicit Call(RelayClient* client) : client_(client) {
    context.AddMetadata("tributary-client", client->options_.name);
    context.AddMetadata("tributary-secret", client->options_.secret);
    absl::MutexLock lock(&client->mutex_);
    client->calls_.insert(&context);
    if (client->stopped_) context.TryCancel();
  }
  ~Call() {
    absl::MutexLock lock(&client_->mutex_);
    client_->calls_.erase(&context);
  }
  grpc::ClientContext context;

 private:
  RelayClient* const client_;
};

RelayClient::RelayClient(const Options& options)
    : options_(options), channel_(MakeChannel(options.address)), relay_(v1::Relay::NewStub(channel_)), federation_(v1::Federation::NewStub(channel_)) {}

RelayClient::~RelayClient() { Stop(); }

void RelayClient::Start(Callbacks callbacks) {
  callbacks_ = std::move(callbacks);
  keeper_ = std::jthread([this](const std::stop_token& stop) { Keep(stop); });
}

void RelayClient::Stop() {
  keeper_.request_stop();
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    for (grpc::ClientContext* const context : calls_) context->TryCancel();
    wake_.SignalAll();
  }
  if (keeper_.joinable()) keeper_.join();
}

void RelayClient::Report(const v1::NodeReport& report) {
  absl::MutexLock lock(&mutex_);
  report_ = report;
  wake_.SignalAll();
}

void RelayClient::Keep(const std::stop_token& stop) {
  absl::Duration pause = kFirstPause;
  std::string said;
  while (!stop.stop_requested()) {
    bool welcomed = false;
    const absl::Status status = RunStream(stop, &welcomed);
    if (stop.stop_requested()) return;
    if (welcomed) pause = kFirstPause;
    if (const std::string text = MessageOf(status); welcomed || text != said) {  // once, not every two seconds
      TRIB_LOG(warn, "the node above at {}: {}; trying again", options_.address, text);
      said = text;
    }
    absl::MutexLock lock(&mutex_);
    const absl::Time until = absl::Now() + pause;
    while (!stopped_ && absl::Now() < until) wake_.WaitWithDeadline(&mutex_, until);
    pause = std::min(2 * pause, kLongestPause);
  }
}

absl::Status RelayClient::RunStream(const std::stop_token& stop, bool* welcomed) {
  Call call(this);
  const auto stream = relay_->Attach(&call.context);
  v1::NodeMessage hello;
  *hello.mutable_hello() = callbacks_.hello();
  stream->Write(hello);
  {
    absl::MutexLock lock(&mutex_);
    streaming_ = true;
    report_.reset();
  }
  std::jthread writer([&] {
    while (true) {
      v1::NodeMessage message;
      {
        absl::MutexLock lock(&mutex_);
        while (!report_ && streaming_ && !stopped_) wake_.Wait(&mutex_);
        if (!streaming_ || stopped_) return;
        *message.mutable_report() = *std::exchange(report_, std::nullopt);
      }
      if (!stream->Write(message)) return;
    }
  });
  v1::TopMessage message;
  absl::Status bad;
  while (bad.ok() && stream->Read(&message)) {
    bad = CheckTopMessage(message);
    if (!bad.ok()) call.context.TryCancel();
    if (bad.ok() && message.has_welcome()) {
      *welcomed = true;
      TRIB_LOG(info, "below the node at {}", options_.address);
    }
    if (bad.ok() && !stop.stop_requested()) callbacks_.message(message);
  }
  {
    absl::MutexLock lock(&mutex_);
    streaming_ = false;
    wake_.SignalAll();
  }
  writer.join();
  const absl::Status status = FromGrpc(stream->Finish());
  if (!bad.ok()) return bad;
  return status.ok() ? Unavailable("it ended the stream") : status;
}

absl::StatusOr<v1::PartialAnswer> RelayClient::Push(const CheckedPartial& partial, std::span<const std::span<const std::byte>> sums) {
  Call call(this);
  const auto stream = relay_->PushPartial(&call.context);
  const auto ended = [&]() -> absl::Status {
    call.context.TryCancel();
    const absl::Status status = FromGrpc(stream->Finish());
    return status.ok() ? Unavailable("PushPartial ended without an answer") : status;
  };
  v1::PartialMessage message;
  *message.mutable_header() = PartialToProto(partial);
  v1::PartialAnswer answer;
  if (!stream->Write(message) || !stream->Read(&answer)) return ended();
  TRIB_RETURN_IF_ERROR(CheckPartialAnswer(answer));
  if (answer.state() == v1::PARTIAL_STATE_SEND) {
    const size_t chunk_bytes = answer.chunk_bytes();
    uint64_t offset = 0;
    bool written = true;
    for (const std::span<const std::byte> piece : sums) {
      for (size_t at = 0; at < piece.size() && written; at += chunk_bytes) {
        const std::span<const std::byte> bytes = piece.subspan(at, std::min(chunk_bytes, piece.size() - at));
        v1::PartialChunk& chunk = *message.mutable_chunk();
        chunk.set_offset(offset);
        chunk.set_crc32c(Crc32c(bytes));
        chunk.set_bytes(bytes.data(), bytes.size());
        offset += bytes.size();
        written = stream->Write(message);
      }
    }
    if (!stream->Read(&answer)) return ended();
    TRIB_RETURN_IF_ERROR(CheckPartialAnswer(answer));
    if (answer.state() == v1::PARTIAL_STATE_SEND) return InvalidArgument("PushPartial: asked for the sums twice");
  }
  stream->WritesDone();
  const absl::Status status = FromGrpc(stream->Finish());
  if (!status.ok()) return status;
  return answer;
}

absl::StatusOr<v1::RelayVersion> RelayClient::GetVersion(const std::string& job, uint64_t version) {
  Call call(this);
  v1::RelayVersionRequest request;
  request.set_job(job);
  request.set_version(version);
  v1::RelayVersion response;
  TRIB_RETURN_IF_ERROR(FromGrpc(relay_->GetVersion(&call.context, request, &response)));
  return response;
}

absl::Status RelayClient::Fetch(const v1::FetchModelRequest& request, const std::function<absl::Status(const v1::DataChunk&)>& take) {
  Call call(this);
  const auto stream = federation_->FetchModel(&call.context, request);
  v1::DataChunk chunk;
  uint64_t offset = 0;
  absl::Status bad;
  while (bad.ok() && stream->Read(&chunk)) {
    const auto bytes = std::as_bytes(std::span(chunk.bytes().data(), chunk.bytes().size()));
    if (chunk.offset() != offset) {
      bad = DataLoss("job {}: a chunk at {} came, expected {}", request.job(), chunk.offset(), offset);
    } else if (Crc32c(bytes) != chunk.crc32c()) {
      bad = DataLoss("job {}: the chunk at {} has another CRC32C than announced", request.job(), offset);
    } else {
      bad = take(chunk);
    }
    offset += bytes.size();
  }
  if (!bad.ok()) call.context.TryCancel();
  const absl::Status status = FromGrpc(stream->Finish());
  return bad.ok() ? status : bad;
}

absl::Status RelayClient::FetchModel(const std::string& job, uint64_t version, std::span<std::byte> out) {
  v1::FetchModelRequest request;
  request.set_job(job);
  request.set_version(version);
  size_t done = 0;
  TRIB_RETURN_IF_ERROR(Fetch(request, [&](const v1::DataChunk& chunk) -> absl::Status {
    if (chunk.bytes().size() > out.size() - done) return DataLoss("job {} version {}: more than {} bytes came", job, version, out.size());
    std::memcpy(out.data() + done, chunk.bytes().data(), chunk.bytes().size());
    done += chunk.bytes().size();
    return absl::OkStatus();
  }));
  if (done != out.size()) return DataLoss("job {} version {}: expected {} bytes, got {}", job, version, out.size(), done);
  return absl::OkStatus();
}

absl::Status RelayClient::FetchArtifact(const std::string& job, std::string* out) {
  v1::FetchModelRequest request;
  request.set_job(job);
  request.set_artifact(true);
  out->clear();
  return Fetch(request, [&](const v1::DataChunk& chunk) -> absl::Status {
    if (chunk.bytes().size() > kMaxArtifactBytes - out->size()) return DataLoss("job {}: its artifact is over {} bytes", job, kMaxArtifactBytes);
    *out += chunk.bytes();
    return absl::OkStatus();
  });
}

}  // namespace tributary::aggregator
