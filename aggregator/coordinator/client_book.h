// Clients as the coordinator sees them: ClientRecord is one client's session and doings; ClientBook binds ids to secrets.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "aggregator/coordinator/api.h"
#include "aggregator/state/state_store.h"
#include "common/status.h"
#include "tributary/v1/admin.pb.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::aggregator {

struct EvaluationAsked {
  std::string job;
  uint64_t version = 0;
  uint64_t task = 0;
};

// Guarded by the coordinator's mutex.
struct ClientRecord {
  std::string id;
  uint64_t session = 0;                     // 0: not attached
  std::shared_ptr<ClientSink> sink;         // shared with the outbound queue
  bool welcomed = false;                    // messages before the Welcome wait in `held`
  std::vector<v1::ServerMessage> held;
  v1::Hello hello;                          // of the last attach; outbox cleared
  v1::Heartbeat doing;
  std::set<std::string> jobs_sent;          // JobInfo went over this stream
  absl::Time last_seen = absl::InfinitePast();
  absl::Time detached = absl::InfinitePast();
  int64_t connected_us = 0;
  int64_t last_seen_us = 0;
  int64_t first_seen_us = 0;
  uint64_t updates_committed = 0;
  std::string last_decline;
  std::optional<EvaluationAsked> evaluating;
  std::deque<EvaluationAsked> to_evaluate;  // kMaxEvaluationsQueued at most; the oldest are skipped
  bool attached() const { return session != 0; }
};

std::string PhaseText(v1::ClientPhase phase);
v1::Client ToProto(const ClientRecord& client);

// Who may call itself what: the first secret that a client id shows is bound to it for good (trust on first use; certificates
// replace this when TLS comes). Only SHA-256 of secrets is kept.
// Threads: safe from any thread.
class ClientBook {
 public:
  ClientBook(StateStore* store, size_t max_clients) : store_(store), max_clients_(max_clients) {}
  void Load(const std::vector<v1::ClientRow>& rows);
  // PERMISSION_DENIED for another secret than the bound one; INVALID_ARGUMENT for a bad id or secret; RESOURCE_EXHAUSTED when
  // there are too many clients. A new binding is in the store, synced, before this returns OK.
  absl::Status Authenticate(const std::string& client, const std::string& secret) ABSL_LOCKS_EXCLUDED(mutex_);
  std::string SecretHash(const std::string& client) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  StateStore* const store_;
  const size_t max_clients_;
  mutable absl::Mutex mutex_;
  std::map<std::string, std::string> secrets_ ABSL_GUARDED_BY(mutex_);  // client -> SHA-256 hex
};

}  // namespace tributary::aggregator
