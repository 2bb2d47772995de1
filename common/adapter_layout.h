// The tensors of low-rank adapters (LoRA: Hu et al., ICLR 2022): beside a frozen layer stands (α/r)·B·A, A [r, in], B [out, r].
//
// Only the adapters are a job's model: they are broadcast, trained and uploaded. Tensors have PEFT's names, so that an exported file is one
// that it loads:
//   base_model.model.<layer>.lora_A.weight [r, in] · .lora_B.weight [out, r] · .lora_R.weight [r, r] (fedsb) ·
//   .base_layer.residual [out, in] (flora, fedex): what B·A of earlier versions left to the layer's weight, in units of α/r
// Which of them train follows from the mode; the others are buffers that the server alone changes: they go down and never up.
//
// AdaLoRA (Zhang et al., ICLR 2023) has triplets in their place, B·diag(E)·A, with names of its own in PEFT too:
//   .lora_A [r, in] · .lora_E [r, 1] · .lora_B [out, r] · .lora_importance [r] · .lora_mask [r] · .base_layer.residual (fedex)
// Importance S of a client's triplets travels as a trainable tensor does, as a difference, so that the version has the clients' weighted mean of it. The mask,
// a buffer, is 0 where a triplet is out for good.
//
// Threads: pure functions. Errors: INVALID_ARGUMENT with the tensor, what was expected and what came.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary {

enum class AdapterMode { kNone, kFedIt, kFfa, kRoLora, kFlora, kFlexLora, kFedEx, kFedSb };
std::string_view AdapterModeName(AdapterMode mode);   // "none", "fedit", …
std::string AdapterModeNames();                       // "none|fedit|…"
absl::StatusOr<AdapterMode> AdapterModeOf(std::string_view name);

bool NeedsResidual(AdapterMode mode);
bool TakesAnyRank(AdapterMode mode);  // clients may train fewer of the components

// One adapted layer in a layout; positions are elements of the float region.
struct AdapterPair {
  std::string layer;
  size_t in = 0, out = 0, rank = 0;
  size_t a = 0, b = 0;
  size_t r = 0;                           // fedsb
  size_t residual = 0;                    // flora, fedex
  bool triplets = false;                  // B·diag(E)·A: then these too
  size_t e = 0, importance = 0, mask = 0;
};

struct AdapterShape {
  std::string layer;
  int64_t in = 0, out = 0, rank = 0;
  bool triplets = false;
};
enum class AdapterPart { kA, kB, kR, kE, kImportance, kMask, kResidual };
struct AdapterTensor {
  AdapterPart part = AdapterPart::kA;
  TensorSpec spec;
};
// The tensors of one adapted layer in this mode, in the order of a layout.
std::vector<AdapterTensor> AdapterTensors(AdapterMode mode, const AdapterShape& shape, DType dtype);
// Whether a file of adapters has to have it. Residual, importance and mask begin like a fresh adapter's where it has not.
bool NeededInFiles(const TensorSpec& spec);
// The layers whose lora_A.weight and lora_B.weight a file has. INVALID_ARGUMENT: one without the other.
absl::StatusOr<std::vector<AdapterShape>> AdapterShapes(const TensorLayout& file);
// INVALID_ARGUMENT: a tensor that is none of an adapter's, is missing, or has another shape or kind than the mode wants.
absl::StatusOr<std::vector<AdapterPair>> FindAdapters(AdapterMode mode, const TensorLayout& model);

// Layout of an update of such a model: its trainable tensors. Under rolora one half of them travels, B with odd versions and A with even ones, in a
// tensor <layer>.lora_live with room for the larger of the two (rest: 0).
absl::StatusOr<TensorLayout> AdapterUpdateLayout(AdapterMode mode, const TensorLayout& model);
// rolora: whether version `version`, the one being made, moves B (else A).
inline bool MovesB(uint64_t version) { return version % 2 == 1; }
// The number that a rolora update carries: 1 if it is the change of B, 0 if of A.
inline constexpr char kAdapterPhase[] = "phase";
// From Δ of all trainable elements to the half that travels; the other half is dropped. `flat`: a float region in the model's layout.
std::vector<std::byte> PackLive(const TensorLayout& model, std::span<const AdapterPair> pairs, bool moves_b, std::span<const std::byte> flat);
// Element of the trainable region that element `i` of layer `pair`'s live tensor stands for; past the live half: none.
inline size_t LiveCount(const AdapterPair& pair, bool moves_b) { return pair.rank * (moves_b ? pair.out : pair.in); }
inline size_t LiveRoom(const AdapterPair& pair) { return pair.rank * (pair.out > pair.in ? pair.out : pair.in); }

}  // namespace tributary
