// Sessions, tasks and evaluations of clients.
#include <algorithm>
#include <cmath>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "common/log.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMaxEvaluationsQueued = 64;
constexpr int kIdleBeatsToGiveUp = 2;

}  // namespace

absl::Status Coordinator::Authenticate(const std::string& client, const std::string& secret) { return book_.Authenticate(client, secret); }

absl::StatusOr<uint64_t> Coordinator::Attach(const std::string& client_id, const v1::Hello& hello, std::shared_ptr<ClientSink> sink) {
  uint64_t session = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return Unavailable("this server is shutting down");
    session = next_session_++;
    ClientRecord& client = clients_[client_id];
    client.id = client_id;
    if (client.attached()) {
      sessions_.erase(client.session);
      outbound_.push_back({client.sink, {}, Aborted("client '{}' attached again", client_id)});
    }
    Withdraw(client, /*with_tasks=*/false);
    client.session = session;
    client.sink = std::move(sink);
    client.welcomed = false;
    client.held.clear();
    client.hello = hello;
    client.hello.clear_outbox();
    client.doing.Clear();
    client.jobs_sent.clear();
    client.last_seen = clock_->Now();
    client.detached = absl::InfiniteFuture();
    client.connected_us = WallMicros();
    client.last_seen_us = client.connected_us;
    if (client.first_seen_us == 0) client.first_seen_us = client.connected_us;
    client.evaluating.reset();
    client.to_evaluate.clear();
    sessions_[session] = client_id;
    dirty_clients_.insert(client_id);
    if (upstream_ != nullptr) next_report_ = absl::InfinitePast();
    loop_wake_.Signal();
  }
  // Registered first: whatever is settled from here on goes to this stream, after the Welcome.
  v1::ServerMessage message;
  v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_heartbeat_interval_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat)));
  for (const v1::UpdateKey& key : hello.outbox()) *welcome.add_outbox() = Query(client_id, key);

  absl::MutexLock lock(&mutex_);
  const auto found = clients_.find(client_id);
  if (found == clients_.end() || found->second.session != session) return Aborted("client '{}' attached again meanwhile", client_id);
  ClientRecord& client = found->second;
  std::map<std::string, std::vector<UpdateKeyRef>> offers;
  std::set<std::pair<std::string, uint64_t>> in_outbox;
  for (v1::UpdateStatus& status : *welcome.mutable_outbox()) {
    in_outbox.insert({status.key().job(), status.key().task()});
    if (status.state() != v1::UPDATE_STATE_UNKNOWN) continue;
    const JobPtr job = FindJob(status.key().job());
    const absl::StatusOr<UpdateId> id = UpdateIdFromBytes(status.key().update_id());
    if (job == nullptr || !job->Open() || !id.ok() || !OfOpenVersion(*job, status.key().task())) continue;
    const UpdateKeyRef ref{client_id, status.key().task(), *id};
    const absl::Status admissible = job->runtime->round->CheckUpload(ref, job->runtime->round->version());
    if (admissible.ok()) {
      if (offers[job->id].empty()) offers[job->id].push_back(ref);
    } else if (FromMemory(*job, ref).state() == v1::UPDATE_STATE_UNKNOWN) {
      status.set_state(v1::UPDATE_STATE_EXPIRED);
      status.set_reason(MessageOf(admissible));
    }
  }
  outbound_.push_back({client.sink, std::move(message), absl::OkStatus()});
  client.welcomed = true;
  for (v1::ServerMessage& held : client.held) outbound_.push_back({client.sink, std::move(held), absl::OkStatus()});
  client.held.clear();
  loop_wake_.Signal();

  // A task it had before, in this process, goes on; said again, it is the same task. One whose update it holds needs no words.
  for (const JobPtr& job : jobs_) {
    if (!job->Open()) continue;
    const auto task = job->tasks.find(client_id);
    if (task == job->tasks.end() || offers.contains(job->id)) continue;
    if (!hello.trains()) {
      GiveUpTask(job, client_id, task->second.task, "the client no longer trains");
    } else if (!in_outbox.contains({job->id, task->second.task})) {
      SendTask(client, *job, task->second);
    }
  }
  if (hello.trains()) OfferIdle(client, offers);
  for (const JobPtr& job : jobs_) {
    if (!job->Open() || !Evaluates(client, *job)) continue;
    const uint64_t version = job->latest.info().version();
    const bool known = std::any_of(job->metrics.begin(), job->metrics.end(),
                                   [&](const v1::Metric& metric) { return metric.version() == version && metric.evaluator() == client_id; });
    const bool due = version % static_cast<uint64_t>(std::max<int64_t>(1, job->spec.evaluate.every)) == 0;
    if (version > 0 && due && !known) AskEvaluation(client, *job, version);
  }
  return session;
}

void Coordinator::OnMessage(uint64_t session, const v1::ClientMessage& message) {
  absl::MutexLock lock(&mutex_);
  const auto id = sessions_.find(session);
  if (id == sessions_.end()) return;
  const auto found = clients_.find(id->second);
  if (found == clients_.end()) return;
  ClientRecord& client = found->second;
  client.last_seen = clock_->Now();
  client.last_seen_us = WallMicros();
  switch (message.message_case()) {
    case v1::ClientMessage::kHeartbeat: return OnHeartbeat(client, message.heartbeat());
    case v1::ClientMessage::kDeclined: return OnDeclined(client, message.declined());
    case v1::ClientMessage::kEvaluation: return OnEvaluation(client, message.evaluation());
    default: return;
  }
}

void Coordinator::Detach(uint64_t session) {
  absl::MutexLock lock(&mutex_);
  const auto id = sessions_.find(session);
  if (id == sessions_.end()) return;
  const auto found = clients_.find(id->second);
  sessions_.erase(id);
  if (found == clients_.end() || found->second.session != session) return;
  ClientRecord& client = found->second;
  client.session = 0;
  client.sink.reset();
  client.held.clear();
  client.evaluating.reset();
  client.to_evaluate.clear();
  client.detached = clock_->Now();
  if (upstream_ != nullptr) next_report_ = absl::InfinitePast();
  dirty_clients_.insert(client.id);
  // It cannot take a new task; one under way survives a short absence.
  Withdraw(client, /*with_tasks=*/false);
  for (const JobPtr& job : jobs_) {
    if (job->finishing) MaybeEndEvaluation(*job);
  }
  loop_wake_.Signal();
}

void Coordinator::SendTo(ClientRecord& client, v1::ServerMessage message) {
  if (!client.attached()) return;
  if (!client.welcomed) {
    client.held.push_back(std::move(message));
    return;
  }
  outbound_.push_back({client.sink, std::move(message), absl::OkStatus()});
  loop_wake_.Signal();
}

void Coordinator::SendJobInfo(ClientRecord& client, const Job& job) {
  if (!client.jobs_sent.insert(job.id).second) return;
  v1::ServerMessage message;
  v1::JobInfo& info = *message.mutable_job();
  info.set_job(job.id);
  info.set_spec_yaml(job.row.spec_yaml());
  *info.mutable_layout() = job.row.layout();
  info.set_artifact_sha256(job.row.artifact_sha256());
  info.set_artifact_bytes(job.artifact_bytes);
  if (job.runtime != nullptr) {
    for (const std::string& name : job.runtime->strategy->version_vectors()) info.add_version_vectors(name);
    *info.mutable_update_layout() = LayoutToProto(job.runtime->update_layout);
    info.set_vectors_in_model(!job.runtime->strategy->in_place_of_model().empty());
    info.set_fitness_bytes(job.runtime->strategy->fitness_bytes());
    info.set_mirrored_state(job.runtime->strategy->mirrored_state());
    info.set_client_state(job.runtime->strategy->client_state() != ClientStateKind::kNone);
  }
  SendTo(client, std::move(message));
}

void Coordinator::SendTask(ClientRecord& client, const Job& job, const IssuedTask& task) {
  SendJobInfo(client, job);
  v1::ServerMessage message;
  v1::TrainTask& train = *message.mutable_train();
  train.set_job(job.id);
  train.set_task(task.task);
  train.set_version(task.version);
  if (job.runtime->strategy->client_state() != ClientStateKind::kNone) {
    train.set_state_version(ExpectedState(job, client.id));
    train.set_state_epoch(job.latest.info().state_epoch());
  }
  if (job.spec.privacy.enabled && job.spec.privacy.adaptive.enabled) train.set_clip(ClipOf(job));
  train.set_noise_seed(job.runtime->strategy->noise_seed(client.id, task.version));
  if (job.latest.info().has_moe()) *train.mutable_moe() = job.latest.info().moe();
  if (task.deadline != absl::InfiniteFuture()) {
    const int64_t left_ms = absl::ToInt64Milliseconds(task.deadline - clock_->Now());
    train.set_deadline_ms(static_cast<uint32_t>(std::clamp<int64_t>(left_ms, 1, UINT32_MAX)));
  }
  SendTo(client, std::move(message));
}

void Coordinator::SendStatus(const Job& job, const UpdateKeyRef& key, v1::UpdateState state, uint64_t version, const std::string& reason) {
  const auto client = clients_.find(key.client);
  if (client == clients_.end()) return;
  v1::ServerMessage message;
  v1::UpdateStatus& status = *message.mutable_update();
  *status.mutable_key() = KeyToProto(job.id, key.task, key.update);
  status.set_state(state);
  status.set_version(version);
  status.set_reason(reason);
  SendTo(client->second, std::move(message));
}

bool Coordinator::HasTask(const ClientRecord& client) const {
  return std::any_of(jobs_.begin(), jobs_.end(), [&](const JobPtr& job) { return job->Open() && job->tasks.contains(client.id); });
}

void Coordinator::OfferIdle(ClientRecord& client, const std::map<std::string, std::vector<UpdateKeyRef>>& offers) {
  if (!client.attached() || !client.hello.trains() || draining_) return;
  for (const auto& [id, keys] : offers) {
    const JobPtr job = FindJob(id);
    if (job == nullptr || !job->Open()) continue;
    IssuedTask& task = job->tasks[client.id];
    task = {};
    task.task = keys.front().task;
    task.version = job->runtime->round->version();
    task.issued = clock_->Now();
    job->max_task = std::max(job->max_task, task.task);
    if (job->first_task == absl::InfinitePast()) job->first_task = clock_->Now();
    Post(job, ClientIdle{client.id, keys});
  }
  for (const JobPtr& job : jobs_) {
    if (HasTask(client)) return;
    if (job->Open()) Post(job, ClientIdle{client.id, {}});
  }
}

bool Coordinator::ForgetTask(Job& job, const std::string& client, uint64_t task) {
  const auto found = job.tasks.find(client);
  if (found == job.tasks.end() || (task != 0 && found->second.task != task)) return false;
  job.tasks.erase(found);
  // The engine counts an attached client without a task as idle.
  const auto record = clients_.find(client);
  if (record != clients_.end() && record->second.attached()) job.idle.insert(client);
  return true;
}

void Coordinator::GiveUpTask(const JobPtr& job, const std::string& client, uint64_t task, const std::string& reason) {
  if (!ForgetTask(*job, client, task)) return;
  Record(*job, "task_given_up", client, task, reason);
  Post(job, TaskDeclined{client, task, reason});
  const auto record = clients_.find(client);
  if (record != clients_.end()) OfferIdle(record->second);
}

void Coordinator::Withdraw(ClientRecord& client, bool with_tasks) {
  for (const JobPtr& job : jobs_) {
    if (!job->Open()) continue;
    const bool had = with_tasks && job->tasks.erase(client.id) > 0;
    if (job->idle.erase(client.id) > 0 || had) Post(job, ClientGone{client.id});
  }
}

void Coordinator::OnHeartbeat(ClientRecord& client, const v1::Heartbeat& heartbeat) {
  client.doing = heartbeat;
  for (const JobPtr& job : jobs_) {
    if (!job->Open()) continue;
    const auto found = job->tasks.find(client.id);
    if (found == job->tasks.end()) continue;
    IssuedTask& task = found->second;
    const bool idle = heartbeat.phase() == v1::CLIENT_PHASE_IDLE && heartbeat.task() == 0;
    if (!idle || clock_->Now() - task.issued < options_.heartbeat) {
      task.idle_beats = 0;
      continue;
    }
    if (++task.idle_beats < kIdleBeatsToGiveUp) continue;
    GiveUpTask(job, client.id, task.task, "the client has no such task any more");
    return;
  }
}

void Coordinator::OnDeclined(ClientRecord& client, const v1::TaskDeclined& declined) {
  if (client.evaluating.has_value() && client.evaluating->job == declined.job() && client.evaluating->task == declined.task()) {
    const JobPtr job = FindJob(declined.job());
    client.last_decline = declined.reason();
    client.evaluating.reset();
    NextEvaluation(client);
    if (job != nullptr) {
      Record(*job, "evaluation_declined", client.id, declined.task(), declined.reason());
      if (job->finishing) MaybeEndEvaluation(*job);
    }
    return;
  }
  const JobPtr job = FindJob(declined.job());
  if (job == nullptr || !job->Open()) return;
  client.last_decline = declined.reason();
  GiveUpTask(job, client.id, declined.task(), declined.reason());
}

bool Coordinator::Evaluates(const ClientRecord& client, const Job& job) const {
  if (!client.hello.evaluates() || job.row.relayed()) return false;  // the top's evaluators do
  const std::vector<std::string>& named = job.spec.evaluate.clients;
  return named.empty() || std::find(named.begin(), named.end(), client.id) != named.end();
}

void Coordinator::AskEvaluation(ClientRecord& client, const Job& job, uint64_t version) {
  const auto asked = [&](const EvaluationAsked& other) { return other.job == job.id && other.version == version; };
  if (client.evaluating.has_value() && asked(*client.evaluating)) return;
  if (std::any_of(client.to_evaluate.begin(), client.to_evaluate.end(), asked)) return;
  if (client.to_evaluate.size() >= kMaxEvaluationsQueued) {
    const EvaluationAsked skipped = client.to_evaluate.front();
    client.to_evaluate.pop_front();
    Record(job, "evaluation_skipped", client.id, 0, fmt::format("version {} of job {}: the evaluator is {} versions behind", skipped.version, skipped.job, kMaxEvaluationsQueued));
  }
  client.to_evaluate.push_back({job.id, version, (store_->epoch() << 32) + (uint64_t{1} << 31) + next_evaluation_++});
  if (!client.evaluating.has_value()) NextEvaluation(client);
}

void Coordinator::NextEvaluation(ClientRecord& client) {
  while (!client.to_evaluate.empty() && client.attached()) {
    EvaluationAsked next = std::move(client.to_evaluate.front());
    client.to_evaluate.pop_front();
    const JobPtr job = FindJob(next.job);
    if (job == nullptr || !job->Open()) continue;
    SendJobInfo(client, *job);
    v1::ServerMessage message;
    message.mutable_evaluate()->set_job(next.job);
    message.mutable_evaluate()->set_task(next.task);
    message.mutable_evaluate()->set_version(next.version);
    client.evaluating = std::move(next);
    SendTo(client, std::move(message));
    return;
  }
}

void Coordinator::OnEvaluation(ClientRecord& client, const v1::EvaluationReport& report) {
  const bool asked = client.evaluating.has_value() && client.evaluating->job == report.job() && client.evaluating->version == report.version();
  if (asked) client.evaluating.reset();
  const JobPtr job = FindJob(report.job());
  // A report from before a restart is as good as one that was asked for in this run.
  if (job != nullptr && job->Open() && Evaluates(client, *job) && report.version() <= job->latest.info().version()) {
    const bool accuracy_known = std::isfinite(report.accuracy());
    if (accuracy_known && (report.accuracy() < 0 || report.accuracy() > 1)) {
      Record(*job, "evaluation_refused", client.id, report.task(), fmt::format("accuracy must be in [0, 1], got {}", report.accuracy()));
    } else {
      v1::Metric metric;
      metric.set_version(report.version());
      metric.set_wall_s(static_cast<double>(WallMicros() - job->row.submitted_us()) * 1e-6);
      metric.set_loss(report.loss());
      metric.set_accuracy(report.accuracy());
      metric.set_examples(report.examples());
      metric.set_evaluator(client.id);
      metric.set_bytes_up(job->row.bytes_up());
      metric.set_bytes_down(job->row.bytes_down());
      for (const v1::RoundTiming& made : job->timings) {
        if (made.version() == report.version()) *metric.mutable_measured() = made.measured();
      }
      std::erase_if(job->metrics, [&](const v1::Metric& old) { return old.version() == metric.version() && old.evaluator() == metric.evaluator(); });
      const auto at = std::upper_bound(job->metrics.begin(), job->metrics.end(), metric.version(),
                                       [](uint64_t version, const v1::Metric& other) { return version < other.version(); });
      job->metrics.insert(at, metric);
      metrics_out_.emplace_back(job->id, metric);
      job->finish_by = clock_->Now() + options_.evaluation_wait;
      MarkChanged(*job, /*persist=*/false);
      if (accuracy_known) Post(job, MetricReported{report.version(), report.accuracy()});
    }
  }
  if (!client.evaluating.has_value()) NextEvaluation(client);
  if (job != nullptr && job->finishing) MaybeEndEvaluation(*job);
  loop_wake_.Signal();
}

std::vector<std::string> Coordinator::OwingEvaluators(const Job& job) const {
  std::vector<std::string> owing;
  for (const auto& [id, client] : clients_) {
    if (!client.attached()) continue;
    const bool now = client.evaluating.has_value() && client.evaluating->job == job.id;
    const bool later = std::any_of(client.to_evaluate.begin(), client.to_evaluate.end(), [&](const EvaluationAsked& e) { return e.job == job.id; });
    if (now || later) owing.push_back(id);
  }
  return owing;
}

void Coordinator::MaybeEndEvaluation(Job& job) {
  if (!job.finishing || job.Final()) return;
  const std::vector<std::string> owing = OwingEvaluators(job);
  if (!owing.empty() && clock_->Now() < job.finish_by) return;
  if (!owing.empty()) Record(job, "evaluation_missing", owing.front(), 0, "the last version was not evaluated in time");
  Finalize(job, v1::JOB_STATE_DONE, job.row.state_reason());
}

}  // namespace tributary::aggregator
