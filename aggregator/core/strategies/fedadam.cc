// FedAdam: the adaptive server step of adaptive.h with the second moment of Adam (Reddi et al., ICLR 2021, Algorithm 2).
#include "aggregator/core/adaptive.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedAdamParams() { return AdaptiveParams(SecondMoment::kAdam); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAdam(const StrategySpec& spec, const LocalSpec&) { return MakeAdaptive(spec, SecondMoment::kAdam); }

}  // namespace tributary::aggregator
