// Which transport to use: the start-up probe of SK_MSG, and the choice. Source: dataplane.md §5.
//
// The probe loads a program of its own (nothing pinned, nothing left) and takes these steps; the first that fails is the reason:
//   kernel   is on the allow-list                     redirect  one record arrives in the other pair's socket
//   load     program and maps                         dead      one to an id with no socket arrives at the daemon's end
//   link     program to tb_socks                      domain    one to another domain does, too
//   pairs    two TCP pairs with identities and routes forged    one under another's name does, too
// and after each of the last four exactly its own counter has moved, by exactly one. That a socket could be inserted proves nothing:
// some kinds insert and then bypass the program.
// Threads: functions are safe; a probe takes a few milliseconds. Errors: FAILED_PRECONDITION whose message is the reason.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "aggregator/transport/transport.h"
#include "common/status.h"
#include "ebpf/verdict_program.h"

namespace tributary::aggregator {

// What the probe sees of the world, replaceable in tests.
struct ProbeSeams {
  std::string kernel;  // stable version; empty: the running kernel's
  std::function<absl::StatusOr<std::unique_ptr<ebpf::VerdictProgram>>()> load = [] { return ebpf::LoadVerdictProgram(); };
};
absl::Status ProbeSkMsg(const ProbeSeams& seams = {});

struct TransportChoice {
  TransportKind kind = TransportKind::kRing;
  std::string reason;  // one line for the log: "transport skmsg: …"
};
// `wanted`: auto | skmsg-inline | skmsg | ring. auto takes skmsg where `probe` passes, ring elsewhere, and says why. A named SK_MSG
// transport whose probe fails is FAILED_PRECONDITION with the probe's reason. INVALID_ARGUMENT for another name.
absl::StatusOr<TransportChoice> ChooseTransport(std::string_view wanted, const std::function<absl::Status()>& probe = [] { return ProbeSkMsg(); });

}  // namespace tributary::aggregator
