// A job without processes: the round engine, the arithmetic of one commit (aggregate.h) and clients that solve the quadratics of
// algorithms.md §5, driven by hand. Clients are "0", "1", …; the clock moves when told to.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/round.h"
#include "aggregator/core/strategy.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {

using Point = std::array<double, 2>;

struct Quadratic {
  std::array<double, 4> a;
  Point b;
  double Loss(const Point& x) const {
    const double d0 = x[0] - b[0], d1 = x[1] - b[1];
    return 0.5 * (d0 * (a[0] * d0 + a[1] * d1) + d1 * (a[2] * d0 + a[3] * d1));
  }
  Point Delta(const Point& start, int steps, double lr) const {
    Point y = start;
    for (int k = 0; k < steps; ++k) {
      const double d0 = y[0] - b[0], d1 = y[1] - b[1];
      y = {y[0] - lr * (a[0] * d0 + a[1] * d1), y[1] - lr * (a[2] * d0 + a[3] * d1)};
    }
    return {y[0] - start[0], y[1] - start[1]};
  }
};

// Problem Q4 of algorithms.md §5.
inline constexpr std::array<Quadratic, 4> kQ4 = {{{{1, 0, 0, 2}, {4, 0}},
                                                  {{2, .5, .5, 1}, {0, 3}},
                                                  {{.5, 0, 0, 3}, {-3, -1}},
                                                  {{1.5, -.3, -.3, .8}, {1, -4}}}};

class MemoryFederation {
 public:
  struct Contributed {
    std::string client;
    uint64_t staleness = 0;
    double weight = 0;
    bool operator==(const Contributed&) const = default;
  };
  struct Committed {
    std::vector<Contributed> by;  // in the order of their keys
    std::string trigger;
    absl::Time at;
  };

  MemoryFederation(StrategySpec strategy, int64_t cohort, Arithmetic arithmetic = Arithmetic::kFloat64) : arithmetic_(arithmetic) {
    spec_.strategy = std::move(strategy);
    spec_.cohort.size = cohort;
    spec_.stop.versions = 1'000'000;
    absl::StatusOr<std::unique_ptr<Strategy>> made = MakeStrategy(spec_.strategy, spec_.local);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    strategy_ = *std::move(made);
    round_.emplace(spec_, *strategy_, RoundOptions{}, now_);
    OpenAggregate();
    models_.push_back({0, 0});
  }

  // As after a crash between commits: all that is kept is what a commit says is to be stored.
  void Restart() {
    ClientTable stored;
    for (const auto& [client, scalars] : stored_clients_) stored.Put(client, scalars);
    const uint64_t version = round_->version();
    std::vector<std::string> attached(attached_.begin(), attached_.end());
    round_.emplace(spec_, *strategy_, RoundOptions{.version = version, .epoch = ++epoch_, .restored = {}, .clients = stored, .since_start = since_start_}, now_);
    tasks_.clear();
    OpenAggregate();
    for (const std::string& client : attached) Idle(client);
  }

  void Register(const std::vector<std::string>& clients) { Send(ClientsRegistered{clients}); }
  void Idle(const std::string& client) {
    attached_.insert(client);
    Send(ClientIdle{client, {}});
  }
  void Gone(const std::string& client) {
    attached_.erase(client);
    Send(ClientGone{client});
  }
  bool HasTask(const std::string& client) const { return tasks_.contains(client); }
  // The client's update for the task it was given last, from the model of that task.
  void Upload(const std::string& client, int steps = 5, double lr = 0.1, double weight = 1, Scalars scalars = {}) {
    ASSERT_TRUE(tasks_.contains(client)) << client << " has no task";
    const auto [task, version] = tasks_.at(client);
    tasks_.erase(client);
    const Quadratic& problem = kQ4.at(static_cast<size_t>(std::stoi(client)));
    const Point delta = problem.Delta(models_.at(version), steps, lr);
    const UpdateKeyRef key{.client = client, .task = task, .update = Id(++updates_)};
    const std::vector<std::byte> bytes = AsBytes<double>({delta[0], delta[1]});
    AddMeasured(*strategy_, layout_, bytes, &scalars);
    bytes_[key.update] = bytes;
    Send(UpdateArrived{.key = key, .version = version, .weight = weight, .examples = 1, .scalars = std::move(scalars)});
  }
  void SetCohort(int64_t size) {
    spec_.cohort.size = std::max<int64_t>(1, size);
    Send(CohortChanged{spec_.cohort});
  }
  void Tick(absl::Duration by) {
    now_ += by;
    Send(aggregator::Tick{});
  }
  void Advance(absl::Duration by) { now_ += by; }
  void Skip() { Send(RoundSkipped{}); }

  const Point& x() const { return models_.back(); }
  const std::vector<Point>& models() const { return models_; }
  const std::vector<Committed>& commits() const { return commits_; }
  const std::vector<std::string>& refused() const { return refused_; }
  const Round& round() const { return *round_; }
  std::optional<absl::Time> wake() const { return wake_; }
  const MemoryState& state() const { return state_; }
  absl::Time now() const { return now_; }

 private:
  void OpenAggregate() { aggregate_ = std::make_unique<Aggregate>(*strategy_, layout_, arithmetic_, 64); }

  void Send(RoundEvent event) {
    events_.push_back(std::move(event));
    if (sending_) return;
    sending_ = true;
    while (!events_.empty()) {
      const RoundEvent next = std::move(events_.front());
      events_.pop_front();
      for (const RoundAction& action : round_->OnEvent(next, now_)) {
        std::visit([this](const auto& a) { Do(a); }, action);
      }
    }
    sending_ = false;
  }

  void Do(const IssueTask& action) { tasks_[action.client] = {action.task, action.version}; }
  void Do(const CancelTask& action) { tasks_.erase(action.client); }
  void Do(const Fold& action) {
    RoundContributor contributor;
    contributor.key = action.key;
    contributor.weight = action.weight;
    const absl::Status folded = aggregate_->Fold(contributor, bytes_.at(action.key.update));
    EXPECT_TRUE(folded.ok()) << folded.ToString();
    events_.push_back(UpdateFolded{action.key.update});
  }
  void Do(const Refuse& action) { refused_.push_back(action.reason); }
  void Do(const Commit& commit) {
    Point next = models_.back();
    if (!commit.contributors.empty()) {
      const std::vector<std::byte> previous = AsBytes<double>({next[0], next[1]});
      const Point& base = models_.at(commit.version - 1 - commit.contributors.front().staleness);
      const std::vector<std::byte> base_bytes = AsBytes<double>({base[0], base[1]});
      std::vector<std::byte> bytes(16);
      const absl::Status stepped =
          aggregate_->Step({.facts = {.version = commit.version, .sum_weight = commit.sum_weight, .registered = commit.registered,
                                      .contributors = commit.contributors},
                            .previous = previous, .base = base_bytes},
                           &state_, bytes);
      EXPECT_TRUE(stepped.ok()) << stepped.ToString();
      const std::vector<double> values = FromBytes<double>(bytes);
      next = {values[0], values[1]};
    }
    models_.push_back(next);
    Committed committed{.by = {}, .trigger = commit.trigger, .at = now_};
    for (const RoundContributor& c : commit.contributors) committed.by.push_back({c.key.client, c.staleness, c.weight});
    commits_.push_back(std::move(committed));
    for (const auto& [client, scalars] : commit.client_changes) stored_clients_[client] = scalars;
    since_start_ = commit.since_start;
    OpenAggregate();
    events_.push_back(VersionCommitted{commit.version});
  }
  void Do(const Evaluate&) {}
  void Do(const Finish&) {}
  void Do(const WakeAt& action) { wake_ = action.when; }

  const TensorLayout layout_ = VectorLayout(2, DType::kF64);
  Arithmetic arithmetic_;
  JobSpec spec_;
  std::unique_ptr<Strategy> strategy_;
  std::optional<Round> round_;
  std::unique_ptr<Aggregate> aggregate_;
  MemoryState state_;
  absl::Time now_ = absl::UnixEpoch();
  absl::Duration since_start_;
  uint64_t epoch_ = 1;
  uint64_t updates_ = 0;
  bool sending_ = false;
  std::deque<RoundEvent> events_;
  std::set<std::string> attached_;
  std::map<std::string, std::pair<uint64_t, uint64_t>> tasks_;  // client -> task, version
  std::map<UpdateId, std::vector<std::byte>> bytes_;
  std::map<std::string, ClientScalars> stored_clients_;
  std::vector<Point> models_;
  std::vector<Committed> commits_;
  std::vector<std::string> refused_;
  std::optional<absl::Time> wake_;
};

}  // namespace tributary::aggregator
