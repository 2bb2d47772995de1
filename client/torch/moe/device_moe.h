// Routing and moving rows of a mixture of experts on a GPU, by the kernels of client/cuda (router_topk.h, moe_permute.h), for routers that
// choose the K largest of score + bias. Nothing here waits for the device. Selection has no gradient; rows have: moving them to their experts
// and bringing them back, weighted, are each other's derivatives, and no sum is by atomics.
// Built with CUDA only (TRIBUTARY_CUDA); elsewhere CanRouteOnDevice is false, and nothing else may be called.
// Threads: thread-compatible. May throw LibTorch's exceptions; CUDA's errors as c10::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

#include "client/core/moe/moe_math.h"

namespace tributary::client {

struct DeviceRouting {
  at::Tensor scores;   // [N, E] f32
  at::Tensor chosen;   // [N, K] i64
  at::Tensor counts;   // [E] i32
  at::Tensor token;    // [N·K] i64, of each pair
  at::Tensor offsets;  // [E + 1] i64
  at::Tensor place;    // [N·K] i32, the pair of each choice
};

bool CanRouteOnDevice(const at::Tensor& logits, size_t top_k);
// logits [N, E] f32; bias [E] f32, or undefined.
DeviceRouting RouteOnDevice(const at::Tensor& logits, const at::Tensor& bias, size_t top_k, Score score);

// Whether rows of this tensor can be moved: f32 or bf16, of a multiple of 16 bytes.
bool CanMoveRows(const at::Tensor& rows);
// x [N, D] as rows of its pairs, [N·K, D].
at::Tensor ToExperts(const at::Tensor& x, const DeviceRouting& routing);
// y [N·K, D] and gates [N, K] f32: out[n] = Σ_k gates[n, k]·y[pair of choice k of n], in y's type.
at::Tensor FromExperts(const at::Tensor& y, const at::Tensor& gates, const DeviceRouting& routing);

}  // namespace tributary::client
