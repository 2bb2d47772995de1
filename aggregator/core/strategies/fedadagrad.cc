// FedAdagrad: the adaptive server step of adaptive.h with the second moment of Adagrad (Reddi et al., ICLR 2021, Algorithm 2).
#include "aggregator/core/adaptive.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedAdagradParams() { return AdaptiveParams(SecondMoment::kAdagrad); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAdagrad(const StrategySpec& spec, const LocalSpec&) { return MakeAdaptive(spec, SecondMoment::kAdagrad); }

}  // namespace tributary::aggregator
