// A worker pool with real worker processes, one job, and a reference that folds the same updates in this process, one after the
// other. The small language of the worker tests.
// Every test of a program runs over the transport that POOL_TRANSPORT names (ring without it): ctest runs each over all three.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "aggregator/store/object_pool.h"
#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/transport/probe.h"
#include "tests/support/require.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {

// What POOL_TRANSPORT says.
inline TransportKind PoolTransport() {
  const char* name = std::getenv("POOL_TRANSPORT");
  for (const TransportKind kind : {TransportKind::kRing, TransportKind::kSkMsg, TransportKind::kSkMsgInline}) {
    if (NameOf(kind) == (name == nullptr ? "ring" : name)) return kind;
  }
  ADD_FAILURE() << "POOL_TRANSPORT: expected ring, skmsg or skmsg-inline, got " << name;
  return TransportKind::kRing;
}

// Skips (or fails) each test of the program by itself where its transport does not work here: a skip in a global environment would count
// the tests as passed.
class NeedsTransport final : public ::testing::EmptyTestEventListener {
 public:
  void OnTestStart(const ::testing::TestInfo&) override {
    if (PoolTransport() == TransportKind::kRing) return;
    static const absl::Status probed = ProbeSkMsg();
    TRIB_REQUIRE_OR_SKIP("bpf", probed.ok() ? std::string() : MessageOf(probed));
  }
};
inline const bool kNeedsTransport = [] {
  ::testing::UnitTest::GetInstance()->listeners().Append(new NeedsTransport);  // which owns it
  return true;
}();

struct RigOptions {
  uint32_t workers = 1;
  size_t elements = 100;
  size_t counters = 0;
  Arithmetic arithmetic = Arithmetic::kFloat64;
  size_t slots = 8;
  uint32_t lane_capacity = 8;
  PoolHierarchy hierarchy = {};
  std::string program = WORKER_PROGRAM;
  absl::Duration scale_period = absl::Seconds(30);
  absl::Duration hang_patience = WorkerPool::Options().hang_patience;
};

inline TensorLayout MakeLayout(size_t elements, size_t counters) {
  std::vector<TensorSpec> specs;
  if (elements > 0) specs.push_back({"w", {static_cast<int64_t>(elements)}, DType::kF32, TensorKind::kTrainable});
  if (counters > 0) specs.push_back({"n", {static_cast<int64_t>(counters)}, DType::kI64, TensorKind::kCounter});
  return TensorLayout::Create(specs).value();
}

inline PoolHierarchy Tree(uint32_t leaves, uint32_t fan_in = 0, bool reuse = true) {
  PoolHierarchy hierarchy;
  hierarchy.shape = PoolShape::kTree;
  hierarchy.leaves = leaves;
  hierarchy.fan_in = fan_in;
  hierarchy.reuse = reuse;
  return hierarchy;
}
inline PoolHierarchy Shape(PoolShape shape) {
  PoolHierarchy hierarchy;
  hierarchy.shape = shape;
  return hierarchy;
}
inline PoolHierarchy Timed(PoolHierarchy hierarchy, TimingKind kind) {
  hierarchy.timing.kind = kind;
  hierarchy.timing.age = absl::Milliseconds(5);
  return hierarchy;
}

class PoolRig {
 public:
  static constexpr uint32_t kJob = 4;

  explicit PoolRig(const RigOptions& options)
      : options_(options),
        layout(MakeLayout(options.elements, options.counters)),
        objects(ObjectPool::Create({.pool_id = 2,
                                    .slot_payload_bytes = layout.total_bytes(),
                                    .pool_bytes = options.slots * SlotBytes(layout.total_bytes()),
                                    .domain = 0})
                    .value()),
        reducer_(MakeMeanReducer(DType::kF32, options.arithmetic)) {
    WorkerPool::Callbacks callbacks;
    callbacks.folded = [this](uint32_t, const UpdateId& id) { Note(folded_, id, ""); };
    callbacks.refused = [this](uint32_t, const UpdateId& id, const std::string& reason) { Note(refused_, id, reason); };
    callbacks.lost = [this](uint32_t, const std::string& reason) {
      absl::MutexLock lock(&mutex_);
      ++lost_;
      reason_ = reason;
    };
    auto started = WorkerPool::Start(
        {.worker_program = options.program, .workers = options.workers, .lane_capacity = options.lane_capacity, .transport = PoolTransport(),
         .pin_folder = {}, .scale_period = options.scale_period, .hang_patience = options.hang_patience},
        callbacks);
    EXPECT_TRUE(started.ok()) << started.status().ToString();
    pool = *std::move(started);
    const absl::Status opened = pool->OpenJob(
        {.job = kJob, .strategy = "fedavg", .layout = layout, .arithmetic = options.arithmetic, .hierarchy = options.hierarchy},
        objects.get());
    EXPECT_TRUE(opened.ok()) << opened.ToString();
    BeginRound(1);
  }
  ~PoolRig() { pool.reset(); }

  void BeginRound(uint32_t round, const RoundGoals& goals = {}) {
    const absl::Status begun = pool->BeginRound(kJob, round, goals);
    EXPECT_TRUE(begun.ok()) << begun.ToString();
    expected_.assign(options_.elements * reducer_->state_bytes_per_element() / 8, 0);
    expected_counters_.assign(options_.counters, 0);
    fresh_ = true;
  }

  // A slot, waiting for one as ingress would make its client wait.
  WritableObject Reserve() {
    while (true) {
      auto object = objects->Reserve(layout.total_bytes());
      if (object.ok()) return *std::move(object);
      EXPECT_EQ(object.status().code(), absl::StatusCode::kResourceExhausted);
      absl::MutexLock lock(&mutex_);
      const size_t seen = folded_.size() + refused_.size() + lost_;
      const auto moved = [&] { return folded_.size() + refused_.size() + lost_ != seen || objects->used_slots() < objects->capacity_slots(); };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&moved), absl::Seconds(60))) {
        ADD_FAILURE() << "no slot for a minute";
        return {};
      }
    }
  }
  // Publishes and queues; `expect`: add it to the reference.
  UpdateId Fold(std::span<const float> floats, double weight, std::span<const int64_t> counters = {}, bool expect = true) {
    WritableObject object = Reserve();
    std::byte* payload = object.payload().data();
    if (!floats.empty()) std::memcpy(payload, floats.data(), floats.size_bytes());
    if (!counters.empty()) std::memcpy(payload + floats.size_bytes(), counters.data(), counters.size_bytes());
    object.header().weight = weight;
    if (expect) {
      const UpdateView view{reinterpret_cast<const std::byte*>(floats.data()), weight};
      if (!floats.empty()) {
        EXPECT_TRUE(reducer_->FoldBlock(reinterpret_cast<std::byte*>(expected_.data()), 0, options_.elements, {&view, 1}, fresh_));
      }
      FoldCounters(expected_counters_.data(), reinterpret_cast<const std::byte*>(counters.data()), counters.size(), fresh_);
      fresh_ = false;
    }
    const UpdateId id = RandomUpdateId();
    const ObjectKey key = objects->Publish(std::move(object));
    const absl::Status status = pool->Fold(kJob, id, key);
    if (!status.ok()) objects->Release(key);
    last_status = status;
    ++queued_;
    return id;
  }
  UpdateId FoldRandom() {
    std::vector<float> floats(options_.elements);
    for (float& x : floats) x = normal_(random_);
    std::vector<int64_t> counters(options_.counters);
    for (int64_t& x : counters) x = static_cast<int64_t>(random_() % 1000);
    return Fold(floats, 1 + static_cast<double>(random_() % 1000) / 7, counters);
  }

  // Everything queued is folded or refused (or the round is lost).
  bool WaitSettled(absl::Duration timeout = absl::Seconds(60)) {
    absl::MutexLock lock(&mutex_);
    const auto settled = [this] { return folded_.size() + refused_.size() == queued_ || lost_ > 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&settled), timeout);
  }
  bool WaitLost() {
    absl::MutexLock lock(&mutex_);
    const auto lost = [this] { return lost_ > 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&lost), absl::Seconds(60));
  }
  // Waits until more than `count` updates were folded.
  bool WaitFoldedBeyond(size_t count, absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    const auto more = [this, count] { return folded_.size() > count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&more), timeout);
  }
  void ForgetEvents() {
    absl::MutexLock lock(&mutex_);
    folded_.clear();
    refused_.clear();
    lost_ = 0;
    queued_ = 0;
  }
  size_t folded() {
    absl::MutexLock lock(&mutex_);
    return folded_.size();
  }
  std::set<UpdateId> refused() {
    absl::MutexLock lock(&mutex_);
    return refused_;
  }
  int lost() {
    absl::MutexLock lock(&mutex_);
    return lost_;
  }
  std::string reason() {
    absl::MutexLock lock(&mutex_);
    return reason_;
  }

  std::vector<std::byte> State() {
    std::vector<std::byte> state(options_.elements * reducer_->state_bytes_per_element());
    const auto sums = pool->ReadSums(kJob);
    EXPECT_TRUE(sums.ok()) << sums.status().ToString();
    if (!sums.ok()) return {};
    size_t covered = 0;
    for (const StatePiece& piece : sums->pieces) {
      EXPECT_EQ(piece.first, covered);
      covered += piece.count;
      if (piece.count != 0) std::memcpy(state.data() + piece.first * 8, piece.state, piece.count * 8);
    }
    EXPECT_EQ(covered, options_.elements);
    counters_.assign(sums->counters.begin(), sums->counters.end());
    return state;
  }
  // Bit for bit; in a tree in fp64, where the order of additions is another one, to 1e-6 of the largest.
  void ExpectSumsEqualReference() {
    const std::vector<std::byte> state = State();
    ASSERT_EQ(state.size(), expected_.size() * 8);
    if (options_.hierarchy.shape == PoolShape::kTree && options_.arithmetic == Arithmetic::kFloat64) {
      double error = 0, largest = 0;
      for (size_t i = 0; i < expected_.size(); ++i) {
        double got = 0, wanted = 0;
        std::memcpy(&got, state.data() + i * 8, 8);
        std::memcpy(&wanted, &expected_[i], 8);
        error = std::max(error, std::abs(got - wanted));
        largest = std::max(largest, std::abs(wanted));
      }
      ASSERT_LE(error, 1e-6 * largest);
      EXPECT_EQ(counters_, expected_counters_);
      return;
    }
    for (size_t i = 0; i < expected_.size(); ++i) {
      int64_t got;
      std::memcpy(&got, state.data() + i * 8, 8);
      ASSERT_EQ(got, expected_[i]) << "element " << i;
    }
    EXPECT_EQ(counters_, expected_counters_);
  }
  uint32_t restarts() const {
    uint32_t sum = 0;
    for (const WorkerStatus& worker : pool->Status()) sum += worker.restarts;
    return sum;
  }

 private:
  const RigOptions options_;

 public:
  const TensorLayout layout;
  std::unique_ptr<ObjectPool> objects;
  std::unique_ptr<WorkerPool> pool;
  absl::Status last_status;

 private:
  void Note(std::set<UpdateId>& into, const UpdateId& id, const std::string& reason) {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(into.insert(id).second) << "reported twice";
    if (!reason.empty()) reason_ = reason;
  }

  std::unique_ptr<Reducer> reducer_;
  absl::Mutex mutex_;  // guards the next three lines; conditions read them in lambdas, which the thread-safety analysis cannot follow
  std::set<UpdateId> folded_, refused_;
  int lost_ = 0;
  std::string reason_;
  size_t queued_ = 0;  // of the test's thread
  std::vector<int64_t> expected_;  // bit patterns of the accumulators
  std::vector<int64_t> expected_counters_, counters_;
  bool fresh_ = true;
  std::mt19937 random_{12345};
  std::normal_distribution<float> normal_;
};

}  // namespace tributary::aggregator
