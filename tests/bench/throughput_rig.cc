// T17: updates a second through one node, 64 clients at once, against a NumPy server that collects and then adds up.
#include <absl/strings/numbers.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "common/file.h"
#include "common/process.h"
#include "tests/bench/rig.h"
#include "tests/bench/rig_ingress.h"

namespace tributary::bench {
namespace {

using namespace aggregator;

constexpr int kClients = 64;

// numpy_server.py, its output in a file that goes with it.
class NumPy {
 public:
  NumPy(const std::string& way, int updates, size_t elements) {
    std::string folder = (std::filesystem::temp_directory_path() / "throughput_rig.XXXXXX").string();
    TRIB_CHECK(::mkdtemp(folder.data()) != nullptr);
    folder_ = folder;
    child_.emplace(OrDie(ChildProcess::Spawn({.program = TRIB_PYTHON,
                                              .args = {TRIB_NUMPY_SERVER, way, fmt::format("{}", updates), fmt::format("{}", elements)},
                                              .env = {},
                                              .fds = {},
                                              .stdout_file = folder_ / "out",
                                              .stderr_file = {}})));
  }
  ~NumPy() {
    child_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  // The first line; nothing if numpy is not installed.
  std::optional<double> Number() {
    for (const absl::Time end = absl::Now() + absl::Minutes(2);; absl::SleepFor(absl::Milliseconds(5))) {
      const bool running = child_->Running();
      const auto text = ReadFile(folder_ / "out");
      double number = 0;
      if (text.ok() && !text->empty() && text->back() == '\n' && absl::SimpleAtod(*text, &number)) return number;
      if (!running) {
        const int status = OrDie(child_->Wait(absl::Seconds(1)));
        TRIB_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 77, "{} failed", TRIB_NUMPY_SERVER);
        return std::nullopt;
      }
      TRIB_CHECK(absl::Now() < end, "{}: no answer in two minutes", TRIB_NUMPY_SERVER);
    }
  }

 private:
  std::filesystem::path folder_;
  std::optional<ChildProcess> child_;
};

// `work(i)` in a thread a client; updates a second of the whole, `finish` included.
double Rate(int updates, const std::function<void(int)>& work, const std::function<void()>& finish = [] {}) {
  const double start = MonotonicSeconds();
  {
    std::vector<std::jthread> clients;
    for (int i = 0; i < updates; ++i) clients.emplace_back([&work, i] { work(i); });
  }
  finish();
  return updates / (MonotonicSeconds() - start);
}

}  // namespace

void RunT17(const RigOptions& options) {
  const int updates = options.quick ? 16 : kClients;
  const size_t elements = kSmallModel;
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const std::vector<std::byte> payload = MakePayload(elements);
  const std::vector<grpc::ByteBuffer> chunks = AsChunks(payload);
  const PayloadFile file(payload);
  PoolHierarchy shard;
  shard.shape = PoolShape::kShard;
  RigNode node({.worker_program = options.worker_program, .workers = static_cast<uint32_t>(std::min<size_t>(cores, 16)), .elements = elements, .slots = static_cast<size_t>(updates),
                .hierarchy = shard});
  RigBackend backend(&node.objects(), [&node](WritableObject object) { node.Fold(std::move(object)); });
  const RigServer server("127.0.0.1:0", &backend);
  std::vector<std::unique_ptr<client::Connection>> connections;
  for (int i = 0; i < updates; ++i) connections.push_back(std::make_unique<client::Connection>(fmt::format("127.0.0.1:{}", server.port())));
  // The same with fewer slots than clients, as a pool that does not fit a round has: most of them are told to come back.
  const size_t narrow_slots = static_cast<size_t>(updates / 8);
  RigNode narrow({.worker_program = options.worker_program, .workers = static_cast<uint32_t>(std::min<size_t>(cores, 16)), .elements = elements, .slots = narrow_slots,
                  .hierarchy = shard});
  RigBackend narrow_backend(&narrow.objects(), [&narrow](WritableObject object) { narrow.Fold(std::move(object)); });
  const RigServer narrow_server("127.0.0.1:0", &narrow_backend);
  std::vector<std::unique_ptr<client::Connection>> narrow_connections;
  for (int i = 0; i < updates; ++i) narrow_connections.push_back(std::make_unique<client::Connection>(fmt::format("127.0.0.1:{}", narrow_server.port())));
  const auto finish = [&] {
    node.WaitFolded(updates);
    node.ReadSums();
  };
  RunsOf numpy_memory{"NumPy, updates copied in memory"}, pool{"copy-in and fold in the pool"}, numpy_tcp{"NumPy over TCP"}, grpc{"gRPC ingress and fold"};
  RunsOf folds{"objects already in the pool"}, few_slots{"gRPC ingress and fold, a slot for eight clients"};
  for (int run = -1; run < options.runs; ++run) {
    const std::optional<double> a = NumPy("memory", updates, elements).Number();
    if (!a.has_value()) return PrintSkipped("T17", "numpy, the baseline, is not installed");
    node.BeginRound(updates);
    const double b = Rate(
        updates,
        [&](int) {
          WritableObject object = node.Reserve();
          CopyIn(chunks, object.payload());
          node.Fold(std::move(object));
        },
        finish);
    NumPy server_loop("serve", updates, elements);
    const auto port = static_cast<uint16_t>(server_loop.Number().value());
    const double c = Rate(updates, [&](int) {
      const UniqueFd fd = ConnectTo("127.0.0.1", port, absl::Seconds(20));
      const double weight = 1;
      SendAll(fd.get(), std::as_bytes(std::span(&weight, 1)));
      SendAll(fd.get(), payload);
      std::byte done{};
      TRIB_CHECK(ReceiveAll(fd.get(), {&done, 1}));
    });
    node.BeginRound(updates);
    std::vector<std::shared_ptr<const client::OutboxEntry>> entries;
    for (int i = 0; i < updates; ++i) entries.push_back(file.NewEntry(static_cast<uint64_t>(run + 2)));
    const double d = Rate(
        updates, [&](int i) { Upload(*connections[static_cast<size_t>(i)], RigIdentity(i), entries[static_cast<size_t>(i)]); }, finish);
    narrow.BeginRound(updates);
    const double f = Rate(
        updates, [&](int i) { Upload(*narrow_connections[static_cast<size_t>(i)], RigIdentity(i), file.NewEntry(static_cast<uint64_t>(run + 2))); },
        [&] {
          narrow.WaitFolded(updates);
          narrow.ReadSums();
        });
    // What folding alone gives: 16 updates that lie in the pool.
    std::vector<ObjectKey> keys;
    for (int k = 0; k < 16; ++k) {
      WritableObject object = node.Reserve();
      CopyIn(chunks, object.payload());
      keys.push_back(node.Publish(std::move(object)));
    }
    node.BeginRound(16);
    const double start = MonotonicSeconds();
    for (const ObjectKey& key : keys) node.Fold(key);
    node.WaitFolded(16);
    node.ReadSums();
    const double e = 16 / (MonotonicSeconds() - start);
    if (run < 0) continue;
    numpy_memory.runs.push_back(*a);
    pool.runs.push_back(b);
    numpy_tcp.runs.push_back(c);
    grpc.runs.push_back(d);
    folds.runs.push_back(e);
    few_slots.runs.push_back(f);
  }
  nlohmann::json facts;
  facts["clients"] = updates;
  facts["workers"] = node.WorkerPids().size();
  PrintLine("T17", "in the pool", "updates/s", &numpy_memory, pool, facts);
  PrintLine("T17", "over TCP", "updates/s", &numpy_tcp, grpc, facts);
  PrintLine("T17", "over TCP, a slot for eight clients", "updates/s", nullptr, few_slots, facts);
  PrintLine("T17", "folding alone", "updates/s", nullptr, folds, facts);
}

}  // namespace tributary::bench
