#include "aggregator/core/strategy_params.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/suggest.h"

namespace tributary::aggregator {

bool RealRange::Contains(double value) const {
  if (std::isnan(value)) return false;
  return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

std::string RealRange::ToString() const {
  return fmt::format("{}{}, {}{}", low_open ? "(" : "[", low, high, high_open ? ")" : "]");
}

ParamReader::ParamReader(const StrategySpec& spec, const std::vector<ParamInfo>& params) : spec_(spec), params_(params) {
  std::vector<std::string> known;
  for (const ParamInfo& info : params_) known.push_back(info.name);
  for (const auto& [name, value] : spec_.params) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    status_ = InvalidArgument("strategy '{}' has no parameter '{}'{}; it has: {}", spec_.name, name, DidYouMean(name, known),
                              known.empty() ? std::string("none") : fmt::format("{}", fmt::join(known, ", ")));
    return;
  }
}

const ParamInfo& ParamReader::Info(const std::string& name) const {
  const auto it = std::find_if(params_.begin(), params_.end(), [&](const ParamInfo& info) { return info.name == name; });
  TRIB_CHECK(it != params_.end(), "strategy '{}' reads parameter '{}', which its list lacks", spec_.name, name);
  return *it;
}

std::string ParamReader::Text(const std::string& name) const {
  const ParamInfo& info = Info(name);
  const auto it = spec_.params.find(name);
  return it == spec_.params.end() ? info.default_value : it->second;
}

void ParamReader::Refuse(const ParamInfo& info, const std::string& got) {
  if (!status_.ok()) return;
  status_ = InvalidArgument("strategy '{}': {} must be in {}, got '{}'", spec_.name, info.name, info.range, got);
}

double ParamReader::Real(const std::string& name, const RealRange& range) {
  const std::string text = Text(name);
  double value = 0;
  if (absl::SimpleAtod(text, &value) && range.Contains(value)) return value;
  Refuse(Info(name), text);
  TRIB_CHECK(absl::SimpleAtod(Info(name).default_value, &value), "default of '{}'", name);
  return value;
}

double ParamReader::RealOr(const std::string& word, double meaning, const std::string& name, const RealRange& range) {
  const std::string text = Text(name);
  if (text == word) return meaning;
  double value = 0;
  if (absl::SimpleAtod(text, &value) && range.Contains(value)) return value;
  Refuse(Info(name), text);
  return meaning;
}

int64_t ParamReader::Integer(const std::string& name, int64_t low) {
  const std::string text = Text(name);
  int64_t value = 0;
  if (absl::SimpleAtoi(text, &value) && value >= low) return value;
  Refuse(Info(name), text);
  TRIB_CHECK(absl::SimpleAtoi(Info(name).default_value, &value), "default of '{}'", name);
  return value;
}

bool ParamReader::Flag(const std::string& name) {
  const std::string text = Text(name);
  if (text != "true" && text != "false") Refuse(Info(name), text);
  return text == "true";
}

void ParamReader::Fail(const std::string& name, const std::string& expected) {
  if (status_.ok()) status_ = InvalidArgument("strategy '{}': {}: {}, got '{}'", spec_.name, name, expected, Text(name));
}

std::string ParamReader::Choice(const std::string& name) {
  const std::string text = Text(name);
  const ParamInfo& info = Info(name);
  const std::vector<std::string> words = absl::StrSplit(info.range, '|');
  if (std::find(words.begin(), words.end(), text) != words.end()) return text;
  Refuse(info, text);
  return info.default_value;
}

absl::Status ParamReader::Finish() const { return status_; }

ParamInfo ServerLrParam(const std::string& default_value) {
  return {.name = "server_lr", .default_value = default_value, .range = kServerLrRange.ToString(),
          .help = "server learning rate: how much of the step is taken"};
}

ParamInfo WeightingParam(const std::string& default_value) {
  return {.name = "weighting", .default_value = default_value, .range = "examples|uniform",
          .help = "weight of an update: its client's examples, or 1"};
}

ParamInfo ClientsParam() {
  return {.name = "clients", .default_value = "0", .range = "[0, inf)",
          .help = "N, the registered clients that a sum is divided by; 0: all that the job has ever seen"};
}

namespace {

class AverageStep final : public ServerStep {
 public:
  AverageStep(double server_lr, DivideBy divide_by, double constant) : server_lr_(server_lr), divide_by_(divide_by), constant_(constant) {}

  absl::StatusOr<double> Divisor(const CommitFacts& facts) const override {
    switch (divide_by_) {
      case DivideBy::kWeights: return facts.sum_weight;
      case DivideBy::kClients: return constant_ > 0 ? constant_ : static_cast<double>(facts.registered);
      case DivideBy::kConstant: return constant_;
    }
    return facts.sum_weight;
  }

  void ApplyBlock(const StepBlock& block, StrategyState&) const override {
    for (size_t i = 0; i < block.model.size(); ++i) block.model[i] += server_lr_ * (block.sums[i] / block.divisor);
  }

 private:
  double server_lr_;
  DivideBy divide_by_;
  double constant_;
};

class AssembledStrategy final : public Strategy {
 public:
  explicit AssembledStrategy(StrategyParts parts) : parts_(std::move(parts)) {}
  const WholeReducer* whole_reducer() const override { return parts_.whole.get(); }
  const SumSpread* spread() const override { return parts_.spread.get(); }
  const ServerStep& server_step() const override { return *parts_.step; }
  const WeightRule& weights() const override { return *parts_.weights; }
  std::vector<ScalarInfo> scalars() const override { return parts_.scalars; }
  std::string norm_scalar() const override { return parts_.norm_scalar; }
  RoundPolicies MakePolicies(const CohortSpec& cohort) const override {
    return parts_.asynchronous ? MakeAsynchronousPolicies(cohort, *parts_.asynchronous) : MakeSynchronousPolicies(cohort);
  }
  std::vector<std::string> version_vectors() const override { return parts_.version_vectors; }
  std::string in_place_of_model() const override { return parts_.in_place_of_model; }
  ClientStateKind client_state() const override { return parts_.client_state; }
  bool synchronous() const override { return !parts_.asynchronous.has_value(); }
  bool sends_values() const override { return parts_.sends_values; }
  absl::Status CheckJob(const JobSpec& spec) const override {
    if (parts_.whole != nullptr) TRIB_RETURN_IF_ERROR(Annotate(parts_.whole->CheckCount(spec.EffectiveQuorum()), "cohort"));
    for (const std::string& name : parts_.required) {
      if (!spec.strategy.params.contains(name)) return InvalidArgument("strategy '{}' needs the parameter {}", spec.strategy.name, name);
    }
    if (!parts_.asynchronous) return absl::OkStatus();
    if (spec.hierarchy.timing && (spec.hierarchy.timing->kind == TimingKind::kLazy || spec.hierarchy.timing->kind == TimingKind::kJit)) {
      return InvalidArgument("hierarchy.timing: strategy '{}' is asynchronous, nobody knows which update is the last; expected eager or batch, got {}",
                             spec.strategy.name, TimingKindName(spec.hierarchy.timing->kind));
    }
    if (spec.cohort.quorum != 0 || spec.cohort.over_select != 1.0) {
      return InvalidArgument("cohort: strategy '{}' is asynchronous: quorum and over_select have no meaning", spec.strategy.name);
    }
    if (spec.cohort.poisson || spec.cohort.population > 0) {
      return InvalidArgument("cohort: strategy '{}' is asynchronous: clients start when they can, nobody is drawn; expected size alone, got sampling or population",
                             spec.strategy.name);
    }
    return absl::OkStatus();
  }

 private:
  StrategyParts parts_;
};

}  // namespace

std::unique_ptr<ServerStep> MakeAverageStep(double server_lr, DivideBy divide_by, double constant) {
  return std::make_unique<AverageStep>(server_lr, divide_by, constant);
}

std::unique_ptr<Strategy> Assemble(StrategyParts parts) { return std::make_unique<AssembledStrategy>(std::move(parts)); }

}  // namespace tributary::aggregator
