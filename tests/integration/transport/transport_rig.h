// A lane with both ends open, over any transport, and what a daemon would do around it: the small language of the transport tests.
// Transports that need BPF share one loaded program and one table of anchors a process; every rig takes fresh ids of it.
#pragma once

#include <absl/time/clock.h>
#include <sys/eventfd.h>
#include <sys/mount.h>

#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "aggregator/store/object_pool.h"
#include "aggregator/transport/anchors.h"
#include "aggregator/transport/probe.h"
#include "aggregator/transport/skmsg_endpoint.h"
#include "aggregator/transport/transport.h"
#include "common/file.h"
#include "common/ids.h"
#include "tests/support/require.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {

inline std::ostream& operator<<(std::ostream& out, TransportKind kind) { return out << NameOf(kind); }

enum class Way { kRingFutex, kRingEventFd, kSkMsg, kSkMsgInline };
inline const char* NameOf(Way way) {
  constexpr const char* kNames[] = {"ring_futex", "ring_eventfd", "skmsg", "skmsg_inline"};
  return kNames[static_cast<size_t>(way)];
}
inline std::ostream& operator<<(std::ostream& out, Way way) { return out << NameOf(way); }
inline bool NeedsBpf(Way way) { return way == Way::kSkMsg || way == Way::kSkMsgInline; }

// "" where SK_MSG works here, else the probe's reason. Asked once a process.
inline const std::string& BpfMissing() {
  static const std::string reason = [] {
    const absl::Status probed = ProbeSkMsg();
    return probed.ok() ? std::string() : MessageOf(probed);
  }();
  return reason;
}

// A folder for one test, gone with it, whatever is mounted below.
struct TemporaryFolder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("tributary-test-" + RandomHex(8));
  TemporaryFolder() { EXPECT_TRUE(MakeDirectories(path).ok()); }
  ~TemporaryFolder() {
    ::umount2((path / "bpf").c_str(), MNT_DETACH);
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

// The node daemon's part, one a process.
struct Node {
  std::unique_ptr<ebpf::VerdictProgram> program = ebpf::LoadVerdictProgram().value();
  std::unique_ptr<Anchors> anchors = Anchors::Create(program.get()).value();
  static Node& Get() {
    static Node* const node = new Node;  // outlives every rig; the kernel takes it back with the process
    return *node;
  }
};

inline constexpr uint32_t kTestDomain = 77;

// One end's process, so to speak: its id, its anchor's epoch, what it sleeps on.
struct Member {
  Way way;
  uint32_t id = 0, epoch = 0;
  UniqueFd eventfd;
  std::unique_ptr<TransportEndpoint> endpoint;

  explicit Member(Way the_way) : way(the_way) {
    static uint32_t last_id = 0;
    id = NeedsBpf(way) ? Node::Get().anchors->IssueId().value() : ++last_id;
    if (way == Way::kRingEventFd) eventfd = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    Start();
  }
  ~Member() { Die(); }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  UniqueFd NewAnchor() {
    Anchors::Anchor anchor = Node::Get().anchors->Add(id, kTestDomain).value();
    epoch = anchor.epoch;
    return std::move(anchor.worker_end);
  }
  void Start() {
    if (NeedsBpf(way)) {
      endpoint = SkMsgEndpoint::Create(NewAnchor(), id, way == Way::kSkMsg ? TransportKind::kSkMsg : TransportKind::kSkMsgInline).value();
    } else {
      endpoint = MakeRingEndpoint(id, eventfd.get() >= 0 ? eventfd.get() : -1);
    }
  }
  // Its sockets close, as the kernel does for a dead process, and the daemon is told by pidfd.
  void Die() {
    endpoint.reset();
    if (NeedsBpf(way) && epoch != 0) {
      Node::Get().anchors->Forget(id, std::exchange(epoch, 0)).IgnoreError();
    }
  }
  SkMsgEndpoint& skmsg() { return static_cast<SkMsgEndpoint&>(*endpoint); }
};

class TransportRig {
 public:
  TransportRig(Way way, uint32_t capacity) : producer_member(way), consumer_member(way), region(SharedRegion::Create("test-lane", LaneBytes(capacity)).value()) {
    EXPECT_TRUE(FormatLane(bytes(), capacity).ok());
    OpenProducer();
    OpenConsumer();
  }
  std::span<std::byte> bytes() { return region.bytes; }
  tb_lane_header& header() { return *reinterpret_cast<tb_lane_header*>(bytes().data()); }

  // Every field belongs to the number, so that a torn or mixed descriptor shows.
  tb_desc Desc(uint32_t number) const { return DescOf(producer_member.id, consumer_member.id, number); }
  static tb_desc DescOf(uint32_t src, uint32_t dst, uint32_t number) {
    return {.dst = dst, .src = src, .key_hi = number * uint64_t{7}, .key_lo = ~uint64_t{number}, .round = number, .kind = TB_KIND_UPDATE, .lane = 0};
  }
  bool IsDesc(const tb_desc& desc, uint32_t number) const {
    const tb_desc want = Desc(number);
    return std::memcmp(&desc, &want, sizeof(want)) == 0;
  }

  void OpenProducer() { producer = producer_member.endpoint->OpenProducer(bytes(), {.peer = consumer_member.id, .ring_fd = consumer_member.eventfd.get(), .peer_pidfd = consumer_pidfd}).value(); }
  void OpenConsumer() { consumer = consumer_member.endpoint->OpenConsumer(bytes(), {.peer = producer_member.id, .ring_fd = producer_member.eventfd.get(), .peer_pidfd = producer_pidfd}).value(); }
  void KillConsumer() {
    consumer.reset();
    consumer_member.Die();
  }
  void StartConsumer() {
    consumer_member.Start();
    OpenConsumer();
  }
  void ReplaceConsumer() {
    KillConsumer();
    StartConsumer();
  }
  void KillProducer() {
    producer.reset();
    producer_member.Die();
  }
  void StartProducer() {
    producer_member.Start();
    OpenProducer();
  }

  Member producer_member, consumer_member;
  int producer_pidfd = -1, consumer_pidfd = -1;
  SharedRegion region;
  std::unique_ptr<LaneProducer> producer;
  std::unique_ptr<LaneConsumer> consumer;
};

// What arrived at the daemon's ends until nothing more comes for a moment.
inline Anchors::Incoming ReadDaemonEnds(Anchors& anchors, size_t at_least, absl::Duration limit = absl::Seconds(5)) {
  Anchors::Incoming all;
  const absl::Time deadline = absl::Now() + limit;
  while (absl::Now() < deadline) {
    Anchors::Incoming some = anchors.Read(absl::Now());
    std::ranges::copy(some.letters, std::back_inserter(all.letters));
    std::ranges::copy(some.offenders, std::back_inserter(all.offenders));
    std::ranges::copy(some.closed, std::back_inserter(all.closed));
    if (all.letters.size() + all.offenders.size() >= at_least && some.letters.empty()) break;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return all;
}

}  // namespace tributary::aggregator
