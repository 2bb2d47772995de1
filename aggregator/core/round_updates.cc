// The round and its updates: which it takes, which wait or are refused, and what they weigh.
#include <algorithm>
#include <cmath>
#include <utility>

#include "aggregator/core/round.h"
#include "aggregator/core/round_text.h"

namespace tributary::aggregator {

absl::Status Round::CheckUpload(const UpdateKeyRef& key, uint64_t version) const { return CheckTask(key, version); }

absl::Status Round::CheckTask(const UpdateKeyRef& key, uint64_t version) const {
  if (finished_ || finish_after_commit_) return FailedPrecondition("the job is over");
  for (const auto* updates : {&taken_, &waiting_}) {
    const TakenUpdate* update = updates->Find(key.update);
    if (update == nullptr) continue;
    if (update->contributor.key == key) return AlreadyExists("update {} is taken already", ToHex(key.update));
    return AlreadyExists("update id {} is another update's", ToHex(key.update));
  }
  const auto it = tasks_.find(key.task);
  if (it != tasks_.end()) {
    const KnownTask& task = it->second;
    if (task.client != key.client) return PermissionDenied("task {} is not client '{}''s", key.task, key.client);
    if (task.update && *task.update != key.update) {
      return AlreadyExists("task {} has update {} already, got {}", key.task, ToHex(*task.update), ToHex(key.update));
    }
    if (task.version != version) {
      return FailedPrecondition("task {} starts from version {}, the update says {}", key.task, task.version, version);
    }
    if (!task.closed.empty()) return FailedPrecondition("task {} takes no update: {}", key.task, task.closed);
  }
  std::string reason;
  if (!StalenessOf(version, &reason)) return FailedPrecondition("{}", reason);
  if (it == tasks_.end() && (key.task >> 32) >= epoch_) return NotFound("there is no task {}", key.task);
  const auto current = outstanding_.find(key.client);
  const bool is_current = current != outstanding_.end() && current->second.task == key.task;
  // Of a task from before a restart nothing is known but what its client says: one such update a version.
  const bool once = policies_.second_update == SecondUpdate::kRefused || (it == tasks_.end() && !recorded_);
  if (once && !is_current && HasContributed(key.client)) {
    return FailedPrecondition("client '{}' contributes to version {} already", key.client, version_);
  }
  return absl::OkStatus();
}

std::optional<uint64_t> Round::StalenessOf(uint64_t version, std::string* reason) const {
  if (version > version_) {
    *reason = fmt::format("version {} does not exist yet, the current one is {}", version, version_);
    return std::nullopt;
  }
  const bool open = phase_ == Phase::kCollecting;
  const uint64_t staleness = version_ + (open ? 0 : 1) - version;
  if (policies_.staleness->Factor(staleness)) return staleness;
  if (!open && policies_.staleness->Factor(version_ - version)) {
    *reason = fmt::format("version {} is closed: {}", version_, trigger_);
  } else {
    *reason = fmt::format("the update starts from version {}, the current one is {}: too stale", version, version_);
  }
  return std::nullopt;
}

bool Round::HasContributed(const std::string& client) const {
  return taken_.HasClient(client) || waiting_.HasClient(client);
}

bool Round::IsTaken(const UpdateId& id) const {
  return taken_.Find(id) != nullptr || waiting_.Find(id) != nullptr;
}

void Round::On(const UpdateArrived& event, absl::Time now, Actions* out) {
  for (const auto* updates : {&taken_, &waiting_}) {
    const TakenUpdate* update = updates->Find(event.key.update);
    if (update != nullptr && update->contributor.key == event.key) return;  // said twice
  }
  absl::Status status = CheckTask(event.key, event.version);
  if (status.ok() && !(std::isfinite(event.weight) && event.weight > 0 && event.weight <= spec_.max_weight)) {
    status = InvalidArgument("weight must be in (0, {}], got {}", spec_.max_weight, event.weight);
  }
  const auto current = outstanding_.find(event.key.client);
  const bool is_current = current != outstanding_.end() && current->second.task == event.key.task;
  if (!status.ok()) {
    const bool expired = status.code() == absl::StatusCode::kFailedPrecondition;
    out->push_back(Refuse{.key = event.key, .reason = MessageOf(status), .expired = expired});
    if (is_current && status.code() != absl::StatusCode::kAlreadyExists) {  // this task ended without a result
      Close(event.key.task, MessageOf(status));
      if (!expired) declined_[event.key.client] = {.reason = "refused: " + Shortened(MessageOf(status)), .at = now};
      Release(event.key.client);
      Admit(Moment::kTaskLost, now, out);
    }
    return;
  }
  if (current != outstanding_.end() && !is_current) {
    const std::string reason = fmt::format("the client's update for task {} came", event.key.task);
    out->push_back(CancelTask{.client = event.key.client, .task = current->second.task, .reason = reason});
    Close(current->second.task, reason);
  }
  KnownTask& task =
      tasks_.try_emplace(event.key.task, KnownTask{.client = event.key.client, .version = event.version, .issued = now, .update = {}, .closed = ""})
          .first->second;
  task.update = event.key.update;
  Release(event.key.client);
  Register(event.key.client);
  TakenUpdate update{.contributor = {.key = event.key,
                                     .weight = 0,
                                     .examples = event.examples,
                                     .staleness = 0,
                                     .claimed = event.weight,
                                     .scalars = event.scalars,
                                     .moe = event.moe},
                     .version = event.version,
                     .folded = false};
  if (phase_ != Phase::kCollecting || MustWait(event.key.client)) {
    waiting_.Add(std::move(update));
    if (phase_ == Phase::kCollecting) Admit(Moment::kUploadTaken, now, out);
    return;
  }
  Take(std::move(update), now, out);
  MaybeClose(now, out);
  Admit(Moment::kUploadTaken, now, out);
}

bool Round::MustWait(const std::string& client) const {
  return policies_.second_update == SecondUpdate::kWaits && taken_.HasClient(client);
}

void Round::Register(const std::string& client) {
  if (clients_.Register(client)) unsaved_.insert(client);
}

absl::StatusOr<double> Round::WeightNow(const std::string& client, uint64_t version, double claimed, const Scalars& scalars,
                                        absl::Time now) const {
  const uint64_t staleness = version_ - std::min(version_, version);
  const std::optional<double> factor = policies_.staleness->Factor(staleness);
  if (!factor) return FailedPrecondition("the update starts from version {}, the current one is {}: too stale", version, version_);
  const WeightRule& rule = strategy_.weights();
  TRIB_ASSIGN_OR_RETURN(const double weight, rule.Weight({.client = client,
                                                          .claimed = claimed,
                                                          .scalars = scalars,
                                                          .round = rule.RoundAt(version_, now - start_),
                                                          .clients = &clients_}));
  const double effective = weight * *factor;
  if (!std::isfinite(effective) || effective <= 0) {
    return InvalidArgument("weight {} at staleness {} becomes {}: expected a finite number > 0", claimed, staleness, effective);
  }
  return effective;
}

void Round::Take(TakenUpdate update, absl::Time now, Actions* out) {
  RoundContributor& contributor = update.contributor;
  contributor.staleness = version_ - update.version;
  const absl::StatusOr<double> weight =
      WeightNow(contributor.key.client, update.version, contributor.claimed, contributor.scalars, now);
  if (!weight.ok()) {
    const bool expired = absl::IsFailedPrecondition(weight.status());
    out->push_back(Refuse{.key = contributor.key, .reason = MessageOf(weight.status()), .expired = expired});
    if (tasks_.contains(contributor.key.task)) Close(contributor.key.task, MessageOf(weight.status()));
    return;
  }
  contributor.weight = *weight;
  out->push_back(Fold{.key = contributor.key, .weight = contributor.weight});
  taken_.Add(std::move(update));
}

// As many as the next aggregate takes; the others wait on.
void Round::TakeWaiting(absl::Time now, Actions* out) {
  std::vector<TakenUpdate> waiting = waiting_.Take();
  for (TakenUpdate& update : waiting) {
    if (MustWait(update.contributor.key.client) || ClosingReason(now)) {
      waiting_.Add(std::move(update));
    } else {
      Take(std::move(update), now, out);
    }
  }
}

void Round::On(const UpdateFolded& event, absl::Time now, Actions* out) {
  taken_.MarkFolded(event.update);
  MaybeClose(now, out);
}

void Round::On(const UpdateRefusedByWorker& event, absl::Time now, Actions* out) {
  const TakenUpdate* update = taken_.Find(event.update);
  if (update == nullptr || update->of_node || update->folded || phase_ == Phase::kCommitting) return;
  const UpdateKeyRef key = update->contributor.key;
  taken_.Remove(key.update);
  out->push_back(Refuse{.key = key, .reason = event.reason, .expired = false});
  Close(key.task, "its update was refused: " + Shortened(event.reason));
  declined_[key.client] = {.reason = "refused: " + Shortened(event.reason), .at = now};
  MaybeClose(now, out);
  Admit(Moment::kTaskLost, now, out);
}

void Round::On(const AggregateLost&, absl::Time now, Actions* out) {
  const std::vector<TakenUpdate> lost = taken_.Take();
  phase_ = Phase::kCollecting;
  trigger_.clear();
  if (finish_after_commit_) {
    for (const TakenUpdate& update : lost) taken_.Add(update);
    FinishNow(*finish_after_commit_, out);
    return;
  }
  for (const TakenUpdate& update : lost) {
    const UpdateKeyRef& key = update.contributor.key;
    if (update.of_node) continue;  // its node sends it again
    if (!attached_.contains(key.client) || outstanding_.contains(key.client)) continue;  // its task stays known
    SetOutstanding(key.client, key.task, update.version, now);
    idle_.erase(key.client);
  }
  TakeWaiting(now, out);
  MaybeClose(now, out);
  Admit(Moment::kTaskLost, now, out);
}

}  // namespace tributary::aggregator
