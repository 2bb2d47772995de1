// Owner of the verdict program in the kernel: its skeleton, its four maps and its attachment to tb_socks. What the maps mean: README.md;
// what the program decides: verdict_logic.h. An interface, so that whatever stands on it can be tested with a fake.
//
// With a pin folder (a private bpffs; mounted here if it is none yet) program and maps outlive this process: records between workers
// go on while the daemon is away, and the next LoadVerdictProgram adopts them with all their sockets, routes and counts, and puts
// its own version of the program in place without a gap. Without one everything ends with this object.
//
// Threads: safe (every method is one system call or a read-only walk). Errors: PERMISSION_DENIED without CAP_BPF and CAP_NET_ADMIN;
// FAILED_PRECONDITION when another daemon holds the pin folder; UNIMPLEMENTED in a build without BPF (skmsg_stub.cc); else errno's.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/abi/dataplane_abi.h"
#include "common/status.h"

namespace tributary::ebpf {

using VerdictCounts = std::array<uint64_t, TB_VERDICTS>;  // index: tb_verdict

inline std::string_view NameOf(tb_verdict verdict) {
  constexpr std::array<std::string_view, TB_VERDICTS> kNames = {"ok",     "bad_size", "no_ident", "forged", "no_route",
                                                                "domain", "remote",   "paused",   "dead"};
  return verdict < TB_VERDICTS ? kNames[verdict] : std::string_view("unknown");
}

struct ProgramFacts {
  uint32_t program_id = 0;
  uint32_t verified_instructions = 0;  // what the verifier walked; 0 before Linux 5.16
  uint64_t run_count = 0, run_ns = 0;  // move only while the kernel's BPF statistics are on
  bool by_link = false;                // attached by a bpf_link; else by bpf_prog_attach (Linux before 6.10)
  bool pinned = false;
  bool adopted = false;                // maps and attachment are an earlier daemon's
  std::string pin_note;                // for people: why it is not pinned, or why older pins were not adopted
};

class VerdictProgram {
 public:
  virtual ~VerdictProgram() = default;

  // Who speaks through this TCP socket. Before InsertSocket, or its first records count as no_ident.
  virtual absl::Status SetIdentity(int socket_fd, const tb_identity& identity) = 0;

  virtual absl::Status SetRoute(uint32_t destination, const tb_route& route) = 0;
  virtual absl::StatusOr<tb_route> GetRoute(uint32_t destination) = 0;  // NOT_FOUND
  virtual absl::Status DeleteRoute(uint32_t destination) = 0;           // NOT_FOUND
  virtual absl::StatusOr<std::vector<std::pair<uint32_t, tb_route>>> Routes() = 0;

  // Replaces the socket that is there. The kernel removes an entry by itself when the last fd of its socket is closed.
  virtual absl::Status InsertSocket(uint32_t key, int socket_fd) = 0;
  virtual absl::Status DeleteSocket(uint32_t key) = 0;  // NOT_FOUND
  virtual absl::StatusOr<bool> HasSocket(uint32_t key) = 0;

  virtual absl::StatusOr<VerdictCounts> Counts() = 0;
  virtual absl::StatusOr<ProgramFacts> Facts() = 0;

  // Lets everything end with this object after all: removes the pins, and the bpffs if it was mounted here or by a predecessor.
  virtual absl::Status Unpin() = 0;
};

struct LoadOptions {
  std::filesystem::path pin_folder;  // empty: nothing is pinned
};
// A pin folder that cannot be used (no bpffs and no right to mount one) is no error: see ProgramFacts::pin_note.
absl::StatusOr<std::unique_ptr<VerdictProgram>> LoadVerdictProgram(const LoadOptions& options = {});

// False in a build without BPF (TRIBUTARY_BPF=OFF, or tools that were missing).
bool BuiltWithBpf();

}  // namespace tributary::ebpf
