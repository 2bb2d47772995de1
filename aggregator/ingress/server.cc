#include "aggregator/ingress/server.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

#include "aggregator/ingress/admin_service.h"
#include "aggregator/ingress/chunk_crcs.h"
#include "aggregator/ingress/federation_service.h"
#include "aggregator/ingress/local_server.h"
#include "aggregator/ingress/relay_service.h"
#include "aggregator/ingress/stream_watch.h"
#include "aggregator/ingress/upload_table.h"
#include "common/ids.h"

namespace tributary::aggregator {
namespace {

constexpr int kMaxAdminThreads = 64;  // calls of Admin and Relay under way at once; more are refused by gRPC

absl::Status CheckOptions(const GrpcServerOptions& options) {
  if (options.chunk_bytes < 4096 || options.chunk_bytes + 4096 > options.max_message_bytes)
    return InvalidArgument("chunk_bytes: expected 4096 to max_message_bytes - 4096, got {}", options.chunk_bytes);
  if (options.max_message_bytes > (size_t{1} << 30))
    return InvalidArgument("max_message_bytes: expected at most 2^30, got {}", options.max_message_bytes);
  if (options.quota_bytes < (size_t{1} << 20)) return InvalidArgument("quota_bytes: expected at least 2^20, got {}", options.quota_bytes);
  if (options.control_queue == 0) return InvalidArgument("control_queue: expected at least 1");
  if (options.max_concurrent_streams < 1)
    return InvalidArgument("max_concurrent_streams: expected at least 1, got {}", options.max_concurrent_streams);
  if (options.reaper_interval <= absl::ZeroDuration())
    return InvalidArgument("reaper_interval: expected > 0, got {}", absl::FormatDuration(options.reaper_interval));
  return absl::OkStatus();
}

const Clock* DefaultClock() {
  static const BootClock clock;
  return &clock;
}

}  // namespace

struct GrpcServer::Impl {
  Impl(const Options& options_in, FederationBackend* federation_backend, AdminBackend* admin_backend, RelayBackend* relay_backend)
      : options(options_in), clock(options.clock != nullptr ? options.clock : DefaultClock()),
        local_address(options.local_transfer ? "tributary-" + RandomHex(16) : ""),
        uploads({options.chunk_bytes, options.upload_lease}, federation_backend, clock), crcs(options.chunk_bytes),
        federation({federation_backend, &uploads, &watch, &crcs, clock, options.chunk_bytes, options.control_queue, local_address,
                    options.hello_timeout, options.stall_timeout}),
        admin({options.max_spec_bytes, options.max_tensors_bytes}, local_address, admin_backend) {
    if (relay_backend != nullptr) {
      relay = std::make_unique<RelayService>(RelayService::Options{federation_backend, relay_backend, &watch, clock, options.stall_timeout});
    }
  }

  absl::Status Listen();
  void Reap(const std::stop_token& stop);

  const Options options;
  const Clock* const clock;
  const std::string local_address;
  StreamWatch watch;
  UploadTable uploads;
  ChunkCrcCache crcs;
  FederationService federation;
  AdminService admin;
  std::unique_ptr<RelayService> relay;  // null: no nodes below
  int port = 0;
  std::unique_ptr<LocalServer> local;
  std::unique_ptr<grpc::Server> server;
  absl::Mutex reaper_mutex;
  bool reaper_stop ABSL_GUARDED_BY(reaper_mutex) = false;
  std::once_flag shut_down;
  std::jthread reaper;
};

absl::Status GrpcServer::Impl::Listen() {
  // All are settings of the process; the first two are read when a server is built. protobuf would write a line to stderr for each
  // malformed message, which clients could use to fill a disk; here every parse error becomes a status.
  static std::once_flag plugins;
  std::call_once(plugins, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    google::protobuf::SetLogHandler(nullptr);
  });
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&federation);
  builder.RegisterService(&admin);
  if (relay != nullptr) builder.RegisterService(relay.get());
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
  grpc::ResourceQuota quota("ingress");
  quota.Resize(options.quota_bytes);
  quota.SetMaxThreads(kMaxAdminThreads);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
  // A compressed message of a few KiB may become gigabytes; floats do not compress anyway.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second daemon on the same port must fail, not share
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_time)));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_timeout)));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Clients ping as often as we do; gRPC's default would call that abuse and close the connection.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_time / 4)));
  server = builder.BuildAndStart();
  if (server == nullptr || port == 0) return Unavailable("address '{}': cannot listen there (in use, or not of this machine)", options.address);
  return absl::OkStatus();
}

void GrpcServer::Impl::Reap(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    {
      absl::MutexLock lock(&reaper_mutex);
      reaper_mutex.AwaitWithTimeout(absl::Condition(&reaper_stop), options.reaper_interval);
    }
    watch.Sweep(clock->Now());
    uploads.Sweep();
  }
}

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const Options& options, FederationBackend* federation, AdminBackend* admin,
                                                              RelayBackend* relay) {
  TRIB_RETURN_IF_ERROR(CheckOptions(options));
  auto impl = std::make_unique<Impl>(options, federation, admin, relay);
  if (!impl->local_address.empty()) {
    TRIB_ASSIGN_OR_RETURN(impl->local, LocalServer::Start(impl->local_address, federation, admin, {options.max_spec_bytes, options.max_tensors_bytes},
                                                             &impl->uploads));
  }
  TRIB_RETURN_IF_ERROR(impl->Listen());
  impl->reaper = std::jthread([raw = impl.get()](const std::stop_token& stop) { raw->Reap(stop); });
  auto server = std::unique_ptr<GrpcServer>(new GrpcServer(std::move(impl)));
  server->SetServing(false);
  return server;
}

int GrpcServer::port() const { return impl_->port; }

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* const health = impl_->server->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus(serving);
  health->SetServingStatus(v1::Federation::service_full_name(), serving);
  health->SetServingStatus(v1::Admin::service_full_name(), serving);
  if (impl_->relay != nullptr) health->SetServingStatus(v1::Relay::service_full_name(), serving);
}

void GrpcServer::ForgetJob(const std::string& job) { impl_->uploads.ForgetJob(job); }

size_t GrpcServer::partial_uploads() const { return impl_->uploads.size(); }

void GrpcServer::Shutdown(absl::Duration grace) {
  std::call_once(impl_->shut_down, [&] {
    impl_->admin.Stop();
    if (impl_->relay != nullptr) impl_->relay->Stop();
    impl_->watch.EndEndless(Unavailable("the aggregator is going away"));
    impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + grace));  // gRPC's deadlines are wall clock
    impl_->local.reset();
    impl_->reaper.request_stop();
    {
      absl::MutexLock lock(&impl_->reaper_mutex);
      impl_->reaper_stop = true;
    }
    impl_->reaper.join();
    impl_->uploads.Clear();
  });
}

}  // namespace tributary::aggregator
