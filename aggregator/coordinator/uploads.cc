// Admission and settlement of updates: reliability.md §2.
#include <cmath>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "aggregator/core/adapters.h"
#include "aggregator/core/aggregate.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

// Refused updates that are remembered by name, per job. Older ones are answered from what their task tells.
constexpr size_t kMaxSettled = 4096;
constexpr absl::Duration kShortestRetry = absl::Milliseconds(50);
constexpr absl::Duration kLongestRetry = absl::Seconds(2);
constexpr absl::Duration kRetryDiskFull = absl::Seconds(5);

// Of one update: not the same, as far as both are known (an upload may begin without).
bool OtherDigest(const std::string& known, const std::string& now) { return !known.empty() && !now.empty() && known != now; }

}  // namespace

bool Coordinator::OfOpenVersion(const Job& job, uint64_t task) const { return task > job.latest.last_task(); }

absl::Status Coordinator::CheckHeader(const UpdateHeader& header, const Job& job) const {
  const JobRuntime& runtime = *job.runtime;
  if (header.layout != runtime.fingerprint) {
    return InvalidArgument("update {}: layout: expected {}, got {}", ToHex(header.key.update), runtime.fingerprint, header.layout);
  }
  if (header.codec != job.spec.codec) {
    return InvalidArgument("update {}: codec: expected '{}', got '{}'", ToHex(header.key.update), job.spec.codec, header.codec);
  }
  if (runtime.live != nullptr && job.model != nullptr && header.version != job.model->version()) {
    return InvalidArgument("update {}: version: expected {}, whose triplets it is to be of, got {}", ToHex(header.key.update), job.model->version(), header.version);
  }
  if (const size_t bytes = runtime.UpdateBytes(job.model); header.bytes != bytes) {
    return InvalidArgument("update {}: size: expected {} bytes, got {}", ToHex(header.key.update), bytes, header.bytes);
  }
  if (!std::isfinite(header.weight) || header.weight <= 0 || header.weight > job.spec.max_weight) {
    return InvalidArgument("update {}: weight must be in (0, {}], got {}", ToHex(header.key.update), job.spec.max_weight, header.weight);
  }
  const std::string update = fmt::format("update {}", ToHex(header.key.update));
  TRIB_RETURN_IF_ERROR(Annotate(CheckScalars(*runtime.strategy, runtime.scalars, header.scalars), update));
  TRIB_RETURN_IF_ERROR(Annotate(CheckClientState(*runtime.strategy, header.scalars, ExpectedState(job, header.key.client)), update));
  if (runtime.moe != nullptr) {
    TRIB_RETURN_IF_ERROR(Annotate(runtime.moe->CheckStats(header.moe), update));
  } else if (!header.moe.empty()) {
    return InvalidArgument("{}: moe: expected no statistics, the job's model has no experts; got those of {} layers", update, header.moe.size());
  }
  return Annotate(runtime.round->WeightNow(header.key.client, header.version, header.weight, header.scalars, clock_->Now()).status(), update);
}

absl::StatusOr<UpdateAdmission> Coordinator::AdmitUpload(const UpdateHeader& header, absl::Duration* retry) {
  *retry = absl::ZeroDuration();
  UpdateAdmission admission;
  const auto from_entry = [&](const UpdateEntry& entry) -> absl::StatusOr<bool> {
    if (entry.key != header.key || OtherDigest(entry.digest, header.xxh3_128)) {
      return AlreadyExists("update {} of job {} is known with other {}", ToHex(header.key.update), header.job,
                           entry.key != header.key ? "client or task" : "bytes");
    }
    if (entry.state == v1::UPDATE_STATE_PARTIAL) return false;
    admission.state = entry.state;
    admission.reason = entry.reason;
    return true;
  };
  JobPtr job;
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return Unavailable("this server is shutting down");
    job = FindJob(header.job);
    if (job == nullptr) return NotFound("there is no job '{}'", header.job);
    const auto known = job->updates.find(header.key.update);
    if (known != job->updates.end()) {
      const absl::StatusOr<bool> settled = from_entry(known->second);
      if (settled.status().code() == absl::StatusCode::kAlreadyExists) CountRefused(*job, "other_bytes", header.key, MessageOf(settled.status()));
      if (!settled.ok()) return settled.status();
      if (*settled) return admission;
    }
  }
  // After memory, because an update leaves memory only when the store has it.
  const absl::StatusOr<v1::UpdateRow> row = store_->GetUpdate(header.job, header.key.update);
  if (row.ok()) {
    if (OtherDigest(row->xxh3_128(), header.xxh3_128)) {
      absl::MutexLock lock(&mutex_);
      const absl::Status other = AlreadyExists("update {} of job {} is in version {} with other bytes", ToHex(header.key.update), header.job, row->version());
      CountRefused(*job, "other_bytes", header.key, MessageOf(other));
      return other;
    }
    admission.state = v1::UPDATE_STATE_COMMITTED;
    admission.version = row->version();
    return admission;
  }
  if (row.status().code() != absl::StatusCode::kNotFound) return row.status();
  const absl::Status writable = store_->Writable();
  {
    absl::MutexLock lock(&mutex_);
    job->upload_trouble = MessageOf(writable);
  }
  if (!writable.ok()) {
    *retry = kRetryDiskFull;
    return writable;
  }

  std::shared_ptr<JobRuntime> runtime;
  {
    absl::MutexLock lock(&mutex_);
    if (job->Final() || job->finishing) {
      admission.state = v1::UPDATE_STATE_EXPIRED;
      admission.reason = job->finishing ? "the job is over" : fmt::format("the job is {}", StateText(job->row.state()));
      CountRefused(*job, "expired", header.key, admission.reason);
      return admission;
    }
    if (!job->Open()) {
      *retry = kLongestRetry;
      return Unavailable("job {} is queued: {}", job->id, job->queued_for);
    }
    absl::Status status = job->runtime->round->CheckUpload(header.key, header.version);
    std::string code = "expired";
    if (status.ok()) {
      status = CheckHeader(header, *job);
      code = "header";
      if (status.ok()) {
        status = Annotate(CheckPhase(*job->runtime->strategy, header.scalars, header.version), fmt::format("update {}", ToHex(header.key.update)));
        if (!status.ok()) code = "wrong_phase";
      }
    } else if (status.code() != absl::StatusCode::kFailedPrecondition) {
      code = "task";
    }
    const auto task = job->tasks.find(header.key.client);
    const bool own_task = task != job->tasks.end() && task->second.task == header.key.task;
    if (!status.ok()) {
      CountRefused(*job, code, header.key, MessageOf(status));
      if (own_task && (code == "header" || code == "wrong_phase")) {
        task->second.give_up = clock_->Now() + options_.refused_grace;
        task->second.give_up_reason = MessageOf(status);
      }
      return status;
    }
    if (own_task) {
      task->second.give_up = absl::InfiniteFuture();
      task->second.idle_beats = 0;
    }
    runtime = job->runtime;
  }

  // Without the mutex: a new segment may have to be made. `runtime` keeps the pool alive.
  absl::StatusOr<WritableObject> object = runtime->pool->Reserve(header.bytes);
  absl::MutexLock lock(&mutex_);
  if (!object.ok()) {
    const size_t slots = std::max<size_t>(1, runtime->pool->capacity_slots());
    *retry = std::clamp(job->fold_time / static_cast<int64_t>(slots), kShortestRetry, kLongestRetry);
    return Annotate(object.status(), fmt::format("job {}: the pool of {} updates is full", job->id, slots));
  }
  if (!job->Open()) return FailedPrecondition("job {} has ended", job->id);
  auto [at, fresh] = job->updates.try_emplace(header.key.update);
  if (!fresh) {  // somebody else began the same upload meanwhile
    const absl::StatusOr<bool> settled = from_entry(at->second);
    if (!settled.ok()) return settled.status();
    if (*settled) return admission;
  }
  UpdateEntry& entry = at->second;
  entry.key = header.key;
  if (entry.digest.empty()) entry.digest = header.xxh3_128;
  entry.base_version = header.version;
  entry.examples = header.examples;
  entry.claimed = header.weight;
  entry.scalars = header.scalars;
  entry.moe = header.moe;
  entry.admitted = clock_->Now();
  admission.state = v1::UPDATE_STATE_PARTIAL;
  admission.grant.object = *std::move(object);
  admission.grant.owner = runtime;
  admission.grant.encoding = runtime->encoding;
  // Of an encoded update nothing can be told before all of it is there.
  admission.grant.float_bytes = runtime->encoding.codec == Codec::kPlain ? std::min<size_t>(header.bytes, runtime->update_layout.float_bytes()) : 0;
  admission.grant.dtype = runtime->update_layout.float_dtype();
  if (job->spec.reproducible && !runtime->keeps_updates()) {
    TRIB_ASSIGN_OR_RETURN(const double weight,
                          runtime->round->WeightNow(header.key.client, header.version, header.weight, header.scalars, clock_->Now()));
    const double largest = runtime->moe == nullptr ? 1 : LargestFactor(runtime->moe->RunsOf(header.moe));
    admission.grant.max_abs = FixedPointLimit(std::max(job->spec.ClientsAsked(), runtime->round->updates_expected())) / (weight * largest);
  }
  return admission;
}

absl::Status Coordinator::AcceptUpdate(const UpdateHeader& header, WritableObject object, const ScanResult& scan) {
  Scalars scalars = header.scalars;
  std::shared_ptr<JobRuntime> runtime;
  bool record = false;
  {
    absl::MutexLock lock(&mutex_);
    if (const JobPtr job = FindJob(header.job); job != nullptr) {
      runtime = job->runtime;
      record = job->spec.record;
    }
  }
  // Before it counts anywhere: what is folded can be folded again. If the disk is full, the client sends it again later.
  if (record && scan.finite) TRIB_RETURN_IF_ERROR(store_->PutRecord(header.job, header.key.update, object.payload()));
  double sum_squares = scan.sum_squares;
  if (runtime != nullptr && runtime->privacy != nullptr) sum_squares = TrainableSquares(runtime->encoding, object.payload(), scan);
  if (runtime != nullptr) AddMeasured(*runtime->strategy, runtime->layout, object.payload(), &scalars);  // a pass over the update: without the mutex
  absl::MutexLock lock(&mutex_);
  if (draining_) return Unavailable("this server is shutting down");
  const JobPtr job = FindJob(header.job);
  if (job == nullptr) return NotFound("there is no job '{}'", header.job);
  auto known = job->updates.find(header.key.update);
  if (known == job->updates.end() || known->second.key != header.key || OtherDigest(known->second.digest, header.xxh3_128)) {
    return FailedPrecondition("update {} of job {} was not admitted", ToHex(header.key.update), header.job);
  }
  known->second.digest = header.xxh3_128;
  if (known->second.state == v1::UPDATE_STATE_ACCEPTED || known->second.state == v1::UPDATE_STATE_JOURNALED) return absl::OkStatus();
  if (known->second.state != v1::UPDATE_STATE_PARTIAL) return FailedPrecondition("update {}: {}", ToHex(header.key.update), known->second.reason);
  if (!job->Open()) return FailedPrecondition("job {} has ended", job->id);
  if (!scan.finite) return InvalidArgument("update {}: not every value is finite", ToHex(header.key.update));

  known->second.state = v1::UPDATE_STATE_ACCEPTED;
  if (job->runtime->privacy != nullptr) known->second.clip_factor = job->runtime->privacy->ClipFactor(sum_squares, ClipOf(*job));
  job->arriving.insert_or_assign(header.key.update, std::move(object));
  job->row.set_bytes_up(job->row.bytes_up() + header.bytes);
  ForgetTask(*job, header.key.client, header.key.task);
  known->second.scalars = scalars;
  Post(job, UpdateArrived{header.key, header.version, header.weight, header.examples, std::move(scalars), known->second.moe});
  known = job->updates.find(header.key.update);
  if (known == job->updates.end()) return Aborted("update {}: its aggregate was lost, send it again", ToHex(header.key.update));
  if (known->second.state == v1::UPDATE_STATE_REJECTED) return InvalidArgument("update {}: {}", ToHex(header.key.update), known->second.reason);
  if (known->second.state == v1::UPDATE_STATE_EXPIRED) return FailedPrecondition("update {}: {}", ToHex(header.key.update), known->second.reason);
  const auto client = clients_.find(header.key.client);
  if (client != clients_.end()) OfferIdle(client->second);
  return absl::OkStatus();
}

void Coordinator::RejectUpdate(const UpdateHeader& header, const std::string& reason_code, const std::string& message) {
  absl::MutexLock lock(&mutex_);
  const JobPtr job = FindJob(header.job);
  if (job == nullptr) return;
  auto [at, fresh] = job->updates.try_emplace(header.key.update);
  if (!fresh && (at->second.key != header.key || at->second.state != v1::UPDATE_STATE_PARTIAL)) return;
  at->second.key = header.key;
  at->second.digest = header.xxh3_128;
  CountRefused(*job, reason_code, header.key, message);
  Settle(*job, at->second, v1::UPDATE_STATE_REJECTED, message);
  const auto task = job->tasks.find(header.key.client);
  if (task != job->tasks.end() && task->second.task == header.key.task) {
    task->second.give_up = clock_->Now() + options_.refused_grace;
    task->second.give_up_reason = message;
  }
}

void Coordinator::CountRefused(Job& job, const std::string& code, const UpdateKeyRef& key, const std::string& text) {
  ++(*job.row.mutable_updates_rejected())[code];
  Record(job, "refused_" + code, key.client, key.task, text);
  MarkChanged(job, /*persist=*/job.Final());
}

void Coordinator::Settle(Job& job, UpdateEntry& entry, v1::UpdateState state, const std::string& reason) {
  entry.state = state;
  entry.reason = reason;
  job.settled.push_back(entry.key.update);
  while (job.settled.size() > kMaxSettled) {
    const auto oldest = job.updates.find(job.settled.front());
    job.settled.pop_front();
    if (oldest == job.updates.end()) continue;
    const v1::UpdateState was = oldest->second.state;
    if (was == v1::UPDATE_STATE_REJECTED || was == v1::UPDATE_STATE_EXPIRED) job.updates.erase(oldest);
  }
}

v1::UpdateStatus Coordinator::FromMemory(const Job& job, const UpdateKeyRef& key) const {
  v1::UpdateStatus status;
  status.set_state(v1::UPDATE_STATE_UNKNOWN);
  const auto known = job.updates.find(key.update);
  if (known == job.updates.end() || known->second.state == v1::UPDATE_STATE_PARTIAL) return status;
  if (known->second.key != key) {
    status.set_state(v1::UPDATE_STATE_REJECTED);
    status.set_reason("the update id is another update's");
    return status;
  }
  status.set_state(known->second.state);
  status.set_reason(known->second.reason);
  return status;
}

v1::UpdateStatus Coordinator::Query(const std::string& client, const v1::UpdateKey& key) {
  v1::UpdateStatus status;
  const auto finish = [&](v1::UpdateState state, const std::string& reason) {
    status.set_state(state);
    status.set_reason(reason);
    *status.mutable_key() = key;
    return status;
  };
  const absl::StatusOr<UpdateId> id = UpdateIdFromBytes(key.update_id());
  if (!id.ok()) return finish(v1::UPDATE_STATE_REJECTED, MessageOf(id.status()));
  const UpdateKeyRef ref{client, key.task(), *id};
  {
    absl::MutexLock lock(&mutex_);
    const JobPtr job = FindJob(key.job());
    if (job == nullptr) return finish(v1::UPDATE_STATE_EXPIRED, fmt::format("there is no job '{}'", key.job()));
    status = FromMemory(*job, ref);
    if (status.state() != v1::UPDATE_STATE_UNKNOWN) {
      *status.mutable_key() = key;
      return status;
    }
  }
  const absl::StatusOr<v1::UpdateRow> row = store_->GetUpdate(key.job(), *id);
  if (row.ok()) {
    status.set_version(row->version());
    return finish(v1::UPDATE_STATE_COMMITTED, "");
  }
  if (row.status().code() != absl::StatusCode::kNotFound) {
    TRIB_LOG(error, "job {}: update {}: {}", key.job(), ToHex(*id), MessageOf(row.status()));
    return finish(v1::UPDATE_STATE_UNKNOWN, "");
  }
  absl::MutexLock lock(&mutex_);
  const JobPtr job = FindJob(key.job());
  if (job == nullptr) return finish(v1::UPDATE_STATE_EXPIRED, fmt::format("there is no job '{}'", key.job()));
  if (job->Final() || job->finishing) return finish(v1::UPDATE_STATE_EXPIRED, fmt::format("the job is {}", job->finishing ? "over" : StateText(job->row.state())));
  if (job->Open() && !OfOpenVersion(*job, key.task())) {
    // A task of an earlier version: worth something only if the engine would still take an update that old.
    for (uint64_t back = 1; back <= 64 && back <= job->latest.info().version(); ++back) {
      if (job->runtime->round->CheckUpload(ref, job->latest.info().version() - back).ok()) return finish(v1::UPDATE_STATE_UNKNOWN, "");
    }
    return finish(v1::UPDATE_STATE_EXPIRED, fmt::format("version {} was committed without it", job->latest.info().version()));
  }
  return finish(v1::UPDATE_STATE_UNKNOWN, "");
}

}  // namespace tributary::aggregator
