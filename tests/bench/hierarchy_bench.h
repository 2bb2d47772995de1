// Acceptance measurements of trees, timing and reuse (dataplane.md §13: T4, T4b, T11, T18, T19, and recovery) at full size, each with
// its baseline arm in the same run, arms interleaved. One JSON line an arm and one for the verdict, on stdout.
#pragma once

#include <string>

namespace tributary::aggregator {

struct HierarchyBench {
  std::string worker_program;
  int runs = 5;
  double mib = 42.72;  // an update: S of dataplane.md §13, 11.2 M floats (44.8 MB)
};
// `name`: t4 | t4b | t11 | t18 | t19 | recovery. 0, 1 for a missed threshold, 2 for an unknown name.
int RunHierarchyBench(const std::string& name, const HierarchyBench& options);

}  // namespace tributary::aggregator
