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
// folded at most once (again only after AggregateLost); Commit's contributors are exactly the folded ones, at least one (none only
// after RoundSkipped, and of a cohort that was drawn and is empty); after Finish no action is produced.
// The engine knows no strategy by name: who starts when, when to commit and what staleness costs is the policies' say, what an update
// weighs the weight rule's. For that rule it keeps a few numbers a client (ClientTable); what a commit changes in them is part of the
// Commit, to be stored with the version, and holds from VersionCommitted on.
// Updates that come while an aggregate closes wait for the next one if the staleness policy will have them, else they expire.
// Task ids are (epoch << 32) + counter, so a restarted aggregator never reuses one.
// Source: Fraboni et al. 2023 for the three policies; design.md §1.2.
// Thread-compatible. Events about tasks or clients it does not know are ignored or answered with Refuse; they never abort.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "aggregator/core/client_table.h"
#include "aggregator/core/contribution.h"
#include "aggregator/core/policies.h"
#include "aggregator/core/strategy.h"
#include "aggregator/core/taken_updates.h"
#include "common/ids.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::aggregator {

// ---- events ----
// A training client is attached and has no task of this job. `offers`: an update it still holds for the open version (after a
// restart of either side); the engine then adopts that task instead of issuing a new one. From here to ClientGone the client is
// attached: whenever its task ends (update arrived or refused, declined, cancelled) it counts as idle again without another event.
struct ClientIdle { std::string client; std::vector<UpdateKeyRef> offers; };
struct ClientGone { std::string client; };
// The same as ClientIdle of each, without offers, but the engine chooses among all of them.
struct ClientsArrived { std::vector<std::string> clients; };
struct TaskDeclined { std::string client; uint64_t task = 0; std::string reason; };
// Validated and sealed by ingress. `weight` as claimed by the client.
struct UpdateArrived { UpdateKeyRef key; uint64_t version = 0; double weight = 0; uint64_t examples = 0; Scalars scalars{}; MoeStats moe{}; };
// Clients that belong to the job whether or not they are ever attached: they count in N.
struct ClientsRegistered { std::vector<std::string> clients; };
// Nobody takes part in the open round: it counts and commits, with the model as it is. Ignored when an update has been taken.
struct RoundSkipped {};
struct UpdateFolded { UpdateId update; };
// A worker found what ingress should have refused (second line of defence): it is not in the sums.
struct UpdateRefusedByWorker { UpdateId update; std::string reason; };
// The open aggregate is lost (its workers' memory is gone): contributors must send again. While a Commit is under way it is the
// other possible answer to it: that commit did not happen and will not.
struct AggregateLost { std::string reason; };
struct VersionCommitted { uint64_t version = 0; };
struct MetricReported { uint64_t version = 0; double accuracy = 0; };
struct CancelRequested { std::string reason; };
struct Tick {};
// Of nodes (relay.proto). `updates` of the open aggregate will come from other nodes, beside those that have come: no client of this one is
// asked in their place.
struct NodesExpected { int64_t updates = 0; };
// A partial of another node, which has passed CheckPartial in the same breath. UpdateFolded follows for each contributor.
struct PartialArrived { std::vector<RoundContributor> contributors; };
// This engine runs under another one, which says how many updates it wants for the open version.
struct CohortChanged { CohortSpec cohort; };
// The other engine has committed `version`. Updates taken here that are not among `counted` are expired.
struct VersionAdopted { uint64_t version = 0; std::set<UpdateId> counted; };

using RoundEvent = std::variant<ClientIdle, ClientGone, TaskDeclined, UpdateArrived, UpdateFolded, UpdateRefusedByWorker, AggregateLost,
                                VersionCommitted, MetricReported, CancelRequested, Tick, NodesExpected, PartialArrived, CohortChanged,
                                VersionAdopted, ClientsRegistered, RoundSkipped, ClientsArrived>;

// ---- actions ----
struct IssueTask { std::string client; uint64_t task = 0; uint64_t version = 0; absl::Time deadline; };
struct CancelTask { std::string client; uint64_t task = 0; std::string reason; };
struct Fold { UpdateKeyRef key; double weight = 0; };              // effective weight
// Not counted. `expired`: nobody's fault (round closed, too stale, job over); otherwise rejected.
struct Refuse { UpdateKeyRef key; std::string reason; bool expired = false; };
struct Commit {
  uint64_t version = 0;
  std::vector<RoundContributor> contributors;   // by key
  double sum_weight = 0;
  std::string trigger;
  int64_t registered = 0;                       // N, all clients seen so far
  std::vector<std::pair<std::string, ClientScalars>> client_changes;  // to be stored with the version
  absl::Duration since_start;                   // likewise: when it closed, from the job's beginning on
};
struct Evaluate { uint64_t version = 0; };
enum class Outcome { kDone, kFailed, kCancelled };
struct Finish { Outcome outcome = Outcome::kDone; std::string reason; };
struct WakeAt { absl::Time when; };                                // send Tick then; the newest replaces earlier ones
using RoundAction = std::variant<IssueTask, CancelTask, Fold, Refuse, Commit, Evaluate, Finish, WakeAt>;

struct RoundOptions {
  uint64_t version = 0;         // current committed version
  uint64_t epoch = 1;           // of the aggregator process: high half of task ids
  std::vector<RoundContributor> restored;  // already in the sums (a journalled partial)
  ClientTable clients{};                   // as stored with `version`
  absl::Duration since_start{};            // likewise; 0 for a fresh job
  bool recorded = false;                   // a record is folded again: updates of tasks it never issued are what happened
};

class Round {
 public:
  // Opens the current version at `now`; call Tick (or any event) to get the first actions. `strategy` must outlive the Round.
  Round(const JobSpec& spec, const Strategy& strategy, RoundOptions options, absl::Time now);

  std::vector<RoundAction> OnEvent(const RoundEvent& event, absl::Time now);

  // Whether an upload may begin: OK, or the reason as FAILED_PRECONDITION (stale, closed, superseded), PERMISSION_DENIED (another
  // client's task), NOT_FOUND (no such task), ALREADY_EXISTS (the task has another update, or this one is taken). Changes nothing.
  // A task of an earlier epoch of the aggregator is admitted when nothing of its client counts for the open version yet. Whose it
  // was and for which version is taken at the client's word: the worst a liar gets is what an honest client has, one update a version.
  absl::Status CheckUpload(const UpdateKeyRef& key, uint64_t version) const;
  // Whether an update that starts from `version` is refused for its age alone, now and ever after.
  bool TooStale(uint64_t version) const { return version < version_ && !policies_.staleness->Factor(version_ - version); }

  // Whether another node's partial for the open version can be taken: OK, or FAILED_PRECONDITION (another version, closed),
  // ALREADY_EXISTS with the updates that are counted here, or whose clients are, in *overlap, INVALID_ARGUMENT for a weight that this
  // job gives nobody. Changes nothing.
  absl::Status CheckPartial(uint64_t version, const std::vector<RoundContributor>& contributors, std::vector<UpdateId>* overlap) const;

  // What an update of `client` would weigh now, with its staleness; for bounds, nothing is taken. Errors: as WeightRule.
  absl::StatusOr<double> WeightNow(const std::string& client, uint64_t version, double claimed, const Scalars& scalars, absl::Time now) const;

  uint64_t version() const { return version_; }
  const ClientTable& clients() const { return clients_; }
  bool finished() const { return finished_; }
  size_t updates_in() const;        // taken for the open aggregate
  int64_t updates_expected() const;
  absl::Time deadline() const { return opened_ + spec_.cohort.deadline; }  // of the open version; InfiniteFuture: none
  // Why nothing moves, in words: "waiting for 3 more of 8 updates: 4 clients training (oldest 41 s); deadline in 19 s";
  // "waiting for clients: 2 of 10 connected"; "" when nothing waits (a fold or a commit is under way).
  std::string WaitingFor(absl::Time now) const;

 private:
  // A task this process issued, adopted or knows from a restored contributor, as long as its update may still come.
  struct KnownTask {
    std::string client;
    uint64_t version = 0;
    absl::Time issued;
    std::optional<UpdateId> update;   // the one it admitted or was adopted with
    std::string closed;               // why it admits nothing any more ("declined"); "" if it does
  };
  struct Decline {
    std::string reason;
    absl::Time at;
  };
  enum class Phase { kCollecting, kClosing, kCommitting };
  using Actions = std::vector<RoundAction>;

  void On(const ClientIdle& event, absl::Time now, Actions* out);
  void On(const ClientGone& event, absl::Time now, Actions* out);
  void On(const TaskDeclined& event, absl::Time now, Actions* out);
  void On(const UpdateArrived& event, absl::Time now, Actions* out);
  void On(const UpdateFolded& event, absl::Time now, Actions* out);
  void On(const UpdateRefusedByWorker& event, absl::Time now, Actions* out);
  void On(const AggregateLost& event, absl::Time now, Actions* out);
  void On(const VersionCommitted& event, absl::Time now, Actions* out);
  void On(const MetricReported& event, absl::Time now, Actions* out);
  void On(const CancelRequested& event, absl::Time now, Actions* out);
  void On(const Tick& event, absl::Time now, Actions* out);
  void On(const NodesExpected& event, absl::Time now, Actions* out);
  void On(const PartialArrived& event, absl::Time now, Actions* out);
  void On(const CohortChanged& event, absl::Time now, Actions* out);
  void On(const VersionAdopted& event, absl::Time now, Actions* out);
  void On(const ClientsRegistered& event, absl::Time now, Actions* out);
  void On(const RoundSkipped& event, absl::Time now, Actions* out);
  void On(const ClientsArrived& event, absl::Time now, Actions* out);

  RoundView View(const std::set<std::string>* idle, uint64_t draw, absl::Time now) const;
  // Staleness that an update from `version` will have in the aggregate it can still enter; nothing: too late, why in *reason.
  std::optional<uint64_t> StalenessOf(uint64_t version, std::string* reason) const;
  absl::Status CheckTask(const UpdateKeyRef& key, uint64_t version) const;
  // Whether anything of `client` counts, or will, for the open aggregate.
  bool HasContributed(const std::string& client) const;
  bool IsTaken(const UpdateId& update) const;
  void Take(TakenUpdate update, absl::Time now, Actions* out);
  void Register(const std::string& client);
  std::optional<std::string> ClosingReason(absl::Time now) const;
  bool MustWait(const std::string& client) const;
  void AskForCommit(Actions* out);
  void MaybeCommitNobody(absl::Time now, Actions* out);
  void Release(const std::string& client);     // its task is over; idle again if attached
  // The client has this task from now on, in place of any other.
  void SetOutstanding(const std::string& client, uint64_t task, uint64_t version, absl::Time now);
  void EraseOutstanding(const std::string& client);
  void Close(uint64_t task, std::string why);  // it admits nothing any more
  void Admit(Moment moment, absl::Time now, Actions* out);
  void Issue(const std::string& client, absl::Time now, Actions* out);
  void MaybeClose(absl::Time now, Actions* out);
  void TakeWaiting(absl::Time now, Actions* out);
  // Finishes at once, or after the commit under way.
  void End(Outcome outcome, const std::string& reason, Actions* out);
  void FinishNow(const Finish& finish, Actions* out);
  void Wake(absl::Time now, Actions* out);
  // How many updates are still lacking to the quorum if every task younger than the deadline comes back.
  int64_t LackingToQuorum(absl::Time now) const;

  JobSpec spec_;
  const Strategy& strategy_;
  RoundPolicies policies_;
  uint64_t version_ = 0;
  uint64_t epoch_ = 1;
  bool recorded_ = false;
  uint64_t next_task_ = 1;
  uint64_t draws_ = 0;
  int64_t expected_from_nodes_ = 0;
  absl::Time start_;                                     // of the job, its downtime left out
  absl::Time opened_;
  absl::Time last_tick_ = absl::InfinitePast();
  bool ticking_ = false;
  absl::Time wake_ = absl::InfiniteFuture();
  Phase phase_ = Phase::kCollecting;
  std::string trigger_;
  absl::Time closed_at_;
  size_t closed_with_ = 0;                               // updates taken when it closed
  bool started_ = false;
  bool finished_ = false;
  std::optional<Finish> finish_after_commit_;
  std::set<std::string> attached_;
  std::set<std::string> idle_;                           // attached, without a task
  std::map<std::string, OutstandingTask> outstanding_;   // by client
  int64_t outstanding_current_ = 0;                      // of them, those of version_
  std::map<uint64_t, KnownTask> tasks_;
  std::vector<uint64_t> closed_;                         // tasks closed since the last commit
  TakenUpdates taken_;                                   // for the open aggregate
  TakenUpdates waiting_;                                 // arrived while it closes, for the next one; bounded by tasks
  std::map<std::string, Decline> declined_;              // this version
  ClientTable clients_;
  std::set<std::string> unsaved_;                        // registered since the last commit
  std::vector<std::pair<std::string, ClientScalars>> changes_;  // of the commit under way
};

}  // namespace tributary::aggregator
