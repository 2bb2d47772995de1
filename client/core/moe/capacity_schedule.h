// How many experts a token of a sequence gets on average under expert choice, by the share μ of the sequence that is masked:
//   κ(μ) = round(κmin + (κmax − κmin)·a(μ))
// a: linear μ; cosine (1 − cos πμ)/2; gaussian exp(−(μ−½)²/2σ²) with σ = .22, shifted and scaled to 0 at the edges and 1 in the middle;
// *_reverse: 1 − a. For the linear and cosine pairs the mean over μ is (κmin + κmax)/2: equal work. Source: arXiv 2604.01622.
// Threads: pure. Errors: INVALID_ARGUMENT for an unknown name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace tributary::client {

class CapacitySchedule {
 public:
  // kind "none" gives `least` for every μ.
  static absl::StatusOr<CapacitySchedule> Create(const std::string& kind, int64_t least, int64_t most);
  static const std::vector<std::string>& Kinds();

  // μ is clamped to [0, 1].
  int64_t At(double masked) const;

 private:
  enum class Shape { kNone, kLinear, kCosine, kGaussian };
  Shape shape_ = Shape::kNone;
  bool reverse_ = false;
  int64_t least_ = 0, most_ = 0;
};

}  // namespace tributary::client
