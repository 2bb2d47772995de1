// Rigs of the data plane's acceptance measurements that need both a baseline and the product at work (dataplane.md §13): T2, T2b, T3, T3b,
// T5, T17, T20. One JSON line a comparison on stdout, arms interleaved; tests/bench/dataplane_bench.py judges them.
//   dataplane_rigs WORKER_PROGRAM T2|T3|T3b|T5|T17|T20 [--runs N] [--quick]
#include <absl/strings/numbers.h>

#include <cstdio>
#include <filesystem>

#include "tests/bench/rig.h"

int main(int argc, char** argv) {
  using namespace tributary::bench;
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (!args.empty() && args[0] == "t20-part") return RunT20Part({args.begin() + 1, args.end()});
  RigOptions options;
  bool good = args.size() >= 2;
  for (size_t i = 2; good && i < args.size(); ++i) {
    if (args[i] == "--quick") {
      options.quick = true;
    } else {
      good = args[i] == "--runs" && i + 1 < args.size() && absl::SimpleAtoi(args[++i], &options.runs) && options.runs > 0;
    }
  }
  void (*rig)(const RigOptions&) = nullptr;
  if (good) {
    options.worker_program = args[0];
    options.self = std::filesystem::read_symlink("/proc/self/exe").string();
    const std::string& id = args[1];
    rig = id == "T2" ? RunT2 : id == "T3" ? RunT3 : id == "T3b" ? RunT3b : id == "T5" ? RunT5 : id == "T17" ? RunT17 : id == "T20" ? RunT20 : nullptr;
  }
  if (rig == nullptr) {
    std::fprintf(stderr, "dataplane_rigs WORKER_PROGRAM T2|T3|T3b|T5|T17|T20 [--runs N] [--quick]\n");
    return 2;
  }
  rig(options);
  return 0;
}
