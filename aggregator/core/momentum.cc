#include "aggregator/core/momentum.h"

#include <algorithm>

namespace tributary::aggregator {
namespace {

constexpr const char* kGradient = "g";
constexpr const char* kControl = "c";
constexpr const char* kControlGroup = "control";
constexpr RealRange kBetaRange{.low = 0, .high = 1, .low_open = true, .high_open = false};

struct Settings {
  MomentumFamily family;
  double server_lr = 1;
  double beta = 1;
  double steps_rate = 1;   // ηK
  int64_t clients = 0;     // N; 0: all that the job has seen
  bool delta = false;      // uplink
  bool warm_start = false;
  bool mirrored = false;   // the server keeps a copy of every c_i
};

// Plain sums, made at the root because the commit needs every update once more: for its client's row.
class MirrorReducer final : public WholeReducer {
 public:
  bool keeps_rows() const override { return true; }
  bool adds_to_rows() const override { return true; }
  bool gives_sums() const override { return true; }
  absl::Status Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const override {
    std::fill(out.begin(), out.end(), 0.0);
    for (const WholeUpdate& update : input.updates) {
      for (size_t i = 0; i < out.size(); ++i) out[i] += FloatAt(*input.layout, update.flat, i);
    }
    return absl::OkStatus();
  }
};

class MomentumStep final : public ServerStep {
 public:
  explicit MomentumStep(const Settings& settings) : settings_(settings) {}

  std::vector<std::string> state_vectors() const override {
    std::vector<std::string> names;
    if (settings_.family.momentum) names.emplace_back(kGradient);
    if (settings_.family.control) names.emplace_back(kControl);
    return names;
  }

  bool goes_with_clients(const std::string& name) const override { return name == kControl; }

  void ApplyBlock(const StepBlock& block, StrategyState& state) const override {
    double* g = settings_.family.momentum ? state.vectors.at(kGradient).data() + block.first : nullptr;
    double* c = settings_.family.control ? state.vectors.at(kControl).data() + block.first : nullptr;
    const auto registered = static_cast<double>(settings_.clients > 0 ? settings_.clients : block.facts->registered);
    const bool still = settings_.warm_start && block.facts->version == 1;
    const double gamma = still ? 0.0 : settings_.server_lr * settings_.steps_rate;
    for (size_t i = 0; i < block.model.size(); ++i) {
      const double mean = block.sums[i] / block.divisor;
      if (settings_.delta) {
        const double fresh = mean + c[i];
        const double gradient = g == nullptr ? fresh : settings_.beta * fresh + (1 - settings_.beta) * g[i];
        if (g != nullptr) g[i] = gradient;
        block.model[i] -= gamma * gradient;
        c[i] += block.sums[i] / registered;
        continue;
      }
      if (!still) block.model[i] += settings_.server_lr * mean;
      if (g != nullptr) g[i] = -mean / settings_.steps_rate;
      if (c != nullptr) c[i] += block.second[i] / registered;
    }
  }

 private:
  Settings settings_;
};

class MomentumStrategy final : public Strategy {
 public:
  explicit MomentumStrategy(const Settings& settings)
      : settings_(settings),
        step_(settings),
        weights_(settings.family.control ? MakeClientCountingWeight() : MakeClaimedWeight(/*uniform=*/true)) {}
  const ServerStep& server_step() const override { return step_; }
  const WeightRule& weights() const override { return *weights_; }
  std::vector<std::string> version_vectors() const override { return step_.state_vectors(); }
  ClientStateKind client_state() const override { return settings_.family.control ? ClientStateKind::kShared : ClientStateKind::kNone; }
  const WholeReducer* whole_reducer() const override { return settings_.mirrored ? &mirror_ : nullptr; }
  std::string mirrored_state() const override { return settings_.mirrored ? "c_i" : ""; }
  std::vector<std::string> update_groups() const override {
    if (!settings_.family.control) return {""};
    return settings_.delta ? std::vector<std::string>{kControlGroup} : std::vector<std::string>{"", kControlGroup};
  }

  absl::Status CheckJob(const JobSpec& spec) const override {
    const std::string& name = spec.strategy.name;
    if (spec.local.solver != "sgd") return InvalidArgument("local.solver: strategy '{}' corrects sgd's steps; expected sgd, got {}", name, spec.local.solver);
    if (spec.local.momentum != 0) {
      return InvalidArgument("local.momentum: strategy '{}' has its own correction of the steps; expected 0, got {}", name, spec.local.momentum);
    }
    if (settings_.delta && spec.local.weight_decay != 0) {
      return InvalidArgument("strategy '{}': uplink delta is exact for plain SGD steps only: expected local.weight_decay 0 or uplink full, got {}", name,
                             spec.local.weight_decay);
    }
    if ((settings_.family.momentum || settings_.delta) && spec.local.steps <= 0) {
      return InvalidArgument("local.steps: strategy '{}' needs the same number of steps of every client: expected steps, not epochs", name);
    }
    if ((settings_.family.momentum || settings_.delta) && !(spec.local.client_steps.empty() && spec.local.client_lr.empty())) {
      return InvalidArgument("local: strategy '{}' needs one rate and one number of steps for all clients; expected single values, got lists", name);
    }
    return absl::OkStatus();
  }

 private:
  Settings settings_;
  MomentumStep step_;
  MirrorReducer mirror_;
  std::unique_ptr<WeightRule> weights_;
};

}  // namespace

std::vector<ParamInfo> MomentumParams(const MomentumFamily& family) {
  std::vector<ParamInfo> params = {ServerLrParam("1.0")};
  if (family.momentum) {
    params.push_back({.name = "beta", .default_value = "0.1", .range = kBetaRange.ToString(),
                      .help = "factor on the new gradient in the client's step (1 minus the usual momentum); 1 is no momentum"});
  }
  if (family.control && !family.reduced) {
    params.push_back({.name = "uplink", .default_value = "auto", .range = "auto|full|delta",
                      .help = "what goes up: update and change of the control variate, or the latter alone; auto: delta where it is exact"});
  }
  if (family.reduced) {
    params.push_back({.name = "warm_start", .default_value = "true", .range = "true|false", .help = "version 1 is the initial model with its mean gradient"});
  }
  if (family.control) {
    params.push_back(ClientsParam());
    params.push_back({.name = "client_state", .default_value = "own", .range = "own|mirrored",
                      .help = "mirrored: the server keeps a copy of every client's state (a row each) and hands it to a client that lost its own, "
                              "where otherwise all begin anew; updates are kept whole until the commit"});
  }
  return params;
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeMomentum(const StrategySpec& spec, const LocalSpec& local, const MomentumFamily& family) {
  const std::vector<ParamInfo> params = MomentumParams(family);
  ParamReader reader(spec, params);
  Settings settings{.family = family};
  settings.server_lr = reader.Real("server_lr", kServerLrRange);
  if (family.momentum) settings.beta = reader.Real("beta", kBetaRange);
  const bool plain = local.PlainAndEqual();
  settings.steps_rate = local.lr * static_cast<double>(std::max<int64_t>(1, local.steps));
  if (family.control && !family.reduced) {
    const std::string uplink = reader.Choice("uplink");
    settings.delta = uplink == "delta" || (uplink == "auto" && plain);
  }
  if (family.reduced) settings.warm_start = reader.Flag("warm_start");
  if (family.control) settings.clients = reader.Integer("clients", 0);
  if (family.control) settings.mirrored = reader.Choice("client_state") == "mirrored";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return std::make_unique<MomentumStrategy>(settings);
}

}  // namespace tributary::aggregator
