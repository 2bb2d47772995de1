#include <fmt/format.h>

#include <iterator>

#include "client/core/moe/router.h"
#include "common/expert_bias.h"
#include "common/expert_quantile.h"
#include "common/suggest.h"

namespace tributary::client {

#define TRIB_ROUTER(name, factory, foresight, help, defaults) absl::StatusOr<std::unique_ptr<Router>> factory(const NamedParams&, RouterShape);
#include "client/core/moe/routers/routers.def"
#undef TRIB_ROUTER

namespace {

constexpr RouterEntry kEntries[] = {
#define TRIB_ROUTER(name, factory, foresight, help, defaults) {#name, Foresight::foresight, help, defaults},
#include "client/core/moe/routers/routers.def"
#undef TRIB_ROUTER
};

using RouterFactory = absl::StatusOr<std::unique_ptr<Router>> (*)(const NamedParams& params, RouterShape shape);
constexpr RouterFactory kFactories[] = {
#define TRIB_ROUTER(name, factory, foresight, help, defaults) factory,
#include "client/core/moe/routers/routers.def"
#undef TRIB_ROUTER
};

absl::StatusOr<size_t> IndexOf(const std::string& name) {
  std::vector<std::string> names;
  for (size_t i = 0; i < std::size(kEntries); ++i) {
    names.emplace_back(kEntries[i].name);
    if (names.back() == name) return i;
  }
  return NotFound("no router '{}'{}; there are: {}", name, DidYouMean(name, names), fmt::format("{}", fmt::join(names, ", ")));
}

}  // namespace

std::span<const RouterEntry> Routers() { return kEntries; }

absl::StatusOr<RouterEntry> FindRouter(const std::string& name) {
  TRIB_ASSIGN_OR_RETURN(const size_t index, IndexOf(name));
  return kEntries[index];
}

absl::StatusOr<std::unique_ptr<Router>> MakeRouter(const std::string& name, const ParamMap& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const size_t index, IndexOf(name));
  if (shape.experts < 1 || shape.top_k < 1 || shape.top_k > shape.experts) {
    return InvalidArgument("router '{}': expected 1 to {} experts a token, got {}", name, shape.experts, shape.top_k);
  }
  TRIB_ASSIGN_OR_RETURN(const NamedParams named, NamedParams::Create(fmt::format("router '{}'", name), kEntries[index].defaults, params));
  return kFactories[index](named, shape);
}

}  // namespace tributary::client
