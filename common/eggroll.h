// EGGROLL (arXiv 2511.16652): evolution strategies with noise of low rank, so that a client only runs forward passes and sends one number a
// population member. Member i perturbs a matrix W [m, n] by s_i·(σ/√r)·A_i·B_iᵀ, A_i [m, r], B_i [n, r], s_i = ±1. The entries are ±1 (ours: no
// logarithm or sine, whose last bits differ between processors): bit a mod 32 of a word of Philox4x32-10, set for −1.
//
//   entry a of column k of A or B = sign of bit (a mod 32) of word (a / 32 mod 4) of Philox(seed; a / 128, 2·k + (0 for A, 1 for B), member, layer)
//
// The update is exact: with Z_i = fitness · 2^20 rounded to an integer (|fitness| <= 16), S = Σ_i s_i·Z_i·A_i·B_iᵀ is a matrix of integers whatever
// the order, and W ← fma(c, (float)S, W) with c = η·σ·2^−20 / √(N·r) one rounding. So every party that knows seed and fitness has the same W, on
// a processor or a GPU (client/cuda/eggroll.h).
// Preconditions are the callers': sizes match, N·r < 2^38. Threads: pure.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/philox.h"

namespace tributary {

struct EggrollLayer {
  uint64_t seed = 0;
  uint32_t layer = 0;
  uint32_t rank = 1;         // r
  uint64_t rows = 0;         // m
  uint64_t columns = 0;      // n
};

// The signs of entries 128·group … 128·group + 127 of column k; part 0: A, 1: B.
TRIB_HOST_DEVICE PhiloxWords EggrollSigns(const EggrollLayer& layer, uint32_t member, uint32_t k, uint32_t part, uint64_t group) {
  return Philox4x32(static_cast<uint32_t>(layer.seed), static_cast<uint32_t>(layer.seed >> 32),
                    {{static_cast<uint32_t>(group), 2 * k + part, member, layer.layer}});
}

// What one member's fitness weighs in the sums: s·Z. Members of unlike sign that share their noise may be one, of the sum of both weights.
struct EggrollMember {
  uint32_t member = 0;
  int64_t weight = 0;
};

inline int64_t EggrollWeight(double fitness, int sign) { return sign * std::llrint(std::fmin(16.0, std::fmax(-16.0, fitness)) * 0x1p20); }
inline float EggrollStep(double rate, double sigma, uint64_t population, uint32_t rank) {
  return static_cast<float>(rate * sigma * 0x1p-20 / std::sqrt(static_cast<double>(population) * rank));
}

namespace eggroll_detail {

inline std::vector<int8_t> Column(const EggrollLayer& layer, uint32_t member, uint32_t k, uint32_t part, uint64_t entries) {
  std::vector<int8_t> signs(entries);
  for (uint64_t a = 0; a < entries; ++a) {
    const PhiloxWords words = EggrollSigns(layer, member, k, part, a / 128);
    signs[a] = (words.word[a / 32 % 4] >> (a % 32) & 1u) != 0 ? -1 : 1;
  }
  return signs;
}

}  // namespace eggroll_detail

// sum [rows, columns] += Σ weight·A·Bᵀ.
inline void EggrollSum(const EggrollLayer& layer, std::span<const EggrollMember> members, std::span<int64_t> sum) {
  std::vector<int64_t> flip(layer.columns);  // 0, or all bits where B is −1: (x ^ f) − f is ±x without a product of 64 bits
  for (const EggrollMember& member : members) {
    for (uint32_t k = 0; k < layer.rank; ++k) {
      const std::vector<int8_t> a = eggroll_detail::Column(layer, member.member, k, 0, layer.rows);
      const std::vector<int8_t> b = eggroll_detail::Column(layer, member.member, k, 1, layer.columns);
      for (uint64_t j = 0; j < layer.columns; ++j) flip[j] = b[j] < 0 ? -1 : 0;
      for (uint64_t i = 0; i < layer.rows; ++i) {
        const int64_t weight = a[i] < 0 ? -member.weight : member.weight;
        int64_t* row = sum.data() + i * layer.columns;
        for (uint64_t j = 0; j < layer.columns; ++j) row[j] += (weight ^ flip[j]) - flip[j];
      }
    }
  }
}

// weights [rows, columns] ← fma(step, (float)Σ weight·A·Bᵀ, weights).
inline void EggrollUpdate(const EggrollLayer& layer, std::span<const EggrollMember> members, float step, std::span<float> weights) {
  std::vector<int64_t> sum(weights.size(), 0);
  EggrollSum(layer, members, sum);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = std::fma(step, static_cast<float>(sum[i]), weights[i]);
}

// A member's perturbation of one layer's outputs: y [rows] += scale·A·(Bᵀ·x), scale = s·σ/√r, x [columns]. Bᵀ·x is summed in double by 32 lanes
// (column b in lane b mod 32, lanes added in halves), A times it over k in turn, then one fused step in single precision.
inline void EggrollForward(const EggrollLayer& layer, uint32_t member, float scale, std::span<const float> x, std::span<float> y) {
  std::vector<double> sum(layer.rows, 0.0);
  for (uint32_t k = 0; k < layer.rank; ++k) {
    const std::vector<int8_t> b = eggroll_detail::Column(layer, member, k, 1, layer.columns);
    double lanes[32] = {};
    for (uint64_t j = 0; j < layer.columns; ++j) lanes[j % 32] += static_cast<double>(b[j]) * static_cast<double>(x[j]);
    for (int half = 16; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    const std::vector<int8_t> a = eggroll_detail::Column(layer, member, k, 0, layer.rows);
    for (uint64_t i = 0; i < layer.rows; ++i) sum[i] += static_cast<double>(a[i]) * lanes[0];
  }
  for (uint64_t i = 0; i < layer.rows; ++i) y[i] = std::fma(scale, static_cast<float>(sum[i]), y[i]);
}

}  // namespace tributary
