// Who serves which token in a mixture-of-experts layer, and what keeps the experts evenly loaded. Each router is one file in routers/ and
// one line of routers.def; it is pure, so that its balance can be tested without a model, and client/torch only gathers gates.
//
// One Router serves one layer. Select has no gradient. What a router learns between steps (a bias, duals) is its state: [E], or empty;
// batch t never sees what batch t taught it, but for `bip`, which solves for the batch at hand.
// Threads: thread-compatible. Errors: MakeRouter's INVALID_ARGUMENT and NOT_FOUND; SetState refuses another size.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/core/moe/moe_math.h"
#include "common/named_params.h"
#include "common/moe_stats.h"
#include "common/status.h"

namespace tributary::client {

struct RouterShape {
  size_t experts = 0;
  size_t top_k = 0;   // 1 … experts
};

struct RouteContext {
  bool training = true;
  size_t sequence = 0;                    // tokens of one sequence, which follow each other; 0: all of them are one
  std::span<const double> mask_ratio{};   // masked share of each sequence, for capacity schedules
};

// Whether a token's experts depend on tokens after it.
enum class Foresight {
  kNone,       // may train a causal model
  kTraining,   // sees the whole batch while training, not afterwards: a causal model learns with a leak, which is said
  kAlways,     // has no meaning for a causal model: refused
};

class Router {
 public:
  explicit Router(RouterShape shape) : shape_(shape) {}
  virtual ~Router() = default;
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;

  const RouterShape& shape() const { return shape_; }
  // logits and scores [N, E]; training also prepares EndStep.
  virtual Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) = 0;
  // Once after an optimiser's step, with the counts [E] of all its batches.
  virtual void EndStep(std::span<const int64_t> counts);
  virtual GateRule gate_rule() const { return GateRule::kRenormalised; }
  // w of BalanceLoss for a batch with these counts; empty: this router adds no loss.
  virtual std::vector<double> LossWeights(std::span<const int64_t> counts) const;
  // The load of all clients, as the server sends it with a version: one commit old.
  virtual void SetGlobalLoad(MoeLayerLoad load);
  virtual std::vector<float> state() const { return {}; }
  virtual absl::Status SetState(std::span<const float> state);
  // Whether Select is SelectTopK(scores, state()) and nothing else, so that a kernel may do it.
  virtual bool selects_top_k() const { return false; }
  // Tokens in training so far by their margin at each expert, [E × bins] (common/expert_quantile.h); empty: this router counts none.
  virtual std::vector<int64_t> margins() const { return {}; }
  // Whether the server moves the state, which then never goes up.
  virtual bool server_owns_state() const { return false; }

 private:
  RouterShape shape_;
};

// NOT_FOUND: no such router, with the known ones. INVALID_ARGUMENT: parameters, or a shape out of range.
absl::StatusOr<std::unique_ptr<Router>> MakeRouter(const std::string& name, const ParamMap& params, RouterShape shape);

// `router` with a load-balancing loss beside it, which `loss` (lbl or global_lbl) gives; the selection stays the router's.
std::unique_ptr<Router> WithBalanceLoss(std::unique_ptr<Router> router, std::unique_ptr<Router> loss);

struct RouterEntry {
  const char* name;
  Foresight foresight;
  const char* help;      // what it is, with its source
  const char* defaults;  // "parameter=default,…"
};
std::span<const RouterEntry> Routers();
// NOT_FOUND with the known ones.
absl::StatusOr<RouterEntry> FindRouter(const std::string& name);

}  // namespace tributary::client
