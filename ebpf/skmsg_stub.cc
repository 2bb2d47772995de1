// The same symbols as verdict_program.cc, for a build without BPF tools: every transport but `ring` says why it is not there.
#include "ebpf/verdict_program.h"

namespace tributary::ebpf {

absl::StatusOr<std::unique_ptr<VerdictProgram>> LoadVerdictProgram(const LoadOptions&) {
  return Unimplemented("load: this program was built without eBPF (TRIBUTARY_BPF); scripts/deps.sh installs what the build needs");
}

bool BuiltWithBpf() { return false; }

}  // namespace tributary::ebpf
