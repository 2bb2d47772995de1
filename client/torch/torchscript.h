// A user's model as a TorchScript file (torch.jit.script(m).save(path)). Parameters that require gradients become trainable, other
// parameters and floating buffers become buffers, int64 buffers become counters; other tensor types are refused by name.
// A TorchScript file is a program: it computes what its author wrote. It has no file or network access of its own.
// Errors: NOT_FOUND (no file), INVALID_ARGUMENT (not TorchScript, types, no trainable tensor).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "client/torch/model.h"
#include "common/status.h"

namespace tributary::client {

// Floating tensors are converted to `options`' type, everything is on its device. May throw: call it inside Guarded().
absl::StatusOr<std::unique_ptr<Model>> LoadTorchScript(const std::string& path, at::TensorOptions options);

}  // namespace tributary::client
