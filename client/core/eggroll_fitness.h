// What a client of strategy `eggroll` returns: the fitness, −loss, of each of its members, by forward passes at W + s·(σ/√r)·Σ_k A_k·B_kᵀ (eggroll_spec.h). All members
// see the same examples. Which arithmetic the loss is computed in is the learner's; what the server makes of fitness depends on nothing else.
// FitnessReplay is the way back: what all clients' fitness makes of the model, as the server makes it.
// Threads: values. Errors: INVALID_ARGUMENT for a job or an update layout that is none of eggroll's; INTERNAL for a loss that is not finite; CANCELLED.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "client/core/learner.h"
#include "common/eggroll_spec.h"
#include "common/large_bytes.h"
#include "common/status.h"

namespace tributary::client {

struct EggrollPopulation {
  std::vector<EggrollTensor> tensors;
  size_t elements = 0;      // trainable ones of the model
  uint64_t noise_seed = 0;
  size_t members = 0;       // of this client, an even number
  double scale = 0;         // σ/√r

  static absl::StatusOr<EggrollPopulation> Of(const TrainRequest& request);

  // Member i has the noise of pair i / 2, times this.
  static uint32_t PairOf(size_t member) { return static_cast<uint32_t>(member / 2); }
  double ScaleOf(size_t member) const { return member % 2 == 0 ? scale : -scale; }

  // The losses of members first … first + count − 1 at the model's weights + scale·noise; count is `at_once`, at the end less.
  using Losses = std::function<absl::StatusOr<std::vector<double>>(size_t first, size_t count)>;
  absl::StatusOr<std::vector<double>> Fitness(size_t at_once, const Losses& losses, const std::function<bool(float)>& progress) const;
};

// One pair's noise at a time, over all trainable elements, in memory. Borrows the population.
class PairNoise {
 public:
  explicit PairNoise(const EggrollPopulation& population) : population_(population) {}
  // Valid until another pair is asked for.
  std::span<const float> Of(uint32_t pair);

 private:
  const EggrollPopulation& population_;
  std::vector<float> noise_;
  std::optional<uint32_t> pair_;
};

// Makes a version of the one before it, from that version's log (eggroll_spec.h).
class FitnessReplay {
 public:
  // `log_bytes`: as the server says (JobInfo.fitness_bytes).
  static absl::StatusOr<FitnessReplay> Of(const JobSpec& job, const TensorLayout& model, size_t log_bytes);
  size_t log_bytes() const { return EggrollLogBytes(clients_, spec_.population); }
  // `model`: the flat form, the version before when it comes and the next one when it goes. DATA_LOSS: no log.
  absl::Status Apply(std::span<const std::byte> log, std::span<std::byte> model) const;

 private:
  FitnessReplay(const EggrollSpec& spec, int64_t clients, const TensorLayout& model);
  EggrollSpec spec_;
  int64_t clients_;
  std::vector<EggrollTensor> tensors_;
  size_t elements_;  // trainable ones
  DType dtype_;
};

// The update that carries it, in the job's type, and the mean loss as a metric.
void ReturnFitness(DType dtype, std::span<const double> fitness, TrainResult* result);

}  // namespace tributary::client
