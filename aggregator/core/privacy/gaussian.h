// The Gaussian mechanism in closed form: δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) with μ = sensitivity / σ. T versions of multiplier z
// without sampling are one mechanism with μ = √T / z.
// Source: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8; Dong, Roth, Su 2019 (arXiv 1905.02383), Corollary 2.13.
// Preconditions (TRIB_CHECK): μ > 0, ε >= 0, 0 < δ < 1. Threads: pure.
#pragma once

namespace tributary::aggregator {

double NormalCdf(double x);
double GaussianDelta(double mu, double epsilon);
// The least ε >= 0 with GaussianDelta(mu, ε) <= δ, to 1e-12 relative.
double GaussianEpsilon(double mu, double delta);
// The least σ over the sensitivity with δ(ε) <= δ: Balle and Wang's analytic mechanism; ε > 0.
double AnalyticGaussianNoise(double epsilon, double delta);

}  // namespace tributary::aggregator
