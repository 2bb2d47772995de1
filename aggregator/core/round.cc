#include "aggregator/core/round.h"

#include <algorithm>
#include <utility>

#include "aggregator/core/round_text.h"

namespace tributary::aggregator {
namespace {

// A client that declined is asked again for the same version only when nobody else is left, and not before this much time.
constexpr absl::Duration kAskAgainAfter = absl::Seconds(5);

uint64_t Mix(uint64_t seed, uint64_t value) {  // one SplitMix64 step over both
  uint64_t z = (seed ^ value) + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace

Round::Round(const JobSpec& spec, const Strategy& strategy, RoundOptions options, absl::Time now)
    : spec_(spec),
      strategy_(strategy),
      policies_(strategy.MakePolicies(spec.cohort)),
      version_(options.version),
      epoch_(options.epoch),
      recorded_(options.recorded),
      start_(now - options.since_start),
      opened_(now),
      clients_(std::move(options.clients)) {
  for (RoundContributor& contributor : options.restored) {
    if (IsTaken(contributor.key.update)) continue;
    const uint64_t from = version_ - std::min(version_, contributor.staleness);
    tasks_[contributor.key.task] = {.client = contributor.key.client, .version = from, .issued = now, .update = contributor.key.update,
                                    .closed = ""};
    Register(contributor.key.client);
    taken_.Add({.contributor = contributor, .version = from, .folded = true});
  }
}

std::vector<RoundAction> Round::OnEvent(const RoundEvent& event, absl::Time now) {
  Actions out;
  if (finished_) return out;
  if (!started_) {
    started_ = true;
    if (version_ >= static_cast<uint64_t>(spec_.stop.versions)) {  // stopped between the last commit and its end
      out.push_back(Evaluate{.version = version_});
      FinishNow({.outcome = Outcome::kDone, .reason = fmt::format("version {} is the last", version_)}, &out);
      return out;
    }
    MaybeClose(now, &out);
    Admit(Moment::kVersionOpened, now, &out);
  }
  std::visit([&](const auto& e) { On(e, now, &out); }, event);
  MaybeCommitNobody(now, &out);
  if (!finished_) Wake(now, &out);
  return out;
}

// ---- clients ----

void Round::On(const ClientIdle& event, absl::Time now, Actions* out) {
  attached_.insert(event.client);
  Register(event.client);
  bool busy = false;
  for (const UpdateKeyRef& offer : event.offers) {
    if (offer.client != event.client || IsTaken(offer.update)) continue;
    const auto known = tasks_.find(offer.task);
    const uint64_t from = known == tasks_.end() ? version_ : known->second.version;
    if (!CheckTask(offer, from).ok()) continue;
    const auto current = outstanding_.find(event.client);
    if (current != outstanding_.end() && current->second.task != offer.task) {
      const std::string reason = fmt::format("the client still holds its update for task {}", offer.task);
      out->push_back(CancelTask{.client = event.client, .task = current->second.task, .reason = reason});
      Close(current->second.task, reason);
    }
    KnownTask& task = tasks_.try_emplace(offer.task, KnownTask{.client = event.client, .version = from, .issued = now, .update = {}, .closed = ""})
                          .first->second;
    task.update = offer.update;
    SetOutstanding(event.client, offer.task, from, now);
    idle_.erase(event.client);
    busy = true;
    break;
  }
  if (!busy) Release(event.client);  // a task it had is lost with its memory; the task stays known in case its update comes after all
  MaybeClose(now, out);
  Admit(Moment::kClientIdle, now, out);
}

void Round::On(const ClientsArrived& event, absl::Time now, Actions* out) {
  for (const std::string& client : event.clients) {
    attached_.insert(client);
    Register(client);
    Release(client);
  }
  MaybeClose(now, out);
  Admit(Moment::kClientIdle, now, out);
}

void Round::On(const ClientGone& event, absl::Time now, Actions* out) {
  attached_.erase(event.client);
  Release(event.client);
  Admit(Moment::kTaskLost, now, out);
}

void Round::On(const TaskDeclined& event, absl::Time now, Actions* out) {
  const auto it = outstanding_.find(event.client);
  if (it == outstanding_.end() || it->second.task != event.task) return;
  const std::string reason = Shortened(event.reason.empty() ? "no reason given" : event.reason);
  Close(event.task, "it was declined: " + reason);
  declined_[event.client] = {.reason = reason, .at = now};
  Release(event.client);
  Admit(Moment::kTaskLost, now, out);
}

void Round::SetOutstanding(const std::string& client, uint64_t task, uint64_t version, absl::Time now) {
  EraseOutstanding(client);
  outstanding_[client] = {.client = client, .task = task, .version = version, .issued = now};
  outstanding_current_ += version == version_;
}

void Round::EraseOutstanding(const std::string& client) {
  const auto at = outstanding_.find(client);
  if (at == outstanding_.end()) return;
  outstanding_current_ -= at->second.version == version_;
  outstanding_.erase(at);
}

void Round::Close(uint64_t task, std::string why) {
  tasks_.at(task).closed = std::move(why);
  closed_.push_back(task);
}

void Round::Release(const std::string& client) {
  EraseOutstanding(client);
  if (attached_.contains(client)) {
    idle_.insert(client);
  } else {
    idle_.erase(client);
  }
}

// ---- versions ----

std::optional<std::string> Round::ClosingReason(absl::Time now) const {
  if (taken_.empty()) return std::nullopt;
  const std::set<std::string> nobody;
  return policies_.trigger->ShouldClose(View(&nobody, 0, now));
}

void Round::MaybeClose(absl::Time now, Actions* out) {
  if (finished_ || phase_ == Phase::kCommitting) return;
  // What closed it was true then, and stays so unless one of its updates turns out to be bad: time may have moved a tick on.
  std::optional<std::string> reason;
  if (phase_ == Phase::kClosing && taken_.size() == closed_with_) {
    reason = trigger_;
  } else {
    reason = ClosingReason(now);
  }
  if (!reason) {
    if (phase_ == Phase::kClosing) {  // a worker refused what had closed it
      phase_ = Phase::kCollecting;
      trigger_.clear();
      TakeWaiting(now, out);
    }
    return;
  }
  if (phase_ == Phase::kCollecting) {
    phase_ = Phase::kClosing;
    trigger_ = *reason;
    closed_at_ = now;
  }
  closed_with_ = taken_.size();
  if (taken_.folded() < taken_.size()) return;
  AskForCommit(out);
}

void Round::AskForCommit(Actions* out) {
  phase_ = Phase::kCommitting;
  Commit commit{.version = version_ + 1,
                .contributors = {},
                .sum_weight = 0,
                .trigger = trigger_,
                .registered = clients_.size(),
                .client_changes = {},
                .since_start = closed_at_ - start_};
  std::vector<double> weights;
  for (const TakenUpdate& update : taken_) {
    commit.contributors.push_back(update.contributor);
    weights.push_back(update.contributor.weight);
  }
  std::sort(commit.contributors.begin(), commit.contributors.end(),
            [](const RoundContributor& a, const RoundContributor& b) { return a.key < b.key; });
  commit.sum_weight = OrderFreeSum(std::move(weights));
  changes_.clear();
  if (const WeightRule& rule = strategy_.weights(); rule.keeps_clients()) {
    const uint64_t round = rule.RoundAt(version_, commit.since_start);
    std::map<std::string, ClientScalars> changed;
    for (const std::string& client : unsaved_) changed[client] = clients_.Find(client);
    for (const RoundContributor& contributor : commit.contributors) {
      const auto at = changed.try_emplace(contributor.key.client, clients_.Find(contributor.key.client)).first;
      at->second = AfterContribution(at->second, round, rule.cutoff(), contributor.claimed);
    }
    changes_.assign(changed.begin(), changed.end());
    commit.client_changes = changes_;
  }
  out->push_back(std::move(commit));
}

void Round::On(const ClientsRegistered& event, absl::Time, Actions*) {
  for (const std::string& client : event.clients) Register(client);
}

void Round::On(const RoundSkipped&, absl::Time now, Actions* out) {
  if (phase_ != Phase::kCollecting || !taken_.empty()) return;
  trigger_ = "nobody took part";
  closed_at_ = now;
  AskForCommit(out);
}

void Round::MaybeCommitNobody(absl::Time now, Actions* out) {
  if (finished_ || phase_ != Phase::kCollecting || !taken_.empty() || expected_from_nodes_ > 0 || !policies_.trigger->NobodyDrawn(version_)) return;
  trigger_ = "nobody was drawn";
  closed_at_ = now;
  AskForCommit(out);
}

void Round::On(const VersionCommitted& event, absl::Time now, Actions* out) {
  if (phase_ != Phase::kCommitting || event.version != version_ + 1) return;
  version_ = event.version;
  outstanding_current_ = 0;  // nothing of the new version is issued yet
  draws_ = 0;
  opened_ = now;
  phase_ = Phase::kCollecting;
  for (const auto& [client, scalars] : changes_) {
    clients_.Put(client, scalars);
    unsaved_.erase(client);
  }
  changes_.clear();
  trigger_.clear();
  declined_.clear();
  for (const TakenUpdate& update : taken_) {
    if (!update.of_node) Close(update.contributor.key.task, fmt::format("its update is in version {}", version_));
  }
  taken_.clear();

  const bool last = version_ >= static_cast<uint64_t>(spec_.stop.versions) || finish_after_commit_.has_value();
  if (last || version_ % static_cast<uint64_t>(std::max<int64_t>(spec_.evaluate.every, 1)) == 0) out->push_back(Evaluate{.version = version_});
  if (finish_after_commit_) return FinishNow(*finish_after_commit_, out);
  if (last) return FinishNow({.outcome = Outcome::kDone, .reason = fmt::format("all {} versions are committed", spec_.stop.versions)}, out);

  // Tasks of this epoch that are over are unknown from now on, which refuses a second update as well. Those of earlier epochs would be
  // adopted again: they stay, closed, until they are too stale.
  for (const uint64_t task : closed_) {
    if ((task >> 32) >= epoch_) tasks_.erase(task);
  }
  closed_.clear();
  // Staleness is refused from some age on: where version 0 is young enough, all are.
  if (!policies_.staleness->Factor(version_)) {
    const auto too_stale = [&](uint64_t version) { return !policies_.staleness->Factor(version_ - version).has_value(); };
    const std::map<std::string, OutstandingTask> before = outstanding_;
    for (const auto& [client, task] : before) {
      if (!too_stale(task.version)) continue;
      out->push_back(CancelTask{.client = client, .task = task.task, .reason = fmt::format("version {} is committed", version_)});
      Release(client);
    }
    std::erase_if(tasks_, [&](const auto& entry) { return too_stale(entry.second.version); });
  }
  TakeWaiting(now, out);
  MaybeClose(now, out);
  Admit(Moment::kVersionOpened, now, out);
}

void Round::On(const MetricReported& event, absl::Time, Actions* out) {
  if (spec_.stop.accuracy <= 0 || !(event.accuracy >= spec_.stop.accuracy)) return;
  End(Outcome::kDone, fmt::format("accuracy {:.4f} at version {} reached {}", event.accuracy, event.version, spec_.stop.accuracy), out);
}

void Round::On(const CancelRequested& event, absl::Time, Actions* out) { End(Outcome::kCancelled, event.reason, out); }

void Round::On(const Tick&, absl::Time now, Actions* out) {
  wake_ = absl::InfiniteFuture();  // that alarm is spent
  ticking_ = true;
  MaybeClose(now, out);
  ticking_ = false;
  last_tick_ = now;
  Admit(Moment::kTick, now, out);
}

void Round::End(Outcome outcome, const std::string& reason, Actions* out) {
  const Finish finish{.outcome = outcome, .reason = reason};
  if (phase_ != Phase::kCommitting) return FinishNow(finish, out);
  if (finish_after_commit_ && finish_after_commit_->outcome != Outcome::kDone) return;
  finish_after_commit_ = finish;
}

void Round::FinishNow(const Finish& finish, Actions* out) {
  for (const auto& [client, task] : outstanding_) {
    out->push_back(CancelTask{.client = client, .task = task.task, .reason = "the job is over: " + finish.reason});
  }
  for (const auto* updates : {&taken_, &waiting_}) {
    for (const TakenUpdate& update : *updates) {
      out->push_back(Refuse{.key = update.contributor.key, .reason = "the job is over: " + finish.reason, .expired = true});
    }
  }
  out->push_back(finish);
  finished_ = true;
  phase_ = Phase::kCollecting;
  outstanding_.clear();
  outstanding_current_ = 0;
  taken_.clear();
  waiting_.clear();
  idle_.clear();
}

// ---- admission ----

RoundView Round::View(const std::set<std::string>* idle, uint64_t draw, absl::Time now) const {
  return {.version = version_, .opened = opened_, .now = now, .draw = draw, .idle = idle, .outstanding = &outstanding_,
          .outstanding_current = outstanding_current_, .contributions = &taken_, .expected_from_nodes = expected_from_nodes_,
          .waiting = &waiting_, .start = start_, .last_tick = last_tick_, .ticking = ticking_};
}

void Round::Admit(Moment moment, absl::Time now, Actions* out) {
  if (finished_ || finish_after_commit_ || phase_ != Phase::kCollecting || idle_.empty()) return;
  const auto ask = [&](const std::set<std::string>& idle) {
    if (idle.empty()) return std::vector<std::string>();
    const uint64_t draw = Mix(Mix(Mix(0, static_cast<uint64_t>(spec_.seed)), version_), draws_);
    std::vector<std::string> chosen = policies_.admission->Admit(View(&idle, draw, now), moment);
    // Only a draw that drew counts, and it counts within its version: what a seed chooses does not depend on how often nobody was needed.
    draws_ += !chosen.empty();
    return chosen;
  };
  if (declined_.empty()) {
    for (const std::string& client : ask(idle_)) {
      if (idle_.contains(client)) Issue(client, now, out);
    }
    return;
  }
  std::set<std::string> willing;
  std::set<std::string> unwilling;  // declined long enough ago to be asked again
  for (const std::string& client : idle_) {
    const auto it = declined_.find(client);
    if (it == declined_.end()) {
      willing.insert(willing.end(), client);
    } else if (now - it->second.at >= kAskAgainAfter) {
      unwilling.insert(unwilling.end(), client);
    }
  }
  for (const std::string& client : ask(willing)) {
    if (idle_.contains(client)) Issue(client, now, out);
  }
  int64_t lacking = LackingToQuorum(now);
  if (lacking <= 0) return;
  for (const std::string& client : ask(unwilling)) {
    if (lacking-- <= 0) break;
    if (idle_.contains(client)) Issue(client, now, out);
  }
}

void Round::Issue(const std::string& client, absl::Time now, Actions* out) {
  const uint64_t id = (epoch_ << 32) + next_task_++;
  absl::Time deadline = opened_ + spec_.cohort.deadline;
  if (deadline <= now) deadline = now + spec_.cohort.deadline;
  tasks_[id] = {.client = client, .version = version_, .issued = now, .update = {}, .closed = ""};
  SetOutstanding(client, id, version_, now);
  idle_.erase(client);
  declined_.erase(client);
  out->push_back(IssueTask{.client = client, .task = id, .version = version_, .deadline = deadline});
}

int64_t Round::LackingToQuorum(absl::Time now) const {
  int64_t expected = static_cast<int64_t>(taken_.size()) + expected_from_nodes_;
  if (outstanding_current_ == static_cast<int64_t>(outstanding_.size()) && now - opened_ < spec_.cohort.deadline) {
    expected += outstanding_current_;
  } else {
    for (const auto& [client, task] : outstanding_) {
      if (now - task.issued < spec_.cohort.deadline) ++expected;
    }
  }
  return std::min(spec_.EffectiveQuorum(), policies_.trigger->target()) - expected;
}

void Round::Wake(absl::Time now, Actions* out) {
  if (phase_ != Phase::kCollecting) return;
  const std::set<std::string> nobody;
  absl::Time next = policies_.trigger->NextCheck(View(&nobody, 0, now));
  if (!declined_.empty() && LackingToQuorum(now) > 0) {
    for (const auto& [client, decline] : declined_) {
      const absl::Time again = decline.at + kAskAgainAfter;
      if (again > now && idle_.contains(client)) next = std::min(next, again);
    }
  }
  if (next == absl::InfiniteFuture() || next == wake_) return;
  wake_ = next;
  out->push_back(WakeAt{.when = next});
}

}  // namespace tributary::aggregator
