#include "aggregator/core/job_check.h"

#include "aggregator/core/adapters.h"
#include "aggregator/core/aggregate.h"
#include "aggregator/core/moe_state.h"
#include "common/eggroll_spec.h"
#include "common/moe_spec.h"
#include "common/update_codec.h"

namespace tributary::aggregator {
namespace {

// Whoever reads updates other than by the fold reads them as they are.
absl::Status CheckCodec(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model) {
  TRIB_ASSIGN_OR_RETURN(const TensorLayout update, strategy.UpdateLayout(model));
  const bool as_they_are = strategy.whole_reducer() != nullptr || !strategy.norm_scalar().empty() || strategy.update_groups() != std::vector<std::string>{""};
  if (as_they_are && spec.Encoding(update).codec != Codec::kPlain) {
    return InvalidArgument("codec: strategy '{}' needs its updates as they are: expected f32, got {}", spec.strategy.name, spec.codec);
  }
  return absl::OkStatus();
}

absl::Status CheckValues(const JobSpec& spec, const Strategy& strategy) {
  if (!strategy.sends_values()) return absl::OkStatus();
  const std::string& name = spec.strategy.name;
  if (spec.privacy.enabled) {
    return InvalidArgument("privacy: with strategy '{}' an update is a model, not a difference: clipping it would pull the model to 0, and its dual variable is not "
                           "covered", name);
  }
  if (spec.codec == "topk") {
    return InvalidArgument("codec: with strategy '{}' an update is a model, not a difference: what topk leaves out would be 0; expected another codec, got topk", name);
  }
  if (spec.local.momentum != 0) {
    return InvalidArgument("local.momentum: strategy '{}' has its own correction of the steps; expected 0, got {}", name, spec.local.momentum);
  }
  return absl::OkStatus();
}

// AdamW's steps are no multiples of gradients: rules that take a client's change for a sum of those do not go with it. (The momentum family wants sgd by itself.)
absl::Status CheckSolver(const JobSpec& spec, const Strategy& strategy) {
  if (spec.local.solver != "adamw") return absl::OkStatus();
  for (const ScalarInfo& scalar : strategy.scalars()) {
    if (scalar.name != kStepNorm && scalar.name != kInitialLoss) continue;
    return InvalidArgument("local.solver: strategy '{}' takes an update for steps of gradients; expected sgd, got adamw", spec.strategy.name);
  }
  if (!strategy.sends_values()) return absl::OkStatus();
  return InvalidArgument("local.solver: strategy '{}' has its own correction of the steps; expected sgd, got adamw", spec.strategy.name);
}

// Between who makes fitness values and who understands them, and what a model must be whose clients send nothing else.
absl::Status CheckFitness(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model) {
  const std::string& name = spec.strategy.name;
  if (strategy.updates_are_of_model()) {
    if (spec.local.solver != kEggrollSolver) return absl::OkStatus();
    return InvalidArgument("local.solver: {} returns fitness values, and strategy '{}' takes changes of the model; expected strategy eggroll, or another solver",
                           kEggrollSolver, name);
  }
  if (!FindExperts(model).layers.empty()) {
    return InvalidArgument("model: with strategy '{}' clients do not count what their experts serve, so that nothing balances them; expected a model without experts", name);
  }
  for (const PlacedTensor& tensor : model.tensors()) {
    if (tensor.spec.kind == TensorKind::kTrainable) continue;
    return InvalidArgument("model: tensor '{}' is of kind {}, and with strategy '{}' clients send nothing of it; expected trainable tensors only (group norm in place of "
                           "batch norm)", tensor.spec.name, TensorKindName(tensor.spec.kind), name);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckJob(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model) {
  if (spec.cohort.poisson && spec.cohort.population == 0) {
    return InvalidArgument("cohort.sampling: poisson needs the number of clients that each version is drawn among: cohort.population");
  }
  TRIB_RETURN_IF_ERROR(CheckAdapters(spec, strategy, model));
  TRIB_RETURN_IF_ERROR(MoeState::Create(spec, strategy, model).status());
  TRIB_RETURN_IF_ERROR(strategy.CheckJob(spec));
  TRIB_RETURN_IF_ERROR(CheckFitness(spec, strategy, model));
  TRIB_RETURN_IF_ERROR(CheckValues(spec, strategy));
  TRIB_RETURN_IF_ERROR(CheckSolver(spec, strategy));
  return CheckCodec(spec, strategy, model);
}

}  // namespace tributary::aggregator
