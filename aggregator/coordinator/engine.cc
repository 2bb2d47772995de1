// The engine's side of the coordinator: events go in one at a time, actions are executed at once. All under the mutex; what must
// not happen there (messages, store I/O) goes to the loop or the commit thread.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "common/log.h"

namespace tributary::aggregator {

void Coordinator::Post(const JobPtr& job, RoundEvent event, bool first) {
  if (first) {
    engine_events_.emplace_front(job, std::move(event));
  } else {
    engine_events_.emplace_back(job, std::move(event));
  }
  if (applying_) return;
  applying_ = true;
  while (!engine_events_.empty()) {
    const JobPtr target = std::move(engine_events_.front().first);
    const RoundEvent next = std::move(engine_events_.front().second);
    engine_events_.pop_front();
    if (!target->Open()) continue;
    if (const auto* idle = std::get_if<ClientIdle>(&next)) {
      // It may have been given a task, or have left, since the event was queued.
      const auto client = clients_.find(idle->client);
      if (client == clients_.end() || !client->second.attached()) continue;
      if (idle->offers.empty()) {
        if (HasTask(client->second)) continue;
        target->idle.insert(idle->client);
      }
    }
    for (RoundAction& action : target->runtime->round->OnEvent(next, clock_->Now())) Execute(target, std::move(action));
    MarkChanged(*target, /*persist=*/false);
  }
  applying_ = false;
}

void Coordinator::Execute(const JobPtr& job, RoundAction action) {
  std::visit([&](const auto& a) ABSL_NO_THREAD_SAFETY_ANALYSIS { Do(job, a); }, action);
}

void Coordinator::Do(const JobPtr& job, const IssueTask& action) {
  job->max_task = std::max(job->max_task, action.task);
  const auto found = clients_.find(action.client);
  if (found == clients_.end() || !found->second.attached()) {
    job->idle.erase(action.client);
    Post(job, ClientGone{action.client}, /*first=*/true);
    return;
  }
  const absl::Time now = clock_->Now();
  IssuedTask& task = job->tasks[action.client];
  task = {};
  task.task = action.task;
  task.version = action.version;
  task.issued = now;
  task.deadline = action.deadline;
  job->idle.erase(action.client);
  for (const JobPtr& other : jobs_) {  // one task per client: the other engines must not count on it
    if (other != job && other->Open() && other->idle.erase(action.client) > 0) Post(other, ClientGone{action.client}, /*first=*/true);
  }
  if (job->first_task == absl::InfinitePast()) job->first_task = now;
  if (job->started_us == 0) job->started_us = WallMicros();
  if (job->row.state() == v1::JOB_STATE_QUEUED) {
    job->row.set_state(v1::JOB_STATE_RUNNING);
    MarkChanged(*job, /*persist=*/true);
  }
  SendTask(found->second, *job, task);
}

void Coordinator::Do(const JobPtr& job, const CancelTask& action) {
  const auto found = clients_.find(action.client);
  if (found != clients_.end() && found->second.attached()) {
    v1::ServerMessage message;
    message.mutable_cancel()->set_job(job->id);
    message.mutable_cancel()->set_task(action.task);
    message.mutable_cancel()->set_reason(action.reason);
    SendTo(found->second, std::move(message));
  }
  if (ForgetTask(*job, action.client, action.task) && found != clients_.end()) OfferIdle(found->second);
}

void Coordinator::Do(const JobPtr& job, const Fold& action) {
  const auto arriving = job->arriving.find(action.key.update);
  const auto entry = job->updates.find(action.key.update);
  if (arriving == job->arriving.end() || entry == job->updates.end()) {
    TRIB_LOG(error, "job {}: update {} is to be folded but its bytes are not here", job->id, ToHex(action.key.update));
    Post(job, UpdateRefusedByWorker{action.key.update, "its bytes are not here"});
    return;
  }
  WritableObject object = std::move(arriving->second);
  job->arriving.erase(arriving);
  entry->second.weight = action.weight;
  tb_object_header& header = object.header();
  header.weight = action.weight * entry->second.clip_factor;
  header.job = job->runtime->number;
  header.round = static_cast<uint32_t>(job->round_number);
  header.layout_id = job->runtime->layout_id;
  header.dtype = static_cast<uint32_t>(job->runtime->layout.float_dtype());
  header.contributors = 1;
  header.update_hi = action.key.update.hi;
  header.update_lo = action.key.update.lo;
  if (job->runtime->moe != nullptr) {
    std::vector<tb_weight_run> runs;
    for (const WeightRun& run : job->runtime->moe->RunsOf(entry->second.moe)) runs.push_back({.end = run.end, .factor = run.factor});
    object.SetWeightRuns(runs);
  }
  const ObjectKey key = job->runtime->pool->Publish(std::move(object));
  if (job->runtime->keeps_updates()) {
    entry->second.whole = key;
    entry->second.folded = true;
    ++job->folded_since_journal;
    ++job->folded;
    return Post(job, UpdateFolded{action.key.update});
  }
  if (job->quiescing || job->journalling) {
    job->held.emplace_back(action.key.update, key);
    if (!job->journalling) loop_wake_.Signal();  // it may be the last, and the commit is to come in the journal's place
  } else {
    SendFold(job, action.key.update, key);
  }
}

void Coordinator::SendFold(const JobPtr& job, const UpdateId& update, const ObjectKey& key) {
  ++job->in_flight;
  const absl::Status status = workers_->Fold(job->runtime->number, update, key);
  if (status.ok()) return;
  --job->in_flight;
  job->runtime->pool->Release(key);
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    // The sums were lost; the event that says so is on its way and returns this update with the others.
    TRIB_LOG(warn, "job {}: update {} waits for a new aggregate: {}", job->id, ToHex(update), MessageOf(status));
    return;
  }
  Post(job, UpdateRefusedByWorker{update, MessageOf(status)});
}

void Coordinator::Do(const JobPtr& job, const Refuse& action) {
  job->arriving.erase(action.key.update);
  auto [at, fresh] = job->updates.try_emplace(action.key.update);
  if (fresh) at->second.key = action.key;
  CountRefused(*job, action.expired ? "expired" : "refused", action.key, action.reason);
  Settle(*job, at->second, action.expired ? v1::UPDATE_STATE_EXPIRED : v1::UPDATE_STATE_REJECTED, action.reason);
  SendStatus(*job, action.key, at->second.state, 0, action.reason);
  if (ForgetTask(*job, action.key.client, action.key.task)) {
    const auto client = clients_.find(action.key.client);
    if (client != clients_.end()) OfferIdle(client->second);
  }
}

void Coordinator::Do(const JobPtr& job, const Commit& action) {
  job->committing = true;
  job->quiescing = false;
  for (const RoundContributor& contributor : action.contributors) {
    const auto entry = job->updates.find(contributor.key.update);
    if (entry != job->updates.end()) entry->second.committing = true;
  }
  if (job->row.relayed()) {
    job->relayed.commit = action;
    job->relayed.push = true;
    job->relayed.taken = false;
    relay_wake_.Signal();
    return;
  }
  CommitWork work;
  work.job = job;
  work.runtime = job->runtime;
  work.commit = action;
  for (const RoundContributor& contributor : action.contributors) {
    const uint64_t expected = ExpectedState(*job, contributor.key.client);
    if (LostClientState(*job->runtime->strategy, contributor.scalars, expected)) work.lost.push_back(contributor.key.client);
  }
  commits_.push_back(std::move(work));
  commit_wake_.Signal();
}

uint64_t Coordinator::ExpectedState(const Job& job, const std::string& client) const {
  return StateVersionOf(job.runtime->round->clients().Find(client), job.latest.info().state_epoch());
}

void Coordinator::Do(const JobPtr& job, const Evaluate& action) {
  for (auto& [id, client] : clients_) {
    if (client.attached() && Evaluates(client, *job)) AskEvaluation(client, *job, action.version);
  }
}

void Coordinator::Do(const JobPtr& job, const Finish& action) {
  switch (action.outcome) {
    case Outcome::kFailed: return Finalize(*job, v1::JOB_STATE_FAILED, action.reason);
    case Outcome::kCancelled: return Finalize(*job, v1::JOB_STATE_CANCELLED, action.reason);
    case Outcome::kDone: break;
  }
  job->finishing = true;
  const JobPrivacy* privacy = job->runtime->privacy.get();
  job->row.set_state_reason(privacy == nullptr ? action.reason : privacy->EndedByBudget(job->latest.info().version()).value_or(action.reason));
  job->finish_by = clock_->Now() + options_.evaluation_wait;
  MaybeEndEvaluation(*job);
}

void Coordinator::Do(const JobPtr& job, const WakeAt& action) {
  job->wake = action.when;
  loop_wake_.Signal();
}

void Coordinator::ReleaseWhole(const Job& job, UpdateEntry& entry) {
  if (entry.whole && job.runtime != nullptr) job.runtime->pool->Release(*entry.whole);
  entry.whole.reset();
}

void Coordinator::LoseAggregate(const JobPtr& job, const std::string& reason) {
  if (!job->Open()) return;
  Record(*job, "aggregate_lost", "", 0, reason);
  job->in_flight = 0;
  job->folded_since_journal = 0;
  job->quiescing = false;
  // Held folds belong to the lost aggregate too.
  for (const auto& [update, key] : job->held) job->runtime->pool->Release(key);
  job->held.clear();
  LoseShares(job);
  const absl::Status begun = BeginRound(*job, *job->runtime, ++job->round_number, 0);
  job->hurry_at = job->runtime->round->deadline();
  if (!begun.ok()) return Finalize(*job, v1::JOB_STATE_FAILED, fmt::format("the workers cannot start a new aggregate: {}", MessageOf(begun)));
  // What was handed over, or waits for the lost commit, must be sent again; what waits for the next version in `arriving` is kept.
  std::vector<UpdateKeyRef> lost;
  for (const auto& [id, entry] : job->updates) {
    const bool held = entry.state == v1::UPDATE_STATE_ACCEPTED || entry.state == v1::UPDATE_STATE_JOURNALED;
    if (held && !job->arriving.contains(id)) lost.push_back(entry.key);
  }
  std::set<UpdateId> of_nodes;
  std::map<UpdateId, uint64_t> base_versions;
  for (const UpdateKeyRef& key : lost) base_versions[key.update] = job->updates.at(key.update).base_version;
  for (const UpdateKeyRef& key : lost) {
    if (!job->updates.at(key.update).node.empty()) of_nodes.insert(key.update);
    ReleaseWhole(*job, job->updates.at(key.update));
    job->updates.erase(key.update);
  }
  Post(job, AggregateLost{reason});
  for (const UpdateKeyRef& key : lost) {
    if (of_nodes.contains(key.update)) continue;  // its node sends it again
    // The engine counts the task of an attached contributor as outstanding again.
    const auto client = clients_.find(key.client);
    if (client != clients_.end() && client->second.attached() && !HasTask(client->second)) {
      IssuedTask& task = job->tasks[key.client];
      task = {};
      task.task = key.task;
      task.version = base_versions.at(key.update);
      task.issued = clock_->Now();
      job->idle.erase(key.client);
    }
    SendStatus(*job, key, v1::UPDATE_STATE_UNKNOWN, 0, reason);
  }
}

}  // namespace tributary::aggregator
