#include "aggregator/coordinator/job.h"

#include <algorithm>
#include <utility>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/job_check.h"
#include "aggregator/core/planners/hierarchy.h"
#include "common/clock.h"
#include "common/digest.h"
#include "proto/codec.h"

namespace tributary::aggregator {

ModelBuffer::Shelf::~Shelf() { Unmap(memory_.bytes); }

absl::StatusOr<MappedMemfd> ModelBuffer::Shelf::Take() {
  MappedMemfd kept;
  {
    absl::MutexLock lock(&mutex_);
    kept = std::exchange(memory_, {});
  }
  if (!kept.bytes.empty() && SoleUser(kept.fd.get())) return kept;
  Unmap(kept.bytes);
  return CreateReusableMemfd("tributary-model", bytes_);
}

void ModelBuffer::Shelf::PutBack(MappedMemfd memory) {
  absl::MutexLock lock(&mutex_);
  std::swap(memory, memory_);
  Unmap(memory.bytes);
}

absl::StatusOr<std::shared_ptr<ModelBuffer>> ModelBuffer::Make(std::shared_ptr<Shelf> shelf) {
  TRIB_ASSIGN_OR_RETURN(MappedMemfd memory, shelf->Take());
  return std::shared_ptr<ModelBuffer>(new ModelBuffer(std::move(shelf), std::move(memory)));
}

ModelBuffer::~ModelBuffer() { shelf_->PutBack(std::move(memory_)); }

void ModelBuffer::Seal(uint64_t version, std::string sha256) {
  version_ = version;
  sha256_ = std::move(sha256);
  xxh3_128_ = Xxh3Digest(memory_.bytes);
}

std::shared_future<std::string> ModelBuffer::SealMeanwhile(std::shared_ptr<ModelBuffer> model, uint64_t version) {
  return std::async(std::launch::async,
                    [model = std::move(model), version] {
                      model->Seal(version, Sha256Hex(model->bytes()));
                      return model->sha256();
                    })
      .share();
}

SharedBytes ModelBuffer::Share(std::shared_ptr<const ModelBuffer> self) const {
  return {memory_.bytes, sha256_, xxh3_128_, memory_.fd.get(), std::move(self)};
}

uint64_t WatchList::Add(std::function<void()> changed) {
  absl::MutexLock lock(&mutex_);
  watchers_[next_] = std::move(changed);
  return next_++;
}

void WatchList::Remove(uint64_t id) {
  absl::MutexLock lock(&mutex_);
  watchers_.erase(id);
}

void WatchList::Notify() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, changed] : watchers_) changed();
}

std::string StateText(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_DONE: return "done";
    case v1::JOB_STATE_FAILED: return "failed";
    case v1::JOB_STATE_CANCELLED: return "cancelled";
    case v1::JOB_STATE_RUNNING: return "running";
    default: return "queued";
  }
}

v1::Job ToProto(const Job& job) {
  v1::Job out;
  out.set_id(job.id);
  out.set_name(job.spec.name);
  out.set_state(job.row.state());
  out.set_state_reason(job.row.state_reason());
  out.set_strategy(job.spec.strategy.name);
  out.set_version(job.latest.info().version());
  out.set_target_versions(static_cast<uint64_t>(job.spec.stop.versions));
  out.set_updates_committed(job.row.updates_committed());
  *out.mutable_updates_rejected() = job.row.updates_rejected();
  for (const v1::Metric& metric : job.metrics) *out.add_metrics() = metric;
  out.set_bytes_up(job.row.bytes_up());
  out.set_bytes_down(job.row.bytes_down());
  out.set_model_sha256(job.latest.info().sha256());
  out.set_submitted_us(job.row.submitted_us());
  out.set_finished_us(job.row.finished_us());
  out.set_started_us(job.started_us);
  if (job.latest.info().has_privacy()) *out.mutable_privacy() = job.latest.info().privacy();
  out.set_spec_yaml(job.row.spec_yaml());
  const int64_t end_us = job.row.finished_us() != 0 ? job.row.finished_us() : WallMicros();
  out.set_elapsed_s(static_cast<double>(std::max<int64_t>(0, end_us - job.row.submitted_us())) * 1e-6);
  for (const v1::RoundTiming& timing : job.timings) *out.add_rounds() = timing;
  if (job.Open()) {
    out.set_clients_in(job.runtime->round->updates_in());
    out.set_clients_expected(static_cast<uint64_t>(std::max<int64_t>(0, job.runtime->round->updates_expected())));
  } else {
    out.set_clients_expected(static_cast<uint64_t>(job.spec.cohort.size));
  }
  if (job.commits.size() >= 2) {
    uint64_t updates = 0;
    for (size_t i = 1; i < job.commits.size(); ++i) updates += job.commits[i].second;
    const int64_t span_us = job.commits.back().first - job.commits.front().first;
    if (span_us > 0) out.set_updates_per_s(static_cast<double>(updates) * 1e6 / static_cast<double>(span_us));
  }
  return out;
}

v1::JobRow MakeJobRow(const std::string& id, const JobSpec& spec, const TensorLayout& layout, const std::string& artifact_sha256) {
  v1::JobRow row;
  row.set_format_version(1);
  row.set_id(id);
  row.set_spec_yaml(CanonicalYaml(spec));
  row.set_spec_sha256(Sha256Hex(std::as_bytes(std::span(row.spec_yaml()))));
  *row.mutable_layout() = LayoutToProto(layout);
  row.set_state(v1::JOB_STATE_QUEUED);
  row.set_submitted_us(WallMicros());
  row.set_artifact_sha256(artifact_sha256);
  return row;
}

absl::StatusOr<std::shared_ptr<JobRuntime>> MakeRuntime(const JobSpec& spec, const TensorLayout& layout, const StrategyEntry* entry,
                                                        const PlannerLimits& limits, const CapacityBook& capacities) {
  auto runtime = std::make_shared<JobRuntime>();
  runtime->layout = layout;
  runtime->arithmetic = spec.reproducible ? Arithmetic::kFixedPoint : Arithmetic::kFloat64;
  auto strategy = StrategyOf(spec);
  // Not there among the strategies is, of a job, a wrong value: NOT_FOUND would say that the job is missing.
  if (!strategy.ok()) return InvalidArgument("strategy: {}", MessageOf(strategy.status()));
  runtime->strategy = *std::move(strategy);
  TRIB_RETURN_IF_ERROR(CheckJob(spec, *runtime->strategy, layout));
  TRIB_ASSIGN_OR_RETURN(runtime->update_layout, runtime->strategy->UpdateLayout(layout));
  runtime->fingerprint = runtime->update_layout.Fingerprint();
  TRIB_ASSIGN_OR_RETURN(const UpdateId digits, UpdateIdFromHex(runtime->fingerprint.substr(0, 32)));
  runtime->layout_id = digits.hi;
  if (entry == nullptr) return Internal("strategy '{}': it can be made but is not in the table", spec.strategy.name);
  // A parameter can make a strategy need whole updates too (rerce_admm's continual).
  const StrategyTrait trait = runtime->keeps_updates() ? StrategyTrait::kNeedsAll : entry->trait;
  HierarchySpec wanted = spec.hierarchy;
  // What comes next nobody knows, and a commit may wait for this very update.
  if (!runtime->strategy->synchronous() && !wanted.timing) wanted.timing = TimingSpec{.kind = TimingKind::kEager};
  TRIB_ASSIGN_OR_RETURN(const Hierarchy hierarchy, ResolveHierarchy(wanted, spec.strategy.name, trait));
  runtime->reducer = runtime->strategy->MakeReducer(layout.float_dtype(), runtime->arithmetic);
  runtime->encoding = spec.Encoding(runtime->update_layout);
  runtime->scalars = UpdateScalars(*runtime->strategy, spec);
  TRIB_ASSIGN_OR_RETURN(runtime->moe, MoeState::Create(spec, *runtime->strategy, layout));
  TRIB_ASSIGN_OR_RETURN(runtime->live, LiveTriplets::Of(spec, layout));
  if (spec.privacy.enabled) {
    TRIB_ASSIGN_OR_RETURN(runtime->privacy, JobPrivacy::Create(spec, layout, *runtime->strategy));
  }
  PlannerLimits own = limits;
  own.capacity = capacities.Find({.layout = runtime->fingerprint, .strategy = spec.strategy.name, .shape = std::string(HierarchyShapeName(hierarchy.shape)),
                                  .workers = static_cast<uint32_t>(limits.workers), .reproducible = spec.reproducible});
  runtime->planner = std::make_unique<RoundPlanner>(hierarchy, own, spec.cohort.size, std::max<size_t>(1, WorkerBytes(*runtime)));
  runtime->shelf = std::make_shared<ModelBuffer::Shelf>(layout.total_bytes());
  return runtime;
}

size_t WorkerBytes(const JobRuntime& runtime) {
  return runtime.update_layout.float_count() * runtime.reducer->state_bytes_per_element() + runtime.update_layout.counter_count() * 8;
}

size_t SlabMemory(const JobRuntime& runtime) { return WorkerBytes(runtime) * SlabCount(runtime.planner->pool()); }

}  // namespace tributary::aggregator
