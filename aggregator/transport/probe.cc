#include "aggregator/transport/probe.h"

#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "aggregator/transport/anchor_pair.h"
#include "aggregator/transport/kernel_allow.h"
#include "common/file.h"

namespace tributary::aggregator {
namespace {

// On a loaded machine a record of a probe may take a while to be seen; a missing one means "ring" for this run.
constexpr absl::Duration kArrival = absl::Seconds(2);

std::string RunningKernel() {
  utsname name{};
  if (::uname(&name) != 0) return "unknown";
  return StableVersion(name.release, name.version);
}

// " (this process lacks CAP_BPF, CAP_NET_ADMIN)", or nothing: the likeliest reason why loading fails.
std::string MissingCapabilities() {
  constexpr uint64_t kNetAdmin = uint64_t{1} << 12, kSysAdmin = uint64_t{1} << 21, kBpf = uint64_t{1} << 39;
  const std::string status = ReadFile("/proc/self/status", 1 << 16).value_or("");
  const size_t at = status.find("CapEff:");
  if (at == std::string::npos) return "";
  const uint64_t effective = std::strtoull(status.c_str() + at + sizeof("CapEff:"), nullptr, 16);
  std::string missing;
  if ((effective & (kBpf | kSysAdmin)) == 0) missing = "CAP_BPF";
  if ((effective & kNetAdmin) == 0) missing += missing.empty() ? "CAP_NET_ADMIN" : " and CAP_NET_ADMIN";
  return missing.empty() ? "" : fmt::format(" (this process lacks {})", missing);
}

struct End {
  AnchorPair pair;
  tb_identity identity{};
  End() = default;
  End(End&&) = default;
  ~End() { ResetAndClose(pair.daemon_end); }
};

absl::StatusOr<End> MakeEnd(ebpf::VerdictProgram& program, uint32_t id, uint32_t domain) {
  End end;
  end.identity = {id, domain};
  TRIB_ASSIGN_OR_RETURN(end.pair, MakeAnchorPair());
  TRIB_RETURN_IF_ERROR(program.SetIdentity(end.pair.worker_end.get(), end.identity));
  TRIB_RETURN_IF_ERROR(program.SetRoute(id, {.domain = domain, .sock = id, .flags = 0, .epoch = 1}));
  TRIB_RETURN_IF_ERROR(program.InsertSocket(id, end.pair.worker_end.get()));
  return end;
}

absl::Status SendRecord(int fd, const tb_desc& record) {
  const ssize_t sent = ::send(fd, &record, sizeof(record), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(sizeof(record))) return absl::OkStatus();
  return sent < 0 ? ErrnoStatus(errno, "send") : Internal("send: expected {} bytes, got {}", sizeof(record), sent);
}

absl::Status ExpectRecord(int fd, const tb_desc& want, std::string_view where) {
  pollfd entry{fd, POLLIN, 0};
  const timespec limit = absl::ToTimespec(kArrival);
  if (::ppoll(&entry, 1, &limit, nullptr) <= 0) return Internal("nothing arrived at {}", where);
  tb_desc got[2];
  const ssize_t count = ::recv(fd, got, sizeof(got), MSG_DONTWAIT);
  if (count != static_cast<ssize_t>(sizeof(want)) || std::memcmp(&got[0], &want, sizeof(want)) != 0) {
    return Internal("expected the record of {} bytes at {}, got {} bytes or another", sizeof(want), where, count);
  }
  return absl::OkStatus();
}

// Sends `record` through `from`; it must arrive at `at`, and only the counter of `verdict` may move, by one.
absl::Status Step(ebpf::VerdictProgram& program, int from, const tb_desc& record, int at, std::string_view where, tb_verdict verdict) {
  TRIB_ASSIGN_OR_RETURN(const ebpf::VerdictCounts before, program.Counts());
  TRIB_RETURN_IF_ERROR(SendRecord(from, record));
  TRIB_RETURN_IF_ERROR(ExpectRecord(at, record, where));
  TRIB_ASSIGN_OR_RETURN(const ebpf::VerdictCounts after, program.Counts());
  for (uint32_t i = 0; i < TB_VERDICTS; ++i) {
    const uint64_t moved = after[i] - before[i], expected = i == verdict ? 1 : 0;
    if (moved != expected) return Internal("counter {}: expected to move by {}, moved by {}", ebpf::NameOf(static_cast<tb_verdict>(i)), expected, moved);
  }
  return absl::OkStatus();
}

absl::Status Failed(std::string_view step, const absl::Status& why) {
  if (why.ok()) return why;
  const std::string caps = why.code() == absl::StatusCode::kPermissionDenied ? MissingCapabilities() : "";
  // Loading says itself whether it was the load or the link.
  return FailedPrecondition("probe: {}{}{}{}", step, step.empty() ? "" : ": ", MessageOf(why), caps);
}

}  // namespace

absl::Status ProbeSkMsg(const ProbeSeams& seams) {
  const std::string kernel = seams.kernel.empty() ? RunningKernel() : seams.kernel;
  if (!KernelAllowed(kernel)) {
    return FailedPrecondition("probe: kernel: expected 6.1.142, 6.6.94, 6.12.34 or newer within these, or 6.15.3 or newer, got {}", kernel);
  }
  absl::StatusOr<std::unique_ptr<ebpf::VerdictProgram>> loaded = seams.load();
  if (!loaded.ok()) return Failed("", loaded.status());
  ebpf::VerdictProgram& program = **loaded;
  const absl::StatusOr<End> a = MakeEnd(program, 1, 1), b = MakeEnd(program, 2, 1);
  if (!a.ok()) return Failed("pairs", a.status());
  if (!b.ok()) return Failed("pairs", b.status());
  absl::Status routes = program.SetRoute(3, {.domain = 1, .sock = 3, .flags = 0, .epoch = 0});           // nobody's socket
  if (routes.ok()) routes = program.SetRoute(4, {.domain = 2, .sock = 2, .flags = 0, .epoch = 0});       // the same socket, another domain
  if (!routes.ok()) return Failed("pairs", routes);

  const int sender = a->pair.worker_end.get(), daemon = a->pair.daemon_end.get(), target = b->pair.worker_end.get();
  constexpr std::string_view kTarget = "the target's socket", kDaemon = "the daemon's end";
  const auto record = [](uint32_t src, uint32_t dst) {
    return tb_desc{.dst = dst, .src = src, .key_hi = 0x5452494255544152, .key_lo = dst, .round = 1, .kind = TB_KIND_DOORBELL, .lane = 0};
  };
  TRIB_RETURN_IF_ERROR(Failed("redirect", Step(program, sender, record(1, 2), target, kTarget, TB_VERDICT_OK)));
  TRIB_RETURN_IF_ERROR(Failed("dead", Step(program, sender, record(1, 3), daemon, kDaemon, TB_VERDICT_DEAD)));
  TRIB_RETURN_IF_ERROR(Failed("domain", Step(program, sender, record(1, 4), daemon, kDaemon, TB_VERDICT_DOMAIN)));
  TRIB_RETURN_IF_ERROR(Failed("forged", Step(program, sender, record(2, 2), daemon, kDaemon, TB_VERDICT_FORGED)));
  return absl::OkStatus();
}

absl::StatusOr<TransportChoice> ChooseTransport(std::string_view wanted, const std::function<absl::Status()>& probe) {
  TransportChoice choice;
  if (wanted == NameOf(TransportKind::kRing)) {
    choice.reason = "transport ring: configured";
    return choice;
  }
  const bool automatic = wanted == "auto";
  if (!automatic && wanted != NameOf(TransportKind::kSkMsg) && wanted != NameOf(TransportKind::kSkMsgInline)) {
    return InvalidArgument("data_plane.transport: expected auto, skmsg-inline, skmsg or ring, got '{}'", wanted);
  }
  const absl::Status probed = probe();
  if (!probed.ok()) {
    if (!automatic) return FailedPrecondition("data_plane.transport: {} cannot be used: {}", wanted, MessageOf(probed));
    choice.reason = fmt::format("transport ring: chosen automatically, {}", MessageOf(probed));
    return choice;
  }
  choice.kind = wanted == NameOf(TransportKind::kSkMsgInline) ? TransportKind::kSkMsgInline : TransportKind::kSkMsg;
  choice.reason = fmt::format("transport {}: {}, the probe passed (kernel {})", NameOf(choice.kind), automatic ? "chosen automatically" : "configured",
                              RunningKernel());
  return choice;
}

}  // namespace tributary::aggregator
