// A zoo model with low-rank adapters (common/adapter_layout.h): y = W·x + (α/r)·B·A·drop(x) in each layer that the job's targets name, fedsb
// y = W·x + (α/r)·B·R·A·x. Its tensors are the adapters'; the model below keeps the job's frozen weights, which are neither broadcast nor trained: from
// the file that model.base names (the server hands it out once), else as the zoo begins from the job's seed. With residuals a layer's weight is
// W + (α/r)·residual from the beginning of each task.
// Under adalora there are triplets in place of factors (adalora.h): y = W·x + (α/(r + 1e-5))·B·diag(E)·A·drop(x), and the mean departure of A and B from
// orthogonality, times `orthogonal`, is added to the loss.
// A is uniform in ±1/√in and B = 0 (PEFT's defaults); of fedsb A and B are normal with rows and columns of unit length on average, R = 0;
// of triplets A and B are normal of deviation 0.02, E = 0. So a fresh adapter changes nothing.
// Errors: INVALID_ARGUMENT: a target that no layer has (the message lists them), a model whose buffers change in training, a base of another
// layout. May throw LibTorch's exceptions: call inside Guarded(). Threads: as Model.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "client/torch/trainable_model.h"
#include "common/job_spec.h"
#include "common/safetensors.h"

namespace tributary::client {

// `base_path`: of model.base as it lies here; unused where the job names none.
absl::StatusOr<std::unique_ptr<TrainableModel>> MakeAdapted(const JobSpec& spec, const std::string& base_path, at::Device device);

// The values a job begins from: those of `file`, which has the adapters' tensors (PEFT's names), and `fresh`'s where it need not have one
// (NeededInFiles).
absl::StatusOr<std::vector<std::byte>> AdaptersFrom(const SafetensorsView& file, const TensorLayout& layout, std::vector<std::byte> fresh);

// The seed of the adapters' initial values: their numbers are none of the base's.
uint64_t AdapterSeed(int64_t job_seed);

// Sets all components after the first `rank` to 0 in the values that `model` holds. Their gradients are 0 then, so that steps leave them there.
void KeepComponents(TrainableModel& model, AdapterMode mode, int64_t rank);

// What of an update in the model's own layout travels (AdapterUpdateLayout), and of rolora which half it is.
LargeBytes TravellingPart(const TensorLayout& model, AdapterMode mode, uint64_t version, LargeBytes update);

}  // namespace tributary::client
