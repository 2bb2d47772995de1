// The way from this node to the one above it: keeps a control stream up, and carries partials up and versions down.
//
// One thread keeps the stream: connects, says hello, hands on what comes, and begins again with growing pauses when it breaks. Every other
// method blocks its caller for one call; all fail with UNAVAILABLE while there is no connection, and with CANCELLED after Stop().
// What comes from above is checked (proto/relay_codec.h) before it is handed on; a malformed message ends the stream.
// Threads: safe. Callbacks come from the thread inside.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>

#include "common/status.h"
#include "proto/relay_codec.h"
#include "tributary/v1/federation.grpc.pb.h"
#include "tributary/v1/relay.grpc.pb.h"

namespace tributary::aggregator {

class RelayClient {
 public:
  struct Options {
    std::string address;  // HOST:PORT of the node above
    std::string name;     // of this node
    std::string secret;   // 64 hex digits
  };
  struct Callbacks {
    std::function<v1::NodeHello()> hello;
    std::function<void(const v1::TopMessage&)> message;
  };
  explicit RelayClient(const Options& options);
  ~RelayClient();
  // Called once. `callbacks` must stay callable until Stop().
  void Start(Callbacks callbacks);
  // Ends the stream and every call under way. No callback comes after it returned.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  absl::StatusOr<v1::PartialAnswer> Push(const CheckedPartial& partial, std::span<const std::span<const std::byte>> sums);
  absl::StatusOr<v1::RelayVersion> GetVersion(const std::string& job, uint64_t version);
  absl::Status FetchModel(const std::string& job, uint64_t version, std::span<std::byte> out);
  absl::Status FetchArtifact(const std::string& job, std::string* out);
  // The newest report is sent soon, if there is a stream.
  void Report(const v1::NodeReport& report) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Call;  // a client context that Stop() can cancel
  void Keep(const std::stop_token& stop);
  absl::Status RunStream(const std::stop_token& stop, bool* welcomed);
  absl::Status Fetch(const v1::FetchModelRequest& request, const std::function<absl::Status(const v1::DataChunk&)>& take);

  const Options options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Relay::Stub> relay_;
  const std::unique_ptr<v1::Federation::Stub> federation_;
  Callbacks callbacks_;
  absl::Mutex mutex_;
  absl::CondVar wake_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::NodeReport> report_ ABSL_GUARDED_BY(mutex_);
  bool streaming_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread keeper_;
};

}  // namespace tributary::aggregator
