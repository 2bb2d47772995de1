// Service Relay, for the nodes below this one. gRPC's synchronous API: a handful of nodes, each with one control stream and one partial at a
// time, and the thread count is bounded by the server's quota. Messages are checked here (proto/relay_codec.h) before a backend sees them.
// Threads: safe. What Options points to must outlive the service.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <set>

#include "aggregator/ingress/backend.h"
#include "aggregator/ingress/stream_watch.h"
#include "common/clock.h"
#include "tributary/v1/relay.grpc.pb.h"

namespace tributary::aggregator {

class RelayService final : public v1::Relay::Service {
 public:
  struct Options {
    FederationBackend* identities = nullptr;  // nodes have names and secrets as clients have
    RelayBackend* backend = nullptr;
    StreamWatch* watch = nullptr;
    const Clock* clock = nullptr;
    absl::Duration stall_timeout;             // of a partial under way
  };
  explicit RelayService(const Options& options) : options_(options) {}
  // Ends the control streams, and those to come.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::Status Attach(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::TopMessage, v1::NodeMessage>* stream) override;
  grpc::Status PushPartial(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::PartialAnswer, v1::PartialMessage>* stream) override;
  grpc::Status GetVersion(grpc::ServerContext* context, const v1::RelayVersionRequest* request, v1::RelayVersion* response) override;

 private:
  class Control;
  absl::Status RunAttach(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::TopMessage, v1::NodeMessage>* stream);
  // The last answer; a status where no answer can be given.
  absl::StatusOr<v1::PartialAnswer> TakePartial(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::PartialAnswer, v1::PartialMessage>* stream,
                                                StreamEnd* stall);

  const Options options_;
  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<Control*> controls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tributary::aggregator
