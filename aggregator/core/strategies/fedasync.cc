// FedAsync: every arrival is a commit that mixes models, x⁺ = x + α_t(x_old + Δ − x), α_t = α·s(τ), x_old the version that the client
// started from (Xie, Koyejo, Gupta 2019, Algorithm 1). The root reads that version from the store.
#include "aggregator/core/asynchronous.h"

namespace tributary::aggregator {
namespace {

constexpr RealRange kAlphaRange{.low = 0, .high = 1, .low_open = true, .high_open = false};

class AlphaWeight final : public WeightRule {
 public:
  explicit AlphaWeight(double alpha) : alpha_(alpha) {}
  absl::StatusOr<double> Weight(const WeightInput&) const override { return alpha_; }

 private:
  double alpha_;
};

class MixingStep final : public ServerStep {
 public:
  absl::StatusOr<double> Divisor(const CommitFacts& facts) const override {
    if (facts.contributors.size() != 1) return InvalidArgument("one update a commit is mixed in, got {}", facts.contributors.size());
    return 1.0;
  }
  bool needs_base() const override { return true; }
  void ApplyBlock(const StepBlock& block, StrategyState&) const override {
    const double alpha = block.facts->sum_weight;
    for (size_t i = 0; i < block.model.size(); ++i) block.model[i] += alpha * (block.base[i] - block.model[i]) + block.sums[i];
  }
};

}  // namespace

std::vector<ParamInfo> FedAsyncParams() {
  return Joined({{.name = "alpha", .default_value = "0.6", .range = kAlphaRange.ToString(), .help = "share of a fresh client's model"}}, StalenessParams());
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAsync(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedAsyncParams();
  ParamReader reader(spec, params);
  const double alpha = reader.Real("alpha", kAlphaRange);
  AsynchronousSpec asynchronous;
  asynchronous.staleness = ReadStaleness(reader);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = std::make_unique<MixingStep>(), .weights = std::make_unique<AlphaWeight>(alpha), .asynchronous = asynchronous});
}

}  // namespace tributary::aggregator
