#include "client/core/analytic_learner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "client/core/batch_order.h"
#include "client/core/eggroll_fitness.h"
#include "client/core/random.h"
#include "client/core/widen.h"

namespace tributary::client {
namespace {

constexpr size_t kMaxCached = 20'000;  // factors of one job's clients
constexpr uint64_t kNoiseStream = 0x6e6f697365;

absl::Status CheckModel(const TrainRequest& request, const AnalyticProblem& problem) {
  if (request.layout->trainable_count() != problem.dimension() || request.layout->total_bytes() != request.layout->float_bytes() ||
      request.model.size() != request.layout->total_bytes()) {
    return InvalidArgument("task: the client's data are of a model with {} elements, the job's model has {}", problem.dimension(),
                           request.layout->float_count() + request.layout->counter_count());
  }
  return absl::OkStatus();
}

class Router final : public Learner {
 public:
  Router(std::unique_ptr<Learner> other, absl::Status why) : other_(std::move(other)), why_(std::move(why)) {}
  std::string device() const override { return other_ != nullptr ? other_->device() : analytic_.device(); }
  std::optional<DeviceUsage> usage() const override { return other_ != nullptr ? other_->usage() : std::nullopt; }
  absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset* data) override {
    TRIB_ASSIGN_OR_RETURN(Learner * learner, For(request));
    return learner->Train(request, data);
  }
  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest& request, const Dataset* data) override {
    TRIB_ASSIGN_OR_RETURN(Learner * learner, For(request));
    return learner->Evaluate(request, data);
  }
  size_t cohort_size() const override { return other_ != nullptr ? other_->cohort_size() : 1; }
  std::vector<absl::StatusOr<TrainResult>> TrainCohort(std::span<const CohortMember> members) override {
    if (members.empty() || other_ == nullptr || IsAnalytic(*members[0].request.spec)) return Learner::TrainCohort(members);
    return other_->TrainCohort(members);
  }

 private:
  absl::StatusOr<Learner*> For(const TrainRequest& request) {
    if (IsAnalytic(*request.spec)) return &analytic_;
    if (other_ == nullptr) return why_;
    return other_.get();
  }
  AnalyticLearner analytic_;
  const std::unique_ptr<Learner> other_;
  const absl::Status why_;
};

}  // namespace

absl::StatusOr<uint64_t> AnalyticLearner::RunSgd(const TrainRequest& request, const LocalSpec& local, const AnalyticProblem& problem,
                                                 const LocalPlan& plan, LocalOutcomeVectors* outcome) {
  const size_t d = problem.dimension();
  const LocalStep& step = plan.step;
  std::optional<BatchOrder> order;
  if (problem.minibatch_rows() > 0) order.emplace(problem.minibatch_rows(), static_cast<size_t>(local.batch), request.seed);
  const uint64_t per_epoch = order ? order->batches_per_epoch() : 1;
  uint64_t steps = local.steps > 0 ? static_cast<uint64_t>(local.steps) : static_cast<uint64_t>(local.epochs) * per_epoch;
  if (plan.gradient_only) steps = 1;
  std::vector<double>& y = outcome->y;
  gradient_.resize(d);
  velocity_.assign(local.momentum != 0 ? d : 0, 0.0);
  if (plan.wants_mean_gradient) outcome->mean_gradient.assign(d, 0.0);
  CounterRandom noise(request.seed, kNoiseStream);
  for (uint64_t k = 0; k < steps; ++k) {
    const std::span<const uint32_t> rows = order ? order->At(k) : std::span<const uint32_t>();
    problem.Gradient(y, rows, gradient_);
    if (step.b != 0) {
      before_.resize(d);
      problem.Gradient(step.before, rows, before_);
    }
    for (size_t i = 0; i < d; ++i) {
      const double drawn = request.gradient_noise > 0 ? request.gradient_noise * noise.Normal() : 0;  // one draw for both gradients
      const double fresh = gradient_[i] + drawn;
      if (plan.wants_mean_gradient) outcome->mean_gradient[i] += fresh / static_cast<double>(steps);
      if (plan.gradient_only) continue;
      double direction = step.a * fresh;
      if (step.b != 0) direction += step.b * (before_[i] + drawn);
      if (step.mu != 0) direction += step.mu * (y[i] - step.s[i]);
      if (!step.v.empty()) direction += step.v[i];
      if (local.weight_decay != 0) direction += local.weight_decay * y[i];
      if (local.momentum != 0) direction = velocity_[i] = local.momentum * velocity_[i] + direction;
      y[i] -= local.lr * direction;
    }
    if (request.progress && !request.progress(static_cast<float>(k + 1) / static_cast<float>(steps))) {
      return Cancelled("sgd: stopped after step {} of {}", k + 1, steps);
    }
  }
  for (const double value : y) {
    if (!std::isfinite(value)) return Internal("sgd: a weight is not finite after {} steps (lr {}): lower local.lr", steps, local.lr);
  }
  return steps;
}

absl::StatusOr<LocalOutcomeVectors> AnalyticLearner::RunPlan(const TrainRequest& request, const LocalSpec& local,
                                                             const std::shared_ptr<const AnalyticProblem>& problem, const LocalPlan& plan,
                                                             uint64_t* steps) {
  LocalOutcomeVectors outcome;
  outcome.y = plan.step.y0.empty() ? x_ : std::vector<double>(plan.step.y0.begin(), plan.step.y0.end());
  if (local.solver != "exact") {
    TRIB_ASSIGN_OR_RETURN(*steps, RunSgd(request, local, *problem, plan, &outcome));
    return outcome;
  }
  if (exact_.size() >= kMaxCached && !exact_.contains(problem.get())) exact_.clear();
  Cached& cached = exact_[problem.get()];
  cached.problem = problem;
  TRIB_RETURN_IF_ERROR(problem->Minimise({.v = plan.step.v, .mu = plan.step.mu, .s = plan.step.s}, &cached.exact, outcome.y));
  *steps = 1;
  return outcome;
}

absl::StatusOr<TrainResult> AnalyticLearner::Train(const TrainRequest& request, const Dataset* data) {
  if (data == nullptr || data->problems.size() != 1) {
    return InvalidArgument("data: expected the problem of one client, got {}", data == nullptr ? 0 : data->problems.size());
  }
  const std::shared_ptr<const AnalyticProblem>& problem = data->problems[0];
  TRIB_RETURN_IF_ERROR(CheckModel(request, *problem));
  TRIB_ASSIGN_OR_RETURN(const LocalSpec local, request.spec->local.Of(request.shard));
  if (local.solver == kEggrollSolver) return TrainPopulation(request, *problem);
  if (local.solver != "sgd" && local.solver != "exact") return InvalidArgument("local.solver: {} is for models of LibTorch; expected sgd or exact for this one", local.solver);
  TRIB_ASSIGN_OR_RETURN(const LocalRule rule, LocalRule::Make(request.spec->strategy, request.spec->local, request.shard));
  const DType dtype = request.spec->dtype;
  const size_t d = problem->dimension();
  x_ = WidenFloats(dtype, request.model);
  LocalTask task{.x = x_, .initial = {}, .vectors = {}, .version = request.version, .epoch = request.state_epoch, .state = request.state};
  const std::vector<double> initial = WidenFloats(dtype, request.initial);
  task.initial = initial;
  for (const auto& [name, bytes] : request.vectors) {
    if (bytes.size() != d * DTypeBytes(dtype)) return InvalidArgument("task: vector '{}': expected {} bytes, got {}", name, d * DTypeBytes(dtype), bytes.size());
    task.vectors[name] = WidenFloats(dtype, bytes);
  }
  uint64_t steps = 0;
  TRIB_ASSIGN_OR_RETURN(LocalUplink uplink,
                        rule.Solve(task, [&](const LocalPlan& plan) { return RunPlan(request, local, problem, plan, &steps); }));
  TrainResult result;
  const size_t group_bytes = d * DTypeBytes(dtype);
  const TensorLayout& update_layout = request.update_layout == nullptr ? *request.layout : *request.update_layout;
  result.update.resize(update_layout.total_bytes());
  if (result.update.size() != uplink.groups.size() * group_bytes) {
    return Internal("strategy '{}': the update has {} vectors, its layout {} bytes", request.spec->strategy.name, uplink.groups.size(), result.update.size());
  }
  for (size_t k = 0; k < uplink.groups.size(); ++k) NarrowFloats(dtype, uplink.groups[k], std::span(result.update).subspan(k * group_bytes, group_bytes));
  result.state = std::move(uplink.state);
  result.weight = problem->weight();
  result.examples = std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(problem->weight())));
  const double initial_loss = problem->Loss(x_);
  result.metrics["train_steps"] = static_cast<double>(steps);
  result.metrics["train_loss"] = initial_loss;
  result.scalars = StrategyScalars(request.spec->strategy, StepNorm(steps, local.lr, local.momentum, rule.mu()), initial_loss);
  return result;
}

absl::StatusOr<TrainResult> AnalyticLearner::TrainPopulation(const TrainRequest& request, const AnalyticProblem& problem) {
  TRIB_ASSIGN_OR_RETURN(const EggrollPopulation population, EggrollPopulation::Of(request));
  x_ = WidenFloats(request.spec->dtype, request.model);
  std::vector<double> w(x_.size());
  PairNoise pairs(population);
  const auto loss = [&](size_t member, size_t) -> absl::StatusOr<std::vector<double>> {
    const std::span<const float> noise = pairs.Of(EggrollPopulation::PairOf(member));
    const double scale = population.ScaleOf(member);
    for (size_t i = 0; i < w.size(); ++i) w[i] = x_[i] + scale * static_cast<double>(noise[i]);
    return std::vector<double>{problem.Loss(w)};
  };
  TRIB_ASSIGN_OR_RETURN(const std::vector<double> fitness, population.Fitness(/*at_once=*/1, loss, request.progress));
  TrainResult result;
  result.weight = problem.weight();
  result.examples = std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(problem.weight())));
  ReturnFitness(request.spec->dtype, fitness, &result);
  return result;
}

absl::StatusOr<EvaluateResult> AnalyticLearner::Evaluate(const TrainRequest& request, const Dataset* data) {
  if (data == nullptr || data->problems.empty()) return InvalidArgument("data: no problem to evaluate");
  EvaluateResult result;
  double weights = 0;
  double examples = 0;
  for (const auto& problem : data->problems) {
    TRIB_RETURN_IF_ERROR(CheckModel(request, *problem));
    x_ = WidenFloats(request.spec->dtype, request.model);
    const double weight = problem->loss_is_sum() ? 1.0 : problem->weight();
    weights += weight;
    examples += problem->weight();
    result.loss += weight * problem->Loss(x_);
    result.accuracy += problem->weight() * problem->Accuracy(x_);
  }
  result.loss /= weights;
  result.accuracy /= examples;
  result.examples = std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(examples)));
  return result;
}

std::unique_ptr<Learner> WithAnalyticModels(std::unique_ptr<Learner> other, absl::Status why) {
  return std::make_unique<Router>(std::move(other), std::move(why));
}

absl::StatusOr<FlatModel> AnalyticInitialModel(DType dtype, std::span<const std::shared_ptr<const AnalyticProblem>> problems) {
  if (problems.empty()) return InvalidArgument("initial model: there is no client's problem to take its shape from");
  std::vector<TensorSpec> specs;
  for (auto& [name, shape] : problems[0]->tensors()) specs.push_back({.name = name, .shape = shape, .dtype = dtype, .kind = TensorKind::kTrainable});
  FlatModel model;
  TRIB_ASSIGN_OR_RETURN(model.layout, TensorLayout::Create(std::move(specs)));
  model.bytes.resize(model.layout.total_bytes());
  for (const auto& problem : problems) {
    if (problem->init().empty()) continue;
    NarrowFloats(dtype, problem->init(), model.bytes);
    break;
  }
  return model;
}

}  // namespace tributary::client
