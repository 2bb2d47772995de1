// (ε, δ) of T versions of the Poisson-subsampled Gaussian mechanism from its privacy loss distribution: tight, where RDP is an upper bound.
//
// A version's loss is discretised on a grid of step h ("connect the dots": the discrete distribution's δ(ε) agrees with the true one at
// every grid point and lies above it between them), convolved T times by a power of its Fourier transform, and read off. Neighbours
// differ by one client more or less; both directions are computed and the worse one counts. All truncations round δ up.
// Sources: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022 (arXiv 2207.04380), §3; Koskela, Jälkö, Honkela 2020 (arXiv 1906.03049).
//
// The transforms are made once, for up to `max_versions`; each Epsilon() is then a power and one inverse transform a direction. Memory:
// 16 bytes a grid point and direction, at most 2^22 points: h is doubled until that suffices (coarser is safe: larger ε).
// Preconditions (TRIB_CHECK): 0 < q < 1, z > 0, 1 <= versions <= max_versions, 0 < δ < 1; q = 1 has a closed form (gaussian.h).
// Threads: const methods from any number of threads.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace tributary::aggregator {

class SubsampledGaussianPld {
 public:
  static constexpr double kDefaultStep = 1e-4;

  SubsampledGaussianPld(double sample_rate, double noise_multiplier, int64_t max_versions, double step = kDefaultStep);

  // The least ε >= 0; +Inf if the truncated mass alone exceeds δ.
  double Epsilon(int64_t versions, double delta) const;
  double step() const { return step_; }  // the step in use

 private:
  struct Direction {
    std::vector<std::complex<double>> transform;  // of one version's loss, on the grid modulo its size
    double infinite_mass = 0;                     // P(loss = ∞) of one version
    int64_t lowest = 0;                           // window of the composed loss that the grid holds, in steps
  };
  double DirectionEpsilon(const Direction& direction, int64_t versions, double delta) const;

  double step_;
  int64_t max_versions_;
  Direction remove_, add_;
};

}  // namespace tributary::aggregator
