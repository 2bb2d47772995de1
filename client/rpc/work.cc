#include "client/rpc/work.h"

#include <cmath>
#include <utility>

#include "client/core/device_update.h"
#include "client/core/local_buffers.h"
#include "client/core/train_seed.h"
#include "client/core/widen.h"
#include "common/log.h"
#include "common/moe_spec.h"
#include "proto/codec.h"

namespace tributary::client {
namespace {

constexpr size_t kMaxJobs = 64;

absl::StatusOr<std::shared_ptr<const Dataset>> DataOf(const WorkContext& context, const PreparedTask& prepared,
                                                      const DatasetProvider& provide_data, bool evaluation) {
  DataRequest request;
  request.spec = &prepared.job->spec;
  request.client = context.identity.client;
  request.shard = context.shard;
  request.shards = context.shards;
  request.evaluation = evaluation;
  return provide_data(request);
}

// Of one vector over the trainable elements.
size_t VectorBytes(const Job& job) { return job.layout.trainable_count() * DTypeBytes(job.layout.float_dtype()); }

TrainRequest RequestOf(const WorkContext& context, const PreparedTask& prepared, const Work::Progress& progress) {
  TrainRequest request;
  request.spec = &prepared.job->spec;
  request.layout = &prepared.job->layout;
  request.artifact_path = prepared.artifact_path;
  request.model = prepared.model->bytes();
  request.update_layout = &prepared.job->update_layout;
  if (prepared.vectors != nullptr) {
    const size_t each = VectorBytes(*prepared.job);
    // In the model's place the one vector comes first.
    for (size_t k = 0; k < prepared.job->version_vectors.size(); ++k) {
      request.vectors[prepared.job->version_vectors[k]] = prepared.vectors->bytes().subspan(k * each, each);
    }
  }
  request.state = prepared.state.get();
  request.state_epoch = prepared.task.state_epoch;
  if (prepared.initial != nullptr) request.initial = prepared.initial->bytes();
  request.may_stay_on_device = DeviceEncodes(prepared.job->encoding);
  request.moe = &prepared.task.moe;
  request.noise_seed = prepared.task.noise_seed;
  request.version = prepared.task.version;
  request.seed = TrainSeed(prepared.job->spec.seed, context.identity.client, prepared.task.version);
  request.client = context.identity.client;
  request.shard = context.shard;
  request.progress = [cancelled = context.cancelled, progress](float done) {
    if (cancelled->load()) return false;
    progress(done);
    return true;
  };
  return request;
}

// What a learner gave, if it is what the job asks for.
absl::StatusOr<TrainResult> Checked(const WorkContext& context, const PreparedTask& prepared, absl::StatusOr<TrainResult> trained) {
  if (!trained.ok()) return trained;
  TrainResult& result = *trained;
  if (context.cancelled->load()) return Cancelled("cancelled while training");
  const size_t bytes = result.on_device != nullptr ? result.on_device->flat_bytes() : result.update.size();
  if (bytes != prepared.job->update_layout.total_bytes()) {
    return Internal("the learner gave {} bytes, an update of the job has {}", bytes, prepared.job->update_layout.total_bytes());
  }
  if (!std::isfinite(result.weight) || result.weight <= 0) {
    return Internal("the learner gave weight {}; expected a finite number over 0", result.weight);
  }
  for (const auto& [name, value] : result.scalars) {
    if (!std::isfinite(value)) return Internal("the learner gave {} = {}; expected a finite number", name, value);
  }
  if (!SendsMoeStats(prepared.job->spec)) result.moe.clear();
  std::erase_if(result.metrics, [](const auto& metric) {
    return !std::isfinite(metric.second) || metric.first.empty() || metric.first.size() > kMaxNameBytes;
  });
  while (result.metrics.size() > kMaxMetrics) result.metrics.erase(std::prev(result.metrics.end()));
  return trained;
}

}  // namespace

std::shared_ptr<const Job> JobBook::Learn(const v1::JobInfo& info) {
  auto job = std::make_shared<Job>();
  job->summary.job = info.job();
  job->artifact_sha256 = info.artifact_sha256();
  job->artifact_bytes = info.artifact_bytes();
  absl::StatusOr<JobSpec> spec = ParseJobSpec(info.spec_yaml(), fmt::format("job '{}'", info.job()));
  absl::StatusOr<TensorLayout> layout = LayoutFromProto(info.layout());
  if (!spec.ok()) {
    job->summary.problem = "this client cannot read the job: " + MessageOf(spec.status());
  } else if (!layout.ok()) {
    job->summary.problem = "this client cannot read the job's layout: " + MessageOf(layout.status());
  } else {
    job->spec = *std::move(spec);
    job->layout = *std::move(layout);
    job->version_vectors.assign(info.version_vectors().begin(), info.version_vectors().end());
    absl::StatusOr<TensorLayout> update = info.has_update_layout() ? LayoutFromProto(info.update_layout()) : WithGroups(job->layout, {""});
    if (update.ok()) {
      job->update_layout = *std::move(update);
    } else {
      job->summary.problem = "this client cannot read the layout of the job's updates: " + MessageOf(update.status());
    }
    job->vectors_in_model = info.vectors_in_model();
    job->client_state = info.client_state();
    job->mirrored_state = info.mirrored_state();
    if (info.fitness_bytes() != 0) {
      if (absl::StatusOr<FitnessReplay> replay = FitnessReplay::Of(job->spec, job->layout, info.fitness_bytes()); replay.ok()) {
        job->replay = *std::move(replay);
      } else {
        job->summary.problem = "this client cannot read the job: " + MessageOf(replay.status());
      }
    }
    if (job->vectors_in_model && job->version_vectors.size() != 1) {
      job->summary.problem = fmt::format("this client cannot read the job: {} vectors in the place of one model", job->version_vectors.size());
    }
    job->layout_fingerprint = job->update_layout.Fingerprint();
    if (!data_path_.empty() && !job->spec.data.source.empty()) job->spec.data.path = data_path_;
    job->summary.torchscript = !job->spec.model.torchscript.empty();
    job->encoding = job->spec.Encoding(job->update_layout);
    job->summary.update_bytes = job->encoding.total_bytes();
    if (absl::StatusOr<std::unique_ptr<const LiveTriplets>> live = LiveTriplets::Of(job->spec, job->layout); live.ok()) {
      job->live = *std::move(live);
    } else {
      job->summary.problem = "this client cannot read the job's triplets: " + MessageOf(live.status());
    }
    if (job->layout.total_bytes() == 0) {
      job->summary.problem = "the job's model has no elements";
    }
  }
  absl::MutexLock lock(&mutex_);
  if (jobs_.size() >= kMaxJobs && !jobs_.contains(info.job())) jobs_.erase(jobs_.begin());
  jobs_[info.job()] = job;
  return job;
}

std::shared_ptr<const Job> JobBook::Find(const std::string& job) const {
  absl::MutexLock lock(&mutex_);
  const auto found = jobs_.find(job);
  return found == jobs_.end() ? nullptr : found->second;
}

absl::StatusOr<PreparedTask> Work::Prepare(const WorkContext& context, const Task& task) {
  PreparedTask prepared;
  prepared.task = task;
  prepared.job = jobs_.Find(task.job);
  if (prepared.job == nullptr) return NotFound("job '{}' is not known here any more", task.job);
  const CancelCheck cancelled = [flag = context.cancelled] { return flag->load(); };
  if (!prepared.job->artifact_sha256.empty()) {
    TRIB_ASSIGN_OR_RETURN(prepared.artifact_path, artifacts_.Get(context.identity, task.job, prepared.job->artifact_sha256,
                                                                 prepared.job->artifact_bytes, cancelled));
  }
  const bool train = task.kind == Task::Kind::kTrain;
  const size_t model_bytes = prepared.job->layout.total_bytes();
  const bool in_place = train && prepared.job->vectors_in_model;
  if (!in_place) {
    TRIB_ASSIGN_OR_RETURN(prepared.model, models_.Get(context.identity, task.job, task.version, model_bytes, cancelled,
                                                      prepared.job->replay ? &*prepared.job->replay : nullptr));
  }
  if (!prepared.job->version_vectors.empty() && train) {
    const size_t bytes = in_place ? model_bytes : VectorBytes(*prepared.job) * prepared.job->version_vectors.size();
    TRIB_ASSIGN_OR_RETURN(prepared.vectors, vectors_.Get(context.identity, task.job, task.version, bytes, cancelled));
  }
  if (in_place) prepared.model = prepared.vectors;
  if (train) TRIB_RETURN_IF_ERROR(PrepareState(context, cancelled, &prepared));
  return prepared;
}

absl::StatusOr<std::optional<ClientState>> Work::FetchMirrored(const WorkContext& context, const PreparedTask& prepared, const CancelCheck& cancelled) {
  const Job& job = *prepared.job;
  if (job.mirrored_state.empty()) return std::optional<ClientState>();
  const auto row = FetchObject(connection_, context.identity,
                               {.job = prepared.task.job, .version = 0, .artifact = false, .client_row = true, .vectors = false, .bytes = VectorBytes(job), .sha256 = ""}, cancelled);
  if (absl::IsNotFound(row.status())) return std::optional<ClientState>();
  if (!row.ok()) return row.status();
  TRIB_LOG(info, "{}: job '{}': takes the server's copy of its state of version {}", context.identity.client, prepared.task.job, prepared.task.state_version);
  ClientState state;
  state.version = prepared.task.state_version;
  state.vectors[job.mirrored_state] = WidenFloats(job.layout.float_dtype(), (*row)->bytes());
  return std::optional(std::move(state));
}

absl::Status Work::PrepareState(const WorkContext& context, const CancelCheck& cancelled, PreparedTask* prepared) {
  const Task& task = prepared->task;
  const Job& job = *prepared->job;
  ClientState state;
  if (context.state != nullptr) {
    absl::StatusOr<ClientState> kept = ReadClientState(*context.state, task.job);
    if (kept.ok()) {
      state = *std::move(kept);
    } else {
      TRIB_LOG(warn, "{}: {}", context.identity.client, MessageOf(kept.status()));
    }
  }
  if (job.client_state && state.version != task.state_version) {
    if (task.state_version != 0) {
      TRIB_LOG(warn, "{}: job '{}': its state of version {} is lost (there is {}): it begins anew", context.identity.client, task.job, task.state_version,
               state.version == 0 ? "none" : fmt::format("one of version {}", state.version));
    }
    std::erase_if(state.vectors, [](const auto& vector) { return vector.first != kBuffersVector; });  // those concern nobody else
    state.version = 0;
    if (task.state_version != 0) {
      TRIB_ASSIGN_OR_RETURN(std::optional<ClientState> mirrored, FetchMirrored(context, *prepared, cancelled));
      if (mirrored) state.vectors.merge(mirrored->vectors);
      if (mirrored) state.version = mirrored->version;
    }
  }
  TRIB_ASSIGN_OR_RETURN(const LocalRule rule, LocalRule::Make(job.spec.strategy, job.spec.local, context.shard));
  if (rule.wants_initial() && state.version == 0) {
    prepared->initial = prepared->model;
    if (task.version != task.state_epoch) {
      TRIB_ASSIGN_OR_RETURN(prepared->initial, models_.Get(context.identity, task.job, task.state_epoch, job.layout.total_bytes(), cancelled));
    }
  }
  prepared->state = std::make_shared<const ClientState>(std::move(state));
  return absl::OkStatus();
}

absl::StatusOr<TrainResult> Work::Train(const WorkContext& context, const PreparedTask& prepared, Learner& learner,
                                        const DatasetProvider& provide_data, const Progress& progress) {
  if (context.cancelled->load()) return Cancelled("cancelled before training began");
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<const Dataset> data, DataOf(context, prepared, provide_data, false));
  return Checked(context, prepared, TrainLocally(learner, RequestOf(context, prepared, progress), data.get()));
}

std::vector<absl::StatusOr<TrainResult>> Work::TrainCohort(std::span<const CohortTask> tasks, Learner& learner, const DatasetProvider& provide_data) {
  std::vector<absl::StatusOr<TrainResult>> results(tasks.size(), Cancelled("cancelled before training began"));
  std::vector<CohortMember> members;
  std::vector<size_t> of_member;
  std::vector<std::shared_ptr<const Dataset>> held;
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].context->cancelled->load()) continue;
    absl::StatusOr<std::shared_ptr<const Dataset>> data = DataOf(*tasks[i].context, *tasks[i].prepared, provide_data, false);
    if (!data.ok()) {
      results[i] = data.status();
      continue;
    }
    members.push_back({RequestOf(*tasks[i].context, *tasks[i].prepared, tasks[i].progress), data->get()});
    held.push_back(*std::move(data));
    of_member.push_back(i);
  }
  std::vector<absl::StatusOr<TrainResult>> trained = TrainCohortLocally(learner, members);
  for (size_t m = 0; m < of_member.size(); ++m) {
    const size_t i = of_member[m];
    results[i] = Checked(*tasks[i].context, *tasks[i].prepared, std::move(trained[m]));
  }
  return results;
}

absl::StatusOr<Evaluation> Work::Evaluate(const WorkContext& context, const PreparedTask& prepared, Learner& learner,
                                          const DatasetProvider& provide_data, const Progress& progress) {
  if (context.cancelled->load()) return Cancelled("cancelled before evaluating began");
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<const Dataset> data, DataOf(context, prepared, provide_data, true));
  TRIB_ASSIGN_OR_RETURN(const EvaluateResult result, learner.Evaluate(RequestOf(context, prepared, progress), data.get()));
  return Evaluation{prepared.task.job, prepared.task.task, prepared.task.version, result.loss, result.accuracy, result.examples};
}

}  // namespace tributary::client
