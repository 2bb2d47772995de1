#include "client/rpc/connection.h"

#include <utility>

#include "proto/grpc_status.h"

namespace tributary::client {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& server) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5'000);  // despite its name: the time a connection attempt gets
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);                // retries are the sessions' business, by update key
  args.SetMaxReceiveMessageSize(16 << 20);                // JobInfo of a model with very many tensors
  // Otherwise gRPC shares one socket between equal channels of a process, those of one Connection among them.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), args);
}

}  // namespace

Connection::Connection(const std::string& server)
    : server_(server), control_(v1::Federation::NewStub(MakeChannel(server))), data_channel_(MakeChannel(server)),
      data_(v1::Federation::NewStub(data_channel_)), generic_(data_channel_) {}

void Connection::set_local_address(std::string address) {
  absl::MutexLock lock(&mutex_);
  local_address_ = std::move(address);
}

std::string Connection::local_address() const {
  absl::MutexLock lock(&mutex_);
  return local_address_;
}

void Connection::AddIdentity(grpc::ClientContext& context, const Identity& identity) {
  context.AddMetadata("tributary-client", identity.client);
  context.AddMetadata("tributary-secret", identity.secret);
}

Connection::Call::Call(Connection& connection, const Identity& identity, absl::Duration timeout) : connection_(connection) {
  AddIdentity(context_, identity);
  context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  absl::MutexLock lock(&connection_.mutex_);
  connection_.calls_.insert(&context_);
  if (connection_.cancelled_) context_.TryCancel();
}

Connection::Call::~Call() {
  absl::MutexLock lock(&connection_.mutex_);
  connection_.calls_.erase(&context_);
}

void Connection::CancelAll() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (grpc::ClientContext* context : calls_) context->TryCancel();
}

bool Connection::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

bool Connection::Sleep(absl::Duration time) const {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), time);
}

CallError Connection::ErrorOf(const grpc::Status& status, const std::string& what) {
  return {Annotate(FromGrpc(status), what), RetryDelayOf(status)};
}

bool IsRetryable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return false;
    default:
      return true;
  }
}

}  // namespace tributary::client
