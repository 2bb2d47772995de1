#include "client/torch/learner.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sched.h>

#include <absl/strings/numbers.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "client/core/widen.h"
#include "client/torch/device/gpu_monitor.h"
#include "client/torch/batches.h"
#include "client/torch/cohort_trainer.h"
#include "client/torch/device_graph.h"
#include "client/torch/example_store.h"
#include "client/torch/guard.h"
#include "client/torch/local/solver.h"
#include "client/torch/lora/lora.h"
#include "client/torch/on_device.h"
#include "client/torch/repeated_steps.h"
#include "client/torch/trainable_model.h"
#include "common/log.h"

namespace tributary::client {
namespace {

constexpr size_t kCohort = 1024;          // clients to be given at once on a GPU; the trainer takes as many as memory has room for
constexpr size_t kEvaluationBatch = 500;  // examples: enough to keep the cores busy, 1.5 MB of 28x28 images

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

absl::StatusOr<at::Device> PickDevice(const std::string& name) {
  const int64_t devices = at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
  if (name == "cpu" || (name == "auto" && devices == 0)) return at::Device(at::kCPU);
  int64_t index = 0;
  const bool numbered = name.rfind("cuda:", 0) == 0 && absl::SimpleAtoi(name.substr(5), &index) && index >= 0;
  if (name != "auto" && name != "cuda" && !numbered) {
    return InvalidArgument("device: expected auto, cpu, cuda or cuda:N, got '{}'", name);
  }
  if (index >= devices) {
    return FailedPrecondition("device {}: this machine shows {} CUDA devices to LibTorch; use device cpu, or on a GPU machine run "
                              "scripts/deps.sh again and check nvidia-smi", name, devices);
  }
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

// The GPUs' name from the driver, where all of the machine's are alike (which index is which depends on CUDA_VISIBLE_DEVICES).
std::string GpuName() {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    std::ifstream information(entry.path() / "information");
    for (std::string line; std::getline(information, line);) {
      if (line.rfind("Model:", 0) != 0) continue;
      const size_t begin = line.find_first_not_of(" \t", 6);
      if (begin != std::string::npos) names.insert(line.substr(begin));
    }
  }
  return names.size() == 1 ? *names.begin() : "";
}

// Autocast of LibTorch for this thread: what gains from it computes in bfloat16, sums and losses stay as they are. Without its cache of cast
// weights, which would outlive a step.
class AutocastScope {
 public:
  AutocastScope(at::Device device, bool bf16) : device_(device.type()), enabled_(bf16) {
    if (!enabled_) return;
    at::autocast::set_autocast_enabled(device_, true);
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~AutocastScope() {
    if (!enabled_) return;
    at::autocast::set_autocast_enabled(device_, false);
    at::autocast::set_autocast_cache_enabled(true);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  const at::DeviceType device_;
  const bool enabled_;
};

class TorchLearner : public Learner {
 public:
  TorchLearner(at::Device device, const TorchLearnerOptions& options, int threads)
      : device_(device), threads_(threads), cohort_(options.cohort > 0 ? options.cohort : device.is_cuda() ? kCohort : 1), store_(device),
        monitor_(device.is_cuda() ? GpuMonitor::Open(device.index()) : nullptr) {}

  std::string device() const override {
    const std::string gpu = device_.is_cuda() ? GpuName() : "";
    return gpu.empty() ? device_.str() : device_.str() + " " + gpu;
  }

  absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset* data) override {
    absl::StatusOr<TrainResult> result = TrainOnce(request, data, /*pieces=*/1);
    if (!absl::IsResourceExhausted(result.status())) return result;
    TRIB_LOG(warn, "{}: {}; minibatches go in two parts", request.client, MessageOf(result.status()));
    ReleaseMemory();
    result = TrainOnce(request, data, /*pieces=*/2);
    if (!absl::IsResourceExhausted(result.status())) return result;
    ReleaseMemory();
    return Annotate(result.status(), fmt::format("device memory: minibatches of {} do not fit, nor do halves of them", request.spec->local.batch));
  }

  std::optional<DeviceUsage> usage() const override { return monitor_ != nullptr ? monitor_->Read() : std::nullopt; }

  size_t cohort_size() const override { return cohort_; }

  std::vector<absl::StatusOr<TrainResult>> TrainCohort(std::span<const CohortMember> members) override {
    using Results = std::vector<absl::StatusOr<TrainResult>>;
    if (members.size() < 2) return Learner::TrainCohort(members);
    std::string obstacle;
    absl::StatusOr<Results> results = Guarded("training", [&]() -> absl::StatusOr<Results> {
      const StreamScope stream(device_, &stream_);
      TRIB_RETURN_IF_ERROR(Prepare(members[0].request));
      for (const CohortMember& member : members) TRIB_RETURN_IF_ERROR(CheckModel(member.request));
      obstacle = CohortTrainer::Obstacle(*model_, members);
      if (!obstacle.empty()) return Results();
      return cohorts_.Train(*model_, store_, members);
    });
    if (!obstacle.empty() && std::exchange(said_, key_ + obstacle) != key_ + obstacle) {
      TRIB_LOG(warn, "job '{}': its clients are trained one after the other, not side by side: {}", members[0].request.spec->name, obstacle);
    }
    if (results.ok() && obstacle.empty()) return *std::move(results);
    if (!absl::IsResourceExhausted(results.status())) return Learner::TrainCohort(members);
    ReleaseMemory();
    Results halves = TrainCohort(members.first(members.size() / 2));
    Results rest = TrainCohort(members.subspan(members.size() / 2));
    std::move(rest.begin(), rest.end(), std::back_inserter(halves));
    return halves;
  }

  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest& request, const Dataset* data) override {
    return Guarded("evaluation", [&]() -> absl::StatusOr<EvaluateResult> {
      const StreamScope stream(device_, &stream_);
      TRIB_RETURN_IF_ERROR(Prepare(request));
      TRIB_ASSIGN_OR_RETURN(const Batches batches, Batches::Create(data, *model_, store_));
      return Measure(batches, request.progress);
    });
  }

 private:
  // `pieces`: of each minibatch.
  absl::StatusOr<TrainResult> TrainOnce(const TrainRequest& request, const Dataset* data, int64_t pieces) {
    return Guarded("training", [&]() -> absl::StatusOr<TrainResult> {
      const absl::Time start = absl::Now();
      const StreamScope stream(device_, &stream_);
      TRIB_RETURN_IF_ERROR(Prepare(request));
      TRIB_ASSIGN_OR_RETURN(const LocalSpec local, request.spec->local.Of(request.shard));
      TRIB_RETURN_IF_ERROR(CheckLocalSpec(local));
      TRIB_ASSIGN_OR_RETURN(const LocalSolver solver, FindLocalSolver(local.solver));
      TRIB_ASSIGN_OR_RETURN(const LocalRule rule, LocalRule::Make(request.spec->strategy, request.spec->local, request.shard));
      TRIB_ASSIGN_OR_RETURN(const Batches batches, Batches::Create(data, *model_, store_));
      std::optional<EggrollPopulation> population;
      if (local.solver == kEggrollSolver) {
        TRIB_ASSIGN_OR_RETURN(population, EggrollPopulation::Of(request));
      }
      const AdapterMode adapters = AdaptersOf(request.spec->strategy);
      if (adapters != AdapterMode::kNone) {
        TRIB_ASSIGN_OR_RETURN(const int64_t rank, request.spec->model.adapter.RankOf(request.shard));
        if (TakesAnyRank(adapters)) KeepComponents(*model_, adapters, rank);
      }
      at::manual_seed(request.seed);  // dropout and the like, in user modules
      double initial_loss = 0;
      if (request.spec->strategy.name == "qfedavg") {
        TRIB_ASSIGN_OR_RETURN(const EvaluateResult before, Measure(batches, request.progress));
        initial_loss = before.loss;
      }
      const AutocastScope autocast(device_, UsesBf16(local));
      LocalOutcome outcome;
      const auto run = [&](const Correction& correction) -> absl::Status {
        TRIB_ASSIGN_OR_RETURN(outcome, solver({.model = *model_, .data = batches, .spec = local, .correction = correction, .seed = request.seed,
                                               .progress = request.progress, .repeated = repeated_.get(), .pieces = pieces,
                                               .population = population ? &*population : nullptr}));
        return model_->IsFinite() ? absl::OkStatus() : WeightNotFinite(outcome.steps, local);
      };
      TrainResult result;
      if (rule.plain()) {
        Correction none;
        none.gradient_noise = request.gradient_noise;
        TRIB_RETURN_IF_ERROR(run(none));
        const bool trained = adapters == AdapterMode::kNone && !population;
        if (trained && request.may_stay_on_device && device_.is_cuda()) {
          const at::Tensor delta = model_->Delta();
          result.on_device = KeepOnDevice(delta, model_->BuffersAndCounters(), at::linalg_vector_norm(delta, std::numeric_limits<double>::infinity()).item<double>());
        }
        if (result.on_device == nullptr && !population) result.update = model_->Update();
      } else {
        TRIB_RETURN_IF_ERROR(TrainCorrected(request, rule, run, outcome, &result));
      }
      if (adapters != AdapterMode::kNone) result.update = TravellingPart(model_->layout(), adapters, request.version, std::move(result.update));
      result.examples = batches.count();
      result.weight = static_cast<double>(batches.count());
      result.scalars = StrategyScalars(request.spec->strategy, StepNorm(static_cast<uint64_t>(outcome.steps), local.lr, local.momentum, rule.mu()),
                                       initial_loss);
      if (adapters == AdapterMode::kRoLora) result.scalars[kAdapterPhase] = MovesB(request.version + 1) ? 1 : 0;
      result.metrics["train_loss"] = outcome.train_loss;
      if (population) ReturnFitness(request.spec->dtype, outcome.fitness, &result);
      result.metrics["train_steps"] = static_cast<double>(outcome.steps);
      result.metrics.merge(model_->model().Metrics());
      result.moe = model_->model().Statistics();
      result.metrics["train_s"] = absl::ToDoubleSeconds(absl::Now() - start);
      return result;
    });
  }

  // Recorded steps, the cohort's program and what LibTorch keeps of freed memory go; the model stays.
  void ReleaseMemory() {
    cohorts_.Forget();
    if (repeated_ != nullptr) repeated_ = std::make_unique<RepeatedSteps>(device_);
    if (device_.is_cuda()) TRIB_LOG_IF_ERROR(Guarded("memory", [&]() -> absl::Status {
      c10::getDeviceAllocator(device_.type())->emptyCache();
      return absl::OkStatus();
    }));
  }

  // Loss and accuracy of model_ over `batches`.
  absl::StatusOr<EvaluateResult> Measure(const Batches& batches, const std::function<bool(float)>& progress) {
    const at::NoGradGuard no_grad;
    double loss_sum = 0;
    double correct = 0;
    std::vector<uint32_t> positions;
    for (size_t first = 0; first < batches.count(); first += kEvaluationBatch) {
      const size_t last = std::min(first + kEvaluationBatch, batches.count());
      positions.clear();
      for (size_t i = first; i < last; ++i) positions.push_back(static_cast<uint32_t>(i));
      const Batch batch = batches.At(positions);
      const at::Tensor output = model_->model().Forward(batch.x, /*training=*/false);
      TRIB_ASSIGN_OR_RETURN(const at::Tensor loss, batches.Loss(output, batch));
      loss_sum += loss.item<double>() * static_cast<double>(last - first);
      if (!batches.regression()) correct += batches.Correct(output, batch);
      if (progress && !progress(static_cast<float>(last) / static_cast<float>(batches.count()))) {
        return Cancelled("evaluation: stopped after {} of {} examples", last, batches.count());
      }
    }
    EvaluateResult result;
    result.examples = batches.count();
    result.loss = loss_sum / static_cast<double>(batches.count());
    result.accuracy = batches.regression() ? std::numeric_limits<double>::quiet_NaN()
                                           : correct / static_cast<double>(batches.count());
    return result;
  }

  // Trains by the strategy's rule; the update's groups in place of a plain Δ, buffers and counters after them.
  absl::Status TrainCorrected(const TrainRequest& request, const LocalRule& rule, const std::function<absl::Status(const Correction&)>& run,
                              const LocalOutcome& outcome, TrainResult* result) {
    const TensorLayout& layout = model_->layout();
    const size_t trainable = layout.trainable_count();
    const size_t group_bytes = trainable * DTypeBytes(layout.float_dtype());
    const std::vector<double> x = ToDoubles(model_->trainable());
    LocalTask task{.x = x, .initial = {}, .vectors = {}, .version = request.version, .epoch = request.state_epoch, .state = request.state};
    std::vector<double> initial;
    if (request.initial.size() == layout.total_bytes()) initial = WidenFloats(layout.float_dtype(), request.initial.first(group_bytes));
    task.initial = initial;
    for (const auto& [name, bytes] : request.vectors) {
      if (bytes.size() != group_bytes) return InvalidArgument("task: vector '{}': expected {} bytes, got {}", name, group_bytes, bytes.size());
      task.vectors[name] = WidenFloats(layout.float_dtype(), bytes);
    }
    TRIB_ASSIGN_OR_RETURN(LocalUplink uplink, rule.Solve(task, [&](const LocalPlan& plan) -> absl::StatusOr<LocalOutcomeVectors> {
      {
        const at::NoGradGuard no_grad;
        model_->trainable().copy_(ToTensor(plan.step.y0.empty() ? std::span<const double>(x) : plan.step.y0, *model_));
      }
      Correction correction = ToCorrection(plan, *model_);
      correction.gradient_noise = request.gradient_noise;
      TRIB_RETURN_IF_ERROR(run(correction));
      LocalOutcomeVectors vectors;
      vectors.y = ToDoubles(model_->trainable());
      if (plan.wants_mean_gradient) vectors.mean_gradient = ToDoubles(outcome.mean_gradient);
      return vectors;
    }));
    const LargeBytes rest = model_->BuffersAndCounters();
    result->update.resize(uplink.groups.size() * group_bytes + rest.size());
    const size_t expected = request.update_layout == nullptr ? layout.total_bytes() : request.update_layout->total_bytes();
    const bool whole = AdaptersOf(request.spec->strategy) == AdapterMode::kNone;  // else buffers do not travel
    if (whole && result->update.size() != expected) {
      return Internal("strategy '{}': the update has {} vectors, its layout {} bytes", request.spec->strategy.name, uplink.groups.size(), expected);
    }
    std::span<std::byte> to(result->update);
    for (const std::vector<double>& group : uplink.groups) {
      NarrowFloats(layout.float_dtype(), group, to);
      to = to.subspan(group_bytes);
    }
    if (!rest.empty()) std::memcpy(to.data(), rest.data(), rest.size());
    result->state = std::move(uplink.state);
    return absl::OkStatus();
  }

  // Has model_ be the request's model with the request's values.
  absl::Status Prepare(const TrainRequest& request) {
    at::set_num_threads(threads_);  // OpenMP keeps the number per calling thread, and the learner may be called from another one
    if (request.spec == nullptr || request.layout == nullptr) return InvalidArgument("task: no job specification or no tensor layout");
    const std::string script(request.artifact_path);
    const std::string key = KeyOf(*request.spec, script);
    if (model_ == nullptr || key != key_) {
      cohorts_.Forget();
      repeated_.reset();
      model_.reset();  // two models at once may not fit the device
      const bool adapted = request.spec->model.adapter.enabled();
      TRIB_ASSIGN_OR_RETURN(model_, adapted ? MakeAdapted(*request.spec, script, device_)
                                            : TrainableModel::Create(request.spec->model, request.spec->dtype, script, device_));
      if (device_.is_cuda() && model_->model().repeatable()) repeated_ = std::make_unique<RepeatedSteps>(device_);
      key_ = key;
    }
    TRIB_RETURN_IF_ERROR(CheckModel(request));
    if (device_.is_cuda()) at::globalContext().setDeterministicCuDNN(request.spec->reproducible);
    model_->Load(request.model);
    model_->model().BeginTask();
    return request.moe != nullptr && request.moe->step > 0 ? model_->model().TakeLoad(*request.moe) : absl::OkStatus();
  }

  absl::Status CheckModel(const TrainRequest& request) const {
    TRIB_RETURN_IF_ERROR(CheckLayout(*request.layout, model_->layout()));
    if (request.model.size() == request.layout->total_bytes()) return absl::OkStatus();
    return InvalidArgument("task: expected a model of {} bytes, got {}", request.layout->total_bytes(), request.model.size());
  }

  static absl::Status CheckLayout(const TensorLayout& got, const TensorLayout& ours) {
    if (got == ours) return absl::OkStatus();
    for (const PlacedTensor& tensor : ours.tensors()) {
      const PlacedTensor* other = got.Find(tensor.spec.name);
      if (other == nullptr) return InvalidArgument("task: the model's tensor '{}' is missing from the job's layout", tensor.spec.name);
      if (!(other->spec == tensor.spec)) {
        return InvalidArgument("task: tensor '{}': expected {} {} [{}], the job's layout has {} {} [{}]", tensor.spec.name,
                               DTypeName(tensor.spec.dtype), TensorKindName(tensor.spec.kind),
                               fmt::format("{}", fmt::join(tensor.spec.shape, ", ")), DTypeName(other->spec.dtype),
                               TensorKindName(other->spec.kind), fmt::format("{}", fmt::join(other->spec.shape, ", ")));
      }
    }
    return InvalidArgument("task: the job's layout has {} tensors, the model {}, or they are in another order", got.tensors().size(),
                           ours.tensors().size());
  }

  static std::string KeyOf(const JobSpec& spec, const std::string& script) {
    std::string key = fmt::format("{}|{}|{}", spec.model.zoo, DTypeName(spec.dtype), spec.model.zoo.empty() ? script : "");
    for (const auto& [name, value] : spec.model.params) key += fmt::format("|{}={}", name, value);
    if (spec.model.adapter.enabled()) {
      key += fmt::format("|{}|{}|{}|{}", CanonicalAdapter(spec.model.adapter), AdapterModeName(AdaptersOf(spec.strategy)), spec.seed, script);
    }
    if (!script.empty()) {
      std::error_code error;
      const auto written = std::filesystem::last_write_time(script, error).time_since_epoch().count();
      key += fmt::format("|{}|{}", written, std::filesystem::file_size(script, error));
    }
    return key;
  }

  at::Device device_;
  int threads_;
  size_t cohort_;
  std::optional<c10::Stream> stream_;
  ExampleStore store_;
  const std::unique_ptr<GpuMonitor> monitor_;  // null: there is nothing to read
  std::unique_ptr<TrainableModel> model_;
  std::string key_;
  // Of model_.
  std::unique_ptr<RepeatedSteps> repeated_;  // null: its steps are not to be recorded
  CohortTrainer cohorts_;
  std::string said_;  // what was in the way of a cohort, and said
};

}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> MakeTorchLearner(const TorchLearnerOptions& options) {
  return Guarded("LibTorch", [&]() -> absl::StatusOr<std::unique_ptr<Learner>> {
    if (options.threads < 0 || options.threads > 1024) return InvalidArgument("threads: expected 0 to 1024, got {}", options.threads);
    TRIB_ASSIGN_OR_RETURN(const at::Device device, PickDevice(options.device));
    const int threads = options.threads > 0 ? options.threads : UsableCores();
    at::set_num_threads(threads);
    PrepareHostMemory(device);
    return std::make_unique<TorchLearner>(device, options, threads);
  });
}

absl::StatusOr<FlatModel> InitialModel(const JobSpec& spec) {
  return Guarded("initial model", [&]() -> absl::StatusOr<FlatModel> {
    const bool adapted = spec.model.adapter.enabled();
    const at::Device cpu(at::kCPU);
    const std::string& path = spec.model.artifact_path();
    TRIB_ASSIGN_OR_RETURN(const auto model, adapted ? MakeAdapted(spec, path, cpu) : TrainableModel::Create(spec.model, spec.dtype, path, cpu));
    FlatModel result;
    result.layout = model->layout();
    result.bytes = model->Initialise(adapted ? AdapterSeed(spec.seed) : static_cast<uint64_t>(spec.seed));
    if (spec.model.init.empty()) return result;
    TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(spec.model.init));
    auto flat = adapted ? AdaptersFrom(file.view(), result.layout, std::move(result.bytes)) : ToFlat(file.view(), result.layout);
    if (!flat.ok()) return Annotate(flat.status(), spec.model.init);
    result.bytes = *std::move(flat);
    return result;
  });
}

}  // namespace tributary::client
