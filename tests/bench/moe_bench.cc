// One mixture-of-experts layer, forward and backward, one JSON line for each number of experts; moe_bench.py sets it beside PyTorch's and
// beside a dense layer of the same active parameters, in the same sitting.
//   moe_bench [--device cuda] [--experts 8,16,32,64] [--top-k 2] [--tokens 8192] [--width 1024] [--hidden 1024] [--gemm auto|loop|grouped] [--weights bf16|f32]
//             [--router none] [--rounds 20]
// Rows are bfloat16, or with weights f32 under autocast, as the learner trains (`local.precision: bf16`). Gradients of rows and weights are made. Data
// are random; what is timed was done three times before.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "client/torch/device_graph.h"
#include "client/torch/moe/moe_layer.h"

namespace tributary::client {
namespace {

using Flags = std::map<std::string, std::string>;

std::string Text(const Flags& flags, const std::string& name, const std::string& otherwise) {
  const auto at = flags.find(name);
  return at == flags.end() ? otherwise : at->second;
}

int64_t Number(const Flags& flags, const std::string& name, int64_t otherwise) { return std::atoll(Text(flags, name, std::to_string(otherwise)).c_str()); }

at::Tensor Leaf(at::IntArrayRef shape, double scale, const at::TensorOptions& options) {
  at::Tensor leaf = at::randn(shape, options).mul_(scale);
  leaf.requires_grad_(true);
  leaf.mutable_grad() = at::zeros_like(leaf);
  return leaf;
}

// The experts' matrices in one buffer, one expert after the other, as they lie in a model.
std::vector<Expert> Experts(int64_t count, int64_t width, int64_t hidden, const at::TensorOptions& options) {
  const int64_t each = width * hidden;
  const at::Tensor flat = at::randn({count * 3 * each}, options).mul_(0.02), gradient = at::zeros_like(flat);
  std::vector<Expert> experts(static_cast<size_t>(count));
  for (int64_t e = 0; e < count; ++e) {
    at::Tensor* const members[] = {&experts[static_cast<size_t>(e)].w1, &experts[static_cast<size_t>(e)].w2, &experts[static_cast<size_t>(e)].w3};
    for (int64_t m = 0; m < 3; ++m) {
      const std::vector<int64_t> shape = m == 1 ? std::vector<int64_t>{width, hidden} : std::vector<int64_t>{hidden, width};
      const int64_t first = (3 * e + m) * each;
      *members[m] = flat.narrow(0, first, each).view(shape).detach();
      members[m]->requires_grad_(true);
      members[m]->mutable_grad() = gradient.narrow(0, first, each).view(shape);
    }
  }
  return experts;
}

void Run(const Flags& flags, int64_t experts) {
  const int64_t tokens = Number(flags, "tokens", 8192), width = Number(flags, "width", 1024), hidden = Number(flags, "hidden", 1024), rounds = Number(flags, "rounds", 20);
  const auto top_k = static_cast<size_t>(Number(flags, "top-k", 2));
  const c10::Device device(Text(flags, "device", "cuda"));
  const bool f32 = Text(flags, "weights", "bf16") == "f32";
  const at::TensorOptions plain = at::TensorOptions().device(device), weights = plain.dtype(f32 ? at::kFloat : at::kBFloat16);
  const std::string gemm = Text(flags, "gemm", "auto"), router = Text(flags, "router", "none");
  std::optional<c10::Stream> stream;
  const StreamScope scope(device, &stream);
  const at::Tensor gate = Leaf({experts, width}, 0.02, plain.dtype(at::kFloat)), x = Leaf({tokens, width}, 1, weights);
  const at::Tensor dy = at::randn({tokens, width}, weights);
  MoeLayer layer({.gemm = gemm == "loop" ? GemmKind::kLoop : gemm == "grouped" ? GemmKind::kGrouped : GemmKind::kAuto}, gate,
                 Experts(experts, width, hidden, weights), {});
  layer.Begin(*MakeRouter(router, {}, {.experts = static_cast<size_t>(experts), .top_k = top_k}));
  at::autocast::set_autocast_enabled(device.type(), f32);
  at::autocast::set_autocast_dtype(device.type(), at::kBFloat16);
  at::autocast::set_autocast_cache_enabled(false);
  const auto step = [&] {
    const at::Tensor y = layer.Forward(x, static_cast<size_t>(tokens), true);
    y.backward(dy.to(y.scalar_type()));
    layer.EndStep();
  };
  for (int warm = 0; warm < 3; ++warm) step();
  WaitFor(device);
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t round = 0; round < rounds; ++round) step();
  WaitFor(device);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / static_cast<double>(rounds);
  fmt::print("{{\"experts\": {}, \"top_k\": {}, \"tokens\": {}, \"width\": {}, \"hidden\": {}, \"gemm\": \"{}\", \"weights\": \"{}\", \"router\": \"{}\", \"ms\": {:.4f}}}\n", experts,
             top_k, tokens, width, hidden, gemm, f32 ? "f32" : "bf16", router, 1e3 * seconds);
}

int Main(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) flags[std::string(argv[i]).substr(2)] = argv[i + 1];
  const std::string list = Text(flags, "experts", "8,16,32,64");
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    Run(flags, std::atoll(list.substr(at, end - at).c_str()));
    at = end + 1;
  }
  return 0;
}

}  // namespace
}  // namespace tributary::client

int main(int argc, char** argv) { return tributary::client::Main(argc, argv); }
