// Opening, ending and describing jobs.
#include <algorithm>
#include <cstring>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "common/log.h"
#include "proto/codec.h"
#include "proto/moe_codec.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMaxStoredEvents = 10'000;
constexpr absl::Duration kLongRest = absl::Seconds(1);
constexpr double kMiB = 1024.0 * 1024.0;

size_t RunsOf(const JobRuntime& runtime) { return runtime.moe == nullptr ? 0 : runtime.moe->run_count(); }

}  // namespace

size_t Coordinator::UsedBudget() const {
  size_t used = 0;
  for (const JobPtr& job : jobs_) used += job->budget_bytes;
  for (const auto& runtime : retired_) used += runtime->pool->committed_bytes();
  return used;
}

PlannerLimits Coordinator::Limits() const {
  // Half of the pool for the sums of one job: the rest is for updates, and for other jobs.
  return {.workers = options_.workers.workers, .sums_bytes = options_.pool_bytes / 2, .capacity = {}};
}

absl::Status Coordinator::BeginRound(Job& job, JobRuntime& runtime, uint64_t number, uint64_t done) {
  const absl::Time now = clock_->Now();
  RoundPlanner& planner = *runtime.planner;
  if (planner.EstimateDue(now)) {
    TRIB_ASSIGN_OR_RETURN(const auto estimate, workers_->LoadOf(runtime.number));
    planner.OnEstimate(now, estimate, workers_->MeanLoad());
  }
  int64_t wanted = job.row.relayed() ? RelayedSpec(job).cohort.size : job.spec.cohort.size - ExpectedFromNodes(job);
  if (!runtime.strategy->synchronous()) {  // as many as can come: a buffer, or one of each client that trains
    wanted = std::max(wanted, runtime.strategy->MakePolicies(job.spec.cohort).trigger->target());
  }
  const int64_t left = wanted - static_cast<int64_t>(done);
  TRIB_ASSIGN_OR_RETURN(const RoundGoals goals, planner.Next(number, std::max<int64_t>(0, left)));
  return workers_->BeginRound(runtime.number, static_cast<uint32_t>(number), goals);
}

absl::Time Coordinator::ReplanAt(const Job& job) {
  if (job.committing || job.journalling || job.finishing) return absl::InfiniteFuture();
  return job.runtime->planner->replan_due();
}

void Coordinator::ReplanRound(Job& job, absl::Time now) {
  RoundPlanner& planner = *job.runtime->planner;
  const auto estimate = workers_->LoadOf(job.runtime->number);
  planner.OnEstimate(now, estimate.ok() ? *estimate : std::nullopt, workers_->MeanLoad());
  const absl::Status planned =
      workers_->Replan(job.runtime->number, [&planner](const WorkerPool::RoundProgress& progress) { return planner.Replan(progress); });
  // After a journal there is nothing to plan anew before the next round; lost sums are heard of elsewhere.
  if (planned.ok() || planned.code() == absl::StatusCode::kFailedPrecondition) return;
  TRIB_LOG(error, "job {}: round {} goes on as planned before: {}", job.id, job.round_number, MessageOf(planned));
}

bool Coordinator::MayRest(const JobRuntime& runtime) {
  const TimingSpec& timing = runtime.planner->pool().timing;
  switch (timing.kind) {
    case TimingKind::kEager: return false;
    case TimingKind::kBatch: return timing.age > kLongRest;
    case TimingKind::kLazy:
    case TimingKind::kJit: return true;
  }
  return true;
}

void Coordinator::HurryIfDue(Job& job, absl::Time now) {
  if (!job.Open() || job.hurry_at > now) return;
  job.hurry_at = absl::InfiniteFuture();
  workers_->Hurry(job.runtime->number);
}

void Coordinator::OpenQueuedJobs() {
  std::set<JobPtr> tried;
  while (true) {
    JobPtr job;
    v1::TensorLayout layout_row;
    {
      absl::MutexLock lock(&mutex_);
      if (draining_ || stopping_) return;
      for (const JobPtr& candidate : jobs_) {
        if (candidate->Final() || candidate->runtime != nullptr || candidate->opening || tried.contains(candidate)) continue;
        if (candidate->row.relayed() && !MayOpenRelayed(*candidate)) continue;
        job = candidate;
        break;
      }
      if (job == nullptr) return;
      tried.insert(job);
      job->opening = true;
      layout_row = job->row.layout();
    }
    absl::Status status;
    std::shared_ptr<JobRuntime> runtime;
    size_t pool_bytes = 0;
    bool fits = true;
    if (absl::StatusOr<TensorLayout> layout = LayoutFromProto(layout_row); !layout.ok()) {
      status = layout.status();
    } else if (auto made = MakeRuntime(job->spec, *layout, options_.find_strategy(job->spec.strategy.name), Limits(), options_.capacities); !made.ok()) {
      status = made.status();
    } else {
      runtime = *std::move(made);
      const size_t slot = SlotBytes(runtime->encoding.total_bytes(), RunsOf(*runtime));
      const size_t wanted = slot * static_cast<size_t>(job->spec.ClientsAsked());
      const size_t sums = SlabMemory(*runtime);
      absl::MutexLock lock(&mutex_);
      const size_t used = UsedBudget();
      const size_t free = options_.pool_bytes > used ? options_.pool_bytes - used : 0;
      const bool alone = used == 0;  // the only job always runs, with as few slots as it can do with
      const size_t least = slot * (runtime->keeps_updates() ? static_cast<size_t>(job->spec.cohort.size) : 1);
      fits = alone || free >= sums + least;
      if (fits) {
        pool_bytes = std::clamp(free > sums ? free - sums : 0, least, std::max(least, wanted));
        job->budget_bytes = sums + pool_bytes;
        job->queued_for.clear();
      } else {
        job->queued_for = fmt::format("it needs {:.0f} MiB of the pool, {:.0f} of {:.0f} MiB are free until another job ends",
                                      static_cast<double>(sums + least) / kMiB, static_cast<double>(free) / kMiB,
                                      static_cast<double>(options_.pool_bytes) / kMiB);
      }
    }
    if (status.ok() && fits) status = OpenJob(job, std::move(runtime), pool_bytes);
    absl::MutexLock lock(&mutex_);
    job->opening = false;
    if (!status.ok()) {
      job->budget_bytes = 0;
      TRIB_LOG(error, "job {} cannot be opened: {}", job->id, MessageOf(status));
      Finalize(*job, v1::JOB_STATE_FAILED, fmt::format("it cannot be opened: {}", MessageOf(status)));
    }
    MarkChanged(*job, /*persist=*/false);
    changed_.SignalAll();
  }
}

absl::Status Coordinator::LoadJob(const JobPtr& job) {
  std::vector<v1::Metric> metrics;
  std::deque<v1::RoundTiming> timings;
  std::deque<std::pair<int64_t, uint64_t>> commits;
  v1::VersionRow latest;
  TRIB_ASSIGN_OR_RETURN(metrics, store_->ListMetrics(job->id));
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::VersionRow> versions, store_->ListVersions(job->id));
  for (const v1::VersionRow& row : versions) {
    latest = row;
    if (row.info().version() > 0) timings.push_back(row.timing());
    commits.emplace_back(row.info().committed_us(), static_cast<uint64_t>(row.info().contributors_size()));
    if (timings.size() > kMaxTimings) timings.pop_front();
    if (commits.size() > kMaxCommitsForRate) commits.pop_front();
  }
  if (versions.empty()) return DataLoss("job {} has no version in the store", job->id);
  absl::MutexLock lock(&mutex_);
  job->metrics = std::move(metrics);
  job->timings = std::move(timings);
  job->commits = std::move(commits);
  job->latest = std::move(latest);
  job->max_task = std::max(job->max_task, job->latest.last_task());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<RoundContributor>> Coordinator::RestorePartial(Job& job, JobRuntime& runtime, const ModelRef& current, std::vector<UpdateEntry>* entries) {
  const uint64_t version = current->version();
  std::vector<RoundContributor> restored;
  if (job.spec.durability != Durability::kDurable) return restored;
  absl::StatusOr<StateStore::StoredPartial> partial = store_->GetPartial(job.id);
  if (!partial.ok()) {
    if (partial.status().code() == absl::StatusCode::kNotFound) return restored;
    // Its contributors still hold their updates and will send them again.
    TRIB_LOG(error, "job {}: its journalled partial is not used: {}", job.id, MessageOf(partial.status()));
    return restored;
  }
  if (partial->row.version() != version) return restored;
  const size_t counters_bytes = runtime.layout.counter_count() * 8;
  const size_t update_bytes = runtime.UpdateBytes(current);
  const size_t expected = runtime.keeps_updates() ? update_bytes * static_cast<size_t>(partial->row.contributors_size()) : WorkerBytes(runtime);
  if (partial->sums.size() != expected || partial->row.contributors_size() != partial->row.digests_size()) {
    return DataLoss("job {}: journalled partial: expected {} bytes of sums and one digest per contributor, got {} bytes, {} digests for {} contributors",
                    job.id, expected, partial->sums.size(), partial->row.digests_size(), partial->row.contributors_size());
  }
  TRIB_RETURN_IF_ERROR(BeginRound(job, runtime, 1, static_cast<uint64_t>(partial->row.contributors_size())));
  std::vector<ObjectKey> whole;  // of each contributor, where updates are kept
  if (runtime.keeps_updates()) {
    for (int i = 0; i < partial->row.contributors_size(); ++i) {
      absl::StatusOr<WritableObject> object = runtime.pool->Reserve(update_bytes);
      if (!object.ok()) {
        for (const ObjectKey& key : whole) runtime.pool->Release(key);
        return object.status();
      }
      std::memcpy(object->payload().data(), partial->sums.data() + static_cast<size_t>(i) * update_bytes, update_bytes);
      whole.push_back(runtime.pool->Publish(*std::move(object)));
    }
  } else {
    std::vector<int64_t> counters(runtime.layout.counter_count());
    if (counters_bytes > 0) std::memcpy(counters.data(), partial->sums.data() + (expected - counters_bytes), counters_bytes);
    TRIB_RETURN_IF_ERROR(workers_->WriteSums(runtime.number, std::span<const std::byte>(partial->sums).first(expected - counters_bytes), counters));
  }
  for (int i = 0; i < partial->row.contributors_size(); ++i) {
    const v1::Contributor& row = partial->row.contributors(i);
    TRIB_ASSIGN_OR_RETURN(const UpdateId id, UpdateIdFromBytes(row.update_id()));
    const UpdateKeyRef key{row.client(), row.task(), id};
    const double claimed = row.claimed() > 0 ? row.claimed() : row.weight();
    restored.push_back({key, row.weight(), row.examples(), row.staleness(), claimed, Scalars(row.scalars().begin(), row.scalars().end())});
    TRIB_ASSIGN_OR_RETURN(restored.back().moe, MoeStatsFromProto(row.moe()));
    UpdateEntry entry;
    entry.key = key;
    entry.digest = partial->row.digests(i);
    entry.state = v1::UPDATE_STATE_JOURNALED;
    entry.base_version = version - std::min(version, row.staleness());
    entry.weight = row.weight();
    entry.examples = row.examples();
    entry.claimed = claimed;
    entry.scalars = restored.back().scalars;
    entry.moe = restored.back().moe;
    if (!whole.empty()) entry.whole = whole[static_cast<size_t>(i)];
    entry.folded = true;
    entries->push_back(std::move(entry));
  }
  TRIB_LOG(info, "job {}: took up a journalled partial of version {} with {} updates", job.id, version + 1, restored.size());
  return restored;
}

absl::Status Coordinator::OpenJob(const JobPtr& job, std::shared_ptr<JobRuntime> runtime, size_t pool_bytes) {
  TRIB_RETURN_IF_ERROR(LoadJob(job));
  uint64_t version = 0;
  std::string sha256;
  ModelRef current;
  {
    absl::MutexLock lock(&mutex_);
    runtime->number = next_number_++;
    version = job->latest.info().version();
    sha256 = job->latest.info().sha256();
    if (job->model != nullptr && job->model->version() == version) current = job->model;
  }
  if (current == nullptr) {
    TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<ModelBuffer> stored, ModelBuffer::Make(runtime->shelf));
    TRIB_RETURN_IF_ERROR(store_->ReadTensors(job->id, version, stored->writable(), /*verify=*/true));
    stored->Seal(version, sha256);
    current = stored;
  }
  runtime->state.vectors.clear();
  TRIB_RETURN_IF_ERROR(PrepareState(*runtime->strategy, runtime->layout, current->bytes(), &runtime->state));
  TRIB_ASSIGN_OR_RETURN(std::vector<NamedVector> stored, store_->ReadStrategyState(job->id, version));
  for (NamedVector& vector : stored) {
    const auto at = runtime->state.vectors.find(vector.name);
    if (at == runtime->state.vectors.end() || at->second.size() != vector.values.size()) {
      return DataLoss("job {}: version {}: strategy '{}' does not expect a vector '{}' of {} elements", job->id, version,
                      job->spec.strategy.name, vector.name, vector.values.size());
    }
    at->second = std::move(vector.values);
  }
  if (runtime->strategy->weights().keeps_clients()) {
    TRIB_ASSIGN_OR_RETURN(const std::vector<v1::ClientStateRow> rows, store_->ListClientState(job->id));
    for (const v1::ClientStateRow& row : rows) {
      const v1::ClientParticipation& p = row.participation();
      runtime->clients.Put(p.client(), {.interval_sum = p.interval_sum(), .interval_count = p.interval_count(), .since = p.since(), .claimed = p.claimed()});
    }
  }
  ObjectPool::Options pool_options;
  pool_options.pool_id = static_cast<uint16_t>(runtime->number);
  pool_options.slot_payload_bytes = runtime->encoding.total_bytes();
  pool_options.weight_runs = RunsOf(*runtime);
  pool_options.pool_bytes = pool_bytes;
  TRIB_ASSIGN_OR_RETURN(std::unique_ptr<ObjectPool> pool, ObjectPool::Create(pool_options));
  runtime->pool = std::move(pool);
  WorkerPool::JobOptions worker_options;
  worker_options.job = runtime->number;
  worker_options.strategy = job->spec.strategy.name;
  worker_options.layout = runtime->update_layout;
  worker_options.arithmetic = runtime->arithmetic;
  worker_options.codec = runtime->encoding.codec;
  worker_options.kept = runtime->encoding.kept;
  worker_options.hierarchy = runtime->planner->pool();
  TRIB_RETURN_IF_ERROR(workers_->OpenJob(worker_options, runtime->pool.get()));
  {
    absl::MutexLock lock(&mutex_);
    job->nodes = {};
    PlaceShares(*job, job->spec.cohort.size);
  }
  std::vector<UpdateEntry> entries;
  absl::Status status = BeginRound(*job, *runtime, 1, 0);
  RoundOptions round_options;
  if (status.ok()) {
    absl::StatusOr<std::vector<RoundContributor>> restored = RestorePartial(*job, *runtime, current, &entries);
    if (restored.ok()) {
      round_options.restored = *std::move(restored);
    } else {
      // Contributors that were told JOURNALED learn UNKNOWN when they attach, and send again.
      TRIB_LOG(error, "job {}: {}", job->id, MessageOf(restored.status()));
      entries.clear();
      status = BeginRound(*job, *runtime, 1, 0);
    }
  }
  if (!status.ok()) {
    workers_->CloseJob(runtime->number);
    return status;
  }
  round_options.version = version;
  round_options.epoch = store_->epoch();
  round_options.clients = std::move(runtime->clients);
  {
    absl::MutexLock lock(&mutex_);
    round_options.since_start = absl::Nanoseconds(job->latest.since_start_ns());
  }

  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_->Now();
  JobSpec round_spec = job->row.relayed() ? RelayedSpec(*job) : job->spec;
  round_spec.cohort.draw_key = job->row.draw_key();
  // Not one version more than the privacy budget pays for.
  if (runtime->privacy != nullptr) round_spec.stop.versions = std::min(round_spec.stop.versions, runtime->privacy->versions());
  runtime->round = std::make_unique<Round>(round_spec, *runtime->strategy, std::move(round_options), now);
  by_number_[runtime->number] = job;
  job->runtime = std::move(runtime);
  job->model = std::move(current);
  job->round_number = 1;
  job->hurry_at = job->runtime->round->deadline();
  job->in_flight = 0;
  job->folded_since_journal = 0;
  job->folded = 0;
  job->next_journal = now + options_.journal_every;
  job->first_task = absl::InfinitePast();
  for (UpdateEntry& entry : entries) {
    job->max_task = std::max(job->max_task, entry.key.task);
    job->updates.insert_or_assign(entry.key.update, std::move(entry));
  }
  if (const int64_t expected = ExpectedFromNodes(*job); expected > 0) Post(job, NodesExpected{expected});
  Post(job, Tick{});
  for (auto& [id, client] : clients_) {
    if (client.attached() && client.welcomed) OfferIdle(client);
  }
  MarkChanged(*job, /*persist=*/false);
  loop_wake_.Signal();
  return absl::OkStatus();
}

void Coordinator::Finalize(Job& job, v1::JobState state, const std::string& reason) {
  if (job.Final()) return;
  TRIB_LOG(info, "job {} is {}: {}", job.id, StateText(state), reason);
  Record(job, "finished", "", 0, reason);
  job.row.set_state(state);
  job.row.set_state_reason(reason);
  job.row.set_finished_us(WallMicros());
  job.finishing = false;
  job.wake = absl::InfiniteFuture();
  job.idle.clear();
  EndShares(job);
  job.nodes = {};
  std::vector<UpdateKeyRef> expired;
  for (auto& [id, entry] : job.updates) {
    const bool open = entry.state == v1::UPDATE_STATE_PARTIAL || entry.state == v1::UPDATE_STATE_ACCEPTED || entry.state == v1::UPDATE_STATE_JOURNALED;
    if (open && !entry.committing) expired.push_back(entry.key);
  }
  for (const UpdateKeyRef& key : expired) {
    Settle(job, job.updates.at(key.update), v1::UPDATE_STATE_EXPIRED, fmt::format("the job is over: {}", reason));
    SendStatus(job, key, v1::UPDATE_STATE_EXPIRED, 0, fmt::format("the job is over: {}", reason));
  }
  std::map<std::string, IssuedTask> tasks;
  tasks.swap(job.tasks);
  for (const auto& [client, task] : tasks) {
    const auto record = clients_.find(client);
    if (record == clients_.end() || !record->second.attached()) continue;
    v1::ServerMessage message;
    message.mutable_cancel()->set_job(job.id);
    message.mutable_cancel()->set_task(task.task);
    message.mutable_cancel()->set_reason(fmt::format("the job is over: {}", reason));
    SendTo(record->second, std::move(message));
  }
  job.arriving.clear();
  if (job.runtime != nullptr) {
    for (const auto& [update, key] : job.held) job.runtime->pool->Release(key);
    by_number_.erase(job.runtime->number);
  }
  job.held.clear();
  for (auto& [id, entry] : job.updates) {
    if (!entry.committing) ReleaseWhole(job, entry);
  }
  job.quiescing = false;
  job.model.reset();
  job.vectors.reset();
  JobPtr self;
  for (const JobPtr& other : jobs_) {
    if (other.get() == &job) self = other;
  }
  if (job.runtime != nullptr && self != nullptr) closing_.emplace_back(self, std::move(job.runtime));
  job.runtime.reset();
  for (auto& [id, client] : clients_) {
    std::erase_if(client.to_evaluate, [&](const EvaluationAsked& asked) { return asked.job == job.id; });
    if (client.evaluating.has_value() && client.evaluating->job == job.id) {
      client.evaluating.reset();
      NextEvaluation(client);
    }
    if (tasks.contains(id)) OfferIdle(client);
  }
  MarkChanged(job, /*persist=*/true);
  loop_wake_.Signal();
}

void Coordinator::MarkChanged(Job& job, bool persist) {
  notify_.insert(job.watchers);
  if (persist) {
    ++job.changes;
    for (const JobPtr& other : jobs_) {
      if (other.get() == &job) dirty_.insert(other);
    }
  }
  loop_wake_.Signal();
}

void Coordinator::Record(const Job& job, const std::string& kind, const std::string& client, uint64_t task, const std::string& text) {
  if (stored_events_.size() >= kMaxStoredEvents) {
    ++events_dropped_;
    return;
  }
  StoredEvent event;
  event.job = job.id;
  event.row.set_format_version(1);
  event.row.set_at_us(WallMicros());
  event.row.set_kind(kind);
  event.row.set_client(client);
  event.row.set_task(task);
  event.row.set_text(text);
  stored_events_.push_back(std::move(event));
  loop_wake_.Signal();
}

JobPtr Coordinator::FindJob(const std::string& id) const {
  for (const JobPtr& job : jobs_) {
    if (job->id == id) return job;
  }
  return nullptr;
}

absl::StatusOr<JobPtr> Coordinator::ResolveJob(const std::string& text) const {
  if (JobPtr exact = FindJob(text)) return exact;
  std::vector<JobPtr> matches;
  for (const JobPtr& job : jobs_) {
    if (!text.empty() && job->id.starts_with(text)) matches.push_back(job);
  }
  if (matches.empty()) return NotFound("there is no job '{}'", text);
  if (matches.size() > 1) {
    return InvalidArgument("'{}' names {} jobs, among them {} and {}; write more of the id", text, matches.size(), matches[0]->id, matches[1]->id);
  }
  return matches[0];
}

std::string Coordinator::WaitingFor(const Job& job) const {
  if (job.Final()) return "";
  if (job.runtime == nullptr && job.row.relayed() && !job.relayed.known) return "waiting for the node above to say what is wanted";
  if (job.runtime == nullptr) return job.queued_for.empty() ? "waiting for the job to open" : "waiting for memory: " + job.queued_for;
  if (job.finishing) {
    const std::vector<std::string> owing = OwingEvaluators(job);
    if (owing.empty()) return "";
    return fmt::format("waiting for the evaluation of version {} by {}{}; at most {:.0f} s", job.latest.info().version(), owing.front(),
                       owing.size() > 1 ? fmt::format(" and {} more", owing.size() - 1) : "",
                       std::max(0.0, absl::ToDoubleSeconds(job.finish_by - clock_->Now())));
  }
  if (job.row.relayed() && (job.committing || job.relayed.goal == 0)) {
    const std::string trouble = job.relayed.trouble.empty() ? "" : "; " + job.relayed.trouble;
    if (!job.committing) return "waiting for the node above: nothing is wanted of this one for the open version" + trouble;
    return fmt::format("waiting for the node above: {} updates {}{}", job.relayed.commit ? job.relayed.commit->contributors.size() : 0,
                       job.relayed.taken ? fmt::format("wait there for version {}", job.latest.info().version() + 1) : "are on their way", trouble);
  }
  if (job.committing) return job.commit_trouble.empty() ? "" : fmt::format("waiting for the state store: {}", job.commit_trouble);
  const std::string waiting = job.runtime->round->WaitingFor(clock_->Now());
  return job.upload_trouble.empty() || waiting.empty() ? waiting : fmt::format("{}; updates are refused: {}", waiting, job.upload_trouble);
}

v1::Job Coordinator::Describe(const Job& job) const {
  v1::Job out = ToProto(job);
  out.set_waiting_for(WaitingFor(job));
  return out;
}

}  // namespace tributary::aggregator
