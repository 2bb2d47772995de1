// kill -9 of leaf, middle and top at the named points of a worker's life, one at a time: the round's sums are the undisturbed round's, bit
// for bit; how long the round takes from the kill on; and at the end nothing is left, neither here nor in the kernel's maps.
//
// TRIBUTARY_KILLS   kills at each point (1)
// TRIBUTARY_KILL_MIB  of one update (1): 44.8 is a ResNet-18. scripts/bench.sh kills sets both
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <absl/strings/numbers.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#include "aggregator/core/kernels.h"
#include "ebpf/verdict_program.h"
#include "tests/integration/dataplane/left_behind.h"
#include "tests/integration/dataplane/pool_rig.h"
#include "tests/support/sanitized.h"

#ifdef TRIBUTARY_CRASH_POINTS
namespace tributary::aggregator {
namespace {

constexpr uint32_t kJob = 4;

double FromEnvironment(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  double value = otherwise;
  const bool good = text == nullptr || absl::SimpleAtod(text, &value);
  EXPECT_TRUE(good) << name << ": expected a number, got " << text;
  return value;
}

// A worker program of which the first process that is started after Arm dies at a crash point; the others live.
class ArmedProgram {
 public:
  ArmedProgram() : folder_(::testing::TempDir() + "armed_" + RandomHex(8)) {
    std::filesystem::create_directories(folder_);
    std::ofstream script(path());
    script << "#!/bin/sh\n"
           << "if mv " << folder_ << "/arm " << folder_ << "/armed.$$ 2>/dev/null; then\n"
           << "  read -r TRIBUTARY_CRASH < " << folder_ << "/armed.$$; export TRIBUTARY_CRASH\n"
           << "fi\n"
           << "exec " << WORKER_PROGRAM << " \"$@\"\n";
    script.close();
    ::chmod(path().c_str(), 0755);
  }
  ~ArmedProgram() { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ + "/worker"; }
  void Arm(const std::string& where) {
    std::ofstream(folder_ + "/arming") << where << "\n";
    std::filesystem::rename(folder_ + "/arming", folder_ + "/arm");
  }

 private:
  const std::string folder_;
};

struct Scenario {
  const char* role;
  const char* moment;
  const char* where;         // "point" or "point:n"; "point:*": n anywhere among the blocks of the sums
  PoolHierarchy hierarchy;
  std::vector<uint32_t> goals;
  uint32_t seat;             // whose process dies
  bool replan = false;
};

// Updates: 1 first, whose leaf is the first to be complete and so the first parent; then the others.
std::vector<Scenario> Scenarios() {
  const PoolHierarchy wide = Tree(3), middles = Tree(4, 2), shard = Shape(PoolShape::kShard);
  const std::vector<uint32_t> three = {1, 2, 3}, four = {1, 1, 1, 3};
  // A process that is armed between rounds is told the role of the round that is over, then that of the next: the third is a promotion or
  // a new plan. A top that is armed between rounds tells of the two partials of the last round again: the third is the new round's.
  return {
      {"leaf", "before receive", "worker_before_receive", wide, three, 1},
      {"leaf", "mid-accumulate", "worker_in_block:*", wide, three, 1},
      {"leaf", "holding a slot", "worker_before_done", wide, three, 1},
      {"leaf", "slot released", "worker_after_done", wide, three, 1},
      {"leaf", "before send", "partial_before_send", wide, three, 2},
      {"leaf", "after send", "partial_after_send", wide, three, 2},
      {"leaf", "during re-plan", "role_before_change:3", wide, three, 2, true},
      {"leaf", "after re-plan", "role_after_change:3", wide, three, 2, true},
      {"leaf", "closed by re-plan", "role_before_change:3", wide, three, 1, true},
      {"middle", "during promotion", "role_before_change:3", middles, four, 2},
      {"middle", "after promotion", "role_after_change:3", middles, four, 2},
      {"middle", "before merge", "worker_before_merge", middles, four, 2},
      {"middle", "mid-accumulate", "worker_in_merge_block:*", middles, four, 2},
      {"middle", "after send", "partial_after_send", middles, four, 2},
      {"top", "during promotion", "role_before_change:3", wide, three, 0},
      {"top", "after promotion", "role_after_change:3", wide, three, 0},
      {"top", "before merge", "worker_before_merge", wide, three, 0},
      {"top", "mid-accumulate", "worker_in_merge_block:*", wide, three, 0},
      {"top", "holding a partial", "worker_before_partial_done:3", wide, three, 0},
      {"top", "partial released", "worker_after_partial_done:3", wide, three, 0},
      {"range", "received", "lane_after_poll", shard, {}, 0},
      {"range", "mid-accumulate", "worker_in_block:*", shard, {}, 1},
      {"range", "holding a slot", "worker_before_done", shard, {}, 1},
  };
}

// A pool with one job whose rounds all have the same updates, in memory that is written once.
class Federation {
 public:
  static constexpr uint32_t kUpdates = 6;
  Federation(const std::string& program, const PoolHierarchy& hierarchy, size_t elements, const std::filesystem::path& pins)
      : layout_(MakeLayout(elements, 1)), slots_(kUpdates * SlotBytes(layout_.total_bytes())) {
    objects_ = ObjectPool::Create({.pool_id = 2, .slot_payload_bytes = layout_.total_bytes(), .pool_bytes = slots_, .domain = 0}).value();
    std::vector<WritableObject> all;
    std::mt19937 random(3);
    for (uint32_t i = 0; i < kUpdates; ++i) {
      all.push_back(objects_->Reserve(layout_.total_bytes()).value());
      auto* floats = reinterpret_cast<float*>(all.back().payload().data());
      for (size_t k = 0; k < elements; ++k) floats[k] = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
      const int64_t counter = i;
      std::memcpy(all.back().payload().data() + elements * sizeof(float), &counter, sizeof(counter));
    }
    all.clear();  // what was written stays
    WorkerPool::Callbacks callbacks;
    callbacks.folded = [this](uint32_t, const UpdateId&) {
      absl::MutexLock lock(&mutex_);
      ++folded_;
    };
    callbacks.refused = [](uint32_t, const UpdateId&, const std::string& reason) { ADD_FAILURE() << "refused: " << reason; };
    callbacks.lost = [this](uint32_t, const std::string& reason) {
      absl::MutexLock lock(&mutex_);
      lost_ = reason;
    };
    pool = WorkerPool::Start({.worker_program = program, .workers = 4, .lane_capacity = 8, .transport = PoolTransport(), .pin_folder = pins}, callbacks).value();
    EXPECT_TRUE(pool->OpenJob({.job = kJob, .strategy = "fedavg", .layout = layout_, .arithmetic = Arithmetic::kFixedPoint, .hierarchy = hierarchy},
                              objects_.get()).ok());
  }
  ~Federation() { pool.reset(); }

  // A whole round; its sums.
  // `dead`: the process of the scenario's seat has ended.
  std::vector<std::byte> Round(const Scenario& scenario, const std::function<bool()>& dead = [] { return false; }) {
    {
      absl::MutexLock lock(&mutex_);
      folded_ = 0;
    }
    // All at once: each slot, and so each payload, is used once.
    std::vector<WritableObject> objects;
    for (uint32_t i = 0; i < kUpdates; ++i) objects.push_back(objects_->Reserve(layout_.total_bytes()).value());
    const auto fold = [&] {
      Fold(std::move(objects.back()));
      objects.pop_back();
    };
    EXPECT_TRUE(pool->BeginRound(kJob, ++round_, {.updates = kUpdates, .leaves = scenario.goals}).ok());
    if (!scenario.goals.empty()) {
      fold();
      WaitForParent(0, scenario, dead);
    }
    uint32_t given = scenario.goals.empty() ? 0 : 1;
    if (scenario.hierarchy.fan_in != 0) {  // the third leaf is the first of its group to be complete
      for (; given < 3; ++given) fold();
      WaitForParent(2, scenario, dead);
    }
    if (scenario.replan) {
      fold();
      ++given;
      EXPECT_TRUE(pool->Replan(kJob, [](const WorkerPool::RoundProgress& progress) -> absl::StatusOr<RoundGoals> {
                        RoundGoals goals;
                        uint32_t left = kUpdates;
                        for (const auto& leaf : progress.leaves) {
                          goals.leaves.push_back(static_cast<uint32_t>(leaf.taken));
                          left -= goals.leaves.back();
                        }
                        goals.leaves[2] += left;  // the second leaf closes at what it has
                        return goals;
                      }).ok());
    }
    for (; given < kUpdates; ++given) fold();
    Wait([&] { return folded_ == kUpdates; });
    EXPECT_EQ(objects_->used_slots(), 0u);
    const absl::StatusOr<WorkerPool::Sums> sums = pool->ReadSums(kJob);
    readable_at = absl::Now();
    EXPECT_TRUE(sums.ok()) << sums.status();
    std::vector<std::byte> all;
    if (!sums.ok()) return all;
    for (const StatePiece& piece : sums->pieces) all.insert(all.end(), piece.state, piece.state + piece.count * 8);
    const auto counters = std::as_bytes(sums->counters);
    all.insert(all.end(), counters.begin(), counters.end());
    return all;
  }
  pid_t PidOf(uint32_t seat_number) const {
    for (const WorkerStatus& worker : pool->Status()) {
      for (const SeatStatus& seat : worker.seats) {
        if (seat.number == seat_number) return worker.pid;
      }
    }
    return 0;
  }
  std::string lost() {
    absl::MutexLock lock(&mutex_);
    return lost_;
  }
  std::unique_ptr<WorkerPool> pool;
  absl::Time readable_at;

 private:
  void Fold(WritableObject object) {
    object.header().weight = 1;
    const ObjectKey key = objects_->Publish(std::move(object));
    EXPECT_TRUE(pool->Fold(kJob, RandomUpdateId(), key).ok());
  }
  template <typename Condition>
  void Wait(const Condition& condition) {
    absl::MutexLock lock(&mutex_);
    const auto over = [&] { return condition() || !lost_.empty(); };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&over), absl::Seconds(60))) << folded_ << " of " << kUpdates << " folded";
    EXPECT_EQ(lost_, "");
  }
  // Until the seat merges partials, or its process has died becoming it: the others go on meanwhile.
  void WaitForParent(uint32_t seat_number, const Scenario& scenario, const std::function<bool()>& dead) {
    for (int i = 0; i < 5000; ++i) {
      for (const WorkerStatus& worker : pool->Status()) {
        for (const SeatStatus& seat : worker.seats) {
          if (seat.number == seat_number && (seat.role == "top" || seat.role == "middle")) return;
        }
      }
      if (seat_number == scenario.seat && dead()) return;
      absl::SleepFor(absl::Milliseconds(1));
    }
    ADD_FAILURE() << "seat " << seat_number << " merges nothing";
  }

  const TensorLayout layout_;
  const size_t slots_;
  std::unique_ptr<ObjectPool> objects_;
  uint32_t round_ = 0;
  absl::Mutex mutex_;
  uint32_t folded_ = 0;  // under mutex_, as lost_
  std::string lost_;
};

// When the process ends; InfiniteFuture: not within `timeout`.
class DeathWatch {
 public:
  explicit DeathWatch(pid_t pid) : fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {
    thread_ = std::jthread([this](const std::stop_token& stop) {
      pollfd entry{fd_.get(), POLLIN, 0};
      while (!stop.stop_requested()) {
        if (::poll(&entry, 1, 20) > 0) {
          died_ = absl::Now();
          dead_ = true;
          return;
        }
      }
    });
  }
  bool dead() const { return dead_; }
  absl::Time Stop() {
    thread_.request_stop();
    thread_.join();
    return died_;
  }

 private:
  const UniqueFd fd_;
  absl::Time died_ = absl::InfiniteFuture();  // the thread's until it is joined
  std::atomic<bool> dead_ = false;
  std::jthread thread_;
};

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(q * static_cast<double>(values.size())))];
}

class WorkerKillPointsTest : public NothingLeftBehind {};

TEST_F(WorkerKillPointsTest, TheRoundsSumsAreTheUndisturbedOnesAndNothingIsLeft) {
  const auto kills = static_cast<int>(FromEnvironment("TRIBUTARY_KILLS", 1));
  const double mib = FromEnvironment("TRIBUTARY_KILL_MIB", 1);
  const auto elements = static_cast<size_t>(mib * (1 << 18));
  const size_t blocks = (elements + kBlockElements - 1) / kBlockElements;
  // Pinned, so that what the kernel holds can be looked at when the pool is gone.
  const std::filesystem::path pins = PoolTransport() == TransportKind::kRing ? "" : ::testing::TempDir() + "pins_" + RandomHex(8);
  ArmedProgram program;
  std::mt19937 random(17);
  std::vector<double> all;
  int missed = 0;
  // How long a new process gets to be told of its seat. One that was not by then passes fewer points than its scenario counts on, and lives:
  // on a machine as slow as that it gets twice as long from then on.
  absl::Duration settling = absl::Milliseconds(testing::kSanitized ? 300 : 30);
  std::map<std::string, std::vector<Scenario>> by_shape;
  for (Scenario& scenario : Scenarios()) {
    const PoolHierarchy& hierarchy = scenario.hierarchy;
    by_shape[fmt::format("{} {} {}", static_cast<int>(hierarchy.shape), hierarchy.leaves, hierarchy.fan_in)].push_back(std::move(scenario));
  }
  for (const auto& [shape, scenarios] : by_shape) {
    Federation federation(program.path(), scenarios.front().hierarchy, elements, pins);
    for (const Scenario& scenario : scenarios) {
      Scenario undisturbed = scenario;
      const std::vector<std::byte> reference = federation.Round(undisturbed);
      std::vector<double> ms;
      // Now and then a process passes its point before the round begins, for the round that is over: another try. Slow processes do it more often.
      constexpr int kMoreTries = 10;
      for (int attempt = 0; static_cast<int>(ms.size()) < kills && attempt < kills + kMoreTries; ++attempt) {
        std::string where = scenario.where;
        if (where.ends_with(":*")) where.replace(where.size() - 1, 1, fmt::format("{}", 1 + random() % (scenario.hierarchy.shape == PoolShape::kShard ? blocks / 4 : blocks)));
        if (where.find(':') == std::string::npos) where += ":1";
        // A process that carries the point takes the place of the victim's.
        program.Arm(where);
        const pid_t before = federation.PidOf(scenario.seat);
        ASSERT_EQ(::kill(before, SIGKILL), 0);
        pid_t victim = before;
        for (int i = 0; i < 5000 && (victim == before || victim == 0); ++i) {
          absl::SleepFor(absl::Milliseconds(1));
          victim = federation.PidOf(scenario.seat);
        }
        ASSERT_NE(victim, before);
        absl::SleepFor(settling);
        DeathWatch watch(victim);
        const absl::Time begun = absl::Now();
        const std::vector<std::byte> sums = federation.Round(scenario, [&watch] { return watch.dead(); });
        // Points after the last block are passed when the sums can be read already: such a death is a kill as well, with nothing to wait for.
        for (const absl::Time until = absl::Now() + absl::Seconds(2); !watch.dead() && absl::Now() < until;) absl::SleepFor(absl::Milliseconds(1));
        const absl::Time died = watch.Stop();
        ASSERT_EQ(federation.lost(), "") << scenario.role << ' ' << scenario.moment;
        ASSERT_TRUE(sums == reference) << scenario.role << ' ' << scenario.moment << ", " << where << ": the sums are others";
        if (died < begun || died == absl::InfiniteFuture()) {
          std::printf("  %s: %s\n", where.c_str(), died < begun ? "died before the round" : "nobody died");
          ++missed;
          if (died == absl::InfiniteFuture()) settling = std::min(2 * settling, absl::Seconds(1));
          continue;
        }
        ms.push_back(std::max(0.0, absl::ToDoubleMilliseconds(federation.readable_at - died)));
      }
      std::printf("%-6s %-18s %-30s %3zu kills, to sums ms: median %6.1f, max %6.1f\n", scenario.role, scenario.moment, scenario.where, ms.size(),
                  Quantile(ms, 0.5), Quantile(ms, 1));
      std::fflush(stdout);
      EXPECT_FALSE(ms.empty()) << scenario.role << ' ' << scenario.moment << ": nobody died at " << scenario.where;
      all.insert(all.end(), ms.begin(), ms.end());
    }
  }
  std::printf("%zu kills over %s, updates of %.1f MiB: p50 %.1f ms, p99 %.1f ms, max %.1f ms from the kill to the round's sums; %d rounds without a death\n",
              all.size(), std::string(NameOf(PoolTransport())).c_str(), mib, Quantile(all, 0.5), Quantile(all, 0.99), Quantile(all, 1), missed);
  if (!testing::kSanitized) {
    EXPECT_LT(missed, 6 + kills * static_cast<int>(Scenarios().size()) / 10);  // five of them until `settling` has the length this machine needs
  }
  // A second for a model of any size up to that is the promise; of few kills on a busy machine the slowest is no 99th percentile.
  EXPECT_LT(Quantile(all, 0.99), all.size() >= 100 ? 1000 : 10'000);
  if (pins.empty()) return;
  std::unique_ptr<ebpf::VerdictProgram> program_left = ebpf::LoadVerdictProgram({.pin_folder = pins}).value();
  if (program_left->Facts()->adopted) {
    EXPECT_THAT(program_left->Routes().value(), ::testing::IsEmpty());
    int sockets = 0;
    for (uint32_t id = 1; id < 4000; ++id) sockets += program_left->HasSocket(id).value() ? 1 : 0;
    EXPECT_EQ(sockets, 0);
    std::printf("0 routes and %d sockets left in the kernel's maps\n", sockets);
  }
  EXPECT_TRUE(program_left->Unpin().ok());
  program_left.reset();
  std::filesystem::remove_all(pins);
}

}  // namespace
}  // namespace tributary::aggregator
#endif
