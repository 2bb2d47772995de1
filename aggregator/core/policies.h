// The three policies that make one engine serve synchronous rounds, FedBuff, FedFix and asynchronous FedAvg (algorithms.md §3;
// the framework of Fraboni et al.): who gets the current model and when, when to commit, and what a stale update is worth.
//
// Policies are pure: they see a RoundView and answer. They keep no clocks and draw randomness only from the seed in the view.
// Threads: thread-compatible, owned by one Round.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "aggregator/core/taken_updates.h"
#include "common/job_spec.h"

namespace tributary::aggregator {

struct OutstandingTask {
  std::string client;
  uint64_t task = 0;
  uint64_t version = 0;
  absl::Time issued;
};

// What a policy may look at, borrowed from the Round for the call. Numbers are there for what a policy would else count at every event.
struct RoundView {
  uint64_t version = 0;                 // the current model
  absl::Time opened;                    // when it became current
  absl::Time now;
  uint64_t draw = 0;                    // seed of any random choice at this moment: hash(job seed, version, count of draws)
  const std::set<std::string>* idle = nullptr;      // attached training clients without a task
  const std::map<std::string, OutstandingTask>* outstanding = nullptr;  // by client
  int64_t outstanding_current = 0;      // those of `version`; none of them was issued before `opened`
  const TakenUpdates* contributions = nullptr;      // to the open aggregate
  int64_t expected_from_nodes = 0;      // updates that other nodes are to bring in partials
  const TakenUpdates* waiting = nullptr;            // for the next aggregate
  absl::Time start{};                   // when the job began: ticks are counted from here
  absl::Time last_tick{};               // the latest Tick before this moment; InfinitePast: none
  bool ticking = false;                 // this moment is a Tick
};

enum class Moment { kVersionOpened, kClientIdle, kTaskLost, kUploadTaken, kTick };

class AdmissionPolicy {
 public:
  virtual ~AdmissionPolicy() = default;
  // Clients (all from view.idle) that get a task for view.version now.
  virtual std::vector<std::string> Admit(const RoundView& view, Moment moment) = 0;
};

class CommitTrigger {
 public:
  virtual ~CommitTrigger() = default;
  // The reason to stop taking updates for the open aggregate and commit it ("cohort complete"), or nothing. Only asked when
  // there is at least one contribution.
  virtual std::optional<std::string> ShouldClose(const RoundView& view) const = 0;
  // When ShouldClose may change by time alone; InfiniteFuture if never.
  virtual absl::Time NextCheck(const RoundView& view) const = 0;
  // Whether a cohort was drawn for `version` and nobody is in it: then it is committed without updates.
  virtual bool NobodyDrawn(uint64_t version) const {
    static_cast<void>(version);
    return false;
  }
  // How many updates the open aggregate waits for in all ("clients expected").
  virtual int64_t target() const = 0;
};

class StalenessPolicy {
 public:
  virtual ~StalenessPolicy() = default;
  // Factor on the update's weight, or nothing: too stale, refused; then so is everything staler (what is known of it is forgotten).
  virtual std::optional<double> Factor(uint64_t staleness) const = 0;
};

// A second update of a client for the same aggregate.
enum class SecondUpdate { kRefused, kWaits, kCounts };

struct RoundPolicies {
  std::unique_ptr<AdmissionPolicy> admission;
  std::unique_ptr<CommitTrigger> trigger;
  std::unique_ptr<StalenessPolicy> staleness;
  SecondUpdate second_update = SecondUpdate::kRefused;
};

// Synchronous rounds: ceil(size × over_select) clients drawn at the version's start (later idle ones fill gaps), commit when
// `size` updates are in, or after the deadline with at least the quorum; updates of another version refused. With a population the
// cohort is drawn once a version, uniformly or by Poisson sampling, from all attached clients as soon as there are that many; nobody
// fills gaps.
RoundPolicies MakeSynchronousPolicies(const CohortSpec& cohort);

// s(τ): (1+τ)^−a (polynomial), 1 (constant), 1 up to b and 1/(a(τ−b)+1) beyond (hinge); nothing above `most`.
struct StalenessRule {
  enum class Kind { kPolynomial, kConstant, kHinge } kind = Kind::kConstant;
  double a = 0.5;
  double b = 4;
  uint64_t most = std::numeric_limits<uint64_t>::max();
};

// Asynchronous jobs: at most cohort.size clients train at the same time, each from the model that was current when it started.
struct AsynchronousSpec {
  int64_t buffer = 1;                 // a commit takes so many updates; not used with ticks
  absl::Duration interval = absl::ZeroDuration();  // > 0: a commit at every tick at which something has come
  bool restart_at_commit = true;      // a contributor gets the next model at the commit; false: as soon as its update is taken
  bool once_per_buffer = false;       // a client's second update waits for the next aggregate
  StalenessRule staleness{};
};
RoundPolicies MakeAsynchronousPolicies(const CohortSpec& cohort, const AsynchronousSpec& spec);
// Ticks so far, one after every interval, that of this very moment among them: exact, in nanoseconds.
int64_t TicksUntil(absl::Duration since_start, absl::Duration interval);

}  // namespace tributary::aggregator
