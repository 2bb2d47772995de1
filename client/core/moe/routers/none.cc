// The K largest scores of each token, nothing else (Shazeer et al., ICLR 2017, without its noise).
#include "client/core/moe/router.h"

namespace tributary::client {
namespace {

class None : public Router {
 public:
  using Router::Router;
  Selection Select(std::span<const float>, std::span<const float> scores, const RouteContext&) override {
    return SelectTopK(scores, {}, shape().experts, shape().top_k);
  }
  bool selects_top_k() const override { return true; }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeNone(const NamedParams&, RouterShape shape) { return std::make_unique<None>(shape); }

}  // namespace tributary::client
