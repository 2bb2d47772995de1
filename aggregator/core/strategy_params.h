// Reads a strategy's parameters from a job: defaults, ranges and help come from one list (Params), so that what `tributary
// strategies` prints is what is checked.
// Threads: values. Errors: INVALID_ARGUMENT naming strategy, parameter, expected range and what came; collected by Finish.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "aggregator/core/strategy.h"

namespace tributary::aggregator {

struct RealRange {
  double low = 0;
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;
  bool high_open = true;
  bool Contains(double value) const;
  std::string ToString() const;  // "(0, inf)", "[0, 1)"
};

class ParamReader {
 public:
  // `params`: the strategy's list; both arguments must outlive the reader.
  ParamReader(const StrategySpec& spec, const std::vector<ParamInfo>& params);

  // The value in the job, or the default of the list. After an error: the default.
  double Real(const std::string& name, const RealRange& range);
  // The same, with a word that stands for `meaning`.
  double RealOr(const std::string& word, double meaning, const std::string& name, const RealRange& range);
  int64_t Integer(const std::string& name, int64_t low);
  bool Flag(const std::string& name);   // true|false
  // As written in the job, or the default.
  std::string Text(const std::string& name) const;
  bool Has(const std::string& name) const { return spec_.params.contains(name); }
  void Fail(const std::string& name, const std::string& expected);
  // One of the words of ParamInfo::range, "a|b|c".
  std::string Choice(const std::string& name);
  // The first error met, or an unknown parameter (with the nearest known one).
  absl::Status Finish() const;

 private:
  const ParamInfo& Info(const std::string& name) const;
  void Refuse(const ParamInfo& info, const std::string& got);

  const StrategySpec& spec_;
  const std::vector<ParamInfo>& params_;
  absl::Status status_;
};

// Parameters that every strategy of the averaging family has.
inline constexpr RealRange kServerLrRange{.low = 0, .low_open = true};
ParamInfo ServerLrParam(const std::string& default_value);
ParamInfo WeightingParam(const std::string& default_value);  // examples|uniform

// A strategy put together from parts.
struct StrategyParts {
  std::unique_ptr<ServerStep> step;
  std::unique_ptr<WeightRule> weights;
  std::unique_ptr<WholeReducer> whole = nullptr;
  std::optional<AsynchronousSpec> asynchronous = std::nullopt;  // nothing: synchronous rounds
  std::unique_ptr<SumSpread> spread = nullptr;
  std::vector<ScalarInfo> scalars{};
  std::string norm_scalar{};
  std::vector<std::string> version_vectors{};
  std::string in_place_of_model{};
  ClientStateKind client_state = ClientStateKind::kNone;
  bool sends_values = false;
  std::vector<std::string> required{};  // parameters that a job must state, whatever their default
};
std::unique_ptr<Strategy> Assemble(StrategyParts parts);

// x⁺ = x + η_g · Σ / divisor: Σw, or N (`clients`; 0: all that the job has seen), or a constant.
enum class DivideBy { kWeights, kClients, kConstant };
std::unique_ptr<ServerStep> MakeAverageStep(double server_lr, DivideBy divide_by = DivideBy::kWeights, double constant = 1);
ParamInfo ClientsParam();

}  // namespace tributary::aggregator
