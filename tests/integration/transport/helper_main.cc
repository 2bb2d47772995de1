// The other process of the transport tests. Fds: 9 the lane, 10 its own anchor or eventfd, 11 the other end's eventfd, 12 the pidfd of
// the process at the other end (each where it applies; SIZE is the lane's).
//   produce WAY SIZE SELF PEER COUNT   pushes COUNT descriptors numbered from the lane's head, then ends
//   consume WAY SIZE SELF PEER         writes the number of each descriptor to stdout (u32), releases each batch; for ever
//   sleep WAY SIZE SELF PEER           a consumer that only waits; exit 1 if anything comes or a wake-up was late
//   spin SIZE                          a consumer that polls its ring lane without sleeping (baseline)
//   daemon FOLDER                      loads with pins in FOLDER, makes anchors 1 and 2 in domain 1, hands their worker ends over fd 9,
//                                      and sleeps until it is killed
//   probe UID CAPS                     becomes UID with exactly the capabilities of the hex mask CAPS, probes, prints "ok" or the reason
//   run-as UID CAPS PROGRAM [ARG...]   becomes UID with exactly these capabilities (ambient) and runs PROGRAM; 77 where it may not
#include <absl/time/clock.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "aggregator/store/object_pool.h"
#include "aggregator/transport/anchors.h"
#include "aggregator/transport/probe.h"
#include "aggregator/transport/skmsg_endpoint.h"
#include "common/process.h"

namespace {

using namespace tributary;
using namespace tributary::aggregator;

[[noreturn]] void Die(const absl::Status& why) {
  std::fprintf(stderr, "transport_helper: %s\n", why.ToString().c_str());
  std::exit(3);
}
template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status());
  return *std::move(value);
}

uint64_t Number(const char* text, int base = 10) { return std::strtoull(text, nullptr, base); }

bool IsOpen(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

struct Side {
  SharedRegion region;
  std::unique_ptr<TransportEndpoint> endpoint;
  LaneOptions options;
  uint32_t self = 0;
};

Side MakeSide(char** arguments) {
  const std::string way = arguments[0];
  Side side;
  side.region = OrDie(SharedRegion::Receive(UniqueFd(9), Number(arguments[1])));
  side.self = static_cast<uint32_t>(Number(arguments[2]));
  side.options.peer = static_cast<uint32_t>(Number(arguments[3]));
  if (IsOpen(12)) side.options.peer_pidfd = 12;
  if (way == "ring_futex") {
    side.endpoint = MakeRingEndpoint(side.self);
  } else if (way == "ring_eventfd") {
    side.endpoint = MakeRingEndpoint(side.self, 10);
    side.options.ring_fd = 11;
  } else {
    side.endpoint = OrDie(SkMsgEndpoint::Create(UniqueFd(10), side.self, way == "skmsg" ? TransportKind::kSkMsg : TransportKind::kSkMsgInline));
  }
  return side;
}

int Produce(char** arguments) {
  const Side side = MakeSide(arguments);
  const uint64_t count = Number(arguments[4]);
  auto lane = OrDie(side.endpoint->OpenProducer(side.region.bytes, side.options));
  for (uint64_t i = 0; i < count; ++i) {
    const uint32_t number = lane->pushed();
    const tb_desc desc{.dst = side.options.peer, .src = side.self, .key_hi = number * uint64_t{7}, .key_lo = ~uint64_t{number}, .round = number,
                       .kind = TB_KIND_UPDATE, .lane = 0};
    while (true) {
      const absl::Status pushed = lane->Push(desc);
      if (pushed.ok()) break;
      if (pushed.code() != absl::StatusCode::kUnavailable) Die(pushed);
      if (lane->PeerEnded()) return 7;
      lane->WaitForProgress(absl::Seconds(5));
    }
  }
  return 0;
}

int Consume(char** arguments) {
  const Side side = MakeSide(arguments);
  auto lane = OrDie(side.endpoint->OpenConsumer(side.region.bytes, side.options));
  std::array<tb_desc, 5> out;
  while (true) {
    lane->Wait(absl::Seconds(5));
    const size_t count = OrDie(lane->Poll(out));
    for (size_t i = 0; i < count; ++i) {
      if (out[i].key_lo != ~uint64_t{out[i].round} || out[i].src != side.options.peer) return 4;
      if (::write(1, &out[i].round, sizeof(out[i].round)) != static_cast<ssize_t>(sizeof(out[i].round))) return 5;
    }
    lane->Release(lane->tail());
    if (lane->late_wakeups() != 0) return 6;
  }
}

int Sleep(char** arguments) {
  const Side side = MakeSide(arguments);
  auto lane = OrDie(side.endpoint->OpenConsumer(side.region.bytes, side.options));
  if (lane->Wait(absl::InfiniteDuration()) || lane->late_wakeups() != 0) return 1;
  return 0;
}

int Spin(const char* size) {
  const SharedRegion region = OrDie(SharedRegion::Receive(UniqueFd(9), Number(size)));
  auto lane = OrDie(AttachRingConsumer(region.bytes));
  std::array<tb_desc, 1> out;
  while (OrDie(lane->Poll(out)) == 0) {
  }
  return 1;
}

void SendFd(int socket, int fd) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
  if (::sendmsg(socket, &header, MSG_NOSIGNAL) != 1) Die(ErrnoStatus(errno, "hand an fd over"));
}

int Daemon(const char* folder) {
  auto program = OrDie(ebpf::LoadVerdictProgram({.pin_folder = folder}));
  auto anchors = OrDie(Anchors::Create(program.get()));
  for (const uint32_t id : {1u, 2u}) {
    const Anchors::Anchor anchor = OrDie(anchors->Add(id, 1));
    SendFd(9, anchor.worker_end.get());
  }
  while (true) absl::SleepFor(absl::Seconds(1));
}

// Exactly `mask` afterwards: permitted, effective, inheritable and ambient.
void Become(uint32_t uid, uint64_t mask) {
  if (::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0 || ::syscall(SYS_setgroups, 0, nullptr) != 0 ||
      ::syscall(SYS_setresgid, uid, uid, uid) != 0 || ::syscall(SYS_setresuid, uid, uid, uid) != 0) {
    Die(ErrnoStatus(errno, "become another user"));
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  for (int half = 0; half < 2; ++half) {
    const auto bits = static_cast<uint32_t>(mask >> (32 * half));
    data[half] = {bits, bits, bits};
  }
  if (::syscall(SYS_capset, &header, data) != 0) Die(ErrnoStatus(errno, "set capabilities"));
  for (int cap = 0; cap < 64; ++cap) {
    if ((mask >> cap & 1) != 0 && ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) != 0) Die(ErrnoStatus(errno, "raise an ambient capability"));
  }
}

int Probe() {
  const absl::Status probed = ProbeSkMsg();
  std::printf("%s\n", probed.ok() ? "ok" : MessageOf(probed).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* parent = std::getenv("TEST_PARENT")) DieWithParent(static_cast<pid_t>(Number(parent)));
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "produce" && argc == 7) return Produce(argv + 2);
  if (mode == "consume" && argc == 6) return Consume(argv + 2);
  if (mode == "sleep" && argc == 6) return Sleep(argv + 2);
  if (mode == "spin" && argc == 3) return Spin(argv[2]);
  if (mode == "daemon" && argc == 3) return Daemon(argv[2]);
  if (mode == "probe" && argc == 4) {
    Become(static_cast<uint32_t>(Number(argv[2])), Number(argv[3], 16));
    return Probe();
  }
  if (mode == "run-as" && argc >= 5) {
    if (::geteuid() != 0) {
      std::printf("needs bpf: becoming another user needs root\n");
      const char* required = std::getenv("TRIBUTARY_REQUIRE");
      return required != nullptr && std::string(required).find("bpf") != std::string::npos ? 1 : 77;
    }
    // By fd: the other user may not be able to walk the path to the build folder.
    const int program = ::open(argv[4], O_RDONLY | O_CLOEXEC);
    Become(static_cast<uint32_t>(Number(argv[2])), Number(argv[3], 16));
    ::fexecve(program, argv + 4, environ);
    Die(ErrnoStatus(errno, argv[4]));
  }
  return 2;
}
