#include "client/core/eggroll_fitness.h"

#include <algorithm>
#include <cmath>

#include "client/core/widen.h"

namespace tributary::client {

absl::StatusOr<EggrollPopulation> EggrollPopulation::Of(const TrainRequest& request) {
  const TensorLayout* update = request.update_layout;
  const bool fitness = update != nullptr && update->tensors().size() == 1 && update->Find(kEggrollFitness) != nullptr &&
                       update->trainable_count() >= 2 && update->trainable_count() % 2 == 0 && update->trainable_count() <= EggrollSpec::kMaxPopulation;
  if (!fitness) {
    return InvalidArgument("local.solver: {} returns the fitness of an even number of members, and the job's updates are laid out otherwise; expected strategy eggroll, got {}",
                           kEggrollSolver, request.spec->strategy.name);
  }
  TRIB_ASSIGN_OR_RETURN(const EggrollSpec spec, EggrollSpec::Of(request.spec->strategy));
  return EggrollPopulation{.tensors = EggrollTensors(*request.layout, spec.rank),
                           .elements = request.layout->trainable_count(),
                           .noise_seed = request.noise_seed,
                           .members = update->trainable_count(),
                           .scale = spec.sigma / std::sqrt(static_cast<double>(spec.rank))};
}

absl::StatusOr<std::vector<double>> EggrollPopulation::Fitness(size_t at_once, const Losses& losses, const std::function<bool(float)>& progress) const {
  std::vector<double> fitness;
  fitness.reserve(members);
  while (fitness.size() < members) {
    TRIB_ASSIGN_OR_RETURN(const std::vector<double> values, losses(fitness.size(), std::min(at_once, members - fitness.size())));
    for (const double value : values) {
      if (!std::isfinite(value)) return Internal("eggroll: the loss of member {} of {} is {}: lower strategy.sigma or strategy.lr", fitness.size(), members, value);
      fitness.push_back(-value);
    }
    const size_t done = fitness.size();
    if (progress && !progress(static_cast<float>(done) / static_cast<float>(members))) return Cancelled("eggroll: stopped after member {} of {}", done, members);
  }
  return fitness;
}

std::span<const float> PairNoise::Of(uint32_t pair) {
  noise_.resize(population_.elements);
  if (pair_ != pair) EggrollNoise(population_.tensors, population_.noise_seed, pair, noise_);
  pair_ = pair;
  return noise_;
}

FitnessReplay::FitnessReplay(const EggrollSpec& spec, int64_t clients, const TensorLayout& model)
    : spec_(spec), clients_(clients), tensors_(EggrollTensors(model, spec.rank)), elements_(model.trainable_count()), dtype_(model.float_dtype()) {}

absl::StatusOr<FitnessReplay> FitnessReplay::Of(const JobSpec& job, const TensorLayout& model, size_t log_bytes) {
  TRIB_ASSIGN_OR_RETURN(const EggrollSpec spec, EggrollSpec::Of(job.strategy));
  const size_t expected = EggrollLogBytes(job.cohort.size, spec.population);
  if (log_bytes != expected || model.total_bytes() != model.trainable_count() * DTypeBytes(model.float_dtype())) {
    return InvalidArgument("fitness logs of {} bytes: expected {}, of {} clients with {} members, and a model of nothing but trainable elements", log_bytes, expected,
                           job.cohort.size, spec.population);
  }
  return FitnessReplay(spec, job.cohort.size, model);
}

absl::Status FitnessReplay::Apply(std::span<const std::byte> log, std::span<std::byte> model) const {
  TRIB_ASSIGN_OR_RETURN(const std::vector<EggrollPart> parts, ParseEggrollLog(log, clients_, spec_.population));
  if (parts.empty()) return absl::OkStatus();
  const std::vector<int64_t> totals = EggrollTotals(tensors_, parts, elements_);
  std::vector<double> weights = WidenFloats(dtype_, model);
  const EggrollSgd step(spec_, dtype_);
  for (size_t i = 0; i < elements_; ++i) weights[i] = step(weights[i], static_cast<double>(totals[i]));
  NarrowFloats(dtype_, weights, model);
  return absl::OkStatus();
}

void ReturnFitness(DType dtype, std::span<const double> fitness, TrainResult* result) {
  result->update.resize(fitness.size() * DTypeBytes(dtype));
  NarrowFloats(dtype, fitness, result->update);
  double sum = 0;
  for (const double f : fitness) sum -= f;
  result->metrics["train_loss"] = sum / static_cast<double>(fitness.size());
}

}  // namespace tributary::client
