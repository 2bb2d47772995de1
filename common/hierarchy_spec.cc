#include "common/hierarchy_spec.h"

#include <fmt/format.h>

#include <vector>

#include "common/yaml_section.h"

namespace tributary {
namespace {

constexpr int64_t kMaxBatchSize = 4096;  // the longest lane
constexpr int64_t kMaxLeaves = 1024;     // a node; the plan clamps further, by its cores
constexpr double kMaxSeconds = 1e7;      // 115 days
constexpr double kMaxMilliseconds = 1e7;
const std::vector<std::string> kTimingKinds = {"eager", "lazy", "batch", "jit"};
const std::vector<std::string> kPlanKinds = {"ewma", "static"};

TimingKind TimingKindOf(const std::string& word) {
  for (const TimingKind kind : {TimingKind::kEager, TimingKind::kLazy, TimingKind::kJit}) {
    if (word == TimingKindName(kind)) return kind;
  }
  return TimingKind::kBatch;
}

void ReadTiming(YamlSection& hierarchy, std::optional<TimingSpec>* timing) {
  if (!hierarchy.Has("timing")) return;
  TimingSpec spec;
  std::string kind = "batch";
  if (hierarchy.reader().IsScalar("timing")) {
    spec.batch = hierarchy.WordWithCount("timing", &kind, kTimingKinds, "batch", 1, kMaxBatchSize).value_or(spec.batch);
  } else {
    YamlSection map(hierarchy.reader().Map("timing"));
    if (!map.Has("kind")) map.reader().String("kind", &kind, YamlReader::kRequired);
    map.Choice("kind", &kind, kTimingKinds);
    map.Int("size", &spec.batch, 1, kMaxBatchSize);
    map.Milliseconds("age_ms", &spec.age, 1, 1, kMaxMilliseconds);
    map.Milliseconds("slack_ms", &spec.slack, 1, 0, kMaxMilliseconds);
    for (const std::string_view key : {"size", "age_ms"}) {
      if (map.Has(key) && kind != "batch") map.Fail(key, fmt::format("only for kind batch, not {}", kind));
    }
    if (map.Has("slack_ms") && kind != "jit") map.Fail("slack_ms", fmt::format("only for kind jit, not {}", kind));
  }
  spec.kind = TimingKindOf(kind);
  *timing = spec;
}

void ReadPlan(YamlSection& hierarchy, PlanSpec* plan) {
  if (!hierarchy.Has("plan")) return;
  std::string kind = "ewma";
  if (hierarchy.reader().IsScalar("plan")) {
    const std::optional<int64_t> leaves = hierarchy.WordWithCount("plan", &kind, kPlanKinds, "static", 1, kMaxLeaves);
    plan->leaves = leaves.value_or(0);
    if (kind == "static" && !leaves) hierarchy.Fail("plan", "static needs the number of leaves a node has: static:4");
  } else {
    YamlSection map(hierarchy.reader().Map("plan"));
    if (!map.Has("kind")) map.reader().String("kind", &kind, YamlReader::kRequired);
    map.Choice("kind", &kind, kPlanKinds);
    map.Int("leaves", &plan->leaves, 1, kMaxLeaves);
    map.Double("weight", &plan->weight, "in [0, 1]", [](double v) { return v >= 0 && v <= 1; });
    std::string side = "history";
    map.Choice("on", &side, {"history", "sample"});
    plan->on = side == "sample" ? EwmaSide::kSample : EwmaSide::kHistory;
    map.Milliseconds("period_s", &plan->period, 1000, 0.1, kMaxSeconds);
    if (kind == "static" && !map.Has("leaves")) map.Fail("kind", "static needs the number of leaves a node has: leaves");
    if (kind == "ewma" && map.Has("leaves")) map.Fail("leaves", "only for kind static, not ewma");
    for (const std::string_view key : {"weight", "on", "period_s"}) {
      if (map.Has(key) && kind != "ewma") map.Fail(key, fmt::format("only for kind ewma, not {}", kind));
    }
  }
  plan->kind = kind == "static" ? PlanKind::kStatic : PlanKind::kEwma;
}

std::string CanonicalTiming(const TimingSpec& timing) {
  switch (timing.kind) {
    case TimingKind::kBatch:
      return fmt::format("{{kind: batch, size: {}, age_ms: {}}}", timing.batch, absl::ToInt64Milliseconds(timing.age));
    case TimingKind::kJit:
      return fmt::format("{{kind: jit, slack_ms: {}}}", absl::ToInt64Milliseconds(timing.slack));
    case TimingKind::kEager:
    case TimingKind::kLazy:
      break;
  }
  return fmt::format("{{kind: {}}}", TimingKindName(timing.kind));
}

std::string CanonicalPlan(const PlanSpec& plan) {
  if (plan.kind == PlanKind::kStatic) return fmt::format("{{kind: static, leaves: {}}}", plan.leaves);
  return fmt::format("{{kind: ewma, weight: {}, on: {}, period_s: {}}}", plan.weight,
                     plan.on == EwmaSide::kSample ? "sample" : "history",
                     static_cast<double>(absl::ToInt64Milliseconds(plan.period)) / 1000.0);
}

}  // namespace

std::string_view HierarchyShapeName(HierarchyShape shape) {
  switch (shape) {
    case HierarchyShape::kFlat:
      return "flat";
    case HierarchyShape::kShard:
      return "shard";
    case HierarchyShape::kTree:
      return "tree";
    case HierarchyShape::kAuto:
      break;
  }
  return "auto";
}

std::string_view TimingKindName(TimingKind kind) {
  switch (kind) {
    case TimingKind::kEager:
      return "eager";
    case TimingKind::kLazy:
      return "lazy";
    case TimingKind::kJit:
      return "jit";
    case TimingKind::kBatch:
      break;
  }
  return "batch";
}

void ReadHierarchy(YamlReader& top, std::string_view key, HierarchySpec* hierarchy) {
  YamlSection map(top.Map(key));
  std::string shape = "auto";
  map.Choice("shape", &shape, {"auto", "flat", "shard", "tree"});
  for (const HierarchyShape known : {HierarchyShape::kFlat, HierarchyShape::kShard, HierarchyShape::kTree}) {
    if (shape == HierarchyShapeName(known)) hierarchy->shape = known;
  }
  map.Int("leaf_fan_in", &hierarchy->leaf_fan_in, 1, kMaxBatchSize);
  ReadTiming(map, &hierarchy->timing);
  map.reader().String("placement", &hierarchy->placement);
  if (map.Has("placement") && hierarchy->placement.empty()) map.Fail("placement", "expected a name, got an empty text");
  ReadPlan(map, &hierarchy->plan);
  std::string reuse = "on";
  map.Choice("reuse", &reuse, {"on", "off"});
  hierarchy->reuse = reuse == "on";
}

std::string CanonicalHierarchy(const HierarchySpec& hierarchy) {
  std::string out = "hierarchy:\n";
  const auto line = [&out](std::string_view key, const std::string& value) { out += fmt::format("  {}: {}\n", key, value); };
  line("shape", std::string(HierarchyShapeName(hierarchy.shape)));
  line("leaf_fan_in", fmt::format("{}", hierarchy.leaf_fan_in));
  if (hierarchy.timing) line("timing", CanonicalTiming(*hierarchy.timing));
  line("placement", Quoted(hierarchy.placement));
  line("plan", CanonicalPlan(hierarchy.plan));
  line("reuse", hierarchy.reuse ? "on" : "off");
  return out;
}

}  // namespace tributary
