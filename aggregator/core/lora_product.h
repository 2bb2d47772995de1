// What clients' low-rank adapters are together: Σ p_k·B_k·A_k of each adapted layer, and what a new model makes of it. Where updates are
// averaged factor by factor that is another matrix; the difference is the error of the aggregation.
//
// A layer's whole adapter is residual + B·A (fedsb: residual + B·R·A; triplets: residual + B·diag(e)·A), in units of α/r. The sum is kept as stacked factors, b = [p_1·B_1 … p_C·B_C],
// a = [A_1; …; A_C], of (out + in)·C·r numbers; the dense product is made only where a dense residual takes it.
// Sources: FedEx-LoRA (Singhal et al., ACL 2025), FLoRA (Wang et al., NeurIPS 2024), FlexLoRA (Bai et al., NeurIPS 2024); moe_lora.md §5.2.
// Threads: pure. Errors: none, layouts are checked by FindAdapters.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "aggregator/core/linalg.h"
#include "common/adapter_layout.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

// The model before, and the updates of one version, in AdapterUpdateLayout of it.
struct AdapterRound {
  AdapterMode mode = AdapterMode::kNone;
  const TensorLayout* model = nullptr;
  std::span<const AdapterPair> pairs;
  std::span<const std::byte> previous;
  struct Update {
    double share = 0;  // p_k, of sum 1
    std::span<const std::byte> flat;
  };
  std::vector<Update> updates;
  bool moves_b = true;  // rolora
};

// B·A of `flat`, a model; fedsb: (B·R)·A; triplets: (B·diag(e))·A.
LowRank FactorsOf(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> flat);
// Σ p_k·B_k·A_k, stacked in the order of the updates.
LowRank StackedSum(const AdapterRound& round, const AdapterPair& pair);
// The residual of `flat`, a model. Row-major.
std::vector<double> ResidualValues(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> flat);
// residual + Σ p_k·B_k·A_k − B·A of `next`: what is to be added to the layer's weight so that nothing of the sum is lost. Row-major.
std::vector<double> ResidualOf(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> next);

struct AdapterError {
  std::string layer;
  double error = 0;  // ‖(adapter of the new model) − residual − Σ p_k·B_k·A_k‖_F
  double norm = 0;   // ‖Σ p_k·B_k·A_k‖_F
};
// Of each layer, from the new model as it is stored.
std::vector<AdapterError> AdapterErrors(const AdapterRound& round, std::span<const std::byte> next);
// Over all layers, relative to the norm of all; 0 where that is 0.
double RelativeError(std::span<const AdapterError> errors);

}  // namespace tributary::aggregator
