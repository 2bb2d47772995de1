#include "client/torch/models/registry.h"

#include <vector>

#include "client/torch/learner.h"
#include "common/moe_spec.h"
#include "common/suggest.h"

namespace tributary::client {

#define TRIB_MODEL(name, factory, help, defaults) absl::StatusOr<std::unique_ptr<Model>> factory(const NamedParams&, at::TensorOptions);
#include "client/torch/models/models.def"
#undef TRIB_MODEL

namespace {

constexpr ZooEntry kZoo[] = {
#define TRIB_MODEL(name, factory, help, defaults) {#name, help, defaults},
#include "client/torch/models/models.def"
#undef TRIB_MODEL
};

constexpr ModelFactory kFactories[] = {
#define TRIB_MODEL(name, factory, help, defaults) factory,
#include "client/torch/models/models.def"
#undef TRIB_MODEL
};

}  // namespace

std::span<const ZooEntry> ModelZoo() { return kZoo; }

absl::StatusOr<std::unique_ptr<Model>> MakeZooModel(const ModelSpec& spec, at::TensorOptions options) {
  std::vector<std::string> names;
  for (size_t i = 0; i < std::size(kZoo); ++i) {
    names.emplace_back(kZoo[i].name);
    if (names.back() != spec.zoo) continue;
    TRIB_ASSIGN_OR_RETURN(const NamedParams params, NamedParams::Create(fmt::format("model '{}'", spec.zoo), kZoo[i].defaults, spec.params));
    return kFactories[i](params, options);
  }
  return NotFound("no model '{}' in the zoo{}; it has: {}", spec.zoo, DidYouMean(spec.zoo, names), fmt::format("{}", fmt::join(names, ", ")));
}

}  // namespace tributary::client
