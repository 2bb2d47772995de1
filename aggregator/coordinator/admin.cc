// What people ask of the coordinator: submit, cancel, resume, and reads of the state store.
#include <algorithm>
#include <cmath>
#include <limits>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "aggregator/state/engine_rows.h"
#include "aggregator/transport/transport.h"
#include "common/digest.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kAwaitStored = absl::Seconds(20);

absl::Status CheckFinite(const TensorLayout& layout, std::span<const std::byte> flat) {
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (tensor.spec.dtype == DType::kI64) continue;
    if (!Scan(flat.subspan(tensor.offset_bytes, tensor.bytes), tensor.spec.dtype).finite) return InvalidArgument("tensor '{}': expected finite values, it has NaN or infinity", tensor.spec.name);
  }
  return absl::OkStatus();
}

std::string ShapeText(PoolShape shape) {
  switch (shape) {
    case PoolShape::kFlat: return "flat";
    case PoolShape::kShard: return "shard";
    case PoolShape::kTree: return "tree";
  }
  return "";
}

std::string TimingText(const TimingSpec& timing) {
  std::string text(TimingKindName(timing.kind));
  return timing.kind == TimingKind::kBatch ? fmt::format("{}:{}", text, timing.batch) : text;
}

void SetLane(const LaneStats& from, v1::LaneCounters* to) {
  to->set_doorbells(from.doorbells);
  to->set_credits(from.credits);
  to->set_stalls(from.stalls);
  to->set_late_wakeups(from.late_wakeups);
  to->set_pushed(from.pushed);
  to->set_released(from.released);
}

}  // namespace

absl::Status Coordinator::CheckRecordSize(const JobSpec& spec, const JobRuntime& runtime) const {
  // A version takes no more updates than its cohort has clients, or its buffer places.
  const int64_t most = std::max({spec.cohort.size, spec.cohort.poisson ? spec.cohort.population : 0, runtime.strategy->MakePolicies(spec.cohort).trigger->target()});
  const double bytes = static_cast<double>(spec.stop.versions) * static_cast<double>(most) * static_cast<double>(runtime.encoding.total_bytes());
  if (bytes <= static_cast<double>(options_.record_bytes)) return absl::OkStatus();
  return InvalidArgument("record: true: {} versions of up to {} updates of {} bytes may come to {:.0f} MiB, and this server keeps at most {} MiB of a job (record_mb); "
                         "expected fewer versions, a smaller codec, or record: false",
                         spec.stop.versions, most, runtime.encoding.total_bytes(), bytes / (1 << 20), options_.record_bytes >> 20);
}

absl::StatusOr<v1::SubmitJobResponse> Coordinator::SubmitJob(const v1::SubmitHeader& header, std::unique_ptr<ByteSource> tensors,
                                                               std::string artifact) {
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return Unavailable("this server is shutting down");
  }
  TRIB_RETURN_IF_ERROR(store_->Writable());
  TRIB_ASSIGN_OR_RETURN(JobSpec spec, ParseJobSpec(header.spec_yaml(), "job"));
  TRIB_RETURN_IF_ERROR(ResolveNoise(&spec));
  if (tensors->size() != header.tensors_bytes()) {
    return InvalidArgument("tensors: expected the {} bytes that the header says, got {}", header.tensors_bytes(), tensors->size());
  }
  if (artifact.size() != header.artifact_bytes()) {
    return InvalidArgument("artifact: expected the {} bytes that the header says, got {}", header.artifact_bytes(), artifact.size());
  }
  const std::string_view named = spec.model.artifact_key();
  if (!named.empty() && artifact.empty()) return InvalidArgument("model.{}: the file did not come with the job", named);
  if (named.empty() && !artifact.empty()) return InvalidArgument("artifact: the job names no TorchScript model and no base, got {} bytes", artifact.size());
  std::string artifact_sha256;
  if (!artifact.empty()) {
    artifact_sha256 = Sha256Hex(std::as_bytes(std::span(artifact)));
    if (artifact_sha256 != header.artifact_sha256()) {
      return InvalidArgument("artifact: expected SHA-256 {}, the bytes have {}", header.artifact_sha256(), artifact_sha256);
    }
  }
  // Where the submitter took the tensors from, so that the message can be acted on there.
  const std::string& file = !spec.model.tensors.empty() ? spec.model.tensors : spec.model.init;
  const std::string origin = file.empty() ? "initial tensors" : fmt::format("initial tensors ({})", file);
  std::shared_ptr<JobRuntime> runtime;
  std::shared_ptr<ModelBuffer> first;
  {
    TRIB_ASSIGN_OR_RETURN(const SafetensorsView view, ReadSafetensorsHeader(*tensors));
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, LayoutOf(view));
    if (layout.trainable_count() == 0) return InvalidArgument("{}: the model has no trainable element", origin);
    if (layout.float_dtype() != spec.dtype) {
      return InvalidArgument("dtype: the job says {}, its {} are {}", DTypeName(spec.dtype), origin, DTypeName(layout.float_dtype()));
    }
    absl::StatusOr<std::shared_ptr<JobRuntime>> made = MakeRuntime(spec, layout, options_.find_strategy(spec.strategy.name), Limits(), options_.capacities);
    // An unknown strategy is a wrong job, not a missing one.
    if (made.status().code() == absl::StatusCode::kNotFound) return InvalidArgument("strategy.name: {}", MessageOf(made.status()));
    if (!made.ok()) return made.status();
    runtime = *std::move(made);
    TRIB_ASSIGN_OR_RETURN(first, ModelBuffer::Make(runtime->shelf));
    TRIB_RETURN_IF_ERROR(ReadFlat(*tensors, view, layout, first->writable()));
    TRIB_RETURN_IF_ERROR(Annotate(CheckFinite(layout, first->bytes()), origin));
  }
  tensors.reset();
  const std::shared_future<std::string> sha256 = ModelBuffer::SealMeanwhile(first, 0);

  v1::SubmitJobResponse response;
  if (spec.cohort.quorum > 0 && spec.cohort.quorum < spec.cohort.size && spec.cohort.deadline == absl::InfiniteDuration()) {
    response.add_warnings("cohort.quorum has no effect without cohort.deadline_s");
  }
  if (runtime->moe != nullptr && !SendsMoeStats(spec)) {
    response.add_warnings("privacy: clients send no counts of their experts' tokens, which are data about them: metrics have no `moe`");
  }
  if (const uint64_t newest = options_.retention.newest; newest != 0 && runtime->strategy->server_step().needs_base() &&
      runtime->strategy->MakePolicies(spec.cohort).staleness->Factor(newest - 1)) {
    return InvalidArgument("strategy '{}' reads the version that an update started from, and this server keeps the newest {} only (keep_versions): "
                           "expected max_staleness of at most {}", spec.strategy.name, newest, newest - 2);
  }
  if (runtime->keeps_updates()) {
    const size_t all = SlabMemory(*runtime) + runtime->encoding.total_bytes() * static_cast<size_t>(spec.cohort.size);
    if (all > options_.pool_bytes) {
      return InvalidArgument("strategy '{}' keeps all {} updates of a version until its commit: they need {} MiB, the pool has {} MiB",
                             spec.strategy.name, spec.cohort.size, all >> 20, options_.pool_bytes >> 20);
    }
  }
  if (spec.record) TRIB_RETURN_IF_ERROR(CheckRecordSize(spec, *runtime));
  const size_t needed = SlabMemory(*runtime) + runtime->encoding.total_bytes();
  if (needed > options_.pool_bytes) {
    response.add_warnings(fmt::format("one update and its sums need {} MiB, more than the pool of {} MiB: updates are taken one at a time",
                                      needed >> 20, options_.pool_bytes >> 20));
  }

  auto job = std::make_shared<Job>();
  {
    absl::MutexLock lock(&mutex_);
    do {
      job->id = fmt::format("{}-{}", spec.name, RandomHex(3));
    } while (FindJob(job->id) != nullptr);
  }
  job->spec = spec;
  job->row = MakeJobRow(job->id, spec, runtime->layout, artifact_sha256);
  job->row.set_draw_key(static_cast<uint64_t>(spec.seed));
  if (spec.privacy.enabled && !spec.privacy.insecure_seed) {
    // Amplification by sampling holds against those who do not know who was drawn.
    TRIB_ASSIGN_OR_RETURN(const ChaChaKey key, SecretKey());
    job->row.set_draw_key(ReadAt<uint64_t>(key.data(), 0));
  }
  job->artifact_bytes = artifact.size();
  if (!artifact.empty()) TRIB_RETURN_IF_ERROR(store_->PutArtifact(job->id, artifact));
  VersionCommit batch;
  batch.job = job->row;
  batch.tensors = first->bytes();
  batch.sha256 = [sha256] { return sha256.get(); };
  batch.version.set_format_version(1);
  v1::VersionInfo& info = *batch.version.mutable_info();
  info.set_job(job->id);
  info.set_version(0);
  info.set_bytes(first->bytes().size());
  info.set_committed_us(WallMicros());
  info.set_trigger("submitted");
  info.set_epoch(store_->epoch());
  if (runtime->privacy != nullptr) *info.mutable_privacy() = PrivacyRow(*runtime->privacy, 0, spec.privacy.clip);
  TRIB_RETURN_IF_ERROR(PrepareState(*runtime->strategy, runtime->layout, first->bytes(), &runtime->state));
  for (const auto& [name, values] : runtime->state.vectors) {
    info.add_strategy_state(name);
    batch.strategy_state.push_back({name, values});
  }
  job->latest = batch.version;
  TRIB_RETURN_IF_ERROR(store_->CommitVersion(std::move(batch)));
  job->latest.mutable_info()->set_sha256(sha256.get());
  job->model = first;  // spares OpenJob reading it back
  {
    absl::MutexLock lock(&mutex_);
    jobs_.push_back(job);
  }
  TRIB_LOG(info, "job {} submitted: strategy {}, cohort of {}, {} versions", job->id, spec.strategy.name, spec.cohort.size, spec.stop.versions);
  OpenQueuedJobs();
  {
    absl::MutexLock lock(&mutex_);
    if (!job->Open() && !job->opening) job->model.reset();  // queued for memory
  }
  response.set_job(job->id);
  return response;
}

std::vector<v1::Job> Coordinator::ListJobs() {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::Job> out;
  for (const JobPtr& job : jobs_) out.push_back(Describe(*job));
  return out;
}

absl::StatusOr<v1::Job> Coordinator::GetJob(const std::string& job) {
  absl::MutexLock lock(&mutex_);
  TRIB_ASSIGN_OR_RETURN(const JobPtr found, ResolveJob(job));
  return Describe(*found);
}

absl::Status Coordinator::AwaitStored(const JobPtr& job) {
  const uint64_t wanted = job->changes;
  const absl::Time give_up = absl::Now() + kAwaitStored;
  while (job->persisted < wanted) {
    loop_wake_.Signal();
    if (stopping_ || changed_.WaitWithDeadline(&mutex_, give_up)) {
      return Unavailable("job {}: the change is made but not in the state store yet", job->id);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Job> Coordinator::CancelJob(const std::string& text, const std::string& reason) {
  absl::MutexLock lock(&mutex_);
  TRIB_ASSIGN_OR_RETURN(const JobPtr job, ResolveJob(text));
  if (job->row.relayed()) return FailedPrecondition("job {} belongs to the node above this one: cancel it there", job->id);
  if (job->row.state() == v1::JOB_STATE_CANCELLED) return Describe(*job);
  const std::string why = reason.empty() ? "cancelled by a person" : reason;
  const absl::Time give_up = absl::Now() + kAwaitStored;
  bool told = false;
  // A commit under way is finished first: its contributors may have been counted already.
  while (!job->Final()) {
    if (job->opening) {
      // Not long.
    } else if (job->finishing) {
      Finalize(*job, v1::JOB_STATE_DONE, job->row.state_reason());
      continue;
    } else if (job->runtime == nullptr) {
      Finalize(*job, v1::JOB_STATE_CANCELLED, why);
      continue;
    } else if (!told) {
      told = true;
      Post(job, CancelRequested{why});
      continue;
    }
    if (changed_.WaitWithDeadline(&mutex_, give_up)) return DeadlineExceeded("job {}: a commit is still under way; it is cancelled after it", job->id);
  }
  if (job->row.state() != v1::JOB_STATE_CANCELLED) {
    return FailedPrecondition("job {} is over already: {}", job->id, job->row.state_reason());
  }
  TRIB_RETURN_IF_ERROR(AwaitStored(job));
  return Describe(*job);
}

absl::StatusOr<v1::Job> Coordinator::ResumeJob(const std::string& text) {
  JobPtr job;
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return Unavailable("this server is shutting down");
    TRIB_ASSIGN_OR_RETURN(job, ResolveJob(text));
    if (job->row.relayed()) return FailedPrecondition("job {} belongs to the node above this one: resume it there", job->id);
    if (job->row.state() == v1::JOB_STATE_DONE) return FailedPrecondition("job {} is done; submit a new one with its model as model.init", job->id);
    if (!job->Final()) return Describe(*job);
    // The old runtime must be gone before a new one opens.
    const absl::Time give_up = absl::Now() + kAwaitStored;
    const auto closing = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return job->committing || job->journalling || std::any_of(closing_.begin(), closing_.end(), [&](const auto& item) { return item.first == job; });
    };
    while (closing()) {
      if (changed_.WaitWithDeadline(&mutex_, give_up)) return Unavailable("job {} is still being closed, try again", job->id);
    }
    job->row.set_state(v1::JOB_STATE_QUEUED);
    job->row.set_state_reason("");
    job->row.set_finished_us(0);
    // Refused by the end of the job, not by anything about them: they may come again.
    std::erase_if(job->updates, [](const auto& item) { return item.second.state == v1::UPDATE_STATE_EXPIRED; });
    MarkChanged(*job, /*persist=*/true);
    Record(*job, "resumed", "", 0, fmt::format("from version {}", job->latest.info().version()));
    TRIB_RETURN_IF_ERROR(AwaitStored(job));
  }
  OpenQueuedJobs();
  absl::MutexLock lock(&mutex_);
  return Describe(*job);
}

absl::StatusOr<std::shared_ptr<void>> Coordinator::Watch(const std::string& text, std::function<void()> changed) {
  std::shared_ptr<WatchList> list;
  {
    absl::MutexLock lock(&mutex_);
    TRIB_ASSIGN_OR_RETURN(const JobPtr job, ResolveJob(text));
    list = job->watchers;
  }
  const uint64_t id = list->Add(std::move(changed));
  return std::shared_ptr<void>(static_cast<void*>(list.get()), [list, id](void*) { list->Remove(id); });
}

std::vector<v1::Client> Coordinator::ListClients(bool connected_only) {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::Client> out;
  for (const auto& [id, client] : clients_) {
    if (connected_only && !client.attached()) continue;
    out.push_back(ToProto(client));
  }
  return out;
}

v1::NodeJob Coordinator::DescribeOnNode(const Job& job) const {
  const JobRuntime& runtime = *job.runtime;
  const RoundPlanner& planner = *runtime.planner;
  v1::NodeJob out;
  out.set_job(job.id);
  out.set_shape(ShapeText(planner.pool().shape));
  out.set_timing(TimingText(planner.pool().timing));
  const PlanSpec& plan = job.spec.hierarchy.plan;
  out.set_plan(plan.kind == PlanKind::kStatic ? fmt::format("static:{}", plan.leaves) : "ewma");
  if (planner.pool().shape == PoolShape::kTree) {
    out.set_leaves(static_cast<uint32_t>(planner.leaves()));
    out.set_max_leaves(planner.pool().leaves);
  }
  if (const auto load = workers_->LoadOf(runtime.number); load.ok() && load->has_value()) out.set_load((*load)->load);
  if (const std::optional<double> planned = planner.load()) out.set_planned_load(*planned);
  out.set_slots_used(runtime.pool->used_slots());
  out.set_slots(runtime.pool->capacity_slots());
  out.set_slot_bytes(runtime.pool->slot_bytes());
  out.set_sums_bytes(SlabMemory(runtime));
  out.set_folded(job.folded);
  if (const auto stats = workers_->StatsOf(runtime.number); stats.ok()) {
    out.set_promotions(stats->promotions);
    out.set_partials(stats->partials);
    out.set_process_starts(stats->starts);
  }
  out.set_node_partials(job.partials_taken);
  out.set_replans(planner.replans());
  if (const std::optional<double> capacity = planner.capacity()) {
    out.set_capacity(*capacity);
    out.set_residual(*planner.residual());
    out.set_overloads(static_cast<uint64_t>(planner.overloads()));
  }
  out.set_commits(job.commits_made);
  out.set_commit_seconds(absl::ToDoubleSeconds(job.commit_time));
  return out;
}

v1::Node Coordinator::GetNode() {
  v1::Node node;
  node.set_software(options_.software);
  node.set_started_us(started_us_);
  node.set_transport(std::string(NameOf(options_.workers.transport)));
  node.set_transport_reason(options_.transport_reason);
  node.set_store(options_.store.dir);
  node.set_epoch(store_->epoch());
  absl::MutexLock lock(&mutex_);
  for (const WorkerStatus& status : workers_->Status()) {
    v1::Worker& worker = *node.add_workers();
    worker.set_index(status.index);
    worker.set_pid(status.pid);
    worker.set_folded(status.folded);
    worker.set_queued(status.queued);
    worker.set_restarts(status.restarts);
    worker.set_role(status.role);
    worker.set_parked_seconds(absl::ToDoubleSeconds(status.parked_for));
    worker.set_seconds_per_update(status.seconds_per_update);
    worker.set_updates_per_second(status.updates_per_second);
    worker.set_load(status.seconds_per_update * status.updates_per_second);
    for (const SeatStatus& from : status.seats) {
      const auto found = by_number_.find(from.job);
      const JobPtr job = found == by_number_.end() ? nullptr : found->second.lock();
      if (job == nullptr) continue;  // it opens or closes just now
      v1::Seat& seat = *worker.add_seats();
      seat.set_job(job->id);
      seat.set_number(from.number);
      seat.set_role(from.role);
      seat.set_queued(from.queued);
      seat.set_taken(from.taken);
      if (from.goal) seat.set_goal(*from.goal);
      seat.set_partials_taken(from.partials_taken);
      seat.set_partials_goal(from.partials_goal);
      if (from.parent) seat.set_parent(*from.parent);
      seat.set_pushed(from.lane.pushed);
      SetLane(from.lane, seat.mutable_lane());
    }
  }
  node.set_upstream(options_.upstream);
  for (const auto& [name, below] : nodes_) {
    v1::NodeBelow& shown = *node.add_nodes();
    shown.set_name(name);
    shown.set_attached(below.session != 0);
    shown.set_epoch(below.epoch);
    shown.set_capacity(below.capacity);
    shown.set_clients(static_cast<uint64_t>(below.clients));
    uint64_t asked = 0;
    for (const JobPtr& job : jobs_) {
      const auto share = job->nodes.shares.find(name);
      if (share != job->nodes.shares.end() && !share->second.arrived) asked += share->second.goal;
    }
    shown.set_asked(asked);
  }
  const WorkerPool::Traffic traffic = workers_->TrafficOf();
  SetLane(traffic.lanes, node.mutable_lanes());
  for (size_t i = 0; traffic.verdicts && i < traffic.verdicts->size(); ++i) {
    (*node.mutable_verdicts())[std::string(ebpf::NameOf(static_cast<tb_verdict>(i)))] = (*traffic.verdicts)[i];
  }
  const WorkerPool::ScaleStats scaling = workers_->Scaling();
  node.set_worker_starts(scaling.starts);
  node.set_worker_evictions(scaling.evictions);
  node.set_address(address_);
  node.set_metrics(metrics_address_);
  node.set_pool_bytes(options_.pool_bytes);
  uint64_t used = 0;
  for (const JobPtr& job : jobs_) {
    if (!job->Open()) continue;
    v1::NodeJob& shown = *node.add_jobs();
    shown = DescribeOnNode(*job);
    used += shown.slots_used() * shown.slot_bytes() + shown.sums_bytes();
  }
  node.set_pool_used_bytes(used);
  return node;
}

absl::StatusOr<std::vector<v1::VersionInfo>> Coordinator::ListVersions(const std::string& text) {
  std::string id;
  {
    absl::MutexLock lock(&mutex_);
    TRIB_ASSIGN_OR_RETURN(const JobPtr job, ResolveJob(text));
    id = job->id;
  }
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::VersionRow> rows, store_->ListVersions(id));
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::Metric> metrics, store_->ListMetrics(id));
  std::vector<v1::VersionInfo> out;
  std::unordered_map<uint64_t, size_t> at;
  for (const v1::VersionRow& row : rows) {
    at.emplace(row.info().version(), out.size());
    out.push_back(row.info());
  }
  for (const v1::Metric& metric : metrics) {
    if (const auto found = at.find(metric.version()); found != at.end()) *out[found->second].add_metrics() = metric;
  }
  return out;
}

absl::StatusOr<v1::VersionInfo> Coordinator::GetVersion(const v1::GetVersionRequest& request) {
  std::string id;
  v1::TensorLayout layout;
  {
    absl::MutexLock lock(&mutex_);
    TRIB_ASSIGN_OR_RETURN(const JobPtr job, ResolveJob(request.job()));
    id = job->id;
    layout = job->row.layout();
  }
  uint64_t version = request.version();
  if (request.latest()) {
    TRIB_ASSIGN_OR_RETURN(version, store_->LatestVersion(id));
  }
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, store_->GetVersion(id, version));
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::Metric> metrics, store_->ListMetrics(id));
  v1::VersionInfo info = row.info();
  *info.mutable_layout() = layout;
  TRIB_ASSIGN_OR_RETURN(const uint64_t latest, store_->LatestVersion(id));
  if (version == latest) {
    TRIB_ASSIGN_OR_RETURN(std::vector<v1::ClientStateRow> clients, store_->ListClientState(id));
    for (v1::ClientStateRow& client : clients) *info.add_clients() = std::move(*client.mutable_participation());
  }
  for (const v1::Metric& metric : metrics) {
    if (metric.version() == version) *info.add_metrics() = metric;
  }
  return info;
}

absl::StatusOr<std::string> Coordinator::ExportVersion(const v1::GetVersionRequest& request) {
  TRIB_ASSIGN_OR_RETURN(const v1::VersionInfo info, GetVersion(request));
  const std::map<std::string, std::string> metadata = {
      {"tributary.job", info.job()}, {"tributary.version", fmt::format("{}", info.version())}, {"tributary.sha256", info.sha256()}};
  if (!request.strategy_state()) {
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, LayoutFromProto(info.layout()));
    std::vector<std::byte> bytes(layout.total_bytes());
    TRIB_RETURN_IF_ERROR(store_->ReadTensors(info.job(), info.version(), bytes, /*verify=*/true));
    return SerializeSafetensors(layout, bytes, metadata);
  }
  TRIB_ASSIGN_OR_RETURN(const std::vector<NamedVector> vectors, store_->ReadStrategyState(info.job(), info.version()));
  std::vector<TensorSpec> specs;
  for (const NamedVector& vector : vectors) {
    specs.push_back({vector.name, {static_cast<int64_t>(vector.values.size())}, DType::kF64, TensorKind::kTrainable});
  }
  TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, TensorLayout::Create(std::move(specs)));
  std::vector<std::byte> bytes(layout.total_bytes());
  for (const NamedVector& vector : vectors) {
    const PlacedTensor* placed = layout.Find(vector.name);
    if (placed != nullptr && placed->bytes > 0) std::memcpy(bytes.data() + placed->offset_bytes, vector.values.data(), placed->bytes);
  }
  return SerializeSafetensors(layout, bytes, metadata);
}

}  // namespace tributary::aggregator
