// FedYogi: the adaptive server step of adaptive.h with the second moment of Yogi (Reddi et al., ICLR 2021, Algorithm 2).
#include "aggregator/core/adaptive.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedYogiParams() { return AdaptiveParams(SecondMoment::kYogi); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedYogi(const StrategySpec& spec, const LocalSpec&) { return MakeAdaptive(spec, SecondMoment::kYogi); }

}  // namespace tributary::aggregator
