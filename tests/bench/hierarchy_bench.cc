#include "tests/bench/hierarchy_bench.h"

#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <set>
#include <vector>

#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/kernels.h"
#include "aggregator/store/object_pool.h"
#include "tests/integration/dataplane/process_view.h"

namespace tributary::aggregator {
namespace {

constexpr uint32_t kJob = 1;

void Die(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", MessageOf(status).c_str());
  std::exit(1);
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}
double Median(const std::vector<double>& values) { return Quantile(values, 0.5); }

void PrintArm(const char* id, const char* arm, const char* metric, const std::vector<double>& runs) {
  std::vector<std::string> texts;
  for (const double run : runs) texts.push_back(fmt::format("{:.4g}", run));
  fmt::print("{{\"id\":\"{}\",\"arm\":\"{}\",\"metric\":\"{}\",\"runs\":[{}],\"median\":{:.4g},\"q1\":{:.4g},\"q3\":{:.4g}}}\n", id, arm, metric,
             fmt::join(texts, ","), Median(runs), Quantile(runs, 0.25), Quantile(runs, 0.75));
}

std::string ArmJson(const char* arm, const std::vector<double>& runs) {
  std::vector<std::string> texts;
  for (const double run : runs) texts.push_back(fmt::format("{:.4g}", run));
  return fmt::format("{{\"arm\":\"{}\",\"runs\":[{}]}}", arm, fmt::join(texts, ","));
}

struct NamedRuns {
  const char* arm;
  const std::vector<double>& runs;
};
// Ratio baseline / ours, with the rule of §13: the threshold, and quartiles that do not overlap.
bool PrintRatio(const char* id, const char* what, const char* metric, const NamedRuns& baseline, const NamedRuns& ours, double threshold) {
  const double ratio = Median(baseline.runs) / Median(ours.runs);
  const bool apart = Quantile(baseline.runs, 0.25) > Quantile(ours.runs, 0.75);
  const bool pass = ratio >= threshold && apart;
  fmt::print("{{\"id\":\"{}\",\"what\":\"{}\",\"metric\":\"{}\",\"baseline\":{},\"ours\":{},\"ratio\":{:.3g},\"threshold\":\">= {:g}\","
             "\"quartiles_apart\":{},\"pass\":{}}}\n",
             id, what, metric, ArmJson(baseline.arm, baseline.runs), ArmJson(ours.arm, ours.runs), ratio, threshold, apart, pass);
  return pass;
}

bool PrintVerdict(const char* id, const std::string& what, double value, const std::string& threshold, bool pass) {
  fmt::print("{{\"id\":\"{}\",\"what\":\"{}\",\"value\":{:.4g},\"threshold\":\"{}\",\"pass\":{}}}\n", id, what, value, threshold, pass);
  return pass;
}

PoolHierarchy Hierarchy(PoolShape shape, uint32_t leaves = 2, bool reuse = true) {
  PoolHierarchy hierarchy;
  hierarchy.shape = shape;
  hierarchy.leaves = leaves;
  hierarchy.reuse = reuse;
  return hierarchy;
}

// One node with a pool of workers and one job.
class Node {
 public:
  struct Options {
    uint32_t workers = 1;
    size_t elements = 0;
    size_t slots = 0;
    PoolHierarchy hierarchy;
    Arithmetic arithmetic = Arithmetic::kFloat64;
  };
  Node(const std::string& program, const Options& options) : options_(options) {
    auto layout = TensorLayout::Create({{"w", {static_cast<int64_t>(options.elements)}, DType::kF32, TensorKind::kTrainable}});
    Die(layout.status());
    layout_ = *layout;
    auto objects = ObjectPool::Create({.pool_id = 1,
                                       .slot_payload_bytes = layout_.total_bytes(),
                                       .pool_bytes = options.slots * SlotBytes(layout_.total_bytes()),
                                       .domain = 0});
    Die(objects.status());
    objects_ = *std::move(objects);
    WorkerPool::Callbacks callbacks;
    callbacks.folded = [this](uint32_t, const UpdateId&) {
      absl::MutexLock lock(&mutex_);
      ++folded_;
    };
    callbacks.lost = [](uint32_t, const std::string& reason) { Die(Internal("lost: {}", reason)); };
    auto pool = WorkerPool::Start({.worker_program = program, .workers = options.workers, .lane_capacity = 256}, callbacks);
    Die(pool.status());
    pool_ = *std::move(pool);
    Die(pool_->OpenJob({.job = kJob, .strategy = "fedavg", .layout = layout_, .arithmetic = options.arithmetic, .hierarchy = options.hierarchy},
                       objects_.get()));
  }
  ~Node() { pool_.reset(); }

  // Waits for a slot.
  ObjectKey Publish(const std::function<void(float*)>& fill, double weight) {
    while (true) {
      auto object = objects_->Reserve(layout_.total_bytes());
      if (!object.ok()) {
        absl::MutexLock lock(&mutex_);
        const auto freed = [this] { return objects_->used_slots() < objects_->capacity_slots(); };
        mutex_.AwaitWithTimeout(absl::Condition(&freed), absl::Milliseconds(20));
        continue;
      }
      fill(reinterpret_cast<float*>(object->payload().data()));
      object->header().weight = weight;
      return objects_->Publish(*std::move(object));
    }
  }
  std::vector<ObjectKey> PublishMany(int count) {
    std::vector<ObjectKey> keys;
    for (int k = 0; k < count; ++k) {
      keys.push_back(Publish([&](float* x) {
        for (size_t i = 0; i < options_.elements; ++i) x[i] = static_cast<float>((i + static_cast<size_t>(k)) % 1000) * 0.001f;
      }, 1 + k));
    }
    return keys;
  }
  void BeginRound(int updates) {
    {
      absl::MutexLock lock(&mutex_);
      folded_ = 0;
    }
    Die(pool_->BeginRound(kJob, ++round_, {.updates = static_cast<uint64_t>(updates), .leaves = {}}));
  }
  void Fold(const ObjectKey& key) { Die(pool_->Fold(kJob, RandomUpdateId(), key)); }
  void WaitFolded(int updates) {
    absl::MutexLock lock(&mutex_);
    const auto all = [&] { return folded_ >= updates; };
    mutex_.Await(absl::Condition(&all));
  }
  WorkerPool::Sums Sums() {
    auto sums = pool_->ReadSums(kJob);
    Die(sums.status());
    return *sums;
  }
  WorkerPool& pool() { return *pool_; }
  const TensorLayout& layout() const { return layout_; }
  size_t slab_memory() const {
    return WorkerPool::SlabMemory({.job = kJob, .strategy = "fedavg", .layout = layout_, .hierarchy = options_.hierarchy}).value();
  }

 private:
  const Options options_;
  TensorLayout layout_;
  std::unique_ptr<ObjectPool> objects_;
  absl::Mutex mutex_;
  int folded_ = 0;  // under mutex_
  uint32_t round_ = 0;
  std::unique_ptr<WorkerPool> pool_;
};

size_t Elements(const HierarchyBench& options) { return static_cast<size_t>(options.mib * (1 << 18)); }
double Milliseconds(absl::Time start) { return absl::ToDoubleMilliseconds(absl::Now() - start); }

// ---- T4 ----

// Lazy as in LIFL and in the note's figures: what has come by the last arrival is folded one update after the other, each a pass over all sums.
double OneByOne(const std::vector<std::vector<float>>& updates, std::vector<double>& sums) {
  const absl::Time start = absl::Now();
  for (size_t k = 0; k < updates.size(); ++k) {
    const auto* const update = reinterpret_cast<const std::byte*>(updates[k].data());
    const double weight = 1 + static_cast<double>(k);
    if (!FoldF32(sums.data(), &update, &weight, 1, sums.size(), k == 0)) Die(Internal("a sum is not finite"));
  }
  return Milliseconds(start);
}

int T4(const HierarchyBench& options) {
  constexpr int kUpdates = 16;
  constexpr absl::Duration kApart = absl::Milliseconds(25);
  const auto node_of = [&](TimingKind kind) {
    PoolHierarchy hierarchy = Hierarchy(PoolShape::kFlat);
    hierarchy.timing.kind = kind;
    return std::make_unique<Node>(options.worker_program,
                                  Node::Options{.workers = 1, .elements = Elements(options), .slots = kUpdates, .hierarchy = hierarchy});
  };
  std::vector<double> one_by_one, lazy, eager, one;
  for (int run = -1; run < options.runs; ++run) {  // the first is not counted
    {
      const std::vector<std::vector<float>> updates(kUpdates, std::vector<float>(Elements(options), 0.5f));
      std::vector<double> sums(Elements(options));
      const double tail = OneByOne(updates, sums);
      if (run >= 0) one_by_one.push_back(tail);
    }
    for (const TimingKind kind : {TimingKind::kLazy, TimingKind::kEager}) {
      const auto node = node_of(kind);
      const std::vector<ObjectKey> keys = node->PublishMany(kUpdates);
      node->BeginRound(kUpdates);
      absl::Time last = absl::Now();
      for (const ObjectKey& key : keys) {
        absl::SleepFor(last + kApart - absl::Now());
        last = absl::Now();
        node->Fold(key);
      }
      node->WaitFolded(kUpdates);
      node->Sums();
      const double tail = Milliseconds(last);
      if (run >= 0) (kind == TimingKind::kLazy ? lazy : eager).push_back(tail);
      if (kind == TimingKind::kEager && run >= 0) {  // one more, alone: what one update costs
        const std::vector<ObjectKey> single = node->PublishMany(1);
        const absl::Time start = absl::Now();
        node->Fold(single[0]);
        node->WaitFolded(kUpdates + 1);
        node->Sums();
        one.push_back(Milliseconds(start));
      }
    }
  }
  PrintArm("T4", "lazy, one by one (baseline)", "last_arrival_to_result_ms", one_by_one);
  PrintArm("T4", "lazy as workers fold: blocks of the sums over all updates", "last_arrival_to_result_ms", lazy);
  PrintArm("T4", "eager", "last_arrival_to_result_ms", eager);
  PrintArm("T4", "one update alone", "ms", one);
  const bool faster = PrintRatio("T4", "lazy / eager", "last arrival to result, ms", {"lazy, one by one", one_by_one}, {"eager", eager}, 5);
  const double share = Median(eager) / Median(one);
  return PrintVerdict("T4", "eager / one update", share, "<= 2", share <= 2) && faster ? 0 : 1;
}

// ---- T4b ----

int T4b(const HierarchyBench& options) {
  constexpr size_t kElements = 100'000;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  bool pass = true;
  for (const int count : {20, 200}) {
    std::vector<std::vector<float>> updates(static_cast<size_t>(count), std::vector<float>(kElements));
    std::vector<double> weights;
    for (auto& update : updates) {
      for (float& x : update) x = normal(random);
      weights.push_back(1 + static_cast<double>(random() % 1000));
    }
    const double sum_weight = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<size_t> order(updates.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::vector<double> reference(kElements), wrong(kElements);  // lazy fp64, and F1: divided by the running total
    double so_far = 0;
    for (const size_t u : order) {
      so_far += weights[u];
      for (size_t i = 0; i < kElements; ++i) {
        reference[i] += weights[u] * double{updates[u][i]} / sum_weight;
        wrong[i] += weights[u] * double{updates[u][i]} / so_far;
      }
    }
    const auto error_of = [&](const std::vector<double>& mean) {
      double error = 0, largest = 0;
      for (size_t i = 0; i < kElements; ++i) {
        error = std::max(error, std::abs(mean[i] - reference[i]));
        largest = std::max(largest, std::abs(reference[i]));
      }
      return error / largest;
    };
    std::set<std::vector<double>> fixed_results;
    for (const Arithmetic arithmetic : {Arithmetic::kFloat64, Arithmetic::kFixedPoint}) {
      std::vector<double> errors;
      for (int run = 0; run < options.runs; ++run) {
        for (const PoolHierarchy& hierarchy : {Hierarchy(PoolShape::kFlat), Hierarchy(PoolShape::kShard), Hierarchy(PoolShape::kTree, 3)}) {
          std::shuffle(order.begin(), order.end(), random);
          Node node(options.worker_program, {.workers = 2, .elements = kElements, .slots = 16, .hierarchy = hierarchy, .arithmetic = arithmetic});
          node.BeginRound(count);
          for (const size_t u : order) {
            node.Fold(node.Publish([&](float* x) { std::memcpy(x, updates[u].data(), kElements * sizeof(float)); }, weights[u]));
          }
          node.WaitFolded(count);
          std::vector<double> mean(kElements);
          const auto reducer = MakeMeanReducer(DType::kF32, arithmetic);
          for (const StatePiece& piece : node.Sums().pieces) reducer->ReportBlock(piece.state, piece.count, sum_weight, mean.data() + piece.first);
          errors.push_back(error_of(mean));
          if (arithmetic == Arithmetic::kFixedPoint) fixed_results.insert(mean);
        }
      }
      const bool fixed = arithmetic == Arithmetic::kFixedPoint;
      PrintArm("T4b", fixed ? "eager, reproducible" : "eager, fp64", fmt::format("max_norm_error_{}_updates", count).c_str(), errors);
      const double worst = *std::max_element(errors.begin(), errors.end());
      pass = PrintVerdict("T4b", "largest error", worst, "<= 1e-6", worst <= 1e-6) && pass;
    }
    pass = PrintVerdict("T4b", "different reproducible results over orders and shapes", static_cast<double>(fixed_results.size()), "1",
                        fixed_results.size() == 1) && pass;
    const double f1 = error_of(wrong);
    pass = PrintVerdict("T4b", "F1 (running total) error, the baseline", f1, "> 0.1: it has to fail", f1 > 0.1) && pass;
  }
  return pass ? 0 : 1;
}

// ---- T11 ----

int T11(const HierarchyBench& options) {
  constexpr int kUpdates = 4;
  const auto node_of = [&](bool reuse) {
    return std::make_unique<Node>(options.worker_program, Node::Options{.workers = 2,
                                                                        .elements = Elements(options),
                                                                        .slots = kUpdates,
                                                                        .hierarchy = Hierarchy(PoolShape::kTree, 2, reuse)});
  };
  const std::unique_ptr<Node> nodes[2] = {node_of(false), node_of(true)};
  std::vector<double> start_ms[2], round_ms[2], starts[2];
  for (int run = 0; run < options.runs; ++run) {
    for (const bool reuse : {false, true}) {
      Node& node = *nodes[reuse];
      const uint64_t before = run == 0 ? 0 : node.pool().StatsOf(kJob)->starts;
      const std::vector<ObjectKey> keys = node.PublishMany(kUpdates);
      const absl::Time start = absl::Now();
      node.BeginRound(kUpdates);
      for (const ObjectKey& key : keys) node.Fold(key);
      node.WaitFolded(kUpdates);
      node.Sums();
      round_ms[reuse].push_back(Milliseconds(start));
      const WorkerPool::TreeStats stats = node.pool().StatsOf(kJob).value();
      start_ms[reuse].push_back(stats.role_seconds.back() * 1e3);
      starts[reuse].push_back(static_cast<double>(stats.starts - before));
    }
  }
  PrintArm("T11", "new process for each role (baseline)", "start_of_top_ms", start_ms[false]);
  PrintArm("T11", "promotion", "start_of_top_ms", start_ms[true]);
  PrintArm("T11", "new process for each role (baseline)", "round_of_4_ms", round_ms[false]);
  PrintArm("T11", "promotion", "round_of_4_ms", round_ms[true]);
  PrintArm("T11", "new process for each role (baseline)", "processes_started_in_a_round", starts[false]);
  PrintArm("T11", "promotion", "processes_started_in_a_round", starts[true]);
  const bool quicker = PrintRatio("T11", "start latency, baseline / promotion", "start of the top, ms", {"new process for each role", start_ms[false]},
                                 {"promotion", start_ms[true]}, 10);
  return PrintVerdict("T11", "processes a round with promotion", Median(starts[true]), "<= 2 leaves", Median(starts[true]) <= 2) && quicker ? 0 : 1;
}

// ---- T18 ----

int T18(const HierarchyBench& options) {
  constexpr int kUpdates = 16;
  struct Arm {
    std::string name;
    PoolShape shape;
    uint32_t max_fold;
    uint32_t workers;
    std::unique_ptr<Node> node;
    std::vector<double> ms;
  };
  std::vector<Arm> arms;
  arms.push_back({"tree, 2 leaves + merge, unblocked (baseline a)", PoolShape::kTree, 1, 2, nullptr, {}});
  arms.push_back({"tree, 2 leaves + merge, blocked (baseline b)", PoolShape::kTree, 8, 2, nullptr, {}});
  arms.push_back({"range shard, 2 workers, blocked", PoolShape::kShard, 8, 2, nullptr, {}});
  // Where there are cores for more, how far more help; for the record.
  for (uint32_t workers = 1; workers <= std::min(8u, std::thread::hardware_concurrency()); workers *= 2) {
    if (workers == 2) continue;
    if (workers > 1) arms.push_back({fmt::format("tree, {} leaves + merge, blocked", workers), PoolShape::kTree, 8, workers, nullptr, {}});
    arms.push_back({fmt::format("range shard, {} worker(s), blocked", workers), PoolShape::kShard, 8, workers, nullptr, {}});
  }
  for (Arm& arm : arms) {
    PoolHierarchy hierarchy = Hierarchy(arm.shape, arm.workers);
    hierarchy.max_fold = arm.max_fold;
    // All 16 are there before the first is folded, as in the reference: what is compared is the folding.
    hierarchy.timing.kind = TimingKind::kLazy;
    arm.node = std::make_unique<Node>(options.worker_program, Node::Options{.workers = arm.workers, .elements = Elements(options), .slots = kUpdates + 1,
                                                                            .hierarchy = hierarchy});
  }
  for (int run = -1; run < options.runs; ++run) {
    for (Arm& arm : arms) {
      const std::vector<ObjectKey> keys = arm.node->PublishMany(kUpdates);
      arm.node->BeginRound(kUpdates);
      const absl::Time start = absl::Now();
      for (const ObjectKey& key : keys) arm.node->Fold(key);
      arm.node->WaitFolded(kUpdates);
      arm.node->Sums();
      if (run >= 0) arm.ms.push_back(Milliseconds(start));
    }
  }
  for (const Arm& arm : arms) PrintArm("T18", arm.name.c_str(), "ms", arm.ms);
  for (const Arm& arm : arms) PrintVerdict("T18", fmt::format("accumulator MiB, {}", arm.name), static_cast<double>(arm.node->slab_memory()) / 1048576, "-", true);
  const bool a = PrintRatio("T18", "(a) unblocked tree / range shard", "ms", {"tree, 2 leaves + merge, unblocked", arms[0].ms},
                            {"range shard, 2 workers, blocked", arms[2].ms}, 1.3);
  const double b = Median(arms[2].ms) / Median(arms[1].ms);
  const bool half = 2 * arms[2].node->slab_memory() <= arms[1].node->slab_memory();
  return PrintVerdict("T18", "(b) range shard / blocked tree, with half the accumulators", b, "<= 1.1", b <= 1.1 && half) && a ? 0 : 1;
}

// ---- T19 ----

double PeakMib(const HierarchyBench& options, const PoolHierarchy& hierarchy, size_t slots, int updates) {
  // 4 MiB an update: the baseline has to hold 200 of them.
  Node node(options.worker_program, {.workers = 2, .elements = 1 << 20, .slots = slots, .hierarchy = hierarchy});
  node.BeginRound(updates);
  size_t peak = 0;
  const auto publish = [&](int k) { return node.Publish([&](float* x) { std::fill_n(x, size_t{1} << 20, static_cast<float>(k)); }, 1); };
  // The pool is full before the first is folded: how many slots are ever in use at a time is not left to chance.
  std::deque<ObjectKey> ready;
  for (int k = 0; k < std::min(updates, static_cast<int>(slots)); ++k) ready.push_back(publish(k));
  for (int k = 0; k < updates; ++k) {
    node.Fold(ready.empty() ? publish(k) : ready.front());
    if (!ready.empty()) ready.pop_front();
    size_t bytes = MappedOf(::getpid(), "").bytes;
    for (const WorkerStatus& worker : node.pool().Status()) bytes += PrivateBytes(worker.pid);
    peak = std::max(peak, bytes);
  }
  node.WaitFolded(updates);
  node.Sums();
  return static_cast<double>(peak) / 1048576;
}

int T19(const HierarchyBench& options) {
  bool pass = true;
  for (const bool tree : {false, true}) {
    const PoolHierarchy hierarchy = Hierarchy(tree ? PoolShape::kTree : PoolShape::kShard);
    PoolHierarchy collect = hierarchy;
    collect.timing.kind = TimingKind::kLazy;
    const std::string shape = tree ? "tree" : "shard";
    std::vector<double> all, flat;
    for (const int updates : {25, 50, 100, 200}) {
      all.push_back(PeakMib(options, collect, static_cast<size_t>(updates), updates));
      flat.push_back(PeakMib(options, hierarchy, 8, updates));
    }
    PrintArm("T19", (shape + ", collect all (baseline)").c_str(), "peak_mib_at_25_50_100_200", all);
    PrintArm("T19", (shape + ", pool of 8").c_str(), "peak_mib_at_25_50_100_200", flat);
    const auto [low, high] = std::minmax_element(flat.begin(), flat.end());
    pass = PrintVerdict("T19", shape + ": largest / smallest peak", *high / *low, "<= 1.05", *high / *low <= 1.05) && pass;
  }
  return pass ? 0 : 1;
}

// ---- recovery ----

// kill -9 of the worker that folds, in the middle of its round, until somebody folds again: from the signal to the replacement's first
// finished update, less what folding that update takes.
int Recovery(const HierarchyBench& options) {
  std::vector<double> ms;
  Node node(options.worker_program, {.workers = 1, .elements = Elements(options), .slots = 8, .hierarchy = Hierarchy(PoolShape::kFlat)});
  std::mt19937 random(5);
  const int kills = options.runs * 20;
  for (int kill = 0; kill < kills; ++kill) {
    const std::vector<ObjectKey> keys = node.PublishMany(2);
    node.BeginRound(2);
    node.Fold(keys[0]);
    absl::SleepFor(absl::Microseconds(random() % 12'000));  // somewhere in the first or second
    node.Fold(keys[1]);
    const absl::Time start = absl::Now();
    if (const int pid = node.pool().Status()[0].pid; pid > 0) ::kill(pid, SIGKILL);
    node.WaitFolded(2);
    node.Sums();
    ms.push_back(Milliseconds(start));
  }
  fmt::print("{{\"id\":\"recovery\",\"arm\":\"kill -9 to both updates folded\",\"metric\":\"ms\",\"kills\":{},\"median\":{:.4g},\"p99\":{:.4g},\"max\":{:.4g}}}\n",
             kills, Median(ms), Quantile(ms, 0.99), Quantile(ms, 1));
  return PrintVerdict("recovery", "p99 ms", Quantile(ms, 0.99), "< 1000", Quantile(ms, 0.99) < 1000) ? 0 : 1;
}

}  // namespace

int RunHierarchyBench(const std::string& name, const HierarchyBench& options) {
  fmt::print("{{\"id\":\"{}\",\"cores\":{},\"update_mib\":{:g},\"runs\":{}}}\n", name, ::sysconf(_SC_NPROCESSORS_ONLN), options.mib, options.runs);
  if (name == "t4") return T4(options);
  if (name == "t4b") return T4b(options);
  if (name == "t11") return T11(options);
  if (name == "t18") return T18(options);
  if (name == "t19") return T19(options);
  if (name == "recovery") return Recovery(options);
  return 2;
}

}  // namespace tributary::aggregator
