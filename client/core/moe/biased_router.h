// Base of the routers that choose the K largest of score + bias and learn the bias between steps.
// State: the bias [E]. Errors: SetState's INVALID_ARGUMENT for another size or numbers that are not finite. Threads: thread-compatible.
#pragma once

#include <span>
#include <vector>

#include "client/core/moe/router.h"

namespace tributary::client {

class BiasedRouter : public Router {
 public:
  explicit BiasedRouter(RouterShape shape) : Router(shape), bias_(shape.experts, 0.0F) {}

  Selection Select(std::span<const float>, std::span<const float> scores, const RouteContext&) override {
    return SelectTopK(scores, bias_, shape().experts, shape().top_k);
  }
  std::vector<float> state() const override { return bias_; }
  absl::Status SetState(std::span<const float> state) override;

 protected:
  std::vector<float> bias_;
};

}  // namespace tributary::client
