// The client's half of the strategies that correct local steps (algorithms.md §3, §10, §11): from what came down and what the client keeps, the local
// step; from the trained model, what goes up and what the client keeps next.
//
//   down: the model x, and by name g (momentum), c (control variate), s (ADMM)     state: c_i | w_i, h_i | w_i, h_i, last s | w_i, λ_i
//   up:   groups of the update, in the order the server's half names them: Δ or a value, and δ ("control")
//
// State is two-phase: Finish gives the next one, which holds from the commit of this update on and is dropped if the update is not counted.
// All vectors are over the trainable elements, fp64. Sources: Cheng et al., ICLR 2024; Karimireddy et al., ICML 2020 (option II); Lari et al.,
// arXiv 2409.13451.
// Threads: values. Errors: INVALID_ARGUMENT for a parameter out of range or a vector that did not come; FAILED_PRECONDITION where the strategy
// needs state and the caller keeps none.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/core/local_step.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

// Of one client in one job, by name; empty before its first counted update.
struct ClientState {
  std::map<std::string, std::vector<double>> vectors;
  uint64_t version = 0;                                 // that counted the update which left it; 0: none has
  bool operator==(const ClientState&) const = default;
};

struct LocalTask {
  std::span<const double> x;                            // the received model
  std::span<const double> initial;                      // the model of version `epoch`; empty: not known
  std::map<std::string, std::vector<double>> vectors;   // that came with the version
  uint64_t version = 0;
  uint64_t epoch = 0;                                   // from which all clients' states began
  const ClientState* state = nullptr;                   // null: the caller keeps none
};

// What a solver is to do. `step` borrows the vectors beside it: move the plan, do not copy it.
struct LocalPlan {
  LocalStep step;
  bool gradient_only = false;    // no step: the gradient at y⁰ is the result
  bool wants_mean_gradient = false;
  std::vector<double> s, v, y0, before;
};

struct LocalOutcomeVectors {
  std::vector<double> y;              // after the last step; y⁰ if gradient_only
  std::vector<double> mean_gradient;  // (1/K) Σ g(y^k; ξ_k), raw; empty unless wanted
};

struct LocalUplink {
  std::vector<std::vector<double>> groups;
  std::optional<ClientState> state;   // the next one, if the strategy keeps any
};

class LocalRule {
 public:
  // `job`: the job's local settings; `client`: its place in lists of them.
  static absl::StatusOr<LocalRule> Make(const StrategySpec& strategy, const LocalSpec& job, int64_t client);

  // Solves one task: `run` does what a plan says. More than once where the client has to make up for the solve of the job's start.
  using Run = std::function<absl::StatusOr<LocalOutcomeVectors>(const LocalPlan&)>;
  absl::StatusOr<LocalUplink> Solve(const LocalTask& task, const Run& run) const;

  // The step is SGD's own, and the update Δ.
  bool plain() const { return mu_ == 0 && !momentum_ && !control_; }
  bool keeps_state() const { return control_ || rerce_ || dual_; }
  // A client without state begins from the model that all began from.
  bool wants_initial() const { return rerce_ || dual_; }
  double mu() const { return mu_; }

 private:
  LocalRule() = default;
  absl::StatusOr<LocalUplink> SolveCorrected(const LocalTask& task, const Run& run) const;
  absl::StatusOr<LocalUplink> SolveRerce(const LocalTask& task, const Run& run) const;
  absl::StatusOr<LocalUplink> SolveDual(const LocalTask& task, const Run& run) const;

  std::string name_;
  double mu_ = 0;            // fedprox's mu, ADMM's rho
  bool momentum_ = false;    // β, g
  bool control_ = false;     // c, c_i
  bool reduced_ = false;     // the gradient at x⁻ too
  bool delta_ = false;       // only δ goes up
  bool warm_start_ = false;
  bool rerce_ = false;
  bool continual_ = false;   // rerce_admm: a client goes on in rounds it is not asked in
  bool dual_ = false;        // fedadmm
  bool dual_first_ = false;
  double beta_ = 1;
  double steps_rate_ = 0;    // ηK
  double gamma_ = 0;         // η_g ηK
};

}  // namespace tributary::client
