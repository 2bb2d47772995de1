#include "client/core/local_rule.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>

namespace tributary::client {
namespace {

// A number of the strategy's parameters; the server's half has checked its range at submission.
absl::StatusOr<double> Number(const StrategySpec& strategy, const std::string& name, double fallback) {
  const auto at = strategy.params.find(name);
  if (at == strategy.params.end()) return fallback;
  double value = 0;
  if (!absl::SimpleAtod(at->second, &value) || !std::isfinite(value)) {
    return InvalidArgument("strategy {}: {}: expected a number, got '{}'", strategy.name, name, at->second);
  }
  return value;
}

std::string Text(const StrategySpec& strategy, const std::string& name, const std::string& fallback) {
  const auto at = strategy.params.find(name);
  return at == strategy.params.end() ? fallback : at->second;
}

absl::StatusOr<std::span<const double>> Vector(const LocalTask& task, const std::string& name) {
  const auto at = task.vectors.find(name);
  if (at == task.vectors.end() || at->second.size() != task.x.size()) {
    return InvalidArgument("version {} came without the strategy's vector '{}' of {} elements", task.version, name, task.x.size());
  }
  return std::span<const double>(at->second);
}

// The client's own vector, or `start` before its first counted update.
std::vector<double> Own(const LocalTask& task, const std::string& name, std::vector<double> start) {
  const auto at = task.state->vectors.find(name);
  return at == task.state->vectors.end() ? std::move(start) : at->second;
}

std::vector<double> Copy(std::span<const double> values) { return {values.begin(), values.end()}; }

}  // namespace

absl::StatusOr<LocalRule> LocalRule::Make(const StrategySpec& strategy, const LocalSpec& job, int64_t client) {
  TRIB_ASSIGN_OR_RETURN(const LocalSpec local, job.Of(client));
  LocalRule rule;
  rule.name_ = strategy.name;
  const std::string& name = strategy.name;
  rule.momentum_ = name == "fedavg_m" || name == "fedavg_m_vr" || name == "scaffold_m" || name == "scaffold_m_vr";
  rule.control_ = name == "scaffold" || name == "scaffold_m" || name == "scaffold_m_vr";
  rule.reduced_ = name == "fedavg_m_vr" || name == "scaffold_m_vr";
  rule.rerce_ = name == "rerce_admm";
  rule.dual_ = name == "fedadmm";
  TRIB_ASSIGN_OR_RETURN(rule.mu_, ProximalFactor(strategy));
  if (rule.rerce_ || rule.dual_) {
    TRIB_ASSIGN_OR_RETURN(rule.mu_, Number(strategy, "rho", 1.0));
    rule.dual_first_ = Text(strategy, "order", "primal_first") == "dual_first";
    rule.continual_ = Text(strategy, "continual", "false") == "true";
  }
  if (rule.momentum_) {
    TRIB_ASSIGN_OR_RETURN(rule.beta_, Number(strategy, "beta", 0.1));
  }
  if (rule.momentum_ || rule.control_) {
    TRIB_ASSIGN_OR_RETURN(const double server_lr, Number(strategy, "server_lr", 1.0));
    rule.steps_rate_ = local.lr * static_cast<double>(local.steps > 0 ? local.steps : 1);
    rule.gamma_ = server_lr * rule.steps_rate_;
  }
  rule.warm_start_ = rule.reduced_ && Text(strategy, "warm_start", "true") == "true";
  if (rule.control_ && !rule.reduced_) {
    const std::string uplink = Text(strategy, "uplink", "auto");
    rule.delta_ = uplink == "delta" || (uplink == "auto" && job.PlainAndEqual());
  }
  return rule;
}

absl::StatusOr<LocalUplink> LocalRule::Solve(const LocalTask& task, const Run& run) const {
  if (keeps_state() && task.state == nullptr) {
    return FailedPrecondition("strategy {} keeps a state on each client, and this client keeps none", name_);
  }
  if (rerce_) return SolveRerce(task, run);
  if (dual_) return SolveDual(task, run);
  return SolveCorrected(task, run);
}

absl::StatusOr<LocalUplink> LocalRule::SolveCorrected(const LocalTask& task, const Run& run) const {
  const size_t d = task.x.size();
  LocalPlan plan;
  plan.step.mu = mu_;
  plan.step.s = task.x;
  plan.wants_mean_gradient = control_;
  const bool still = warm_start_ && task.version == 0;
  std::vector<double> own;
  if (control_) own = Own(task, "c_i", std::vector<double>(d, 0.0));
  if (still) {
    plan.gradient_only = true;
    plan.wants_mean_gradient = true;
  } else if (momentum_ || control_) {
    plan.v.assign(d, 0.0);
    if (control_) {
      TRIB_ASSIGN_OR_RETURN(const std::span<const double> c, Vector(task, "c"));
      for (size_t i = 0; i < d; ++i) plan.v[i] += beta_ * (c[i] - own[i]);
    }
    if (momentum_) {
      TRIB_ASSIGN_OR_RETURN(const std::span<const double> g, Vector(task, "g"));
      for (size_t i = 0; i < d; ++i) plan.v[i] += (1 - beta_) * g[i];
      // Of the version that was made without a step x⁻ is the model itself.
      const double gamma = warm_start_ && task.version == 1 ? 0 : gamma_;
      if (reduced_) {
        plan.step.b = -(1 - beta_);
        plan.before.resize(d);
        for (size_t i = 0; i < d; ++i) plan.before[i] = task.x[i] + gamma * g[i];
        plan.step.before = plan.before;
      } else {
        plan.step.a = beta_;
      }
    }
    plan.step.v = plan.v;
  }
  TRIB_ASSIGN_OR_RETURN(const LocalOutcomeVectors outcome, run(plan));
  LocalUplink uplink;
  std::vector<double> delta(d), control;
  for (size_t i = 0; i < d; ++i) delta[i] = still ? -steps_rate_ * outcome.mean_gradient[i] : outcome.y[i] - task.x[i];
  if (control_) {
    control.resize(d);
    for (size_t i = 0; i < d; ++i) control[i] = outcome.mean_gradient[i] - own[i];
    uplink.state = ClientState{.vectors = {{"c_i", outcome.mean_gradient}}};
  }
  if (!delta_) uplink.groups.push_back(std::move(delta));
  if (control_) uplink.groups.push_back(std::move(control));
  return uplink;
}

// w_i ← argmin f_i − ⟨h_i,w⟩ + (ρ/2)‖w − s‖², h_i ← h_i + ρ(s − w_i). With `continual` a client that was not asked for some rounds makes up for
// them first: they need nothing but what it has received last, so nobody can tell when it made them.
absl::StatusOr<LocalUplink> LocalRule::SolveRerce(const LocalTask& task, const Run& run) const {
  const size_t d = task.x.size();
  std::span<const double> s = task.x;
  if (!continual_) {
    TRIB_ASSIGN_OR_RETURN(s, Vector(task, "s"));
  }
  std::vector<double> w = Own(task, "w", {});
  std::vector<double> h = Own(task, "h", std::vector<double>(d, 0.0));
  const auto solve = [&](std::span<const double> to) -> absl::Status {
    LocalPlan plan;
    plan.step.mu = mu_;
    plan.step.s = to;
    plan.v.resize(d);
    for (size_t i = 0; i < d; ++i) plan.v[i] = -h[i];
    plan.step.v = plan.v;
    plan.step.y0 = w;
    TRIB_ASSIGN_OR_RETURN(LocalOutcomeVectors outcome, run(plan));
    w = std::move(outcome.y);
    for (size_t i = 0; i < d; ++i) h[i] += mu_ * (to[i] - w[i]);
    return absl::OkStatus();
  };
  std::vector<double> last = Own(task, "s", {});  // received last
  uint64_t missed = task.version - std::min(task.version, task.state->version);
  if (w.empty()) {
    // Every client solves once at the job's start, scheduled or not and without the link: whoever comes later makes up for it.
    const std::span<const double> start = !task.initial.empty() ? task.initial : task.version == task.epoch ? s : std::span<const double>();
    if (start.empty()) {
      return FailedPrecondition("strategy {}: the client's first task is of version {} and version {}, where all began, is not known to it", name_, task.version,
                                task.epoch);
    }
    w = Copy(start);
    if (task.version == task.epoch) {
      s = start;
    } else {
      TRIB_RETURN_IF_ERROR(solve(start));
    }
    last = Copy(start);
    missed = task.version - std::min(task.version, task.epoch + 1);
  }
  for (; continual_ && missed > 0; --missed) {
    const std::vector<double> w_before = w, h_before = h;
    TRIB_RETURN_IF_ERROR(solve(last));
    if (w == w_before && h == h_before) break;  // so it would stay
  }
  const std::vector<double> before = continual_ ? w : std::vector<double>();
  TRIB_RETURN_IF_ERROR(solve(s));
  LocalUplink uplink;
  std::vector<double>& up = uplink.groups.emplace_back(w);
  uplink.state = ClientState{.vectors = {{"w", std::move(w)}, {"h", std::move(h)}}};
  if (continual_) {
    for (size_t i = 0; i < d; ++i) up[i] = 2 * up[i] - before[i];
    uplink.state->vectors["s"] = Copy(s);
  }
  return uplink;
}

absl::StatusOr<LocalUplink> LocalRule::SolveDual(const LocalTask& task, const Run& run) const {
  const size_t d = task.x.size();
  const std::span<const double> start = task.initial.empty() ? task.x : task.initial;
  std::vector<double> w = Own(task, "w", Copy(start));
  std::vector<double> lambda = Own(task, "lambda", std::vector<double>(d, 0.0));
  const auto ascend = [&] {
    for (size_t i = 0; i < d; ++i) lambda[i] += mu_ * (w[i] - task.x[i]);
  };
  if (dual_first_) ascend();
  LocalPlan plan;
  plan.step.mu = mu_;
  plan.step.s = task.x;
  plan.step.v = lambda;
  plan.step.y0 = w;
  TRIB_ASSIGN_OR_RETURN(LocalOutcomeVectors outcome, run(plan));
  w = std::move(outcome.y);
  if (!dual_first_) ascend();
  LocalUplink uplink;
  std::vector<double>& u = uplink.groups.emplace_back(d);
  for (size_t i = 0; i < d; ++i) u[i] = w[i] + lambda[i] / mu_;
  uplink.state = ClientState{.vectors = {{"w", std::move(w)}, {"lambda", std::move(lambda)}}};
  return uplink;
}

}  // namespace tributary::client
