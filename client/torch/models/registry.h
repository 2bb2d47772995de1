// The model zoo: models.def as a table. A line without its file is a link error that names the factory.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "common/named_params.h"
#include "client/torch/model.h"
#include "common/job_spec.h"

namespace tributary::client {

using ModelFactory = absl::StatusOr<std::unique_ptr<Model>> (*)(const NamedParams& params, at::TensorOptions options);

// `options`: device and floating type of its tensors. NOT_FOUND: no such model, with the known ones; INVALID_ARGUMENT: parameters.
// May throw LibTorch's exceptions (no memory): call it inside Guarded().
absl::StatusOr<std::unique_ptr<Model>> MakeZooModel(const ModelSpec& spec, at::TensorOptions options);

}  // namespace tributary::client
