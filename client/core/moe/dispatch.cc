#include "client/core/moe/dispatch.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/check.h"

namespace tributary::client {

std::vector<float> GatherTokens(const Selection& selection, std::span<const float> x, size_t width) {
  TRIB_CHECK(x.size() == selection.tokens * width);
  std::vector<float> gathered(selection.pairs() * width);
  for (size_t pair = 0; pair < selection.pairs(); ++pair) {
    const auto from = x.subspan(static_cast<size_t>(selection.token[pair]) * width, width);
    std::copy(from.begin(), from.end(), gathered.begin() + static_cast<std::ptrdiff_t>(pair * width));
  }
  return gathered;
}

std::vector<float> CombineExperts(std::span<const float> y, std::span<const float> gates, std::span<const int32_t> place, size_t top_k, size_t width) {
  TRIB_CHECK(gates.size() == place.size() && gates.size() % top_k == 0);
  std::vector<float> out(gates.size() / top_k * width, 0.0F);
  for (size_t choice = 0; choice < gates.size(); ++choice) {
    const auto row = y.subspan(static_cast<size_t>(place[choice]) * width, width);
    float* to = out.data() + choice / top_k * width;
    for (size_t d = 0; d < width; ++d) to[d] = std::fma(gates[choice], row[d], to[d]);
  }
  return out;
}

CombineGradient CombineBackward(std::span<const float> dout, std::span<const float> y, std::span<const float> gates, std::span<const int32_t> place, size_t top_k,
                                size_t width) {
  TRIB_CHECK(gates.size() == place.size() && dout.size() * top_k == place.size() * width && y.size() == place.size() * width);
  CombineGradient gradient{.dy = std::vector<float>(y.size()), .dgates = std::vector<float>(gates.size())};
  for (size_t choice = 0; choice < place.size(); ++choice) {
    const float* d = dout.data() + choice / top_k * width;
    const size_t at = static_cast<size_t>(place[choice]) * width;
    std::array<float, 32> lanes{};
    for (size_t column = 0; column < width; ++column) {
      lanes[column % 32] = std::fma(d[column], y[at + column], lanes[column % 32]);
      gradient.dy[at + column] = gates[choice] * d[column];
    }
    for (size_t half = 16; half > 0; half /= 2) {
      for (size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    gradient.dgates[choice] = lanes[0];
  }
  return gradient;
}

std::vector<int32_t> PlacesOf(const Selection& selection, std::span<const int32_t> chosen, size_t top_k) {
  std::vector<int32_t> place(chosen.size());
  std::vector<int64_t> next(selection.offsets.begin(), selection.offsets.end() - 1);
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int64_t pair = next[static_cast<size_t>(chosen[i])]++;
    TRIB_CHECK(selection.token[static_cast<size_t>(pair)] == static_cast<int64_t>(i / top_k));
    place[i] = static_cast<int32_t>(pair);
  }
  return place;
}

}  // namespace tributary::client
