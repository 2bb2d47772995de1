// Life of the coordinator and its loop thread; reads that clients make.
#include "aggregator/coordinator/coordinator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/crash_points.h"
#include "common/eggroll_spec.h"
#include "common/log.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kClientScan = absl::Seconds(1);
constexpr absl::Duration kStoreRetry = absl::Seconds(1);

}  // namespace

Coordinator::Coordinator(CoordinatorOptions options, const Clock* clock, std::unique_ptr<StateStore> store)
    : options_(std::move(options)), clock_(clock), store_(std::move(store)), started_us_(WallMicros()), book_(store_.get(), options_.max_clients),
      housekeeping_(store_.get(), options_.retention) {}

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(CoordinatorOptions options, const Clock* clock) {
  TRIB_ASSIGN_OR_RETURN(std::unique_ptr<StateStore> store, StateStore::Open(options.store));
  std::unique_ptr<Coordinator> self(new Coordinator(std::move(options), clock, std::move(store)));
  Coordinator* const raw = self.get();
  const auto post = [raw](WorkerEvent event) {
    absl::MutexLock lock(&raw->mutex_);
    raw->worker_events_.push_back(std::move(event));
    raw->loop_wake_.Signal();
  };
  WorkerPool::Callbacks callbacks;
  callbacks.folded = [post](uint32_t job, const UpdateId& update) { post({WorkerEvent::kFolded, job, update, ""}); };
  callbacks.refused = [post](uint32_t job, const UpdateId& update, const std::string& reason) { post({WorkerEvent::kRefused, job, update, reason}); };
  callbacks.lost = [post](uint32_t job, const std::string& reason) { post({WorkerEvent::kLost, job, {}, reason}); };
  TRIB_ASSIGN_OR_RETURN(self->workers_, WorkerPool::Start(self->options_.workers, std::move(callbacks)));
  TRIB_RETURN_IF_ERROR(self->Restore());
  self->loop_ = std::jthread([raw](const std::stop_token& stop) { raw->Loop(stop); });
  self->committer_ = std::jthread([raw](const std::stop_token& stop) { raw->CommitLoop(stop); });
  self->OpenQueuedJobs();
  return self;
}

Coordinator::~Coordinator() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    draining_ = true;
    loop_.request_stop();
    committer_.request_stop();
    loop_wake_.SignalAll();
    commit_wake_.SignalAll();
    relayer_.request_stop();
    relay_wake_.SignalAll();
    changed_.SignalAll();
  }
  if (loop_.joinable()) loop_.join();
  if (committer_.joinable()) committer_.join();
  if (relayer_.joinable()) relayer_.join();
  workers_.reset();  // before the pools of the jobs
}

absl::Status Coordinator::Restore() {
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::ClientRow> clients, store_->ListClients());
  book_.Load(clients);
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::JobRow> rows, store_->ListJobs());
  std::vector<JobPtr> jobs;
  for (const v1::JobRow& row : rows) {
    auto job = std::make_shared<Job>();
    job->id = row.id();
    job->row = row;
    job->relayed.catch_up = row.relayed();
    absl::StatusOr<JobSpec> spec = ParseJobSpec(row.spec_yaml(), row.id());
    if (!spec.ok()) return DataLoss("job {} in the state store: its description is not readable: {}", row.id(), MessageOf(spec.status()));
    job->spec = *std::move(spec);
    if (!row.artifact_sha256().empty()) {
      TRIB_ASSIGN_OR_RETURN(const std::string artifact, store_->GetArtifact(row.id()));
      job->artifact_bytes = artifact.size();
    }
    if (absl::Status loaded = LoadJob(job); !loaded.ok()) {
      TRIB_LOG(error, "job {} cannot be read: {}", row.id(), MessageOf(loaded));
    }
    jobs.push_back(std::move(job));
  }
  absl::MutexLock lock(&mutex_);
  jobs_ = std::move(jobs);
  to_tidy_.insert(jobs_.begin(), jobs_.end());
  for (const v1::ClientRow& row : clients) {
    ClientRecord& client = clients_[row.id()];
    client.id = row.id();
    client.first_seen_us = row.first_seen_us();
    client.last_seen_us = row.last_seen_us();
    client.updates_committed = row.updates_committed();
    client.hello.set_device(row.device());
    client.detached = absl::InfiniteFuture();
  }
  return absl::OkStatus();
}

void Coordinator::SetAddress(const std::string& address, const std::string& metrics) {
  absl::MutexLock lock(&mutex_);
  address_ = address;
  metrics_address_ = metrics;
}

void Coordinator::Drain(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return;
  draining_ = true;
  for (auto& [id, client] : clients_) {
    v1::ServerMessage message;
    message.mutable_draining()->set_reason("the aggregator is shutting down");
    SendTo(client, std::move(message));
  }
  for (const JobPtr& job : jobs_) {
    job->next_journal = absl::InfinitePast();  // keep what is folded, where the job is durable
    job->hurry_at = absl::InfinitePast();      // and fold what is here
    HurryIfDue(*job, clock_->Now());
  }
  loop_wake_.Signal();
  const absl::Time give_up = absl::Now() + timeout;
  const auto busy = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!outbound_.empty() || !dirty_.empty()) return true;
    return std::any_of(jobs_.begin(), jobs_.end(), [](const JobPtr& job) {
      const bool to_journal = job->Open() && job->spec.durability == Durability::kDurable && job->folded_since_journal > 0 &&
                              job->next_journal == absl::InfinitePast();
      // A partial that waits for the node above is not waited for: its clients, or the journal, have the updates.
      const bool committing = job->committing && !job->row.relayed();
      return job->Open() && (committing || job->journalling || job->in_flight > 0 || to_journal);
    });
  };
  while (busy() && absl::Now() < give_up) {
    loop_wake_.Signal();
    changed_.WaitWithTimeout(&mutex_, std::min(give_up - absl::Now(), absl::Milliseconds(20)));
  }
  stopping_ = true;
  commit_wake_.SignalAll();
  relay_wake_.SignalAll();
}

void Coordinator::SetJobEnded(std::function<void(const std::string& job)> ended) {
  absl::MutexLock lock(&ended_mutex_);
  ended_ = std::move(ended);
}

// ---- the loop thread ----

bool Coordinator::LoopHasWork() const {
  const bool may_store = clock_->Now() >= store_again_;
  return !outbound_.empty() || !worker_events_.empty() || !stored_events_.empty() || !metrics_out_.empty() || !notify_.empty() ||
         !dirty_clients_.empty() || open_jobs_ ||
         std::any_of(closing_.begin(), closing_.end(), [](const auto& item) { return !item.first->committing && !item.first->journalling; }) ||
         std::any_of(dirty_.begin(), dirty_.end(), [&](const JobPtr& job) { return may_store && !job->committing; });
}

absl::Time Coordinator::NextWake() const {
  absl::Time next = std::min(next_client_scan_, next_report_);
  for (const JobPtr& job : jobs_) {
    if (!job->Open()) continue;
    next = std::min({next, job->wake, job->hurry_at, ReplanAt(*job)});
    if (job->finishing) next = std::min(next, job->finish_by);
    if (job->folded_since_journal > 0 && !job->journalling && !job->quiescing && job->spec.durability == Durability::kDurable &&
        static_cast<int64_t>(job->runtime->round->updates_in()) < job->runtime->round->updates_expected()) {
      next = std::min(next, job->next_journal);
    }
    for (const auto& [client, task] : job->tasks) next = std::min(next, task.give_up);
  }
  return next;
}

void Coordinator::Loop(const std::stop_token& stop) {
  while (true) {
    std::deque<Outbound> outbound;
    std::deque<StoredEvent> events;
    std::deque<std::pair<std::string, v1::Metric>> metrics;
    std::set<std::shared_ptr<WatchList>> notify;
    std::vector<JobPtr> rows;
    std::vector<v1::ClientRow> client_rows;
    bool close = false;
    bool open = false;
    {
      absl::MutexLock lock(&mutex_);
      const absl::Time now = clock_->Now();
      if (!stop.stop_requested()) RunTimers(now);
      while (!worker_events_.empty()) {
        const WorkerEvent event = std::move(worker_events_.front());
        worker_events_.pop_front();
        HandleWorkerEvent(event);
      }
      outbound.swap(outbound_);
      events.swap(stored_events_);
      metrics.swap(metrics_out_);
      notify.swap(notify_);
      for (auto it = dirty_.begin(); it != dirty_.end();) {
        if ((*it)->committing || now < store_again_) {
          ++it;
          continue;
        }
        rows.push_back(*it);
        it = dirty_.erase(it);
      }
      for (const std::string& id : dirty_clients_) {
        const ClientRecord& client = clients_.at(id);
        v1::ClientRow& row = client_rows.emplace_back();
        row.set_format_version(1);
        row.set_id(id);
        row.set_first_seen_us(client.first_seen_us);
        row.set_last_seen_us(client.last_seen_us);
        row.set_device(client.hello.device());
        row.set_updates_committed(client.updates_committed);
      }
      dirty_clients_.clear();
      close = !closing_.empty();
      open = std::exchange(open_jobs_, false);
      if (events_dropped_ > 0) {
        TRIB_LOG(warn, "{} event rows were dropped: the state store is slower than they come", events_dropped_);
        events_dropped_ = 0;
      }
    }
    for (Outbound& item : outbound) {
      if (!item.close.ok()) {
        item.sink->Close(item.close);
        continue;
      }
      const bool committed = item.message.has_update() && item.message.update().state() == v1::UPDATE_STATE_COMMITTED;
      if (committed) TRIB_CRASH_POINT(publish_before_committed_message);
      item.sink->Send(std::move(item.message));
      if (committed) TRIB_CRASH_POINT(publish_after_committed_message);
    }
    outbound.clear();
    StoreRows(std::move(rows));
    for (const auto& list : notify) list->Notify();
    for (const auto& [job, metric] : metrics) TRIB_LOG_IF_ERROR(store_->PutMetric(job, metric));
    for (const StoredEvent& event : events) TRIB_LOG_IF_ERROR(store_->AppendEvent(event.job, event.row));
    StoreClients(client_rows);
    if (close) CloseRuntimes();
    if (open) OpenQueuedJobs();

    absl::MutexLock lock(&mutex_);
    changed_.SignalAll();
    if (LoopHasWork()) continue;
    if (stop.stop_requested()) return;
    const absl::Duration until = std::clamp(NextWake() - clock_->Now(), absl::ZeroDuration(), options_.poll);
    if (until > absl::ZeroDuration()) loop_wake_.WaitWithTimeout(&mutex_, until);
  }
}

void Coordinator::StoreRows(std::vector<JobPtr> jobs) {
  for (const JobPtr& job : jobs) {
    v1::JobRow row;
    uint64_t changes = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (job->committing) {  // the commit writes the row too; this one follows it
        dirty_.insert(job);
        continue;
      }
      row = job->row;
      changes = job->changes;
    }
    const absl::Status stored = store_->PutJob(row);
    absl::MutexLock lock(&mutex_);
    if (stored.ok()) {
      job->persisted = std::max(job->persisted, changes);
      if (job->committing) dirty_.insert(job);
    } else {
      TRIB_LOG(error, "job {}: its row cannot be stored, trying again: {}", job->id, MessageOf(stored));
      dirty_.insert(job);
      store_again_ = clock_->Now() + kStoreRetry;
    }
  }
}

void Coordinator::StoreClients(const std::vector<v1::ClientRow>& rows) {
  for (v1::ClientRow row : rows) {
    row.set_secret_sha256(book_.SecretHash(row.id()));
    TRIB_LOG_IF_ERROR(store_->PutClient(row, /*synced=*/false));
  }
}

void Coordinator::CloseRuntimes() {
  std::vector<std::pair<JobPtr, std::shared_ptr<JobRuntime>>> ready;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& item : closing_) {
      if (!item.first->committing && !item.first->journalling) ready.push_back(item);
    }
  }
  for (const auto& item : ready) {
    workers_->CloseJob(item.second->number);
    absl::MutexLock lock(&ended_mutex_);
    if (ended_) ended_(item.first->id);
  }
  absl::MutexLock lock(&mutex_);
  for (const auto& item : ready) {
    std::erase(closing_, item);
    item.first->budget_bytes = 0;
    // Ingress may still hold a slot; the grant's owner keeps the pool until then.
    retired_.push_back(item.second);
    open_jobs_ = true;
  }
  ready.clear();
  std::erase_if(retired_, [](const std::shared_ptr<JobRuntime>& runtime) { return runtime->pool->used_slots() == 0; });
  changed_.SignalAll();
}

void Coordinator::RunTimers(absl::Time now) {
  for (const JobPtr& job : std::vector<JobPtr>(jobs_)) {
    if (!job->Open()) continue;
    HurryIfDue(*job, now);
    if (job->row.relayed()) MaybeSendShort(job, now);
    if (!job->Open()) continue;
    if (now >= ReplanAt(*job)) ReplanRound(*job, now);
    if (job->wake <= now) {
      job->wake = absl::InfiniteFuture();
      Post(job, Tick{});
    }
    std::vector<std::pair<std::string, IssuedTask>> over;
    for (const auto& [client, task] : job->tasks) {
      if (task.give_up <= now) over.emplace_back(client, task);
    }
    for (const auto& [client, task] : over) GiveUpTask(job, client, task.task, "its update was refused: " + task.give_up_reason);
    if (job->finishing && job->finish_by <= now) MaybeEndEvaluation(*job);
    MaybeJournal(job, now);
  }
  if (now >= next_client_scan_) RunClientTimers(now);
  RunNodeTimers(now);
  if (now >= next_report_) ReportClients();
}

void Coordinator::RunClientTimers(absl::Time now) {
  next_client_scan_ = now + std::min(kClientScan, options_.heartbeat / 2);
  const absl::Duration patience = kMissedHeartbeats * options_.heartbeat;
  for (auto& [id, client] : clients_) {
    if (client.attached() && now - client.last_seen > patience) {
      TRIB_LOG(info, "client {} has been silent for {:.0f} s: gone", id, absl::ToDoubleSeconds(now - client.last_seen));
      outbound_.push_back({client.sink, {}, DeadlineExceeded("client '{}': no message for {} heartbeats", id, kMissedHeartbeats)});
      sessions_.erase(client.session);
      client.session = 0;
      client.sink.reset();
      client.held.clear();
      client.evaluating.reset();
      client.to_evaluate.clear();
      client.detached = now - patience;
      for (const JobPtr& job : jobs_) MaybeEndEvaluation(*job);
    }
    if (!client.attached() && client.detached != absl::InfiniteFuture() && now - client.detached >= patience) {
      client.detached = absl::InfiniteFuture();
      Withdraw(client, /*with_tasks=*/true);
    }
  }
  std::erase_if(retired_, [](const std::shared_ptr<JobRuntime>& runtime) { return runtime->pool->used_slots() == 0; });
}

void Coordinator::HandleWorkerEvent(const WorkerEvent& event) {
  const auto found = by_number_.find(event.job);
  const JobPtr job = found == by_number_.end() ? nullptr : found->second.lock();
  if (job == nullptr || !job->Open()) return;
  if (event.kind == WorkerEvent::kLost) {
    if (job->committing) return;  // the commit finds out by itself if the sums were not read yet
    if (job->journalling) {
      job->lost_pending = event.reason;
      return;
    }
    return LoseAggregate(job, event.reason);
  }
  const auto entry = job->updates.find(event.update);
  if (entry == job->updates.end() || entry->second.folded) return;  // of an aggregate that is lost
  if (job->in_flight > 0) --job->in_flight;
  if (event.kind == WorkerEvent::kFolded) {
    entry->second.folded = true;
    ++job->folded_since_journal;
    ++job->folded;
    job->fold_time = job->fold_time * 0.8 + (clock_->Now() - entry->second.admitted) * 0.2;
    Post(job, UpdateFolded{event.update});
  } else {
    Post(job, UpdateRefusedByWorker{event.update, event.reason});
  }
  MaybeJournal(job, clock_->Now());
}

// ---- reads by clients ----

absl::StatusOr<SharedBytes> Coordinator::Model(const std::string&, const std::string& id, uint64_t version) {
  JobPtr job;
  {
    absl::MutexLock lock(&mutex_);
    job = FindJob(id);
    if (job == nullptr) return NotFound("there is no job '{}'", id);
    if (job->model != nullptr && job->model->version() == version) {
      return job->model->Share(job->model);
    }
    if (version > job->latest.info().version()) {
      return NotFound("job {}: there is no version {} yet, the latest is {}", id, version, job->latest.info().version());
    }
    const ModelRef loaded = job->loaded.lock();
    if (loaded != nullptr && loaded->version() == version) return loaded->Share(loaded);
  }
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, store_->GetVersion(id, version));
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<ModelBuffer> model, ModelBuffer::Make(std::make_shared<ModelBuffer::Shelf>(row.info().bytes())));
  TRIB_RETURN_IF_ERROR(store_->ReadTensors(id, version, model->writable(), /*verify=*/true));
  model->Seal(version, row.info().sha256());
  absl::MutexLock lock(&mutex_);
  job->loaded = model;
  return model->Share(model);
}

absl::StatusOr<SharedBytes> Coordinator::Vectors(const std::string&, const std::string& id, uint64_t version) {
  JobPtr job;
  std::shared_ptr<JobRuntime> runtime;
  {
    absl::MutexLock lock(&mutex_);
    job = FindJob(id);
    if (job == nullptr) return NotFound("there is no job '{}'", id);
    if (job->vectors != nullptr && job->vectors->version() == version) return job->vectors->Share(job->vectors);
    runtime = job->runtime;
  }
  if (runtime == nullptr) return FailedPrecondition("job {} is not open", id);
  const std::vector<std::string> names = runtime->strategy->version_vectors();
  if (names.empty()) return NotFound("job {}: strategy '{}' sends no vectors down", id, job->spec.strategy.name);
  TRIB_ASSIGN_OR_RETURN(const std::vector<NamedVector> stored, store_->ReadStrategyState(id, version));
  const DType dtype = runtime->layout.float_dtype();
  const size_t each = runtime->layout.trainable_count() * DTypeBytes(dtype);
  const bool in_model = !runtime->strategy->in_place_of_model().empty();
  const size_t bytes = in_model ? runtime->layout.total_bytes() : each * names.size();
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<ModelBuffer> made, ModelBuffer::Make(std::make_shared<ModelBuffer::Shelf>(bytes)));
  if (in_model) {  // the model's buffers and counters after the vector
    TRIB_ASSIGN_OR_RETURN(const SharedBytes model, Model("", id, version));
    std::memcpy(made->writable().data() + each, model.bytes.data() + each, bytes - each);
  }
  for (size_t k = 0; k < names.size(); ++k) {
    const auto vector = std::find_if(stored.begin(), stored.end(), [&](const NamedVector& one) { return one.name == names[k]; });
    if (vector == stored.end() || vector->values.size() != runtime->layout.trainable_count()) {
      return DataLoss("job {} version {}: expected a vector '{}' of {} elements", id, version, names[k], runtime->layout.trainable_count());
    }
    if (!StoreFloats(dtype, vector->values, made->writable().subspan(k * each, each))) {
      return DataLoss("job {} version {}: vector '{}' is not finite as {}", id, version, names[k], DTypeName(dtype));
    }
  }
  made->Seal(version, Sha256Hex(made->bytes()));
  absl::MutexLock lock(&mutex_);
  if (job->vectors == nullptr || job->vectors->version() < version) job->vectors = made;
  return made->Share(made);
}

absl::StatusOr<SharedBytes> Coordinator::Fitness(const std::string&, const std::string& id, uint64_t after, uint64_t version) {
  uint64_t latest = 0;
  std::string latest_log;  // and not its row, which has all contributors: every client asks for every version
  size_t each = 0, model_bytes = 0;
  {
    absl::MutexLock lock(&mutex_);
    const JobPtr job = FindJob(id);
    if (job == nullptr) return NotFound("there is no job '{}'", id);
    if (job->runtime == nullptr) return FailedPrecondition("job {} is not open", id);
    each = job->runtime->strategy->fitness_bytes();
    if (each == 0) return NotFound("job {}: versions of strategy '{}' do not follow from fitness", id, job->spec.strategy.name);
    model_bytes = job->runtime->layout.total_bytes();
    latest = job->latest.info().version();
    latest_log = job->latest.fitness();
  }
  if (after >= version || version > latest) {
    return NotFound("job {}: expected fitness after an earlier version up to {}, got after {} up to {}", id, latest, after, version);
  }
  if (!EggrollLogsAreShorter(version - after, each, model_bytes)) return NotFound("job {}: the logs of {} versions of {} bytes are not less than the model's {}", id, version - after, each, model_bytes);
  const auto logs = std::make_shared<std::vector<std::byte>>();
  for (uint64_t v = after + 1; v <= version; ++v) {
    v1::VersionRow row;
    if (v != latest) {
      TRIB_ASSIGN_OR_RETURN(row, store_->GetVersion(id, v));
    }
    const std::string& log = v == latest ? latest_log : row.fitness();
    if (log.size() != each) return NotFound("job {}: version {} has no fitness log", id, v);
    const auto bytes = std::as_bytes(std::span(log));
    logs->insert(logs->end(), bytes.begin(), bytes.end());
  }
  TRIB_ASSIGN_OR_RETURN(const SharedBytes made, Model("", id, version));
  const auto digest = std::as_bytes(std::span(made.xxh3_128));
  logs->insert(logs->end(), digest.begin(), digest.end());
  return SharedBytes{*logs, Sha256Hex(*logs), Xxh3Digest(*logs), /*memfd=*/-1, logs};
}

absl::StatusOr<SharedBytes> Coordinator::ClientRow(const std::string& client, const std::string& id) {
  JobPtr job;
  {
    absl::MutexLock lock(&mutex_);
    job = FindJob(id);
    if (job == nullptr) return NotFound("there is no job '{}'", id);
    if (job->runtime == nullptr || job->runtime->strategy->mirrored_state().empty()) {
      return NotFound("job {}: strategy '{}' keeps no copy of its clients' states", id, job->spec.strategy.name);
    }
  }
  TRIB_ASSIGN_OR_RETURN(std::vector<std::byte> row, RowsOf(job)(client));
  if (row.empty()) return NotFound("job {}: no update of client '{}' has been counted", id, client);
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(row));
  return SharedBytes{*owner, Sha256Hex(*owner), Xxh3Digest(*owner), /*memfd=*/-1, owner};
}

absl::StatusOr<SharedBytes> Coordinator::Artifact(const std::string&, const std::string& id) {
  std::string sha256;
  {
    absl::MutexLock lock(&mutex_);
    const JobPtr job = FindJob(id);
    if (job == nullptr) return NotFound("there is no job '{}'", id);
    sha256 = job->row.artifact_sha256();
    if (sha256.empty()) return NotFound("job {} has no artifact", id);
  }
  TRIB_ASSIGN_OR_RETURN(std::string bytes, store_->GetArtifact(id));
  const auto owner = std::make_shared<const std::string>(std::move(bytes));
  return SharedBytes{std::as_bytes(std::span(*owner)), sha256, /*xxh3_128=*/"", /*memfd=*/-1, owner};
}

void Coordinator::CountDownload(const std::string& id, uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  const JobPtr job = FindJob(id);
  if (job != nullptr) job->row.set_bytes_down(job->row.bytes_down() + bytes);
}

}  // namespace tributary::aggregator
