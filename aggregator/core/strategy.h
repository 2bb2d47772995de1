// A strategy = reducer + server step + the engine's three policies, made from a job. The table of all is strategies/strategies.def:
// adding one is one file and one line.
// Threads: immutable after Make. Errors: NOT_FOUND for an unknown name (with the nearest and all known ones), INVALID_ARGUMENT
// for an unknown parameter or a value out of range.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "aggregator/core/policies.h"
#include "aggregator/core/reducer.h"
#include "aggregator/core/server_step.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::aggregator {

enum class StrategyTrait { kMergeable, kNeedsAll };

struct ParamInfo {
  std::string name;
  std::string default_value;
  std::string range;   // "(0, inf)", "examples|uniform"
  std::string help;
};

class Strategy {
 public:
  virtual ~Strategy() = default;
  virtual std::unique_ptr<Reducer> MakeReducer(DType dtype, Arithmetic arithmetic) const = 0;
  virtual const ServerStep& server_step() const = 0;
  virtual RoundPolicies MakePolicies(const CohortSpec& cohort) const = 0;
  // The weight of an update in the fold, before the staleness factor. `claimed`: what the client sent, already > 0 and finite.
  virtual double Weight(double claimed) const = 0;
};

struct StrategyEntry {
  std::string_view name;
  absl::StatusOr<std::unique_ptr<Strategy>> (*make)(const StrategySpec& spec);
  std::vector<ParamInfo> (*params)();
  StrategyTrait trait;
  std::string_view help;   // long name and source
  std::string_view down;   // what travels down and up, in model sizes
  std::string_view up;
};

// The table, in .def order.
std::span<const StrategyEntry> Strategies();
absl::StatusOr<std::unique_ptr<Strategy>> MakeStrategy(const StrategySpec& spec);
const StrategyEntry* FindStrategy(std::string_view name);

}  // namespace tributary::aggregator
