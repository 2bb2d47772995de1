// The gRPC face of the aggregator: services Federation, Admin and Relay, grpc.health.v1 and reflection on one port.
//
// Everything that arrives is untrusted; it is checked here (proto/codec.h) before a backend sees it. Partial uploads live here,
// in slots that the backend granted; a backend learns of an update only when all its bytes are in and good.
//
// Memory is bounded: gRPC by a ResourceQuota, uploads by the backend's pool, control streams by `control_queue` messages each,
// fetches by one chunk each, which refers to the model's own memory.
// Lifetime: the backends must outlive the server. Watch tokens and ControlStreams that they hold may outlive it.
// Threads: all methods are safe from any thread. Callbacks into the backends come from gRPC's threads and the reaper's.
// Errors: Start gives INVALID_ARGUMENT for options out of range, UNAVAILABLE naming the address that cannot be bound.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "aggregator/ingress/backend.h"
#include "common/clock.h"
#include "common/status.h"

namespace tributary::aggregator {

struct GrpcServerOptions {
  std::string address = "127.0.0.1:0";               // host:port; port 0: the system chooses, see port()
  size_t chunk_bytes = 256 * 1024;                   // what clients are told to send, and what FetchModel sends
  // gRPC's own buffers, all connections together. Where it runs short gRPC resets streams (they resume at their offset): measured
  // by tests/bench/ingress_bench, 64 uploads of 4 MiB at once, six rounds: 68 resets with 64 MiB, 1 with 128 MiB, 0 with 256 MiB.
  size_t quota_bytes = 128 * 1024 * 1024;
  size_t max_message_bytes = 4 * 1024 * 1024;
  int max_concurrent_streams = 512;                  // on one connection (a relay or a daemon with many identities)
  absl::Duration keepalive_time = absl::Seconds(20);
  absl::Duration keepalive_timeout = absl::Seconds(10);
  absl::Duration hello_timeout = absl::Seconds(10);  // from Attach to Hello
  absl::Duration stall_timeout = absl::Seconds(30);  // an upload or fetch that moves no byte for so long is ended
  absl::Duration upload_lease = absl::Minutes(5);    // a partial upload without a byte is forgotten
  absl::Duration reaper_interval = absl::Seconds(1); // how often the three above are looked at
  size_t control_queue = 256;                        // messages queued for one client that does not read; then it is closed
  size_t max_spec_bytes = 1024 * 1024;               // SubmitJob
  uint64_t max_tensors_bytes = uint64_t{64} << 30;   // SubmitJob: tensors, and likewise the artifact
  // Clients of this host and user may exchange bulk bytes by file descriptor (local_server.h); told them in the Welcome.
  bool local_transfer = true;
  const Clock* clock = nullptr;                      // of the timeouts; null: CLOCK_BOOTTIME
};

class GrpcServer {
 public:
  using Options = GrpcServerOptions;

  // Binds and serves at once; health says NOT_SERVING until SetServing(true).
  // `relay` null: no service for nodes.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const Options& options, FederationBackend* federation, AdminBackend* admin,
                                                           RelayBackend* relay = nullptr);
  // Shutdown(0) if that was not done.
  ~GrpcServer();
  GrpcServer(const GrpcServer&) = delete;
  GrpcServer& operator=(const GrpcServer&) = delete;

  int port() const;
  // What grpc.health.v1 answers, for "" and for each service.
  void SetServing(bool serving);
  // A job has ended: its partial uploads are dropped and their slots go back to the pool. A stream that is pushing into one ends
  // with FAILED_PRECONDITION. An upload being admitted meanwhile may come later: see UploadGrant::owner.
  void ForgetJob(const std::string& job);
  // Takes no new calls, lets those under way finish for `grace`, then cancels them. Returns when no callback runs any more and
  // all partial uploads are dropped. Idempotent.
  void Shutdown(absl::Duration grace);

  // For the node's status and tests.
  size_t partial_uploads() const;

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tributary::aggregator
