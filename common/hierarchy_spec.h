// How a job's updates become one sum (dataplane.md §7.1, §7.2, §9), the `hierarchy` key: a shape, and four switches of which any combination is legal.
// What does not fit the job's strategy is refused by ResolveHierarchy (aggregator/core/planners/hierarchy.h).
// Threads: values. Errors: INVALID_ARGUMENT with the key, what was expected and what came.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/yaml_reader.h"

namespace tributary {

enum class HierarchyShape { kAuto, kFlat, kShard, kTree };
std::string_view HierarchyShapeName(HierarchyShape shape);  // "auto", …

enum class TimingKind { kEager, kLazy, kBatch, kJit };
// Short form `timing: batch:4`, long form `timing: {kind: batch, size: 4, age_ms: 50}`.
struct TimingSpec {
  TimingKind kind = TimingKind::kBatch;
  int64_t batch = 4;                               // batch: fold when so many are queued (size)
  absl::Duration age = absl::Milliseconds(50);     // batch: or when the oldest has waited so long (age_ms)
  absl::Duration slack = absl::Milliseconds(5);    // jit: begin so much earlier than the estimates say (slack_ms)
  bool operator==(const TimingSpec&) const = default;
};
std::string_view TimingKindName(TimingKind kind);

enum class PlanKind { kEwma, kStatic };
enum class EwmaSide { kHistory, kSample };
// Short form `plan: ewma` or `plan: static:4`, long form `plan: {kind: ewma, weight: 0.7, on: history, period_s: 30}`.
struct PlanSpec {
  PlanKind kind = PlanKind::kEwma;
  int64_t leaves = 0;                              // static: leaves a node, >= 1
  double weight = 0.7;                             // ewma: h in [0, 1]
  EwmaSide on = EwmaSide::kHistory;                // ewma: what h multiplies
  absl::Duration period = absl::Seconds(30);       // ewma: between plans (period_s)
  bool operator==(const PlanSpec&) const = default;
};

struct HierarchySpec {
  HierarchyShape shape = HierarchyShape::kAuto;
  int64_t leaf_fan_in = 2;                         // I: updates in hand for which one leaf is planned
  std::optional<TimingSpec> timing{};              // absent: batch:4, or lazy for a strategy that needs all updates at once
  std::string placement = "bestfit";               // a name of aggregator/core/planners/placements/planners.def
  PlanSpec plan{};
  bool reuse = true;                               // on | off
  bool operator==(const HierarchySpec&) const = default;
};

void ReadHierarchy(YamlReader& top, std::string_view key, HierarchySpec* hierarchy);
std::string CanonicalHierarchy(const HierarchySpec& hierarchy);  // lines from "hierarchy:" on

}  // namespace tributary
