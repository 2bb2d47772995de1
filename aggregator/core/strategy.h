// A strategy = reducer + server step + the engine's three policies + the weight rule, made from a job. The table of all is
// strategies/strategies.def: adding one is one file and one line.
// Threads: immutable after Make. Errors: NOT_FOUND for an unknown name (with the nearest and all known ones), INVALID_ARGUMENT
// for an unknown parameter or a value out of range.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "aggregator/core/policies.h"
#include "aggregator/core/rank_allocator.h"
#include "aggregator/core/reducer.h"
#include "aggregator/core/server_step.h"
#include "aggregator/core/weight_rule.h"
#include "aggregator/core/whole_reducer.h"
#include "common/adapter_layout.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::aggregator {

enum class StrategyTrait { kMergeable, kNeedsAll };

// What a client keeps between its updates of a job (algorithms.md §1.7), as the server sees it.
enum class ClientStateKind {
  kNone,    // nothing that concerns the server
  kOwn,     // a client that lost its state begins anew, and nothing else changes (fedadmm: its row is replaced)
  kShared,  // the server's vectors are sums over all clients' states: if one of them begins anew all must, and those vectors with them
};

struct ParamInfo {
  std::string name;
  std::string default_value;
  std::string range;   // "(0, inf)", "examples|uniform"
  std::string help;
};

// A number that every update of a strategy carries besides its weight.
// Numbers that only steps of gradients times a rate give a meaning to.
inline constexpr const char* kStepNorm = "step_norm";        // ‖a_i‖₁ of the local steps (fednova)
inline constexpr const char* kInitialLoss = "initial_loss";  // beside Δ = −lr·(sum of gradients) (qfedavg)

struct ScalarInfo {
  std::string name;
  double low = 0;      // > low (low_open) or >= low, finite
  bool low_open = false;
  bool binary = false;  // 0 or 1 and nothing else
  bool of_version = false;  // follows from the version alone: says nothing of the client
  std::string help;
};

class Strategy {
 public:
  virtual ~Strategy() = default;
  // Sums of updates, in every worker; not used with a whole_reducer().
  virtual std::unique_ptr<Reducer> MakeReducer(DType dtype, Arithmetic arithmetic) const { return MakeMeanReducer(dtype, arithmetic); }
  // Set: updates are kept whole until the commit (StrategyTrait::kNeedsAll), and this makes the sums; Σw of the step is then 1.
  virtual const WholeReducer* whole_reducer() const { return nullptr; }
  virtual const ServerStep& server_step() const = 0;
  virtual RoundPolicies MakePolicies(const CohortSpec& cohort) const { return MakeSynchronousPolicies(cohort); }
  // The weight of an update in the fold, before the staleness factor.
  virtual const WeightRule& weights() const = 0;
  // What an update carries: exactly these, or it is refused by name.
  virtual std::vector<ScalarInfo> scalars() const { return {}; }
  // The server takes Σ(trainable Δ)² of an update into its scalars, under this name; "": it does not.
  virtual std::string norm_scalar() const { return ""; }
  // Rounds with a cohort; false: clients start and commits come as the policies say.
  virtual bool synchronous() const { return true; }
  // Whether updates are over the model's elements. False: UpdateLayout is the strategy's own, which its whole_reducer() alone understands (it
  // makes one sum a trainable element of the model), and buffers and counters stay as they are.
  virtual bool updates_are_of_model() const { return true; }
  // Layout of an update of a model of layout `model`.
  virtual absl::StatusOr<TensorLayout> UpdateLayout(const TensorLayout& model) const;
  // Whether an update has the clients' values of the model's buffers and counters.
  bool carries_buffers() const { return adapters_ == AdapterMode::kNone && updates_are_of_model(); }
  // Of whose members tasks name the noise: its seed in a task of `client` that starts from `version`.
  virtual uint64_t noise_seed(const std::string& /*client*/, uint64_t /*version*/) const { return 0; }
  // Vectors over the trainable elements that an update carries, as groups of WithGroups: {""} is Δ alone.
  virtual std::vector<std::string> update_groups() const { return {""}; }
  // Whether an update holds values (ADMM's w, u) in place of a difference of models: then it has no norm that a clip could bound, and no
  // element that may be left out.
  virtual bool sends_values() const { return false; }
  // Those of the strategy's vectors that go down with a version, in this order.
  virtual std::vector<std::string> version_vectors() const { return {}; }
  // That one of them which goes down in the place of the model's trainable elements; "": the model itself goes down.
  virtual std::string in_place_of_model() const { return ""; }
  // Size of a version's log, from which clients that have the version before make it themselves (WholeReducer::FitnessLog); 0: models go down.
  virtual size_t fitness_bytes() const { return 0; }
  // Not kNone: updates carry kStateVersion, and weights() keeps the clients.
  virtual ClientStateKind client_state() const { return ClientStateKind::kNone; }
  // `buffers: local`: the model's buffers stay as they are, whatever updates bring. Of a model of adapters they are the server's own.
  bool local_buffers() const { return local_buffers_ || adapters_ != AdapterMode::kNone; }
  void set_local_buffers(bool local) { local_buffers_ = local; }
  // `adapters`: not kNone, the model is one of adapters, and updates are laid out as AdapterUpdateLayout says.
  AdapterMode adapters() const { return adapters_; }
  void set_adapters(AdapterMode mode) { adapters_ = mode; }
  // Of a model of triplets: how many of them are left at each version; else null.
  const RankSchedule* ranks() const { return ranks_ ? &*ranks_ : nullptr; }
  void set_ranks(const RankSchedule& ranks) { ranks_ = ranks; }
  // `expert_weights: tokens`: experts of a mixture are averaged by the tokens that went to them (moe_state.h).
  bool weighs_experts() const { return weighs_experts_; }
  void set_weighs_experts(bool weighs) { weighs_experts_ = weighs; }
  // Set: the elements of an update are not the model's trainable ones one by one.
  virtual const SumSpread* spread() const { return nullptr; }
  // Of a strategy whose rows are copies of the clients' states: the client's name for that vector. A client that lost it is given its row.
  virtual std::string mirrored_state() const { return ""; }
  // What of the job does not go with this strategy: INVALID_ARGUMENT naming the key, expected and got.
  virtual absl::Status CheckJob(const JobSpec&) const { return absl::OkStatus(); }
  // Numbers of the job beside its strategy's, for those whose arithmetic needs them (StrategyOf).
  virtual void set_job(const JobSpec&) {}

 private:
  bool local_buffers_ = false;
  bool weighs_experts_ = false;
  AdapterMode adapters_ = AdapterMode::kNone;
  std::optional<RankSchedule> ranks_;
};

// Whether other nodes can fold for it: the weight follows from the client's claim alone, and so does the commit from sums and weights.
bool ServesNodes(const Strategy& strategy);
// INVALID_ARGUMENT naming the scalar: missing, not among the wanted ones, out of range.
absl::Status CheckScalars(const Strategy& strategy, std::span<const ScalarInfo> wanted, const Scalars& scalars);
// The same where they are the strategy's own.
inline absl::Status CheckScalars(const Strategy& strategy, const Scalars& scalars) { return CheckScalars(strategy, strategy.scalars(), scalars); }
// Whether an update starts from the client state that its client should have: that of its last counted update, `expected`
// (StateVersionOf), or none, then the client has lost it. INVALID_ARGUMENT naming both otherwise, or if the update does not say.
absl::Status CheckClientState(const Strategy& strategy, const Scalars& scalars, uint64_t expected);
// Whether with this contribution a client began anew that had a state.
bool LostClientState(const Strategy& strategy, const Scalars& scalars, uint64_t expected);
// All clients begin anew from `model`, the version just made: the strategy's vectors that go with their states do too.
absl::Status BeginClientsAnew(const Strategy& strategy, const TensorLayout& layout, std::span<const std::byte> model, StrategyState* state);
// Adds every vector that the strategy keeps on the server where it is missing, as it is before the first commit. INVALID_ARGUMENT for one
// of another size.
absl::Status PrepareState(const Strategy& strategy, const TensorLayout& layout, std::span<const std::byte> model, StrategyState* state);

struct StrategyEntry {
  std::string_view name;
  absl::StatusOr<std::unique_ptr<Strategy>> (*make)(const StrategySpec& spec, const LocalSpec& local);
  std::vector<ParamInfo> (*params)();
  StrategyTrait trait;
  std::string_view help;   // long name
  std::string_view source; // the paper
  std::string_view down;   // what travels down and up, in model sizes
  std::string_view up;
};

// The table, in .def order.
std::span<const StrategyEntry> Strategies();
// `local`: the clients' steps, for rules and defaults that need their rate and number.
absl::StatusOr<std::unique_ptr<Strategy>> MakeStrategy(const StrategySpec& spec, const LocalSpec& local = {});
// The same of a whole job, which alone knows what its model's adapters are to become.
absl::StatusOr<std::unique_ptr<Strategy>> StrategyOf(const JobSpec& job);
const StrategyEntry* FindStrategy(std::string_view name);

}  // namespace tributary::aggregator
