// libbpf's results (0 or a negative errno) as absl::Status: the one place where they are converted. What libbpf printed as a warning
// during the call (it often names the map or the verifier's complaint) is added.  Threads: the warnings are kept per thread.
#pragma once

#include <cerrno>
#include <string>

#include "common/status.h"

namespace tributary::ebpf {

// Collects this thread's libbpf warnings while it lives, instead of having them printed on stderr. Does not nest.
class CapturedWarnings {
 public:
  CapturedWarnings();
  ~CapturedWarnings();
  CapturedWarnings(const CapturedWarnings&) = delete;
  CapturedWarnings& operator=(const CapturedWarnings&) = delete;
  // The last lines, at most a few hundred bytes, on one line.
  std::string Tail() const;

 private:
  std::string text_;
};

// `result` of a libbpf function that returns 0 or more on success and -errno on failure.
inline absl::Status BpfStatus(int result, std::string_view what, const CapturedWarnings* warnings = nullptr) {
  if (result >= 0) return absl::OkStatus();
  const absl::Status status = ErrnoStatus(-result, what);
  // EPERM is a missing capability, and libbpf's guesses about it mislead; the verifier says EACCES.
  const std::string tail = warnings != nullptr && result != -EPERM ? warnings->Tail() : std::string();
  return tail.empty() ? status : absl::Status(status.code(), fmt::format("{} ({})", MessageOf(status), tail));
}

}  // namespace tributary::ebpf
