#include "simulate/training.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "aggregator/core/coded_kernels.h"
#include "client/core/local_buffers.h"
#include "client/core/private_update.h"
#include "client/core/random.h"
#include "client/core/train_seed.h"
#include "common/moe_spec.h"
#include "simulate/threads.h"

namespace tributary::simulate {
namespace {

constexpr size_t kEvaluationPiece = 1000;  // examples: two of LibTorch's evaluation batches, and enough pieces for some threads

}  // namespace

void Training::Issue(SimulatedTask task) {
  waiting_.push_back(task.id);
  const uint64_t id = task.id;
  tasks_.emplace(id, std::move(task));
}

void Training::Cancel(uint64_t task) { tasks_.erase(task); }

client::TrainRequest Training::RequestOf(const SimulatedTask& task) const {
  const std::string& name = (*options_.clients)[task.client];
  client::TrainRequest request;
  request.spec = options_.spec;
  request.layout = options_.layout;
  request.artifact_path = options_.artifact_path;
  request.update_layout = options_.update_layout;
  request.model = *task.model;
  request.initial = *options_.initial;
  request.state = task.state.get();
  for (const auto& [vector, values] : task.vectors) request.vectors[vector] = *values;
  if (!options_.in_place_of_model.empty()) {
    std::span<const std::byte>& vector = request.vectors.at(options_.in_place_of_model);
    vector = vector.first(options_.layout->trainable_count() * DTypeBytes(options_.layout->float_dtype()));
  }
  request.moe = &task.moe;
  request.noise_seed = task.noise_seed;
  request.version = task.version;
  // What a daemon's identity of this name would draw. A client that trains from one version twice (it may, asynchronously) draws anew.
  request.seed = client::TrainSeed(options_.spec->seed, name, task.version);
  if (task.repeat > 0) request.seed = client::MixSeeds(request.seed, task.repeat);
  request.client = name;
  request.shard = task.client;
  request.gradient_noise = options_.spec->simulate.gradient_noise;
  request.may_stay_on_device = options_.updates_stay_on_device;
  request.progress = Progress();
  return request;
}

absl::Status Training::Take(SimulatedTask* task, absl::StatusOr<client::TrainResult> result) const {
  const std::string who = fmt::format("client '{}', version {}", (*options_.clients)[task->client], task->version);
  if (!result.ok()) return Annotate(result.status(), who);
  if (!SendsMoeStats(*options_.spec)) result->moe.clear();
  if (result->on_device == nullptr) {
    TRIB_RETURN_IF_ERROR(Annotate(Encode(*task, &*result), who));
    const absl::StatusOr<aggregator::ScanResult> scan = aggregator::ScanUpdate(options_.encoding, result->update);
    if (!scan.ok()) return Annotate(scan.status(), who);
    task->scan = *scan;
  }
  task->result = *std::move(result);
  return absl::OkStatus();
}

absl::Status Training::Encode(const SimulatedTask& task, client::TrainResult* result) const {
  client::UpdateRequest request{.spec = options_.spec, .encoding = options_.encoding, .client = (*options_.clients)[task.client], .version = task.version,
                                .repeat = task.repeat, .clip = task.clip, .noise_key = {}, .feedback = {}};
  std::vector<float> feedback;
  const bool keeps = client::KeepsFeedback(options_.encoding);
  if (keeps && task.state != nullptr) {
    const auto kept = task.state->vectors.find(client::kErrorFeedback);
    if (kept != task.state->vectors.end()) feedback.assign(kept->second.begin(), kept->second.end());
  }
  request.feedback = feedback;
  TRIB_ASSIGN_OR_RETURN(client::EncodedUpdate encoded, client::MakeUpdate(request, std::move(result->update), &result->scalars));
  result->update = std::move(encoded.bytes);
  if (keeps) {
    if (!result->state) result->state = client::ClientState{};
    result->state->vectors[client::kErrorFeedback].assign(encoded.residual.begin(), encoded.residual.end());
  }
  return absl::OkStatus();
}

absl::Status Training::TrainWaiting() {
  std::vector<SimulatedTask*> todo;
  std::vector<std::shared_ptr<const client::Dataset>> data;
  for (const uint64_t id : waiting_) {
    const auto at = tasks_.find(id);
    if (at == tasks_.end()) continue;
    todo.push_back(&at->second);
    TRIB_ASSIGN_OR_RETURN(data.emplace_back(), options_.data(at->second.client));
  }
  waiting_.clear();
  trained_ += todo.size();
  if (options_.learners[0]->cohort_size() > 1) return TrainCohorts(todo, data);
  return SideBySide(todo.size(), [&](size_t i, client::Learner* learner) {
    return Take(todo[i], client::TrainLocally(*learner, RequestOf(*todo[i]), data[i].get()));
  });
}

absl::Status Training::TrainCohorts(std::span<SimulatedTask* const> tasks, std::span<const std::shared_ptr<const client::Dataset>> data) const {
  client::Learner& learner = *options_.learners[0];
  for (size_t first = 0; first < tasks.size(); first += learner.cohort_size()) {
    std::vector<client::CohortMember> members;
    for (size_t i = first; i < std::min(first + learner.cohort_size(), tasks.size()); ++i) members.push_back({RequestOf(*tasks[i]), data[i].get()});
    std::vector<absl::StatusOr<client::TrainResult>> results = client::TrainCohortLocally(learner, members);
    // What remains is a core's work: clip, noise, code; of updates that stay on the device next to none.
    const bool on_device = !results.empty() && results[0].ok() && results[0]->on_device != nullptr;
    TRIB_RETURN_IF_ERROR(OnThreads(on_device ? 1 : std::thread::hardware_concurrency(), results.size(),
                                   [&](size_t i, size_t) { return Take(tasks[first + i], std::move(results[i])); }));
  }
  return absl::OkStatus();
}

absl::Status Training::SideBySide(size_t count, const std::function<absl::Status(size_t, client::Learner*)>& call) const {
  return OnThreads(options_.learners.size(), count, [&](size_t i, size_t thread) { return call(i, options_.learners[thread]); });
}

absl::StatusOr<SimulatedTask> Training::Finish(uint64_t task) {
  const auto at = tasks_.find(task);
  if (at == tasks_.end()) return NotFound("there is no task {}", task);
  if (!at->second.result) TRIB_RETURN_IF_ERROR(TrainWaiting());
  SimulatedTask finished = std::move(at->second);
  tasks_.erase(at);
  return finished;
}

absl::StatusOr<client::EvaluateResult> Training::Evaluate(uint64_t version, std::span<const std::byte> model, const client::Dataset& data) {
  client::TrainRequest request;
  request.spec = options_.spec;
  request.layout = options_.layout;
  request.artifact_path = options_.artifact_path;
  request.model = model;
  request.version = version;
  request.progress = Progress();
  if (!data.problems.empty() || data.count() == 0) return options_.learners[0]->Evaluate(request, &data);
  // Pieces of one size, whatever the number of learners, and their sums in order: the number changes no bit.
  std::vector<client::Dataset> pieces;
  for (size_t first = 0; first < data.count(); first += kEvaluationPiece) {
    const auto begin = data.indices.begin() + static_cast<std::ptrdiff_t>(first);
    const auto count = static_cast<std::ptrdiff_t>(std::min(kEvaluationPiece, data.count() - first));
    pieces.push_back({.all = data.all, .indices = {begin, begin + count}});
  }
  std::vector<client::EvaluateResult> results(pieces.size());
  TRIB_RETURN_IF_ERROR(SideBySide(pieces.size(), [&](size_t i, client::Learner* learner) -> absl::Status {
    TRIB_ASSIGN_OR_RETURN(results[i], learner->Evaluate(request, &pieces[i]));
    return absl::OkStatus();
  }));
  client::EvaluateResult sum;
  double correct = 0;  // examples: a whole number, or NaN where the task has no accuracy
  for (const client::EvaluateResult& part : results) {
    const auto examples = static_cast<double>(part.examples);
    sum.examples += part.examples;
    sum.loss += part.loss * examples;
    correct += std::round(part.accuracy * examples);
  }
  sum.loss /= static_cast<double>(sum.examples);
  sum.accuracy = correct / static_cast<double>(sum.examples);
  return sum;
}

std::function<bool(float)> Training::Progress() const {
  if (!options_.interrupted) return {};
  return [this](float) { return !options_.interrupted(); };
}

}  // namespace tributary::simulate
