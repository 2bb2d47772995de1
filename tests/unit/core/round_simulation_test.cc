// The round engine under random histories: clients join, leave, decline, send twice, send stale or foreign updates, aggregates are
// lost, the aggregator restarts with or without its partial. 1 000 seeds; a failure prints its seed, which replays the same run.
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <random>
#include <set>

#include "aggregator/core/round.h"

namespace tributary::aggregator {
namespace {

class Simulation {
 public:
  // Counts what happened into `seen`.
  Simulation(uint64_t seed, std::map<std::string, int>* seen) : random_(seed), seen_(*seen) {
    spec_.seed = static_cast<int64_t>(seed);
    spec_.cohort.size = Between(1, 5);
    spec_.cohort.quorum = Between(0, 1) == 0 ? 0 : Between(1, spec_.cohort.size);
    spec_.cohort.over_select = 1.0 + 0.25 * static_cast<double>(Between(0, 4));
    if (Between(0, 3) > 0) spec_.cohort.deadline = absl::Seconds(Between(5, 60));
    spec_.stop.versions = Between(1, 6);
    strategy_ = *MakeStrategy({.name = "fedavg", .params = {}});
    const int64_t clients = spec_.cohort.size + Between(0, 4);
    for (int64_t i = 0; i < clients; ++i) clients_[fmt::format("c{}", i)] = {};
    Open({});
  }

  // Runs to the end of the job; the first broken invariant, or "".
  std::string Run() {
    for (steps_ = 0; steps_ < 1500 && broken_.empty() && !finished_; ++steps_) Step();
    // From here on the world is kind: everybody is there and answers. The job must finish.
    for (int i = 0; i < 4000 && broken_.empty() && !finished_; ++i) KindStep();
    Expect(finished_, "the job never finishes; it says: " + round_->WaitingFor(now_));
    Expect(!finished_ || version_ == static_cast<uint64_t>(spec_.stop.versions), "it finished at another version");
    return broken_;
  }

 private:
  struct Client {
    bool attached = false;
    std::optional<UpdateKeyRef> task;      // training
    uint64_t task_version = 0;
    std::map<UpdateKeyRef, uint64_t> outbox;  // update -> version it started from
  };

  int64_t Between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }
  template <typename Map>
  auto& Any(Map& map) {
    return *std::next(map.begin(), Between(0, static_cast<int64_t>(map.size()) - 1));
  }
  void Expect(bool holds, const std::string& what) {
    if (!holds && broken_.empty()) broken_ = fmt::format("step {}: {}", steps_, what);
  }

  void Open(std::vector<RoundContributor> restored) {
    ++epoch_;
    phase_committing_ = false;
    in_sums_.clear();
    queued_.clear();
    for (const RoundContributor& contributor : restored) in_sums_[contributor.key.update] = contributor;
    round_.emplace(spec_, *strategy_, RoundOptions{.version = version_, .epoch = epoch_, .restored = std::move(restored)}, now_);
    Send(Tick{});
  }

  void Send(const RoundEvent& event) {
    const std::vector<RoundAction> actions = round_->OnEvent(event, now_);
    Expect(!finished_ || actions.empty(), "an action after Finish");
    for (const RoundAction& action : actions) {
      std::visit([&](const auto& a) { Do(a); }, action);
    }
  }

  // ---- the executor ----
  void Do(const IssueTask& issue) {
    Expect(clients_.contains(issue.client) && clients_[issue.client].attached, "a task for a client that is not attached");
    Expect(issued_.insert(issue.task).second, "a task id is issued twice");
    Expect(issue.version == version_, "a task for another version than the current one");
    Expect(issue.deadline > now_, "a task that is due already");
    Client& client = clients_[issue.client];
    Expect(!client.task, "a second task for a client that has one");
    for (const auto& [id, contributor] : in_sums_) Expect(contributor.key.client != issue.client, "a task for a contributor of this version");
    client.task = UpdateKeyRef{.client = issue.client, .task = issue.task, .update = NewId()};
    client.task_version = issue.version;
  }
  void Do(const CancelTask& cancel) {
    ++seen_["cancelled task"];
    Client& client = clients_[cancel.client];
    if (client.task && client.task->task == cancel.task) client.task.reset();
  }
  void Do(const Fold& fold) {
    Expect(queued_.emplace(fold.key.update, fold).second, "an update is folded twice");
    Expect(!in_sums_.contains(fold.key.update), "an update in the sums is folded again");
    Expect(!committed_.contains(fold.key.update), "a committed update is folded again");
    Expect(fold.weight > 0, "a weight that is not positive");
  }
  void Do(const Refuse& refuse) {
    ++seen_[refuse.expired ? "expired" : "rejected"];
    queued_.erase(refuse.key.update);
    clients_[refuse.key.client].outbox.erase(refuse.key);
    Expect(!committed_.contains(refuse.key.update), "a committed update is refused");
  }
  void Do(const Commit& commit) {
    Expect(commit.version == version_ + 1, "a commit of another version than the next");
    Expect(!commit.contributors.empty(), "a commit without contributors");
    Expect(queued_.empty(), "a commit with folds under way");
    Expect(commit.contributors.size() == in_sums_.size(), "contributors and sums differ in number");
    std::set<std::string> clients;
    std::vector<double> weights;
    for (const RoundContributor& contributor : commit.contributors) {
      Expect(in_sums_.contains(contributor.key.update), "a contributor that is not in the sums");
      Expect(clients.insert(contributor.key.client).second, "a client contributes twice");
      weights.push_back(contributor.weight);
    }
    Expect(commit.sum_weight == OrderFreeSum(weights), "the sum of weights is not that of the contributors");
    Expect(static_cast<int64_t>(commit.contributors.size()) >= spec_.EffectiveQuorum(), "a commit below the quorum");
    Expect(static_cast<int64_t>(commit.contributors.size()) <= spec_.cohort.size, "a commit of more than the cohort");
    Expect(!phase_committing_, "two commits at once");
    phase_committing_ = true;
    commit_ = commit;
  }
  void Do(const Evaluate& evaluate) { Expect(evaluate.version == version_, "an evaluation of another version"); }
  void Do(const Finish&) { finished_ = true; }
  void Do(const WakeAt& wake) {
    Expect(wake.when > now_, "an alarm in the past");
    wake_ = wake.when;
  }

  // ---- the world ----
  UpdateId NewId() { return {.hi = 1, .lo = ++next_id_}; }

  void Attach(const std::string& name) {
    Client& client = clients_[name];
    client.attached = true;
    client.task.reset();
    ClientIdle idle{.client = name, .offers = {}};
    for (const auto& [key, version] : client.outbox) {
      if (version == version_) idle.offers.push_back(key);
    }
    Send(idle);
  }
  void Detach(const std::string& name) {
    clients_[name].attached = false;
    if (Between(0, 1) == 0) clients_[name].task.reset();  // or it goes on training
    Send(ClientGone{.client = name});
  }
  void Train(const std::string& name) {
    Client& client = clients_[name];
    if (!client.task) return;
    client.outbox[*client.task] = client.task_version;
    client.task.reset();
  }
  void Upload(const std::string& name) {
    Client& client = clients_[name];
    if (client.outbox.empty()) return;
    const auto [key, version] = Any(client.outbox);
    UploadKey(key, version);
  }
  void UploadKey(const UpdateKeyRef& key, uint64_t version) {
    // The service settles from the store what was committed before it asks the engine.
    if (const auto it = committed_.find(key.update); it != committed_.end()) {
      clients_[key.client].outbox.erase(key);
      return;
    }
    if (const auto it = clients_.find(key.client); it != clients_.end()) {
      it->second.outbox.emplace(key, version);  // kept until it is committed or refused
      if (it->second.task && it->second.task->task == key.task) it->second.task.reset();
    }
    const bool admitted = round_->CheckUpload(key, version).ok();
    const size_t before = round_->updates_in();
    Send(UpdateArrived{.key = key, .version = version, .weight = static_cast<double>(Between(1, 100)), .examples = 1});
    Expect(admitted == (round_->updates_in() == before + 1), "CheckUpload and UpdateArrived disagree");
  }
  void FoldOne() {
    if (queued_.empty()) return;
    const Fold fold = Any(queued_).second;
    queued_.erase(fold.key.update);
    if (!kind_ && Between(0, 30) == 0) {
      Send(UpdateRefusedByWorker{.update = fold.key.update, .reason = "not finite"});
      return;
    }
    in_sums_[fold.key.update] = {.key = fold.key, .weight = fold.weight, .examples = 1, .staleness = 0};
    Send(UpdateFolded{.update = fold.key.update});
  }
  void FinishCommit() {
    if (!phase_committing_) return;
    phase_committing_ = false;
    if (!kind_ && Between(0, 8) == 0) return Lose();
    ++version_;
    ++seen_[commit_.trigger == "cohort complete" ? "complete commit" : "deadline commit"];
    for (const RoundContributor& contributor : commit_.contributors) {
      Expect(committed_.emplace(contributor.key.update, version_).second, "an update is committed twice");
      if ((contributor.key.task >> 32) < epoch_) ++seen_["contribution of an earlier epoch"];
      // Of tasks of earlier epochs the engine has no memory (round.h, CheckUpload).
      const bool ours = (contributor.key.task >> 32) == epoch_;
      Expect(task_committed_.insert(contributor.key.task).second || !ours, "a task is committed twice");
      clients_[contributor.key.client].outbox.erase(contributor.key);
    }
    in_sums_.clear();
    Send(VersionCommitted{.version = version_});
  }
  void Lose() {
    ++seen_[in_sums_.empty() ? "empty loss" : "loss"];
    phase_committing_ = false;
    in_sums_.clear();
    queued_.clear();
    Send(AggregateLost{.reason = "a worker died"});
  }
  void Restart() {
    ++seen_["restart"];
    std::vector<RoundContributor> restored;
    if (Between(0, 1) == 0) {
      for (const auto& [id, contributor] : in_sums_) restored.push_back(contributor);
    }
    if (phase_committing_ && Between(0, 1) == 0) {  // killed after the sync and before the answer
      ++version_;
      restored.clear();
      for (const RoundContributor& contributor : commit_.contributors) {
        Expect(committed_.emplace(contributor.key.update, version_).second, "an update is committed twice");
        task_committed_.insert(contributor.key.task);
        clients_[contributor.key.client].outbox.erase(contributor.key);
      }
    }
    for (auto& [name, client] : clients_) {
      client.attached = false;
      if (Between(0, 1) == 0) client.task.reset();
    }
    Open(std::move(restored));
  }
  void Decline(const std::string& name) {
    Client& client = clients_[name];
    if (!client.task) return;
    ++seen_["decline"];
    const uint64_t task = client.task->task;
    client.task.reset();
    Send(TaskDeclined{.client = name, .task = task, .reason = "busy"});
  }
  void Hostile() {
    const std::string name = Any(clients_).first;
    switch (Between(0, 5)) {
      case 0:  // another update for some task
        if (!issued_.empty()) UploadKey({.client = name, .task = *std::next(issued_.begin(), Between(0, static_cast<int64_t>(issued_.size()) - 1)), .update = NewId()}, version_);
        break;
      case 1:
        UploadKey({.client = name, .task = static_cast<uint64_t>(random_()), .update = NewId()}, version_);
        break;
      case 2:
        UploadKey({.client = "stranger", .task = (epoch_ << 32) + 1, .update = NewId()}, version_ + static_cast<uint64_t>(Between(0, 2)));
        clients_.erase("stranger");
        break;
      case 3:
        Send(UpdateFolded{.update = NewId()});
        break;
      case 4:
        Send(TaskDeclined{.client = name, .task = static_cast<uint64_t>(random_()), .reason = std::string(500, 'x')});
        break;
      default:
        Send(VersionCommitted{.version = version_ + static_cast<uint64_t>(Between(2, 9))});
        break;
    }
  }
  void Step() {
    now_ += absl::Milliseconds(Between(0, 2000));
    const std::string name = Any(clients_).first;
    switch (Between(0, 19)) {
      case 0: case 1: case 2: return clients_[name].attached ? void() : Attach(name);
      case 3: return clients_[name].attached ? Detach(name) : void();
      case 4: return Decline(name);
      case 5: case 6: case 7: return Train(name);
      case 8: case 9: case 10: case 11: return Upload(name);
      case 12: case 13: return FoldOne();
      case 14: return FinishCommit();
      case 15: return Send(Tick{});
      case 16: return Between(0, 5) == 0 ? Lose() : void();
      case 17: return Between(0, 9) == 0 ? Restart() : void();
      default: return Hostile();
    }
  }
  void KindStep() {
    kind_ = true;
    now_ += absl::Milliseconds(200);
    for (auto& [name, client] : clients_) {
      if (finished_) return;
      if (!client.attached) Attach(name);
      Train(name);
      Upload(name);
    }
    while (!queued_.empty() && !finished_) FoldOne();
    if (!finished_) FinishCommit();
    if (!finished_ && now_ >= wake_) {
      wake_ = absl::InfiniteFuture();
      Send(Tick{});
    }
  }

  std::mt19937_64 random_;
  std::map<std::string, int>& seen_;
  JobSpec spec_;
  std::unique_ptr<Strategy> strategy_;
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  absl::Time wake_ = absl::InfiniteFuture();
  std::optional<Round> round_;
  uint64_t version_ = 0;
  uint64_t epoch_ = 0;
  uint64_t next_id_ = 0;
  int steps_ = 0;
  bool kind_ = false;
  bool finished_ = false;
  bool phase_committing_ = false;
  Commit commit_;
  std::string broken_;
  std::map<std::string, Client> clients_;
  std::set<uint64_t> issued_;
  std::map<UpdateId, Fold> queued_;
  std::map<UpdateId, RoundContributor> in_sums_;
  std::map<UpdateId, uint64_t> committed_;
  std::set<uint64_t> task_committed_;
};

TEST(RoundSimulationTest, InvariantsHoldForAThousandSeeds) {
  std::map<std::string, int> seen;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    const std::string broken = Simulation(seed, &seen).Run();
    ASSERT_EQ(broken, "") << "seed " << seed;
  }
  // Histories that never get anywhere would prove nothing.
  for (const char* what : {"complete commit", "deadline commit", "contribution of an earlier epoch", "loss", "restart", "decline", "expired",
                           "rejected", "cancelled task"}) {
    EXPECT_GE(seen[what], 100) << what;
  }
}

}  // namespace
}  // namespace tributary::aggregator
