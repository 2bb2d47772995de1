// Interleaved measurement of two arms, and one JSON line about it: the common part of transport_bench.
// Rules: dataplane.md §13. Arms alternate A B A B …; median and quartiles of each; a ratio passes only with disjoint quartile ranges.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tributary::bench {

struct Options {
  int runs = 5;
  double idle_seconds = 10;
};

struct Spread {
  double median = 0, low = 0, high = 0;  // quartiles
};
Spread SpreadOf(std::vector<double> values);

// One run of an arm gives its metric.
using Arm = std::function<double()>;
struct TwoArms {
  std::string id = {}, mechanism = {}, metric = {};
  std::string baseline_name = {}, ours_name = {};
  Arm baseline = {}, ours = {};
  double threshold = 0;
  // ratio: baseline / ours >= threshold and disjoint quartiles; ceiling: ours' median <= threshold.
  enum class Pass { kRatio, kCeiling } pass = Pass::kRatio;
};
nlohmann::json Measure(const TwoArms& arms, const Options& options);
// The same from values that were taken elsewhere, interleaved.
nlohmann::json Compare(const TwoArms& arms, const std::vector<double>& baseline, const std::vector<double>& ours);

// Adds machine, load and revision, prints the line, and says whether it passed.
bool Print(nlohmann::json line);

// ---- the measurements; each prints its lines ----
bool MeasureLatency(const std::string& id, const Options& options);  // T1, T1b
bool MeasureBackPressure(const Options& options);                     // T6
bool MeasureIdle(const Options& options);                             // T7
bool MeasureIsolation(const Options& options);                        // T12
bool MeasureStickyDrop(const Options& options);                       // T14
bool MeasureBudget(const Options& options);                           // T16

}  // namespace tributary::bench
