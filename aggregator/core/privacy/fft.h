// Discrete Fourier transform of a power-of-two number of complex values, in place: X[k] = Σ_n x[n] e^{∓2πi·kn/N}.
// Forward with minus; Inverse with plus and divided by N. Radix 2 after Cooley and Tukey (1965); twiddle factors come from a table of
// directly computed sines, so the error grows like log N. Kept here and not taken from a library: FFTW's licence (GPL) does not fit,
// Eigen's is unsupported, and these forty lines are all that the accountant needs.
// Precondition (TRIB_CHECK): size() is a power of two. Threads: pure.
#pragma once

#include <complex>
#include <span>

namespace tributary::aggregator {

void Fft(std::span<std::complex<double>> values);
void InverseFft(std::span<std::complex<double>> values);

}  // namespace tributary::aggregator
