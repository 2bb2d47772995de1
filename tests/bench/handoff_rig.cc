// T2, T2b, T3: an update from its bytes in one process' memory to the one that adds it up, by TCP loopback and by object and key.
#include <algorithm>
#include <cstring>
#include <latch>
#include <thread>

#include "aggregator/transport/transport.h"
#include "tests/bench/rig.h"

namespace tributary::bench {
namespace {

using namespace aggregator;

// A receiver with a warm buffer of its own at the end of a TCP connection. One copy at a time.
class TcpCopy {
 public:
  explicit TcpCopy(size_t bytes, std::function<void(std::span<const std::byte>)> use = {})
      : pair_(TcpPair::Make()), buffer_(bytes), use_(std::move(use)), receiver_([this] { Receive(); }) {}
  ~TcpCopy() { pair_.client.Reset(); }

  // Milliseconds from the first send until the last byte is there (and used).
  double Milliseconds(std::span<const std::byte> payload) {
    const double start = MonotonicSeconds();
    SendAll(pair_.client.get(), payload);
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&arrived_));
    arrived_ = false;
    return (at_ - start) * 1e3;
  }

 private:
  void Receive() {
    while (ReceiveAll(pair_.server.get(), buffer_)) {
      if (use_) use_(buffer_);
      absl::MutexLock lock(&mutex_);
      at_ = MonotonicSeconds();
      arrived_ = true;
    }
  }
  TcpPair pair_;
  std::vector<std::byte> buffer_;
  const std::function<void(std::span<const std::byte>)> use_;
  absl::Mutex mutex_;
  bool arrived_ = false;  // these two under mutex_
  double at_ = 0;
  std::jthread receiver_;
};

// Pool, lane and a consumer that sleeps until a key comes, finds its object through a read-only map of its own, and checks it.
class KeyHop {
 public:
  KeyHop(size_t bytes, size_t slots) {
    objects_ = OrDie(ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = bytes, .pool_bytes = slots * SlotBytes(bytes), .domain = 0}));
    objects_->SetSegmentListener([this](uint16_t segment, int fd, size_t segment_bytes) {
      OrDie(map_.Add(1, segment, UniqueFd(::dup(fd)), segment_bytes, objects_->slot_bytes()));
    });
    { const WritableObject warm = OrDie(objects_->Reserve(bytes)); }  // the segment exists and is mapped before the clock runs
    region_ = OrDie(SharedRegion::Create("bench-lane", LaneBytes(64)));
    OrDie(FormatLane(region_.bytes, 64));
    producer_ = OrDie(AttachRingProducer(region_.bytes));
    consumer_ = OrDie(AttachRingConsumer(region_.bytes));
    receiver_ = std::jthread([this](const std::stop_token& stop) { Receive(stop); });
  }
  ~KeyHop() { receiver_.request_stop(); }

  ObjectPool& objects() { return *objects_; }
  // From `start` until the consumer holds the checked object.
  double MillisecondsTo(const ObjectKey& key, double start) {
    const tb_desc record{.dst = 2, .src = 1, .key_hi = key.hi, .key_lo = key.lo, .round = 1, .kind = TB_KIND_UPDATE, .lane = 0};
    OrDie(producer_->Push(record));
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&arrived_));
    arrived_ = false;
    return (at_ - start) * 1e3;
  }

 private:
  void Receive(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      tb_desc record[1];
      if (OrDie(consumer_->Poll(record)) == 0) {
        consumer_->Wait(absl::Milliseconds(200));
        continue;
      }
      const auto object = OrDie(map_.Find({record[0].key_hi, record[0].key_lo}));
      const double now = MonotonicSeconds();
      TRIB_CHECK(!object.payload.empty());
      consumer_->Release(consumer_->tail());
      absl::MutexLock lock(&mutex_);
      at_ = now;
      arrived_ = true;
    }
  }
  std::unique_ptr<ObjectPool> objects_;
  SegmentMap map_;
  SharedRegion region_;
  std::unique_ptr<LaneProducer> producer_;
  std::unique_ptr<LaneConsumer> consumer_;
  absl::Mutex mutex_;
  bool arrived_ = false;  // these two under mutex_
  double at_ = 0;
  std::jthread receiver_;
};

double CopyInAndKey(KeyHop& hop, std::span<const grpc::ByteBuffer> chunks, size_t bytes, bool digest_and_scan) {
  const double start = MonotonicSeconds();
  WritableObject object = OrDie(hop.objects().Reserve(bytes));
  CopyIn(chunks, object.payload(), digest_and_scan);
  const ObjectKey key = hop.objects().Publish(std::move(object));
  const double ms = hop.MillisecondsTo(key, start);
  hop.objects().Release(key);
  return ms;
}

}  // namespace

void RunT2(const RigOptions& options) {
  for (const bool large : {false, true}) {
    const size_t elements = large ? kLargeModel : kSmallModel;
    if (large && options.quick) continue;
    const std::vector<std::byte> payload = MakePayload(elements);
    const std::vector<grpc::ByteBuffer> chunks = AsChunks(payload);
    TcpCopy tcp(payload.size());
    KeyHop hop(payload.size(), 2);
    RunsOf copy{"TCP copy"}, ours{"ingress decode pass (copy, CRC32C) + key"}, whole{"the same with XXH3 and scan, as an upload"}, key_only{"key only"};
    ObjectKey published;
    {
      WritableObject object = OrDie(hop.objects().Reserve(payload.size()));
      std::memcpy(object.payload().data(), payload.data(), payload.size());
      published = hop.objects().Publish(std::move(object));
    }
    for (int run = -1; run < options.runs; ++run) {  // the first is not counted
      const double tcp_ms = tcp.Milliseconds(payload);
      const double ours_ms = CopyInAndKey(hop, chunks, payload.size(), false);
      const double whole_ms = CopyInAndKey(hop, chunks, payload.size(), true);
      double hops_ms = 0;
      constexpr int kHops = 50;
      for (int i = 0; i < kHops; ++i) {
        absl::SleepFor(absl::Microseconds(200));  // the consumer is asleep again: waking it is part of a hop
        hops_ms += hop.MillisecondsTo(published, MonotonicSeconds());
      }
      if (run < 0) continue;
      copy.runs.push_back(tcp_ms);
      ours.runs.push_back(ours_ms);
      whole.runs.push_back(whole_ms);
      key_only.runs.push_back(hops_ms / kHops);
    }
    const std::string size = large ? "L" : "S";
    PrintLine("T2", "object hand-off, " + size, "ms", &copy, ours);
    PrintLine("T2", "object hand-off with all checks of an upload, " + size, "ms", &copy, whole);
    PrintLine("T2b", "hop between workers, " + size, "ms", &copy, key_only);
  }
}

void RunT3(const RigOptions& options) {
  constexpr int kUpdates = 6;
  const size_t elements = kSmallModel;
  const std::vector<std::byte> payload = MakePayload(elements);
  const std::vector<grpc::ByteBuffer> chunks = AsChunks(payload);
  LocalSums sums(elements);
  TcpCopy tcp(payload.size(), [&sums](std::span<const std::byte> update) { sums.Fold(update.data()); });
  aggregator::PoolHierarchy flat;
  flat.shape = PoolShape::kFlat;
  RigNode node({.worker_program = options.worker_program, .workers = 1, .elements = elements, .slots = kUpdates, .hierarchy = flat});
  RunsOf copy{"TCP copy + fold"}, copied{"copy-in (CRC32C) + key + fold in a worker"}, whole{"the same with XXH3 and scan, as an upload"},
      key_only{"key + fold in a worker"};
  const auto node_cpu = [&node](const std::function<void()>& work) {
    const double here = CpuSeconds(), there = node.WorkerCpuSeconds();
    work();
    node.WaitFolded(kUpdates);
    absl::SleepFor(absl::Milliseconds(2));  // the worker falls asleep: its time is then on its account
    return (CpuSeconds() - here + node.WorkerCpuSeconds() - there) * 1e3 / kUpdates;
  };
  const auto copy_in = [&](bool all_checks) {
    node.BeginRound(kUpdates);
    return node_cpu([&] {
      for (int k = 0; k < kUpdates; ++k) {
        WritableObject object = node.Reserve();
        CopyIn(chunks, object.payload(), all_checks);
        node.Fold(std::move(object));
        node.WaitFolded(k + 1);  // one at a time, as in the TCP arm: no arm gains by folding several in one pass
      }
    });
  };
  for (int run = -1; run < options.runs; ++run) {
    const double before = CpuSeconds();
    for (int k = 0; k < kUpdates; ++k) tcp.Milliseconds(payload);
    const double tcp_ms = (CpuSeconds() - before) * 1e3 / kUpdates;
    const double copied_ms = copy_in(false), whole_ms = copy_in(true);
    std::vector<ObjectKey> keys;
    for (int k = 0; k < kUpdates; ++k) {
      WritableObject object = node.Reserve();
      std::memcpy(object.payload().data(), payload.data(), payload.size());
      keys.push_back(node.Publish(std::move(object)));
    }
    node.BeginRound(kUpdates);
    const double key_ms = node_cpu([&] {
      for (int k = 0; k < kUpdates; ++k) {
        node.Fold(keys[static_cast<size_t>(k)]);
        node.WaitFolded(k + 1);
      }
    });
    if (run < 0) continue;
    copy.runs.push_back(tcp_ms);
    copied.runs.push_back(copied_ms);
    whole.runs.push_back(whole_ms);
    key_only.runs.push_back(key_ms);
  }
  PrintLine("T3", "copy-in", "CPU ms an update", &copy, copied);
  PrintLine("T3", "copy-in with all checks of an upload", "CPU ms an update", &copy, whole);
  PrintLine("T3", "key only", "CPU ms an update", &copy, key_only);
}

}  // namespace tributary::bench
