// The mixture-of-experts layers of a model: their tensors, a router each, and what the model says of them all. Names are those of
// transformers' Mixtral; a bias that the server owns, or a router's state, is gate.e_score_correction_bias.
// Threads and errors: as Model.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/core/moe/router.h"
#include "client/torch/model.h"
#include "client/torch/moe/moe_layer.h"
#include "common/moe_stats.h"
#include "common/named_params.h"

namespace tributary::client {

struct MoeShape {
  int64_t width = 0, experts = 0, top_k = 0, expert_hidden = 0;
  MoeOptions options;
  std::string router;
  ParamMap router_params;
  std::string loss;  // the router whose balance loss stands beside; "": none
  ParamMap loss_params;

  // Of a causal model of this width: a router that looks ahead in a sequence is refused, one that looks at the batch while training is said.
  // `owner` as messages call the model.
  static absl::StatusOr<MoeShape> Of(const NamedParams& params, const std::string& owner, int64_t width);
  std::unique_ptr<Router> NewRouter() const;  // that could be made once
};

class MoeStack {
 public:
  using AddTensor = std::function<at::Tensor(std::string name, std::vector<int64_t> shape, TensorKind kind)>;

  explicit MoeStack(MoeShape shape) : shape_(std::move(shape)) {}
  // Makes the tensors of one more layer through `add`: "<prefix>.gate.weight", "<prefix>.experts.<e>.w1.weight", …
  void AddLayer(const std::string& prefix, const AddTensor& add);
  // x: [N, width], tokens of sequences of `sequence` one after the other.
  at::Tensor Forward(size_t layer, const at::Tensor& x, size_t sequence, bool training) { return layers_[layer].Forward(x, sequence, training); }

  void BeginTask();
  absl::Status TakeLoad(const GlobalMoe& load);
  at::Tensor AuxiliaryLoss() const;  // the layers' mean
  void EndStep();
  std::map<std::string, double> Metrics() const;
  MoeStats Statistics();

 private:
  MoeShape shape_;
  std::vector<MoeLayer> layers_;
};

// A model of base `Base` with a MoeStack, which answers for it.
template <typename Base>
class WithExperts : public Base {
 public:
  void BeginTask() override { experts_.BeginTask(); }
  absl::Status TakeLoad(const GlobalMoe& load) override { return experts_.TakeLoad(load); }
  at::Tensor AuxiliaryLoss() const override { return experts_.AuxiliaryLoss(); }
  void EndStep() override { experts_.EndStep(); }
  std::map<std::string, double> Metrics() const override { return experts_.Metrics(); }
  MoeStats Statistics() override { return experts_.Statistics(); }

 protected:
  template <typename... Args>
  explicit WithExperts(const MoeShape& shape, Args&&... args) : Base(std::forward<Args>(args)...), experts_(shape) {}
  MoeStack experts_;
};

}  // namespace tributary::client
