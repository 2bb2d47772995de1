// Sums of many numbers in an order that is fixed by their count alone, and made for 32 lanes that work side by side, so that a
// processor and a GPU give equal bits.
//
//   A tile is 512 numbers: lane l (of 32) adds, from 0 on and in this order, numbers 128·k + 4·l + j for k = 0…3, j = 0…3; then the
//   lanes are added in halves: lane l + 16 to lane l, then 8, 4, 2, 1. What a last tile lacks counts as 0.
//   The sums of the tiles are added in the same way, and so on until one number is left.
//
// client/cuda/privatise.cu does the same with a warp a tile. All sums are in double. Threads: pure.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

namespace tributary {

inline constexpr size_t kTreeLanes = 32;
inline constexpr size_t kTreeRun = 4;                            // neighbours that one lane adds: 16 bytes of floats
inline constexpr size_t kTreeTile = kTreeLanes * kTreeRun * 4;   // 512

namespace tree_sum_detail {

// `term(i)` of element i < count.
template <typename Term>
double SumTile(size_t count, Term term) {
  std::array<double, kTreeLanes> lanes{};
  if (count == kTreeTile) {
    for (size_t k = 0; k < kTreeTile; k += kTreeLanes * kTreeRun) {
      for (size_t lane = 0; lane < kTreeLanes; ++lane) {
        for (size_t j = 0; j < kTreeRun; ++j) lanes[lane] += term(k + lane * kTreeRun + j);
      }
    }
  } else {
    for (size_t i = 0; i < count; ++i) lanes[i / kTreeRun % kTreeLanes] += term(i);
  }
  for (size_t half = kTreeLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace tree_sum_detail

inline double TreeSum(std::span<const double> values) {
  if (values.size() <= kTreeTile) return tree_sum_detail::SumTile(values.size(), [&](size_t i) { return values[i]; });
  std::vector<double> tiles;
  tiles.reserve((values.size() + kTreeTile - 1) / kTreeTile);
  for (size_t first = 0; first < values.size(); first += kTreeTile) {
    tiles.push_back(TreeSum(values.subspan(first, std::min(kTreeTile, values.size() - first))));
  }
  return TreeSum(tiles);
}

// Σ x², each square in double (exact for float).
template <typename T>
double TreeSumOfSquares(std::span<const T> values) {
  std::vector<double> tiles;
  tiles.reserve((values.size() + kTreeTile - 1) / kTreeTile);
  for (size_t first = 0; first < values.size(); first += kTreeTile) {
    const T* tile = values.data() + first;
    tiles.push_back(tree_sum_detail::SumTile(std::min(kTreeTile, values.size() - first), [tile](size_t i) {
      const double x = static_cast<double>(tile[i]);
      return x * x;
    }));
  }
  return TreeSum(tiles);
}

}  // namespace tributary
