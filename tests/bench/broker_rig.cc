// T3b, T5: the chain of a message broker and side-cars, and a broker's queue, against ours.
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <deque>
#include <thread>

#include "tests/bench/rig.h"
#include "tests/bench/rig_ingress.h"
#include "tests/integration/dataplane/process_view.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::bench {
namespace {

using namespace aggregator;

// A message on a socket: its length, then its bytes.
void SendMessage(int fd, const std::string& message) {
  const uint64_t bytes = message.size();
  SendAll(fd, std::as_bytes(std::span(&bytes, 1)));
  SendAll(fd, std::as_bytes(std::span(message.data(), message.size())));
}
bool ReceiveMessage(int fd, std::string* message) {
  uint64_t bytes = 0;
  if (!ReceiveAll(fd, std::as_writable_bytes(std::span(&bytes, 1)))) return false;
  message->resize(bytes);
  return ReceiveAll(fd, std::as_writable_bytes(std::span(message->data(), message->size())));
}
std::string Serialized(const v1::DataChunk& chunk) {
  std::string bytes;
  TRIB_CHECK(chunk.SerializeToString(&bytes));
  return bytes;
}

// client -> broker -> side-car -> worker: three loopback connections. Every station takes a message off its socket, parses it, serialises it
// again and passes it on; the worker folds. `message_bytes`: whole updates, as brokers keep and forward them, or pieces, forwarded as they come.
class Chain {
 public:
  Chain(size_t elements, size_t message_bytes) : elements_(elements), message_bytes_(message_bytes), sums_(elements) {
    for (TcpPair& hop : hops_) hop = TcpPair::Make();
    for (size_t station = 0; station < 2; ++station) {
      threads_.emplace_back([this, station] {
        std::string message;
        while (ReceiveMessage(hops_[station].server.get(), &message)) {
          v1::DataChunk chunk;
          TRIB_CHECK(chunk.ParseFromString(message));
          SendMessage(hops_[station + 1].client.get(), Serialized(chunk));
        }
        hops_[station + 1].client.Reset();
      });
    }
    threads_.emplace_back([this] { Work(); });
  }
  ~Chain() {
    hops_[0].client.Reset();
    threads_.clear();
  }

  // Milliseconds until the update is folded.
  double Milliseconds(std::span<const std::byte> payload) {
    const double start = MonotonicSeconds();
    for (size_t at = 0; at < payload.size(); at += message_bytes_) {
      const auto part = payload.subspan(at, std::min(message_bytes_, payload.size() - at));
      v1::DataChunk chunk;
      chunk.set_offset(at);
      chunk.set_bytes(part.data(), part.size());
      SendMessage(hops_[0].client.get(), Serialized(chunk));
    }
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&folded_));
    folded_ = false;
    return (at_ - start) * 1e3;
  }

 private:
  void Work() {
    std::vector<std::byte> update(elements_ * sizeof(float));
    std::string message;
    for (size_t got = 0; ReceiveMessage(hops_[2].server.get(), &message);) {
      v1::DataChunk chunk;
      TRIB_CHECK(chunk.ParseFromString(message) && chunk.offset() == got);
      const bool whole = chunk.bytes().size() == update.size();
      if (!whole) std::memcpy(update.data() + got, chunk.bytes().data(), chunk.bytes().size());
      got += chunk.bytes().size();
      if (got < update.size()) continue;
      sums_.Fold(whole ? reinterpret_cast<const std::byte*>(chunk.bytes().data()) : update.data());
      got = 0;
      absl::MutexLock lock(&mutex_);
      at_ = MonotonicSeconds();
      folded_ = true;
    }
  }
  const size_t elements_, message_bytes_;
  LocalSums sums_;
  TcpPair hops_[3];
  absl::Mutex mutex_;
  bool folded_ = false;  // these two under mutex_
  double at_ = 0;
  std::vector<std::jthread> threads_;
};

}  // namespace

void RunT3b(const RigOptions& options) {
  const size_t elements = kSmallModel;
  const std::vector<std::byte> payload = MakePayload(elements);
  const PayloadFile file(payload);
  Chain chain(elements, payload.size()), pieces(elements, 256 * 1024);
  PoolHierarchy flat;
  flat.shape = PoolShape::kFlat;
  RigNode node({.worker_program = options.worker_program, .workers = 1, .elements = elements, .slots = 2, .hierarchy = flat});
  RigBackend backend(&node.objects(), [&node](WritableObject object) { node.Fold(std::move(object)); });
  const RigServer server("127.0.0.1:0", &backend);
  client::Connection connection(fmt::format("127.0.0.1:{}", server.port()));
  RunsOf chain_ms{"broker chain, whole messages"}, piece_ms{"broker chain, 256 KiB pieces forwarded as they come"}, ours_ms{"gRPC ingress, key, worker"};
  RunsOf chain_cpu{chain_ms.arm}, piece_cpu{piece_ms.arm}, ours_cpu{ours_ms.arm};
  for (int run = -1; run < options.runs; ++run) {
    const auto cpu = [&node] { return (CpuSeconds() + node.WorkerCpuSeconds()) * 1e3; };
    double before = cpu();
    const double a = chain.Milliseconds(payload);
    const double a_cpu = cpu() - before;
    before = cpu();
    const double b = pieces.Milliseconds(payload);
    const double b_cpu = cpu() - before;
    node.BeginRound(1);
    const auto entry = file.NewEntry(static_cast<uint64_t>(run + 2));
    before = cpu();
    const double start = MonotonicSeconds();
    Upload(connection, RigIdentity(0), entry);
    node.WaitFolded(1);
    const double c = (MonotonicSeconds() - start) * 1e3;
    absl::SleepFor(absl::Milliseconds(2));
    const double c_cpu = cpu() - before;
    if (run < 0) continue;
    chain_ms.runs.push_back(a);
    chain_cpu.runs.push_back(a_cpu);
    piece_ms.runs.push_back(b);
    piece_cpu.runs.push_back(b_cpu);
    ours_ms.runs.push_back(c);
    ours_cpu.runs.push_back(c_cpu);
  }
  PrintLine("T3b", "latency, first byte to folded", "ms", &chain_ms, ours_ms);
  PrintLine("T3b", "CPU", "CPU ms an update", &chain_cpu, ours_cpu);
  PrintLine("T3b", "latency against a chain that forwards pieces", "ms", &piece_ms, ours_ms);
  PrintLine("T3b", "CPU against a chain that forwards pieces", "CPU ms an update", &piece_cpu, ours_cpu);
}

// ---- T5 ----

namespace {

constexpr size_t kPending = 64;
constexpr size_t kElements = 2 << 20;  // 8 MiB

// The largest of a figure while it lives, looked at every 2 ms.
class Peak {
 public:
  explicit Peak(std::function<size_t()> bytes) : bytes_(std::move(bytes)), looker_([this](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      Look();
      absl::SleepFor(absl::Milliseconds(2));
    }
  }) {}
  double MiB() {
    looker_.request_stop();
    if (looker_.joinable()) looker_.join();
    Look();
    return static_cast<double>(peak_.load()) / 1048576;
  }

 private:
  void Look() {
    const size_t now = bytes_();
    if (now > peak_) peak_ = now;
  }
  const std::function<size_t()> bytes_;
  std::atomic<size_t> peak_{0};
  std::jthread looker_;
};

// A broker that keeps each message until its consumer has acknowledged it, and a consumer that holds what it was given until all 64 are there
// and it can add them up. Both in this process; what counts is private memory over what was there before.
double BrokerPeakMiB(const std::vector<std::byte>& payload) {
  ::malloc_trim(0);
  const size_t base = PrivateBytes(::getpid());
  Peak peak([base] {
    const size_t now = PrivateBytes(::getpid());
    return now > base ? now - base : 0;
  });
  {
    TcpPair in = TcpPair::Make(), out = TcpPair::Make();
    std::jthread broker([&] {
      std::deque<std::string> kept;
      for (std::string message; kept.size() < kPending && ReceiveMessage(in.server.get(), &message);) {
        kept.push_back(std::move(message));
        message = {};
        SendMessage(out.client.get(), kept.back());
      }
      std::byte acknowledged{};
      TRIB_CHECK(ReceiveAll(out.client.get(), {&acknowledged, 1}));
    });
    std::jthread consumer([&] {
      std::vector<v1::DataChunk> pending;
      while (pending.size() < kPending) {
        std::string message;
        TRIB_CHECK(ReceiveMessage(out.server.get(), &message));
        TRIB_CHECK(pending.emplace_back().ParseFromString(message));
      }
      LocalSums sums(kElements);
      for (const v1::DataChunk& update : pending) sums.Fold(reinterpret_cast<const std::byte*>(update.bytes().data()));
      const std::byte acknowledged{1};
      SendAll(out.server.get(), {&acknowledged, 1});
    });
    for (size_t k = 0; k < kPending; ++k) {
      v1::DataChunk chunk;
      chunk.set_bytes(payload.data(), payload.size());
      SendMessage(in.client.get(), Serialized(chunk));
    }
  }
  return peak.MiB();
}

// The same through the pool: a worker that waits until all 64 are there (lazy), then adds them up. Private memory of both processes and all
// of our shared memory, each page once.
double LanePeakMiB(const RigOptions& options, std::span<const grpc::ByteBuffer> chunks) {
  ::malloc_trim(0);
  const size_t base = PrivateBytes(::getpid());
  PoolHierarchy lazy;
  lazy.shape = PoolShape::kFlat;
  lazy.timing.kind = TimingKind::kLazy;
  RigNode node({.worker_program = options.worker_program, .workers = 1, .elements = kElements, .slots = kPending, .hierarchy = lazy});
  absl::SleepFor(absl::Milliseconds(50));  // the worker has started
  const std::vector<pid_t> workers = node.WorkerPids();
  size_t worker_base = 0;
  for (const pid_t pid : workers) worker_base += PrivateBytes(pid);
  Peak peak([&] {
    size_t now = PrivateBytes(::getpid()), there = 0;
    now = now > base ? now - base : 0;
    for (const pid_t pid : workers) there += PrivateBytes(pid);
    return now + (there > worker_base ? there - worker_base : 0) + MappedOf(::getpid(), "").bytes;
  });
  node.BeginRound(kPending);
  for (size_t k = 0; k < kPending; ++k) {
    WritableObject object = node.Reserve();
    CopyIn(chunks, object.payload());
    TRIB_CHECK(node.folded() == 0, "{} were folded while {} of 64 were pending", node.folded(), k);
    node.Fold(std::move(object));
  }
  node.WaitFolded(kPending);
  node.ReadSums();
  return peak.MiB();
}

}  // namespace

void RunT5(const RigOptions& options) {
  const std::vector<std::byte> payload = MakePayload(kElements);
  const std::vector<grpc::ByteBuffer> chunks = AsChunks(payload);
  RunsOf broker{"broker, copying in and out"}, lane{"pool and lane of keys"};
  for (int run = -1; run < options.runs; ++run) {
    const double a = BrokerPeakMiB(payload), b = LanePeakMiB(options, chunks);
    if (run < 0) continue;
    broker.runs.push_back(a);
    lane.runs.push_back(b);
  }
  PrintLine("T5", "64 pending updates of 8 MiB", "peak MiB above the idle process", &broker, lane,
            nlohmann::json::object({{"bound", "64 updates of 8 MiB + 2 accumulators of 16 MiB = 544 MiB"}}));
}

}  // namespace tributary::bench
