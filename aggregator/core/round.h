// The round engine: a pure state machine for one job. OnEvent(event, now) -> actions. No clock, thread, I/O or randomness of its
// own: the daemon, the simulator, the replayer and the fuzzer drive this same code.
//
// Life: Round is made for the current version (a fresh job: 0). It issues tasks by the admission policy, takes updates, folds
// them, and when the commit trigger closes the aggregate and every taken update is folded it asks for Commit. The executor
// commits durably and answers VersionCommitted, which opens the next version, or finishes the job.
//
//   IssueTask ──> client trains ──> UpdateArrived ──> Fold ──> UpdateFolded ──(trigger)──> Commit ──> VersionCommitted ─┐
//        ^                                                                                                             │
//        └─────────────────────────────────────────── next version ───────────────────────────────────────────────────┘
//
// Invariants: a task admits one update, and in a synchronous job a client contributes at most once to a version; an update is
// folded at most once; Commit's contributors are exactly the folded ones; after Finish no action is produced.
// Task ids are (epoch << 32) + counter, so a restarted aggregator never reuses one.
// Source: Fraboni et al. 2023 for the three policies; design.md §1.2.
// Thread-compatible. Events about tasks or clients it does not know are ignored or answered with Refuse; they never abort.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "aggregator/core/policies.h"
#include "aggregator/core/strategy.h"
#include "common/ids.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::aggregator {

struct UpdateKeyRef {
  std::string client;
  uint64_t task = 0;
  UpdateId update;
  auto operator<=>(const UpdateKeyRef&) const = default;
};

// ---- events ----
// A training client is attached and has no task of this job. `offers`: an update it still holds for the open version (after a
// restart of either side); the engine then adopts that task instead of issuing a new one.
struct ClientIdle { std::string client; std::vector<UpdateKeyRef> offers; };
struct ClientGone { std::string client; };
struct TaskDeclined { std::string client; uint64_t task = 0; std::string reason; };
// Validated and sealed by ingress. `weight` as claimed by the client.
struct UpdateArrived { UpdateKeyRef key; uint64_t version = 0; double weight = 0; uint64_t examples = 0; };
struct UpdateFolded { UpdateId update; };
// A worker found what ingress should have refused (second line of defence): it is not in the sums.
struct UpdateRefusedByWorker { UpdateId update; std::string reason; };
// The open aggregate is lost (its workers' memory is gone): contributors must send again.
struct AggregateLost { std::string reason; };
struct VersionCommitted { uint64_t version = 0; };
struct MetricReported { uint64_t version = 0; double accuracy = 0; };
struct CancelRequested { std::string reason; };
struct Tick {};
using RoundEvent = std::variant<ClientIdle, ClientGone, TaskDeclined, UpdateArrived, UpdateFolded, UpdateRefusedByWorker,
                                AggregateLost, VersionCommitted, MetricReported, CancelRequested, Tick>;

// ---- actions ----
struct IssueTask { std::string client; uint64_t task = 0; uint64_t version = 0; absl::Time deadline; };
struct CancelTask { std::string client; uint64_t task = 0; std::string reason; };
struct Fold { UpdateKeyRef key; double weight = 0; };              // effective weight
// Not counted. `expired`: nobody's fault (round closed, too stale, job over); otherwise rejected.
struct Refuse { UpdateKeyRef key; std::string reason; bool expired = false; };
struct RoundContributor { UpdateKeyRef key; double weight = 0; uint64_t examples = 0; uint64_t staleness = 0; };
struct Commit { uint64_t version = 0; std::vector<RoundContributor> contributors; double sum_weight = 0; std::string trigger; };
struct Evaluate { uint64_t version = 0; };
enum class Outcome { kDone, kFailed, kCancelled };
struct Finish { Outcome outcome = Outcome::kDone; std::string reason; };
struct WakeAt { absl::Time when; };                                // send Tick then; the newest replaces earlier ones
using RoundAction = std::variant<IssueTask, CancelTask, Fold, Refuse, Commit, Evaluate, Finish, WakeAt>;

struct RoundOptions {
  uint64_t version = 0;         // current committed version
  uint64_t epoch = 1;           // of the aggregator process: high half of task ids
  std::vector<RoundContributor> restored;  // already in the sums (a journalled partial)
};

class Round {
 public:
  // Opens the current version at `now`; call Tick (or any event) to get the first actions. `strategy` must outlive the Round.
  Round(const JobSpec& spec, const Strategy& strategy, RoundOptions options, absl::Time now);

  std::vector<RoundAction> OnEvent(const RoundEvent& event, absl::Time now);

  // Whether an upload may begin: OK, or the reason as FAILED_PRECONDITION (stale, closed), PERMISSION_DENIED (another client's
  // task), NOT_FOUND (no such task), ALREADY_EXISTS (the task has another update). Changes nothing.
  absl::Status CheckUpload(const UpdateKeyRef& key, uint64_t version) const;

  uint64_t version() const { return version_; }
  bool finished() const { return finished_; }
  size_t updates_in() const;        // taken for the open aggregate
  int64_t updates_expected() const;
  // Why nothing moves, in words: "waiting for 3 more of 8 updates: 4 clients training (oldest 41 s); deadline in 19 s";
  // "waiting for clients: 2 of 10 connected"; "" when nothing waits (a fold or a commit is under way).
  std::string WaitingFor(absl::Time now) const;

 private:
  struct TakenUpdate;
  enum class Phase { kCollecting, kClosing, kCommitting };

  RoundView View(absl::Time now, std::vector<std::string>* idle, std::vector<Contribution>* contributions);
  void Admit(Moment moment, absl::Time now, std::vector<RoundAction>* out);
  void MaybeClose(absl::Time now, std::vector<RoundAction>* out);

  JobSpec spec_;
  const Strategy& strategy_;
  RoundPolicies policies_;
  uint64_t version_ = 0;
  uint64_t epoch_ = 1;
  uint64_t next_task_ = 1;
  uint64_t draws_ = 0;
  absl::Time opened_;
  Phase phase_ = Phase::kCollecting;
  std::string trigger_;
  bool finished_ = false;
  std::set<std::string> idle_;
  std::map<std::string, OutstandingTask> outstanding_;   // by client
  std::map<uint64_t, UpdateId> task_update_;             // which update a task has admitted
  std::vector<TakenUpdate> taken_;
  std::map<std::string, std::string> declined_;          // client -> reason, this version
};

}  // namespace tributary::aggregator
