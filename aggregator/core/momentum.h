// The server half of the momentum family (Cheng, Huang, Wu, Yuan, ICLR 2024, arXiv 2306.16504; SCAFFOLD: Karimireddy et al., ICML 2020,
// option II). With η, K the clients' rate and number of steps, γ = η_g·η·K, β ∈ (0, 1] on the *new* gradient, S the participants, weights uniform:
//   g⁺ = −Σ_S Δ_i/(ηK|S|)     x⁺ = x + η_g Σ_S Δ_i/|S| = x − γ g⁺     c⁺ = c + (1/N) Σ_S δ_i
// `uplink: delta` (scaffold, scaffold_m): the update is δ_i alone, g⁺ = β(Σ_S δ_i/|S| + c) + (1−β) g (β = 1 for scaffold), x⁺ = x − γ g⁺. Exact if the
// local steps are plain SGD, with one η and one K for all.
//
// A version brings g and c to the clients, a client's step is that of algorithms.md §3: y ← y − η(a·g(y) + b·g(x⁻) + v), and x⁻ = x + γ g. An update
// is the group "" (Δ) and the group "control" (δ), or "control" alone.
// `warm_start` (the VR pair): a client that trains from version 0 takes no step; it sends Δ = −ηK·∇f_i(x⁰; ξ) and δ = ∇f_i(x⁰; ξ). Version 1 then is x⁰
// with g the mean gradient (and c the sum of the gradients over N), and the clients' x⁻ of version 1 is x⁰ itself.
// `client_state: mirrored`: row_i ← row_i + δ_i on the server, which is c_i up to rounding (§1.7).
#pragma once

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

struct MomentumFamily {
  bool momentum = false;   // β, g
  bool control = false;    // c, c_i
  bool reduced = false;    // VR: the gradient at x⁻ too
};

std::vector<ParamInfo> MomentumParams(const MomentumFamily& family);
absl::StatusOr<std::unique_ptr<Strategy>> MakeMomentum(const StrategySpec& spec, const LocalSpec& local, const MomentumFamily& family);

}  // namespace tributary::aggregator
