// Several nodes, one job: what the coordinator keeps about nodes below it (it is the top), and about the top above it (it is a node). Which
// of the two it is for a job the job's row says. The messages are proto/tributary/v1/relay.proto's.
//
// Top. The engine counts the updates that nodes are to bring as expected (NodesExpected) and a partial's contributors like its own; sums of
// partials meet in NodeSums and join the workers' sums in the commit. What a partial brought is not journalled here: its node keeps it
// until a version names it.
//
// Node. A job of the top runs the ordinary engine, with a cohort of as many updates as the top asks for. Where a commit would come, one
// partial goes up; a version is adopted (manifest, model, dedupe rows, one synced batch) when the top has it, and only then
// COMMITTED is said.
//
// Threads: values and records are guarded by the coordinator's mutex; NodeSums by its own.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/reducer.h"
#include "aggregator/core/round.h"
#include "common/large_bytes.h"
#include "common/status.h"
#include "proto/relay_codec.h"
#include "tributary/v1/relay.pb.h"

namespace tributary::aggregator {

// The sending half of a node's control stream. Called from any thread, without blocking; order is kept.
class NodeSink {
 public:
  virtual ~NodeSink() = default;
  virtual void Send(v1::TopMessage message) = 0;
  virtual void Close(const absl::Status& status) = 0;
};

// The way to the top, as a node sees it. Every method blocks for a network round trip or a transfer, none for longer than the connection
// lives; UNAVAILABLE: not connected. Threads: safe.
class Upstream {
 public:
  virtual ~Upstream() = default;
  // `sums`: the pieces that the partial's bytes consist of, in order.
  virtual absl::StatusOr<v1::PartialAnswer> Push(const CheckedPartial& partial, std::span<const std::span<const std::byte>> sums) = 0;
  virtual absl::StatusOr<v1::RelayVersion> GetVersion(const std::string& job, uint64_t version) = 0;
  // Exactly out.size() bytes; the caller compares hashes.
  virtual absl::Status FetchModel(const std::string& job, uint64_t version, std::span<std::byte> out) = 0;
  virtual absl::Status FetchArtifact(const std::string& job, std::string* out) = 0;
  virtual void Report(const v1::NodeReport& report) = 0;  // does not block
};

// ---- the top's ----

struct NodeRecord {
  std::string name;
  uint32_t id = 0;                 // for placement; 0 is the top itself
  uint64_t session = 0;            // 0: not attached
  std::shared_ptr<NodeSink> sink;  // shared with who sends
  uint64_t epoch = 0;              // highest seen
  double capacity = 0;
  int64_t clients = 0;
  absl::Time last_seen = absl::InfinitePast();
  absl::Time given_up = absl::InfiniteFuture();  // when what it was asked for goes to others
  std::set<std::string> jobs_sent;
};

// What one node is to bring, or has brought, for a job's open version.
struct NodeShare {
  uint64_t goal = 0;
  bool arrived = false;       // its partial is in, or on its way into, the sums
  uint64_t updates = 0;       // in it
  std::string digest;         // of its contributors
  bool told = false;          // of this version; then it hears of the next one too
};

// Σ over the partials of one aggregate.
class NodeSums {
 public:
  // Adds a partial that CheckSums has let through. False: overflow, what is here is undefined.
  bool Merge(const Reducer& reducer, std::span<const std::byte> partial, size_t float_count, size_t counter_count) ABSL_LOCKS_EXCLUDED(mutex_);
  // Adds the workers' own sums, if any, and gives the whole. Called once, when nothing is merged any more. FAILED_PRECONDITION on overflow.
  absl::Status Finish(const Reducer& reducer, std::span<const StatePiece> own, std::span<const int64_t> own_counters) ABSL_LOCKS_EXCLUDED(mutex_);
  std::span<const std::byte> floats() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return floats_; }    // after Finish
  std::span<const int64_t> counters() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return counters_; }  // likewise

 private:
  absl::Mutex mutex_;
  LargeBytes floats_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> counters_ ABSL_GUARDED_BY(mutex_);
};

struct JobNodes {
  std::map<std::string, NodeShare> shares;  // by node
  absl::Time stuck_since = absl::InfiniteFuture();  // when the last one who could bring what is missing had brought it
  std::map<std::string, int64_t> gathered;  // by node: its clients when all were told to send again; reset with each version
  std::shared_ptr<NodeSums> sums;           // null: no partial came for the open aggregate; shared with a merge under way
};

// Room for a partial's bytes, or the answer that needs none.
struct PartialAdmission {
  v1::PartialAnswer answer;
  LargeBytes sums;                          // SEND only
  size_t float_bytes = 0;
  double limit = 0;                         // of CheckSums
};

// ---- the node's ----

// A job that belongs to the top.
struct RelayedJob {
  uint64_t goal = 0;
  uint64_t top_version = 0;                 // committed up there
  uint64_t fence = 0;                       // of the newest round
  bool known = false;                       // a round was heard of since this process started
  bool catch_up = false;                    // adopt every version even if nothing is wanted: clients may have updates in them
  std::optional<Commit> commit;             // what waits for a version of the top: its sums stay where they are
  bool push = false;                        // it is to be sent (again)
  bool gather = false;                      // or rather, with more updates than it has: they all have to come again
  bool taken = false;                       // the top said so
  bool busy = false;                        // the relay thread is at it
  absl::Time not_before = absl::InfinitePast();
  std::optional<v1::RelayJobEnded> ended;
  absl::Time short_since = absl::InfiniteFuture();  // when the last client that it could ask for what it lacks went
  std::string trouble;                      // the last thing that went wrong, for people
};

}  // namespace tributary::aggregator
