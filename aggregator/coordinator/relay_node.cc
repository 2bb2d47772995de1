// The coordinator below another one: what the node above wants, partials up, versions down. One thread does what blocks on the network.
#include <algorithm>
#include <limits>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "common/crash_points.h"
#include "common/digest.h"
#include "common/log.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kRelayRetry = absl::Milliseconds(300);
constexpr absl::Duration kRelayLook = absl::Seconds(1);

// The manifest of `version` as the top has it; nothing of it is believed before it was looked at.
absl::Status CheckVersion(const v1::RelayVersion& got, const std::string& job, uint64_t version, size_t bytes) {
  const v1::VersionInfo& info = got.info();
  if (info.job() != job || info.version() != version) {
    return InvalidArgument("job {}: expected the manifest of version {}, got that of job '{}' version {}", job, version, info.job(), info.version());
  }
  if (info.bytes() != bytes) return InvalidArgument("job {} version {}: expected {} bytes, its manifest says {}", job, version, bytes, info.bytes());
  if (info.sha256().size() != 64) return InvalidArgument("job {} version {}: expected a SHA-256 of 64 digits, got {}", job, version, info.sha256().size());
  if (got.dedupe_expired_us() == 0 && got.update_digests_size() != info.contributors_size()) {
    return InvalidArgument("job {} version {}: {} digests for {} contributors", job, version, got.update_digests_size(), info.contributors_size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ModelBuffer>> FetchVersion(Upstream* upstream, const v1::VersionInfo& info, std::shared_ptr<ModelBuffer::Shelf> shelf) {
  TRIB_ASSIGN_OR_RETURN(std::shared_ptr<ModelBuffer> model, ModelBuffer::Make(std::move(shelf)));
  TRIB_RETURN_IF_ERROR(upstream->FetchModel(info.job(), info.version(), model->writable()));
  std::string sha256 = Sha256Hex(model->bytes());
  if (sha256 != info.sha256()) return DataLoss("job {} version {}: expected SHA-256 {}, the model that came has {}", info.job(), info.version(), info.sha256(), sha256);
  model->Seal(info.version(), std::move(sha256));
  return model;
}

// The batch that makes a version of the top one of this store. `last_task` is this node's own: tasks are.
absl::StatusOr<VersionCommit> BatchOf(const v1::RelayVersion& got, const v1::JobRow& job, uint64_t last_task, std::span<const std::byte> tensors,
                                      std::set<UpdateId>* counted) {
  VersionCommit batch;
  batch.job = job;
  batch.tensors = tensors;
  batch.version.set_format_version(1);
  *batch.version.mutable_info() = got.info();
  batch.version.mutable_info()->clear_metrics();
  batch.version.set_last_task(last_task);
  batch.version.set_dedupe_expired_us(got.dedupe_expired_us());
  for (int i = 0; i < got.info().contributors_size(); ++i) {
    TRIB_ASSIGN_OR_RETURN(const UpdateId id, UpdateIdFromBytes(got.info().contributors(i).update_id()));
    counted->insert(id);
    if (got.dedupe_expired_us() != 0) continue;  // long past: nobody can send them any more
    v1::UpdateRow row;
    row.set_format_version(1);
    row.set_version(got.info().version());
    row.set_xxh3_128(got.update_digests(i));
    batch.updates.emplace_back(id, std::move(row));
  }
  v1::EventRow event;
  event.set_format_version(1);
  event.set_at_us(WallMicros());
  event.set_kind("adopted");
  event.set_text(fmt::format("version {} of the node above, from {} updates", got.info().version(), got.info().contributors_size()));
  batch.events.push_back(std::move(event));
  return batch;
}

}  // namespace

void Coordinator::SetUpstream(Upstream* upstream) {
  absl::MutexLock lock(&mutex_);
  upstream_ = upstream;
  relayer_ = std::jthread([this](const std::stop_token& stop) { RelayLoop(stop); });
}

int64_t Coordinator::TrainingClients() const {
  return std::count_if(clients_.begin(), clients_.end(), [](const auto& item) { return item.second.attached() && item.second.hello.trains(); });
}

v1::NodeHello Coordinator::HelloToTop() {
  absl::MutexLock lock(&mutex_);
  v1::NodeHello hello;
  hello.set_software(options_.software);
  hello.set_epoch(store_->epoch());
  hello.set_capacity(options_.node_capacity);
  hello.set_clients(static_cast<uint32_t>(TrainingClients()));
  for (const JobPtr& job : jobs_) {
    if (job->row.relayed() && !job->Final()) hello.add_jobs(job->id);
  }
  return hello;
}

void Coordinator::ReportClients() {
  next_report_ = clock_->Now() + report_every_;
  if (upstream_ == nullptr || fence_ == 0) return;
  v1::NodeReport report;
  report.set_clients(static_cast<uint32_t>(TrainingClients()));
  upstream_->Report(report);
}

void Coordinator::OnTop(const v1::TopMessage& message) {
  absl::MutexLock lock(&mutex_);
  switch (message.message_case()) {
    case v1::TopMessage::kWelcome:
      fence_ = message.welcome().fence();
      report_every_ = absl::Milliseconds(message.welcome().heartbeat_interval_ms());
      next_report_ = absl::InfinitePast();
      join_not_before_ = absl::InfinitePast();
      for (const JobPtr& job : jobs_) job->relayed.not_before = absl::InfinitePast();
      break;
    case v1::TopMessage::kJob:
      if (FindJob(message.job().job()) == nullptr) announced_[message.job().job()] = message.job();
      break;
    case v1::TopMessage::kRound: OnRelayRound(message.round()); break;
    case v1::TopMessage::kEnded: {
      announced_.erase(message.ended().job());
      announced_rounds_.erase(message.ended().job());
      const JobPtr job = FindJob(message.ended().job());
      if (job == nullptr || !job->row.relayed() || job->Final()) break;
      job->relayed.ended = message.ended();
      MaybeEndRelayed(job);
      break;
    }
    default: break;
  }
  relay_wake_.Signal();
  loop_wake_.Signal();
}

void Coordinator::OnRelayRound(const v1::RelayRound& round) {
  const JobPtr job = FindJob(round.job());
  if (job == nullptr) {
    if (announced_.contains(round.job())) announced_rounds_[round.job()] = round;
    return;
  }
  if (!job->row.relayed() || job->Final()) return;
  RelayedJob& relayed = job->relayed;
  const bool other_run = relayed.fence != round.fence();
  relayed.known = true;
  relayed.goal = round.goal();
  relayed.top_version = round.version();
  relayed.fence = round.fence();
  if (relayed.commit && round.version() + 1 == relayed.commit->version && (round.again() || other_run || !relayed.taken)) {
    relayed.taken = false;
    relayed.push = true;
    relayed.gather = round.again() && round.goal() > relayed.commit->contributors.size();
    relayed.not_before = absl::InfinitePast();
  }
  if (!BehindTop(*job)) relayed.catch_up = false;
  SetGoal(job, /*hurry=*/true);
  open_jobs_ = true;  // it may have waited for this
}

bool Coordinator::BehindTop(const Job& job) { return job.relayed.known && job.latest.info().version() < job.relayed.top_version; }

bool Coordinator::MayOpenRelayed(const Job& job) {
  return job.relayed.known && !(BehindTop(job) && (job.relayed.catch_up || job.relayed.goal > 0));
}

JobSpec Coordinator::RelayedSpec(const Job& job) {
  JobSpec spec = job.spec;
  // For a version that is not here yet nobody can train.
  spec.cohort.size = BehindTop(job) ? 0 : static_cast<int64_t>(job.relayed.goal);
  if (spec.cohort.deadline != absl::InfiniteDuration()) {
    // What came goes up in time for the deadline there.
    spec.cohort.deadline -= std::min(spec.cohort.deadline / 10, absl::Seconds(1));
    spec.cohort.quorum = std::min<int64_t>(1, spec.cohort.size);
  } else {
    spec.cohort.quorum = 0;
  }
  spec.stop.versions = std::numeric_limits<int64_t>::max();  // the top ends the job
  spec.stop.accuracy = 0;
  spec.evaluate.every = std::numeric_limits<int64_t>::max();
  return spec;
}

void Coordinator::SetGoal(const JobPtr& job, bool hurry) {
  if (!job->Open()) return;
  Post(job, CohortChanged{RelayedSpec(*job).cohort});
  if (!job->Open()) return;
  job->hurry_at = job->runtime->round->deadline();
  if (hurry) workers_->Hurry(job->runtime->number);  // nobody waits for updates of the former goal
  MarkChanged(*job, /*persist=*/false);
}

// Nobody is left here who could be asked for what is lacking: what came goes up, and the node above asks others for the rest.
void Coordinator::MaybeSendShort(const JobPtr& job, absl::Time now) {
  RelayedJob& relayed = job->relayed;
  const size_t in = job->runtime->round->updates_in();
  bool lacking = !relayed.commit && !BehindTop(*job) && in > 0 && in < relayed.goal && job->tasks.empty();
  if (lacking) {
    std::set<std::string> contributed;
    for (const auto& [id, entry] : job->updates) {
      if (entry.state == v1::UPDATE_STATE_ACCEPTED || entry.state == v1::UPDATE_STATE_JOURNALED) contributed.insert(entry.key.client);
    }
    lacking = std::none_of(clients_.begin(), clients_.end(), [&](const auto& item) {
      return item.second.attached() && item.second.hello.trains() && !contributed.contains(item.first);
    });
  }
  relayed.short_since = lacking ? std::min(relayed.short_since, now) : absl::InfiniteFuture();
  if (now - relayed.short_since < kMissedHeartbeats * options_.heartbeat) return;
  relayed.short_since = absl::InfiniteFuture();
  Record(*job, "partial_short", "", 0, fmt::format("{} of {} updates for version {}: no client is left to ask", in, relayed.goal,
                                                   job->runtime->round->version() + 1));
  relayed.goal = in;
  SetGoal(job, /*hurry=*/true);
}

void Coordinator::MaybeEndRelayed(const JobPtr& job) {
  RelayedJob& relayed = job->relayed;
  if (!relayed.ended || relayed.busy || job->Final() || job->opening) return;
  const bool concerned = relayed.commit || relayed.catch_up || (job->Open() && job->runtime->round->updates_in() > 0);
  if (BehindTop(*job) && concerned) return;  // its last version first
  const v1::RelayJobEnded ended = *relayed.ended;
  relayed.commit.reset();
  job->committing = false;
  for (auto& [id, entry] : job->updates) entry.committing = false;
  Finalize(*job, ended.state(), ended.reason());
}

Coordinator::RelayTask Coordinator::NextRelayTask(const Job& job, absl::Time now, absl::Time* wake) const {
  const RelayedJob& relayed = job.relayed;
  if (!job.row.relayed() || job.Final() || !relayed.known || job.opening || job.journalling) return RelayTask::kNone;
  RelayTask task = RelayTask::kNone;
  if (BehindTop(job)) {
    const bool has_updates = job.Open() && job.runtime->round->updates_in() > 0;
    if (relayed.goal > 0 || relayed.catch_up || relayed.commit || has_updates) task = RelayTask::kAdopt;
  } else if (relayed.commit && relayed.push && job.Open()) {
    task = RelayTask::kPush;
  }
  if (task != RelayTask::kNone && now < relayed.not_before) {
    *wake = std::min(*wake, relayed.not_before);
    return RelayTask::kNone;
  }
  return task;
}

void Coordinator::RelayLoop(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    JobPtr job;
    std::string join;
    RelayTask task = RelayTask::kNone;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      const absl::Time now = clock_->Now();
      absl::Time wake = now + kRelayLook;
      if (fence_ != 0 && !draining_) {
        for (const JobPtr& candidate : jobs_) {
          task = NextRelayTask(*candidate, now, &wake);
          if (task == RelayTask::kNone) continue;
          job = candidate;
          job->relayed.busy = true;
          break;
        }
        if (task == RelayTask::kNone && now >= join_not_before_) {
          for (const auto& [id, round] : announced_rounds_) {
            if (round.goal() == 0) continue;
            task = RelayTask::kJoin;
            join = id;
            break;
          }
        }
      }
      if (task == RelayTask::kNone) {
        relay_wake_.WaitWithTimeout(&mutex_, wake - now);
        continue;
      }
    }
    absl::Status status;
    switch (task) {
      case RelayTask::kJoin: status = JoinJob(join); break;
      case RelayTask::kAdopt: status = AdoptVersion(job); break;
      case RelayTask::kPush: status = PushPartial(job); break;
      case RelayTask::kNone: break;
    }
    absl::MutexLock lock(&mutex_);
    if (!status.ok()) TRIB_LOG(warn, "job {}: {}; trying again", job == nullptr ? join : job->id, MessageOf(status));
    if (job == nullptr) {
      if (!status.ok()) join_not_before_ = clock_->Now() + kRelayRetry;
      continue;
    }
    job->relayed.busy = false;
    job->relayed.trouble = status.ok() ? "" : MessageOf(status);
    if (!status.ok()) job->relayed.not_before = clock_->Now() + kRelayRetry;
    MaybeEndRelayed(job);
    MarkChanged(*job, /*persist=*/false);
    changed_.SignalAll();
  }
}

absl::Status Coordinator::JoinJob(const std::string& id) {
  v1::JobInfo info;
  uint64_t version = 0;
  Upstream* upstream = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    const auto announced = announced_.find(id);
    const auto round = announced_rounds_.find(id);
    if (announced == announced_.end() || round == announced_rounds_.end()) return absl::OkStatus();
    info = announced->second;
    version = round->second.version();
    upstream = upstream_;
  }
  TRIB_RETURN_IF_ERROR(store_->Writable());
  TRIB_ASSIGN_OR_RETURN(const JobSpec spec, ParseJobSpec(info.spec_yaml(), id));
  TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, LayoutFromProto(info.layout()));
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<JobRuntime> runtime, MakeRuntime(spec, layout, options_.find_strategy(spec.strategy.name), Limits(),
                                                                           options_.capacities));
  std::string artifact;
  if (!info.artifact_sha256().empty()) {
    TRIB_RETURN_IF_ERROR(upstream->FetchArtifact(id, &artifact));
    if (Sha256Hex(std::as_bytes(std::span(artifact.data(), artifact.size()))) != info.artifact_sha256()) {
      return DataLoss("job {}: the artifact that came is not the announced one", id);
    }
  }
  TRIB_ASSIGN_OR_RETURN(const v1::RelayVersion got, upstream->GetVersion(id, version));
  TRIB_RETURN_IF_ERROR(CheckVersion(got, id, version, layout.total_bytes()));
  TRIB_ASSIGN_OR_RETURN(std::shared_ptr<ModelBuffer> model, FetchVersion(upstream, got.info(), runtime->shelf));
  auto job = std::make_shared<Job>();
  job->id = id;
  job->spec = spec;
  job->row = MakeJobRow(id, spec, layout, info.artifact_sha256());
  job->row.set_relayed(true);
  job->artifact_bytes = artifact.size();
  if (!artifact.empty()) TRIB_RETURN_IF_ERROR(store_->PutArtifact(id, artifact));
  std::set<UpdateId> counted;
  TRIB_ASSIGN_OR_RETURN(VersionCommit batch, BatchOf(got, job->row, 0, model->bytes(), &counted));
  job->latest = batch.version;
  TRIB_RETURN_IF_ERROR(store_->CommitVersion(std::move(batch)));
  job->model = std::move(model);
  absl::MutexLock lock(&mutex_);
  TRIB_LOG(info, "job {} of the node above: joined at version {}", id, version);
  jobs_.push_back(job);
  const auto round = announced_rounds_.find(id);
  if (round != announced_rounds_.end()) {
    OnRelayRound(round->second);  // the newest
  } else {                        // it ended meanwhile, and this node had nothing to do with it
    job->relayed.ended.emplace();
    job->relayed.ended->set_state(v1::JOB_STATE_CANCELLED);
    job->relayed.ended->set_reason("it ended while this node joined it");
    MaybeEndRelayed(job);
  }
  announced_.erase(id);
  announced_rounds_.erase(id);
  loop_wake_.Signal();
  return absl::OkStatus();
}

void Coordinator::AwaitFolds(const JobPtr& job) {
  if (!job->Open()) return;
  job->quiescing = true;  // what comes waits in `held`
  workers_->Hurry(job->runtime->number);
  while (job->Open() && job->in_flight > 0 && !stopping_) changed_.WaitWithTimeout(&mutex_, kRelayRetry);
}

absl::Status Coordinator::AdoptVersion(const JobPtr& job) {
  uint64_t version = 0;
  std::shared_ptr<ModelBuffer::Shelf> shelf;
  Upstream* upstream = nullptr;
  size_t bytes = 0;
  {
    absl::MutexLock lock(&mutex_);
    version = job->latest.info().version() + 1;
    bytes = job->latest.info().bytes();
    shelf = job->runtime != nullptr ? job->runtime->shelf : std::make_shared<ModelBuffer::Shelf>(bytes);
    upstream = upstream_;
  }
  TRIB_ASSIGN_OR_RETURN(const v1::RelayVersion got, upstream->GetVersion(job->id, version));
  TRIB_RETURN_IF_ERROR(CheckVersion(got, job->id, version, bytes));
  // Where the top has forgotten the tensors this node goes without: a newer version has them, and is adopted before anything is done with it.
  std::shared_ptr<ModelBuffer> model;
  if (got.info().pruned_us() == 0) {
    TRIB_ASSIGN_OR_RETURN(model, FetchVersion(upstream, got.info(), std::move(shelf)));
  }
  const std::span<const std::byte> tensors = model == nullptr ? std::span<const std::byte>() : model->bytes();
  std::set<UpdateId> counted;
  std::vector<UpdateKeyRef> own;
  VersionCommit batch;
  {
    absl::MutexLock lock(&mutex_);
    v1::JobRow row = job->row;
    TRIB_ASSIGN_OR_RETURN(batch, BatchOf(got, row, job->max_task, tensors, &counted));
    for (const auto& [id, entry] : job->updates) {
      if (counted.contains(id)) own.push_back(entry.key);
    }
    batch.job.set_updates_committed(row.updates_committed() + own.size());
  }
  v1::VersionRow row = batch.version;
  TRIB_CRASH_POINT(relay_before_adopt);
  const absl::Status stored = store_->CommitVersion(std::move(batch));
  if (!stored.ok()) {
    // A failed write is an unknown outcome: the manifest tells.
    const absl::StatusOr<v1::VersionRow> found = store_->GetVersion(job->id, version);
    if (!found.ok() || found->info().sha256() != got.info().sha256()) return stored;
  }
  absl::MutexLock lock(&mutex_);
  AwaitFolds(job);
  TRIB_LOG(info, "job {} adopted version {} of the node above; {} of its {} updates came through here", job->id, version, own.size(), counted.size());
  job->latest = std::move(row);
  job->row.set_updates_committed(job->row.updates_committed() + own.size());
  job->commits.emplace_back(job->latest.info().committed_us(), own.size());
  while (job->commits.size() > 10) job->commits.pop_front();
  job->committing = false;
  job->relayed.commit.reset();
  job->relayed.push = false;
  job->relayed.gather = false;
  job->relayed.taken = false;
  if (!BehindTop(*job)) job->relayed.catch_up = false;
  open_jobs_ = true;
  to_tidy_.insert(job);
  commit_wake_.Signal();
  if (!job->Open()) return absl::OkStatus();
  if (model != nullptr) job->model = std::move(model);
  job->first_task = absl::InfinitePast();
  job->folded_since_journal = 0;
  job->quiescing = false;
  job->next_journal = clock_->Now() + options_.journal_every;
  for (auto& [id, entry] : job->updates) entry.committing = false;
  for (const UpdateKeyRef& key : own) {
    job->updates.erase(key.update);
    SendStatus(*job, key, v1::UPDATE_STATE_COMMITTED, version, "");
    const auto client = clients_.find(key.client);
    if (client == clients_.end()) continue;
    ++client->second.updates_committed;
    dirty_clients_.insert(client->first);
  }
  const absl::Status begun = BeginRound(*job, *job->runtime, ++job->round_number, 0);
  for (const auto& [update, key] : job->held) job->runtime->pool->Release(key);
  job->held.clear();
  Post(job, VersionAdopted{version, std::move(counted)});
  SetGoal(job, /*hurry=*/false);
  if (!begun.ok() && job->Open()) LoseAggregate(job, MessageOf(begun));
  MarkChanged(*job, /*persist=*/false);
  return absl::OkStatus();
}

absl::Status Coordinator::PushPartial(const JobPtr& job) {
  CheckedPartial partial;
  std::shared_ptr<JobRuntime> runtime;
  Upstream* upstream = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (!job->Open() || !job->relayed.commit) return absl::OkStatus();
    if (job->relayed.gather) {
      LosePartial(job, fmt::format("the node above wants {} updates in one partial, this one has {}", job->relayed.goal,
                                   job->relayed.commit->contributors.size()));
      return absl::OkStatus();
    }
    runtime = job->runtime;
    upstream = upstream_;
    const Commit& commit = *job->relayed.commit;
    partial.job = job->id;
    partial.version = commit.version - 1;
    partial.layout = runtime->fingerprint;
    partial.fence = job->relayed.fence;
    partial.node_epoch = store_->epoch();
    partial.type = runtime->arithmetic == Arithmetic::kFixedPoint ? v1::SUMS_TYPE_FIXED40 : v1::SUMS_TYPE_F64;
    for (const RoundContributor& c : commit.contributors) {
      const auto entry = job->updates.find(c.key.update);
      partial.contributors.push_back({c.key.client, c.key.task, c.key.update, c.weight, c.examples, c.staleness,
                                      entry == job->updates.end() ? std::string(16, '\0') : entry->second.digest, c.moe});
    }
  }
  const absl::StatusOr<WorkerPool::Sums> sums = workers_->ReadSums(runtime->number);
  if (!sums.ok()) {
    absl::MutexLock lock(&mutex_);
    LosePartial(job, MessageOf(sums.status()));
    return absl::OkStatus();
  }
  std::vector<StatePiece> pieces = sums->pieces;
  std::sort(pieces.begin(), pieces.end(), [](const StatePiece& a, const StatePiece& b) { return a.first < b.first; });
  const size_t per_element = runtime->reducer->state_bytes_per_element();
  std::vector<std::span<const std::byte>> bytes;
  for (const StatePiece& piece : pieces) bytes.emplace_back(piece.state, piece.count * per_element);
  std::vector<int64_t> no_counters(sums->counters.empty() ? runtime->layout.counter_count() : 0, std::numeric_limits<int64_t>::min());
  const std::span<const int64_t> counters = sums->counters.empty() ? std::span<const int64_t>(no_counters) : sums->counters;
  if (!counters.empty()) bytes.push_back(std::as_bytes(counters));
  Xxh3 digest;
  for (const auto& piece : bytes) {
    digest.Update(piece);
    partial.bytes += piece.size();
  }
  partial.xxh3_128 = digest.Digest();
  partial.sum_weight = SumOfWeights(partial.contributors);
  partial.contributors_digest = ContributorsDigest(partial.contributors);
  TRIB_CRASH_POINT(relay_before_push);
  TRIB_ASSIGN_OR_RETURN(const v1::PartialAnswer answer, upstream->Push(partial, bytes));
  TRIB_CRASH_POINT(relay_after_push);

  absl::MutexLock lock(&mutex_);
  if (!job->Open() || !job->relayed.commit) return absl::OkStatus();
  job->relayed.push = false;
  switch (answer.state()) {
    case v1::PARTIAL_STATE_TAKEN:
    case v1::PARTIAL_STATE_DUPLICATE:
      job->relayed.taken = true;
      return absl::OkStatus();
    case v1::PARTIAL_STATE_COMMITTED:
      job->relayed.taken = true;
      job->relayed.top_version = std::max(job->relayed.top_version, answer.version());
      return absl::OkStatus();
    case v1::PARTIAL_STATE_OVERLAP:
      DropOverlap(job, answer);
      return absl::OkStatus();
    case v1::PARTIAL_STATE_FENCED:
      job->relayed.push = true;
      return FailedPrecondition("the partial for version {} is fenced: {}", partial.version + 1, answer.reason());
    case v1::PARTIAL_STATE_RETRY:
      job->relayed.push = true;
      return Unavailable("the partial for version {} is to be sent later: {}", partial.version + 1, answer.reason());
    default:
      // The next version, which comes without them, expires its updates by name.
      Record(*job, "partial_refused", "", 0, answer.reason());
      TRIB_LOG(error, "job {}: the node above refuses the partial of {} updates for version {}: {}", job->id, partial.contributors.size(),
               partial.version + 1, answer.reason());
      job->relayed.trouble = answer.reason();
      return absl::OkStatus();
  }
}

void Coordinator::LosePartial(const JobPtr& job, const std::string& reason) {
  job->committing = false;
  job->relayed.commit.reset();
  job->relayed.gather = false;
  for (auto& [id, entry] : job->updates) entry.committing = false;
  LoseAggregate(job, reason);
}

void Coordinator::DropOverlap(const JobPtr& job, const v1::PartialAnswer& answer) {
  std::vector<UpdateKeyRef> dropped;
  for (const std::string& bytes : answer.overlap()) {
    const absl::StatusOr<UpdateId> id = UpdateIdFromBytes(bytes);
    const auto entry = id.ok() ? job->updates.find(*id) : job->updates.end();
    if (entry == job->updates.end()) continue;
    const std::string reason = "its client's update is counted through another node: " + answer.reason();
    Settle(*job, entry->second, v1::UPDATE_STATE_EXPIRED, reason);
    CountRefused(*job, "expired", entry->second.key, reason);
    SendStatus(*job, entry->second.key, v1::UPDATE_STATE_EXPIRED, 0, reason);
    dropped.push_back(entry->second.key);
  }
  TRIB_LOG(warn, "job {}: {} of the updates in its partial are counted elsewhere, the others are asked for again", job->id, dropped.size());
  // The sums cannot be freed of them.
  LosePartial(job, fmt::format("{} of the updates in the partial are counted elsewhere", dropped.size()));
  for (const UpdateKeyRef& key : dropped) Post(job, TaskDeclined{key.client, key.task, "its update is counted through another node"});
}

}  // namespace tributary::aggregator
