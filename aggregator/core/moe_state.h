// What the root makes of the clients' statistics of a mixture of experts (common/moe_stats.h), version by version:
//   the load of all, f̄ ← ema·f̄ + (1 − ema)·Σc/Σ(pairs) a layer, for balance losses over all clients (arXiv 2501.11873, one version stale);
//   one step of the server's biases, by counts or by margins (common/expert_bias.h, expert_quantile.h), written into the model;
//   with `strategy.expert_weights: tokens` the weight of each contributor in each expert: its weight w in the fold times r = E·c/Σc, its share
//     of its own pairs there, so that an even load weighs like everything else. Expert e becomes W_e + step of (Σ w·r·Δ / Σ w·r), and stays where
//     nobody's token went to it. (Own; moe_lora.md §4, whose n is E·c up to the update's size.)
//   what is measured: MaxVio of all loads and of single clients, specialisation I(client; expert)/ln(clients), effective experts, and the
//     balance loss E·Σ f·P that the loads of all amount to.
// Sums of integers, and of doubles in the order of the contributors' keys: order of arrival and shape of trees change no bit.
// Pure. Threads: immutable. Errors: INVALID_ARGUMENT with the job's key, or the update's layer, expected and got.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "aggregator/core/contribution.h"
#include "aggregator/core/group_weights.h"
#include "aggregator/core/strategy.h"
#include "common/job_spec.h"
#include "common/moe_spec.h"
#include "common/moe_stats.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

class MoeState {
 public:
  // Null: the model has no experts, and the job wants nothing of them. Refuses what does not go together.
  static absl::StatusOr<std::unique_ptr<const MoeState>> Create(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model);

  // Of an update, or of a contributor that a node vouches for: sizes of the job's model, no more pairs than top-k gives, none from a private
  // job, some where the job needs them; margins where its router counts them, and there only.
  absl::Status CheckStats(const MoeStats& stats) const;
  // Of statistics that have passed: the update's weights by elements; empty if all are its own.
  WeightRuns RunsOf(const MoeStats& stats) const;
  // What the sums of a commit are multiplied by before they are divided like the others: Σw / Σw·r, 0 where nobody has any.
  WeightRuns ScalesOf(std::span<const RoundContributor> contributors, double sum_weight) const;
  // How many runs an update has at most.
  size_t run_count() const { return weighted_ ? places_.runs.size() + 1 : 0; }

  GlobalMoe Next(const GlobalMoe& before, std::span<const RoundContributor> contributors) const;
  // In `model`, of version `step` that counted tokens. DATA_LOSS naming the layer: a bias is not finite.
  absl::Status MoveBiases(uint64_t step, std::span<const RoundContributor> contributors, std::span<std::byte> model) const;
  // "moe.max_vio", …, and of each of several layers "moe.layers.<l>.max_vio", …; nothing where no statistics came.
  void Measure(std::span<const RoundContributor> contributors, std::map<std::string, double>* measured) const;

 private:
  absl::Status CheckMargins(size_t l, const MoeLayerStats& layer) const;
  MoeState(MoeSpec spec, MoePlaces places, const TensorLayout& model) : spec_(std::move(spec)), places_(std::move(places)), model_(model) {}

  const MoeSpec spec_;
  const MoePlaces places_;
  const TensorLayout model_;
  bool sends_ = true;
  bool weighted_ = false;
  std::string needed_by_;  // the key for which every update must have statistics; "": none
};

}  // namespace tributary::aggregator
