#include "aggregator/core/privacy/fft.h"

#include <bit>
#include <numbers>
#include <utility>
#include <vector>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

using Complex = std::complex<double>;

// std::complex's own product looks for NaN; these values are finite.
inline Complex Product(Complex a, Complex b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

void Transform(std::span<Complex> x, double sign) {
  const size_t n = x.size();
  TRIB_CHECK(std::has_single_bit(n), "FFT of {} values: expected a power of two", n);
  for (size_t i = 1, j = 0; i < n; ++i) {  // bit-reversed order
    size_t bit = n >> 1;
    for (; (j & bit) != 0; bit >>= 1) j ^= bit;
    j |= bit;
    if (i < j) std::swap(x[i], x[j]);
  }
  std::vector<Complex> twiddles(n / 2);
  for (size_t k = 0; k < n / 2; ++k) twiddles[k] = std::polar(1.0, sign * 2 * std::numbers::pi * static_cast<double>(k) / static_cast<double>(n));
  std::vector<Complex> stage;
  for (size_t half = 1; half < n; half *= 2) {
    stage.resize(half);
    for (size_t k = 0; k < half; ++k) stage[k] = twiddles[k * (n / (2 * half))];
    for (size_t start = 0; start < n; start += 2 * half) {
      for (size_t k = 0; k < half; ++k) {
        const Complex even = x[start + k], odd = Product(x[start + k + half], stage[k]);
        x[start + k] = even + odd;
        x[start + k + half] = even - odd;
      }
    }
  }
}

}  // namespace

void Fft(std::span<Complex> values) { Transform(values, -1); }

void InverseFft(std::span<Complex> values) {
  Transform(values, 1);
  const double scale = 1.0 / static_cast<double>(values.size());
  for (Complex& value : values) value *= scale;
}

}  // namespace tributary::aggregator
