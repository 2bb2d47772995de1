// A Federation service in this process that misbehaves from a seed: cuts uploads and downloads at random bytes, forgets what it
// held, pushes back, loses answers, and can be stopped and started again on the same port. What it accepted it keeps per update id,
// with the number of times it was counted, so that a test can compare with what the learners made.
// Threads: safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "client/core/session.h"
#include "common/tensor_layout.h"
#include "tributary/v1/federation.grpc.pb.h"

namespace tributary::client {

struct FakeFaults {
  double cut_push = 0;      // after some chunk the call fails; bytes so far are kept
  double early_partial = 0; // after some chunk the call ends well with PARTIAL
  double lose_answer = 0;   // accepted, but the call fails
  double push_back = 0;     // BeginUpload: RESOURCE_EXHAUSTED with a short RetryInfo
  double cut_fetch = 0;     // after some chunk
  double corrupt_fetch = 0; // a chunk's crc is wrong
  double drop_attach = 0;   // per task round: the control stream is ended
  uint32_t chunk_bytes = 1000;
};

class FakeServer final : public v1::Federation::Service {
 public:
  struct Held {
    v1::BeginUploadRequest header;
    std::string bytes;
    bool accepted = false;
    int counted = 0;         // times it went from unaccepted to accepted since the server last forgot it
    std::string client;
    bool early = false;      // begun without its digest
  };

  FakeServer(const TensorLayout& layout, std::string spec_yaml, FakeFaults faults, uint32_t seed);
  ~FakeServer() override;
  // port 0: any. Returns the port.
  int Start(int port = 0);
  // Ends all calls. `forget`: what was not committed is lost, as after kill -9.
  void Stop(bool forget);

  // Each attached client gets tasks for versions 0, 1, … `rounds - 1`: the next once its update of the last is committed.
  void SetRounds(uint64_t rounds);
  void SetFaults(const FakeFaults& faults);
  // Sends to all attached clients; the clients need not exist.
  void CancelTasks();
  // True when `clients` clients each have `rounds` committed updates.
  bool WaitCommitted(size_t clients, absl::Duration timeout);
  bool WaitAttached(size_t clients, absl::Duration timeout);
  bool WaitDeclined(size_t count, absl::Duration timeout);
  // True when an update that is not accepted yet has at least so many bytes here.
  bool WaitHeld(size_t bytes, absl::Duration timeout);
  bool Accepted(const UpdateId& update) const;
  bool WaitHeartbeat(absl::Duration timeout);
  v1::Heartbeat LastHeartbeat() const;  // there is one

  std::vector<Held> Committed() const;      // in no order
  std::vector<std::string> Declines() const;
  std::vector<v1::EvaluationReport> Evaluations() const;
  std::vector<std::string> Violations() const;  // of the protocol, by the client
  std::string Model(uint64_t version) const;
  // The far ends (address and port) of the connections that control streams came over, and of those of all other calls.
  std::set<std::string> control_peers() const;
  std::set<std::string> data_peers() const;
  uint64_t fetches() const;
  uint64_t pushes() const;
  void SendEvaluateTasks(bool on);

  grpc::Status Attach(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>* stream) override;
  grpc::Status FetchModel(grpc::ServerContext* context, const v1::FetchModelRequest* request, grpc::ServerWriter<v1::DataChunk>* writer) override;
  grpc::Status BeginUpload(grpc::ServerContext* context, const v1::BeginUploadRequest* request, v1::UpdateStatus* status) override;
  grpc::Status PushUpdate(grpc::ServerContext* context, grpc::ServerReader<v1::DataChunk>* reader, v1::UpdateStatus* status) override;
  grpc::Status QueryUpdate(grpc::ServerContext* context, const v1::QueryUpdateRequest* request, v1::QueryUpdateResponse* response) override;

 private:
  bool Chance(double probability) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fill(const std::string& update, v1::UpdateStatus* status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool Announce(Held& held, const std::string& xxh3_128);
  void Commit(Held& held) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string IdentityOf(grpc::ServerContext& context, bool control = false) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Violation(std::string text) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { violations_.push_back(std::move(text)); }

  const TensorLayout layout_;
  const std::string spec_yaml_;
  std::unique_ptr<grpc::Server> server_;
  mutable absl::Mutex mutex_;
  FakeFaults faults_ ABSL_GUARDED_BY(mutex_);
  std::mt19937 random_ ABSL_GUARDED_BY(mutex_);
  uint64_t rounds_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_task_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t next_upload_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;  // of the running server: calls of an older one must end
  bool evaluate_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t cancel_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, std::string> secrets_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Held> updates_ ABSL_GUARDED_BY(mutex_);            // by update id
  std::map<uint64_t, std::string> uploads_ ABSL_GUARDED_BY(mutex_);        // upload id -> update id
  std::map<std::string, Held> committed_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> progress_ ABSL_GUARDED_BY(mutex_);       // client -> committed versions
  std::map<std::string, std::pair<uint64_t, uint64_t>> open_ ABSL_GUARDED_BY(mutex_);  // client -> task, version
  std::set<std::string> attached_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> declines_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::Heartbeat> heartbeat_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::EvaluationReport> evaluations_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> violations_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> control_peers_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> data_peers_ ABSL_GUARDED_BY(mutex_);
  uint64_t fetches_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t pushes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace tributary::client
