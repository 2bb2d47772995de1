// EGGROLL: evolution strategies with noise of low rank (Sarkar et al., arXiv 2511.16652); common/eggroll.h has the arithmetic, eggroll_spec.h whose noise is whose.
// An update is the fitness of its client's members, one number each, and the update of the model follows from them:
//
//   z_i = (f_i − mean) / √(var + 1e-5), var = Σ(f − mean)²/n, over all members of the version or over each client's own;  Z_i = llrint(z_i·2²⁰), |z_i| <= 16
//   S = Σ s_i·Z_i·A_i·B_iᵀ, integers;   g = −σ·2⁻²⁰/√(N·r) · S
//   sgd: W ← fma(c, S, W), c = η·σ·2⁻²⁰/√(N·r), in the model's type;   adamw: Loshchilov, Hutter, ICLR 2019, Algorithm 2, in double
//
// N is the population, also where some of its members are missing: those have z = 0. Sums over fitness go by client name, then member: the order of arrival changes no bit.
#include <algorithm>
#include <cmath>

#include "aggregator/core/strategy_params.h"
#include "common/eggroll_spec.h"

namespace tributary::aggregator {
namespace {

constexpr const char* kFirstMoment = "m";
constexpr const char* kSecondMoment = "v";
constexpr double kVarianceFloor = 1e-5;
constexpr RealRange kPositive{.low = 0, .low_open = true};
constexpr RealRange kBelowOne{.low = 0, .high = 1};
constexpr RealRange kDecayRange{.low = 0};

struct EggrollSettings {
  EggrollSpec spec;
  double beta1 = 0, beta2 = 0, epsilon = 0, weight_decay = 0;
  bool adamw = false;
  bool by_client = false;
};

// x^n by squaring: products alone, which all processors round alike.
double WholePower(double x, uint64_t n) {
  double power = 1;
  for (; n > 0; n >>= 1, x *= x) {
    if ((n & 1) != 0) power *= x;
  }
  return power;
}

class EggrollServerStep final : public ServerStep {
 public:
  explicit EggrollServerStep(const EggrollSettings& settings) : settings_(settings) {}
  std::vector<std::string> state_vectors() const override {
    return settings_.adamw ? std::vector<std::string>{kFirstMoment, kSecondMoment} : std::vector<std::string>{};
  }

  void ApplyBlock(const StepBlock& block, StrategyState& state) const override {
    if (settings_.adamw) return AdamW(block, state);
    const EggrollSgd step(settings_.spec, block.dtype);
    for (size_t i = 0; i < block.model.size(); ++i) block.model[i] = step(block.model[i], block.sums[i]);
  }

 private:
  void AdamW(const StepBlock& block, StrategyState& state) const {
    double* first = state.vectors.at(kFirstMoment).data() + block.first;
    double* second = state.vectors.at(kSecondMoment).data() + block.first;
    const double lr = settings_.spec.lr, unit = EggrollUnit(settings_.spec), beta1 = settings_.beta1, beta2 = settings_.beta2;
    const double correction1 = 1 - WholePower(beta1, block.facts->version);
    const double correction2 = 1 - WholePower(beta2, block.facts->version);
    for (size_t i = 0; i < block.model.size(); ++i) {
      const double gradient = -unit * block.sums[i];
      first[i] = beta1 * first[i] + (1 - beta1) * gradient;
      second[i] = beta2 * second[i] + (1 - beta2) * (gradient * gradient);
      const double decayed = block.model[i] * (1 - lr * settings_.weight_decay);
      block.model[i] = decayed - lr * (first[i] / correction1) / (std::sqrt(second[i] / correction2) + settings_.epsilon);
    }
  }

  EggrollSettings settings_;
};

// (f − mean)/√(var + floor) in place.
void Standardise(std::span<double> fitness) {
  const auto count = static_cast<double>(fitness.size());
  double mean = 0, variance = 0;
  for (const double f : fitness) mean += f;
  mean /= count;
  for (const double f : fitness) variance += (f - mean) * (f - mean);
  const double root = std::sqrt(variance / count + kVarianceFloor);
  for (double& f : fitness) f = (f - mean) / root;
}

// S, from the fitness of the version's clients.
class EggrollSums final : public WholeReducer {
 public:
  explicit EggrollSums(const EggrollSettings& settings) : settings_(settings) {}
  void set_job(int64_t seed, int64_t clients) {
    seed_ = seed;
    clients_ = clients;
    members_ = static_cast<size_t>(settings_.spec.population / clients);
  }

  absl::Status Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const override {
    const std::vector<int64_t> totals = EggrollTotals(EggrollTensors(*input.layout, settings_.spec.rank), Parts(input), out.size());
    std::copy(totals.begin(), totals.end(), out.begin());  // exact: below 2^53
    return absl::OkStatus();
  }

  std::vector<std::byte> FitnessLog(const WholeInput& input) const override { return EggrollLog(Parts(input), clients_, settings_.spec.population); }

 private:
  std::vector<EggrollPart> Parts(const WholeInput& input) const {
    std::vector<double> z;
    for (const WholeUpdate& update : input.updates) {
      for (size_t i = 0; i < members_; ++i) z.push_back(FloatAt(*input.layout, update.flat, i));  // of the model's type
      if (settings_.by_client) Standardise(std::span(z).last(members_));
    }
    if (!settings_.by_client) Standardise(z);
    std::vector<EggrollPart> parts;
    for (size_t k = 0; k < input.updates.size(); ++k) {
      EggrollPart& part = parts.emplace_back();
      part.seed = EggrollNoiseSeed(seed_, input.version - 1, input.updates[k].client);
      const std::span<const double> own = std::span(z).subspan(k * members_, members_);
      for (uint32_t p = 0; p < members_ / 2; ++p) {
        if (const int64_t weight = EggrollWeight(own[2 * p], 1) + EggrollWeight(own[2 * p + 1], -1); weight != 0) part.pairs.push_back({p, weight});
      }
    }
    return parts;
  }

  EggrollSettings settings_;
  int64_t seed_ = 0;
  int64_t clients_ = 1;  // of a version
  size_t members_ = 0;   // of a client
};

class Eggroll final : public Strategy {
 public:
  explicit Eggroll(const EggrollSettings& settings) : settings_(settings), sums_(settings), step_(settings), weights_(MakeClaimedWeight(/*uniform=*/true)) {
    set_job({});
  }
  const WholeReducer* whole_reducer() const override { return &sums_; }
  const ServerStep& server_step() const override { return step_; }
  const WeightRule& weights() const override { return *weights_; }
  bool updates_are_of_model() const override { return false; }
  // AdamW's moments stay here, so models go down.
  size_t fitness_bytes() const override { return settings_.adamw ? 0 : EggrollLogBytes(clients_, settings_.spec.population); }

  absl::StatusOr<TensorLayout> UpdateLayout(const TensorLayout& model) const override {
    const int64_t population = settings_.spec.population;
    if (population % (2 * clients_) != 0) {
      return InvalidArgument("strategy 'eggroll': population: each of the {} clients of a version has as many pairs of members; expected a multiple of {}, got {}", clients_,
                             2 * clients_, population);
    }
    return TensorLayout::Create({{.name = kEggrollFitness, .shape = {population / clients_}, .dtype = model.float_dtype(), .kind = TensorKind::kTrainable}});
  }
  uint64_t noise_seed(const std::string& client, uint64_t version) const override { return EggrollNoiseSeed(seed_, version, client); }

  void set_job(const JobSpec& job) override {
    seed_ = job.seed;
    clients_ = std::max<int64_t>(1, job.cohort.size);
    sums_.set_job(seed_, clients_);
  }

  absl::Status CheckJob(const JobSpec& job) const override {
    const std::string& name = job.strategy.name;
    if (job.local.solver != kEggrollSolver) {
      return InvalidArgument("local.solver: clients of strategy '{}' run forward passes and return their members' fitness; expected {}, got {}", name, kEggrollSolver,
                             job.local.solver);
    }
    if (adapters() != AdapterMode::kNone || job.model.adapter.enabled()) {
      return InvalidArgument("model.adapter: strategy '{}' perturbs whole matrices, by noise that is of low rank itself; expected a model without adapter", name);
    }
    if (job.cohort.poisson) {
      return InvalidArgument("cohort.sampling: strategy '{}' deals its population of {} out to a cohort of a fixed size; expected fixed, got poisson", name,
                             settings_.spec.population);
    }
    const LocalSpec plain;
    if (job.local.momentum != 0 || job.local.weight_decay != 0 || job.local.lr != plain.lr || !job.local.client_lr.empty()) {
      return InvalidArgument("local: clients of strategy '{}' make no step: lr, momentum and weight_decay mean nothing to them; expected none of them (the rate is "
                             "strategy.lr)", name);
    }
    if (job.simulate.gradient_noise > 0) {
      return InvalidArgument("simulate.gradient_noise: clients of strategy '{}' have no gradients; expected 0, got {}", name, job.simulate.gradient_noise);
    }
    return absl::OkStatus();
  }

 private:
  EggrollSettings settings_;
  EggrollSums sums_;
  EggrollServerStep step_;
  std::unique_ptr<WeightRule> weights_;
  int64_t seed_ = 0;
  int64_t clients_ = 1;  // of a version
};

std::vector<ParamInfo> AdamWParams() {
  return {{.name = "beta1", .default_value = "0.9", .range = kBelowOne.ToString(), .help = "adamw: factor on the old first moment"},
          {.name = "beta2", .default_value = "0.999", .range = kBelowOne.ToString(), .help = "adamw: factor on the old second moment"},
          {.name = "epsilon", .default_value = "1e-08", .range = kPositive.ToString(), .help = "adamw: added to the root of the second moment"},
          {.name = "weight_decay", .default_value = "0.01", .range = kDecayRange.ToString(), .help = "adamw: share of the weights, times lr, that a step takes away"}};
}

}  // namespace

std::vector<ParamInfo> EggrollParams() {
  const EggrollSpec spec;
  std::vector<ParamInfo> params = {
      {.name = "population", .default_value = fmt::format("{}", spec.population), .range = fmt::format("[2, {}]", EggrollSpec::kMaxPopulation),
       .help = "members of a version, an even number for each client of the cohort: so many numbers travel up"},
      {.name = "sigma", .default_value = fmt::format("{}", spec.sigma), .range = kPositive.ToString(), .help = "size of the perturbations"},
      {.name = "rank", .default_value = fmt::format("{}", spec.rank), .range = fmt::format("[1, {}]", EggrollSpec::kMaxRank), .help = "of the perturbations"},
      {.name = "lr", .default_value = fmt::format("{}", spec.lr), .range = kPositive.ToString(), .help = "rate of the server's step; the estimate is times sigma, not divided by it"},
      {.name = "server", .default_value = "sgd", .range = "sgd|adamw", .help = "the server's step"},
      {.name = "center", .default_value = "global", .range = "global|client",
       .help = "fitness is standardised over all members of the version, or over each client's own (for clients whose losses are on unlike scales)"},
      {.name = "noise", .default_value = "rademacher", .range = "rademacher", .help = "entries of A and B: 1 or -1, which every processor draws alike"}};
  for (ParamInfo& param : AdamWParams()) params.push_back(std::move(param));
  return params;
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeEggroll(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = EggrollParams();
  ParamReader reader(spec, params);
  EggrollSettings settings;
  settings.spec.population = reader.Integer("population", 2);
  if (settings.spec.population > EggrollSpec::kMaxPopulation || settings.spec.population % 2 != 0) {
    reader.Fail("population", fmt::format("expected an even number up to {}", EggrollSpec::kMaxPopulation));
  }
  settings.spec.sigma = reader.Real("sigma", kPositive);
  settings.spec.rank = reader.Integer("rank", 1);
  if (settings.spec.rank > EggrollSpec::kMaxRank) reader.Fail("rank", fmt::format("expected 1 to {}", EggrollSpec::kMaxRank));
  settings.spec.lr = reader.Real("lr", kPositive);
  settings.adamw = reader.Choice("server") == "adamw";
  settings.by_client = reader.Choice("center") == "client";
  reader.Choice("noise");
  settings.beta1 = reader.Real("beta1", kBelowOne);
  settings.beta2 = reader.Real("beta2", kBelowOne);
  settings.epsilon = reader.Real("epsilon", kPositive);
  settings.weight_decay = reader.Real("weight_decay", kDecayRange);
  for (const ParamInfo& param : AdamWParams()) {
    if (!settings.adamw && reader.Has(param.name) && reader.Text(param.name) != param.default_value) {
      reader.Fail(param.name, "it is of server: adamw, and the job's is sgd; expected it left out");
    }
  }
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return std::make_unique<Eggroll>(settings);
}

}  // namespace tributary::aggregator
