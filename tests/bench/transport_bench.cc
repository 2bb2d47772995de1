// transport_bench [--only T1,T6,...] [--runs N] [--idle-seconds S]: the data plane's acceptance measurements that concern the transport
// (dataplane.md §13), one JSON line each. Exit 0: all passed; 1: one did not; 3: this machine cannot run them (the line says why).
#include "tests/bench/transport_bench.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "aggregator/transport/probe.h"
#include "common/status.h"

namespace tributary::bench {

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  // Linear interpolation between neighbours, as numpy's default.
  const auto at = [&values](double fraction) {
    const double position = fraction * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
  };
  return {at(0.5), at(0.25), at(0.75)};
}

nlohmann::json ArmJson(const std::string& name, const std::vector<double>& values) {
  const Spread spread = SpreadOf(values);
  return {{"arm", name}, {"runs", values}, {"median", spread.median}, {"iqr", {spread.low, spread.high}}};
}

nlohmann::json Measure(const TwoArms& arms, const Options& options) {
  std::vector<double> baseline, ours;
  for (int run = 0; run < options.runs; ++run) {
    baseline.push_back(arms.baseline());
    ours.push_back(arms.ours());
  }
  return Compare(arms, baseline, ours);
}

nlohmann::json Compare(const TwoArms& arms, const std::vector<double>& baseline, const std::vector<double>& ours) {
  const Spread a = SpreadOf(baseline), b = SpreadOf(ours);
  const bool disjoint = b.high < a.low || a.high < b.low;
  const double ratio = b.median > 0 ? a.median / b.median : 0;
  const bool by_ratio = arms.pass == TwoArms::Pass::kRatio;
  return {{"id", arms.id},
          {"mechanism", arms.mechanism},
          {"metric", arms.metric},
          {"baseline", ArmJson(arms.baseline_name, baseline)},
          {"ours", ArmJson(arms.ours_name, ours)},
          {"ratio", ratio},
          {"iqr_disjoint", disjoint},
          {"threshold", by_ratio ? fmt::format("ratio >= {}", arms.threshold) : fmt::format("ours <= {}", arms.threshold)},
          {"pass", by_ratio ? ratio >= arms.threshold && disjoint : b.median <= arms.threshold}};
}

bool Print(nlohmann::json line) {
  utsname name{};
  ::uname(&name);
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  const char* revision = std::getenv("TRIBUTARY_REVISION");
  line["machine"] = {{"cores", std::thread::hardware_concurrency()}, {"kernel", name.release}, {"load", load}, {"revision", revision ? revision : "unknown"}};
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
  return line.value("pass", false);
}

namespace {

int Main(int argc, char** argv) {
  Options options;
  std::string only = "T1,T1b,T6,T7,T12,T14,T16";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (i + 1 >= argc || argument == "--help") {
      std::fprintf(stderr, "usage: transport_bench [--only T1,T1b,T6,T7,T12,T14,T16] [--runs N] [--idle-seconds S]\n");
      return 2;
    }
    const std::string value = argv[++i];
    if (argument == "--only") only = value;
    if (argument == "--runs") options.runs = std::max(1, std::atoi(value.c_str()));
    if (argument == "--idle-seconds") options.idle_seconds = std::max(0.1, std::atof(value.c_str()));
  }
  if (const absl::Status probed = aggregator::ProbeSkMsg(); !probed.ok()) {
    Print({{"skipped", only}, {"reason", MessageOf(probed)}});
    return 3;
  }
  bool passed = true;
  const std::string list = "," + only + ",";
  const auto wanted = [&list](const std::string& id) { return list.find("," + id + ",") != std::string::npos; };
  if (wanted("T1")) passed = MeasureLatency("T1", options) && passed;
  if (wanted("T1b")) passed = MeasureLatency("T1b", options) && passed;
  if (wanted("T6")) passed = MeasureBackPressure(options) && passed;
  if (wanted("T7")) passed = MeasureIdle(options) && passed;
  if (wanted("T12")) passed = MeasureIsolation(options) && passed;
  if (wanted("T14")) passed = MeasureStickyDrop(options) && passed;
  if (wanted("T16")) passed = MeasureBudget(options) && passed;
  return passed ? 0 : 1;
}

}  // namespace
}  // namespace tributary::bench

int main(int argc, char** argv) { return tributary::bench::Main(argc, argv); }
