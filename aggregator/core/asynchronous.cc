#include "aggregator/core/asynchronous.h"

#include <absl/strings/numbers.h>

namespace tributary::aggregator {
namespace {

constexpr RealRange kSlopeRange{.low = 0};

class AsynchronousWeight final : public WeightRule {
 public:
  explicit AsynchronousWeight(AsynchronousWeights weights) : weights_(std::move(weights)) {}

  absl::StatusOr<double> Weight(const WeightInput& input) const override {
    switch (weights_.frequency) {
      case Frequency::kNone: return Plain(input);
      case Frequency::kKnown: {
        TRIB_ASSIGN_OR_RETURN(const double frequency, weights_.known->Find(input.client, *input.clients));
        return Importance(input, weights_.uniform) / frequency;
      }
      case Frequency::kOnline: return Importance(input, weights_.uniform) * MeanInterval(input.clients->Find(input.client));
    }
    return Plain(input);
  }
  absl::StatusOr<double> Most() const override {
    if (weights_.frequency != Frequency::kNone) {
      return InvalidArgument("weight: expected none: the correction for how often a client contributes is a weight without bound");
    }
    if (weights_.plain != PlainWeight::kOne && !weights_.uniform) {
      return InvalidArgument("strategy.weighting: expected uniform, got weights that the client sets: no bound on what one client adds to the sum");
    }
    return 1.0;
  }
  bool keeps_clients() const override { return true; }
  uint64_t RoundAt(uint64_t version, absl::Duration since_start) const override {
    if (weights_.interval <= absl::ZeroDuration()) return version + 1;
    return static_cast<uint64_t>(std::max<int64_t>(1, TicksUntil(since_start, weights_.interval)));
  }

 private:
  double Plain(const WeightInput& input) const {
    switch (weights_.plain) {
      case PlainWeight::kOne: return 1.0;
      case PlainWeight::kRelativeExamples:
        return weights_.uniform ? 1.0 : input.claimed / input.clients->MeanClaimed(input.client, input.claimed);
      case PlainWeight::kImportance: return Importance(input, weights_.uniform);
    }
    return 1.0;
  }

  AsynchronousWeights weights_;
};

}  // namespace

std::unique_ptr<WeightRule> MakeAsynchronousWeight(AsynchronousWeights weights) {
  return std::make_unique<AsynchronousWeight>(std::move(weights));
}

std::vector<ParamInfo> FrequencyParams(const std::string& default_weight) {
  return {{.name = "weight", .default_value = default_weight, .range = "none|known|online",
           .help = "how often a client contributes: not corrected for, stated by `frequency`, or observed"},
          {.name = "frequency", .default_value = "1", .range = "(0, inf)",
           .help = "weight known: contributions of a client per commit (per tick); one value, a list in the order of the names, or client=value, …"},
          WeightingParam("uniform")};
}

AsynchronousWeights ReadFrequency(ParamReader& reader) {
  AsynchronousWeights weights;
  const std::string how = reader.Choice("weight");
  weights.frequency = how == "known" ? Frequency::kKnown : (how == "online" ? Frequency::kOnline : Frequency::kNone);
  weights.uniform = reader.Choice("weighting") == "uniform";
  absl::StatusOr<PerClient> known = PerClient::Parse(reader.Text("frequency"), std::numeric_limits<double>::max());
  if (!known.ok()) {
    reader.Fail("frequency", MessageOf(known.status()));
  } else {
    weights.known = *std::move(known);
  }
  if (weights.frequency == Frequency::kKnown && !reader.Has("frequency")) reader.Fail("weight", "known needs `frequency`");
  if (weights.frequency != Frequency::kKnown && reader.Has("frequency") && reader.Text("frequency") != "1") {
    reader.Fail("frequency", fmt::format("it has a meaning with weight known only, not with weight {}", how));
  }
  return weights;
}

std::vector<ParamInfo> StalenessParams() {
  return {{.name = "staleness.kind", .default_value = "polynomial", .range = "polynomial|constant|hinge",
           .help = "s(t) of an update t commits old: (1+t)^-a, 1, or 1 up to b and 1/(a(t-b)+1) beyond"},
          {.name = "staleness.a", .default_value = "0.5", .range = kSlopeRange.ToString(), .help = "slope of s"},
          {.name = "staleness.b", .default_value = "4", .range = kSlopeRange.ToString(), .help = "hinge: staleness that costs nothing"},
          {.name = "max_staleness", .default_value = "none", .range = "none|[0, inf)", .help = "older updates are refused"}};
}

StalenessRule ReadStaleness(ParamReader& reader) {
  StalenessRule rule;
  const std::string kind = reader.Choice("staleness.kind");
  rule.kind = kind == "constant" ? StalenessRule::Kind::kConstant
                                 : (kind == "hinge" ? StalenessRule::Kind::kHinge : StalenessRule::Kind::kPolynomial);
  rule.a = reader.Real("staleness.a", kSlopeRange);
  rule.b = reader.Real("staleness.b", kSlopeRange);
  const std::string most = reader.Text("max_staleness");
  if (most != "none" && !absl::SimpleAtoi(most, &rule.most)) reader.Fail("max_staleness", "expected none or a whole number");
  return rule;
}

std::vector<ParamInfo> Joined(std::vector<ParamInfo> a, const std::vector<ParamInfo>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace tributary::aggregator
