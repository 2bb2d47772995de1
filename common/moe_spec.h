// A job's mixture of experts, as far as both sides must agree on it: where the experts' tensors lie in the model's layout, which numbers of
// the clients the server needs, and what it makes of them.
//
// Tensors "<layer>.experts.<e>.…" with e from 0 to E − 1, E >= 2, are the experts of one layer; layers count in the order of the layout. A
// tensor "<layer>.gate.e_score_correction_bias" of kind server_owned is the layer's bias.
// Threads: values and pure functions. Errors: INVALID_ARGUMENT naming the key of the job, expected and got.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/expert_bias.h"
#include "common/expert_quantile.h"
#include "common/job_spec.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary {

inline constexpr int64_t kDefaultTopK = 2;  // of the zoo's mixtures: model.params.top_k
#define TRIB_MOE_AUX_DEFAULTS "aux.lbl=0,aux.lbl_scope=local,aux.lbl_local_fraction=0.01,aux.lbl_ema=0.9,aux.z=0.001"

struct MoeLayerPlace {
  std::string name;            // what its tensors' names begin with
  size_t experts = 0;
  std::optional<size_t> bias;  // its first element among the floats, where the server owns one
};

// Float elements from the end of the run before to `end`: of one expert, or of none.
struct ExpertRun {
  size_t end = 0;
  std::optional<size_t> layer;
  size_t expert = 0;
};

struct MoePlaces {
  std::vector<MoeLayerPlace> layers;
  std::vector<ExpertRun> runs;  // ascending, up to the layout's trainable_count(); empty without layers
};
MoePlaces FindExperts(const TensorLayout& layout);

// What a job's model asks of the server.
struct MoeSpec {
  int64_t top_k = kDefaultTopK;  // 0: a token may have any number of experts
  bool global_load = false;      // clients get the load of all
  double load_ema = 0.9;         // f̄ ← ema·f̄ + (1 − ema)·f
  std::optional<ExpertBiasRule> bias;  // biases are the server's, which moves them by this rule
  std::optional<ExpertQuantileRule> quantile;  // or by this, for which clients count margins

  static absl::StatusOr<MoeSpec> Of(const ModelSpec& model);
};

// Counts of margins in an update, of all layers: so many that a message and a client's outbox have room for them.
inline constexpr size_t kMaxMargins = size_t{1} << 18;

// Whether clients of the job say how their experts were loaded: under `privacy` they do not.
inline bool SendsMoeStats(const JobSpec& spec) { return !spec.privacy.enabled; }

}  // namespace tributary
