#include "client/torch/moe/device_moe.h"

#include <utility>

#ifdef TRIBUTARY_CUDA
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "client/cuda/moe_permute.h"
#include "client/cuda/router_topk.h"
#include "client/torch/device_stream.h"
#endif

namespace tributary::client {

#ifdef TRIBUTARY_CUDA
namespace {

RowType TypeOf(const at::Tensor& rows) { return rows.scalar_type() == at::kBFloat16 ? RowType::kBf16 : RowType::kF32; }

at::Tensor Gather(const at::Tensor& x, const at::Tensor& token) {
  at::Tensor gathered = at::empty({token.size(0), x.size(1)}, x.options());
  const auto row_bytes = static_cast<size_t>(x.size(1)) * x.element_size();
  CheckCuda(LaunchMoeGather(x.const_data_ptr(), token.const_data_ptr<int64_t>(), token.size(0), row_bytes, gathered.mutable_data_ptr(), StreamOf(x.device())), "mixture of experts: gather");
  return gathered;
}

// `gates` undefined: 1.
at::Tensor Combine(const at::Tensor& y, const at::Tensor& gates, const at::Tensor& place, int64_t top_k) {
  at::Tensor out = at::empty({place.size(0) / top_k, y.size(1)}, y.options());
  CheckCuda(LaunchMoeCombine({.type = TypeOf(y), .y = y.const_data_ptr(), .gates = gates.defined() ? gates.const_data_ptr<float>() : nullptr,
                          .place = place.const_data_ptr<int32_t>(), .tokens = out.size(0), .top_k = static_cast<int>(top_k), .width = y.size(1), .out = out.mutable_data_ptr()},
                         StreamOf(y.device())),
        "mixture of experts: combine");
  return out;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct GatherFunction : torch::autograd::Function<GatherFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& token, const at::Tensor& place, int64_t top_k) {
    context->save_for_backward({place});
    context->saved_data["top_k"] = top_k;
    return Gather(x.contiguous(), token);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const at::Tensor place = context->get_saved_variables()[0];
    return {Combine(gradients[0].contiguous(), {}, place, context->saved_data["top_k"].toInt()), {}, {}, {}};
  }
};

struct CombineFunction : torch::autograd::Function<CombineFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& y, const at::Tensor& gates, const at::Tensor& place) {
    const at::Tensor rows = y.contiguous(), weights = gates.contiguous();
    context->save_for_backward({rows, weights, place});
    return Combine(rows, weights, place, gates.size(1));
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &y = saved[0], &gates = saved[1], &place = saved[2];
    const at::Tensor dout = gradients[0].to(y.scalar_type()).contiguous();
    at::Tensor dy = at::empty_like(y), dgates = at::empty_like(gates);
    CheckCuda(LaunchMoeCombineBackward({.type = TypeOf(y), .dout = dout.const_data_ptr(), .y = y.const_data_ptr(), .gates = gates.const_data_ptr<float>(),
                                    .place = place.const_data_ptr<int32_t>(), .tokens = gates.size(0), .top_k = static_cast<int>(gates.size(1)), .width = y.size(1),
                                    .dy = dy.mutable_data_ptr(), .dgates = dgates.mutable_data_ptr<float>()},
                                   StreamOf(y.device())),
          "mixture of experts: derivative of combine");
    return {dy, dgates, {}};
  }
};

}  // namespace

bool CanRouteOnDevice(const at::Tensor& logits, size_t top_k) {
  return logits.is_cuda() && logits.size(1) <= kMaxRouterExperts && top_k <= static_cast<size_t>(kMaxRouterTopK) && logits.size(0) > 0 &&
         logits.size(0) * static_cast<int64_t>(top_k) < int64_t{1} << 31;
}

DeviceRouting RouteOnDevice(const at::Tensor& logits, const at::Tensor& bias, size_t top_k, Score score) {
  const int64_t tokens = logits.size(0), experts = logits.size(1), choices = tokens * static_cast<int64_t>(top_k);
  const at::Tensor rows = logits.detach().contiguous();
  const auto shape = [&](at::ScalarType type) { return rows.options().dtype(type); };
  DeviceRouting routing{.scores = at::empty({tokens, experts}, shape(at::kFloat)), .chosen = {}, .counts = at::zeros({experts}, shape(at::kInt)),
                        .token = at::empty({choices}, shape(at::kLong)), .offsets = at::empty({experts + 1}, shape(at::kLong)), .place = at::empty({choices}, shape(at::kInt))};
  at::Tensor chosen = at::empty({tokens, static_cast<int64_t>(top_k)}, shape(at::kInt)), gates = at::empty({tokens, static_cast<int64_t>(top_k)}, shape(at::kFloat));
  const cudaStream_t stream = StreamOf(rows.device());
  CheckCuda(LaunchRouterTopK({.logits = rows.const_data_ptr<float>(), .bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr, .tokens = tokens,
                          .experts = static_cast<int>(experts), .top_k = static_cast<int>(top_k), .sigmoid = score == Score::kSigmoid,
                          .scores = routing.scores.mutable_data_ptr<float>(), .chosen = chosen.mutable_data_ptr<int32_t>(), .gates = gates.mutable_data_ptr<float>(),
                          .threshold = nullptr, .counts = routing.counts.mutable_data_ptr<int32_t>()},
                         stream),
        "mixture of experts: router");
  CheckCuda(LaunchMoeDispatch({.chosen = chosen.const_data_ptr<int32_t>(), .counts = routing.counts.const_data_ptr<int32_t>(), .tokens = tokens,
                           .experts = static_cast<int>(experts), .top_k = static_cast<int>(top_k), .token = routing.token.mutable_data_ptr<int64_t>(),
                           .offsets = routing.offsets.mutable_data_ptr<int64_t>(), .place = routing.place.mutable_data_ptr<int32_t>()},
                          stream),
        "mixture of experts: dispatch");
  routing.chosen = chosen.to(at::kLong);
  return routing;
}

bool CanMoveRows(const at::Tensor& rows) {
  const bool typed = rows.scalar_type() == at::kFloat || rows.scalar_type() == at::kBFloat16;
  return rows.is_cuda() && typed && rows.size(1) * static_cast<int64_t>(rows.element_size()) % 16 == 0;
}

at::Tensor ToExperts(const at::Tensor& x, const DeviceRouting& routing) {
  return GatherFunction::apply(x, routing.token, routing.place, routing.chosen.size(1));
}

at::Tensor FromExperts(const at::Tensor& y, const at::Tensor& gates, const DeviceRouting& routing) { return CombineFunction::apply(y, gates, routing.place); }

#else

bool CanRouteOnDevice(const at::Tensor&, size_t) { return false; }
DeviceRouting RouteOnDevice(const at::Tensor&, const at::Tensor&, size_t, Score) { return {}; }
bool CanMoveRows(const at::Tensor&) { return false; }
at::Tensor ToExperts(const at::Tensor& x, const DeviceRouting&) { return x; }
at::Tensor FromExperts(const at::Tensor& y, const at::Tensor&, const DeviceRouting&) { return y; }

#endif

}  // namespace tributary::client
