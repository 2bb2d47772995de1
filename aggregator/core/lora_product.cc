#include "aggregator/core/lora_product.h"

#include <algorithm>
#include <cmath>

#include "aggregator/core/whole_reducer.h"

namespace tributary::aggregator {
namespace {

Matrix Read(const TensorLayout& layout, std::span<const std::byte> flat, size_t first, size_t rows, size_t cols) {
  Matrix matrix = Matrix::Zero(rows, cols);
  for (size_t i = 0; i < matrix.values.size(); ++i) matrix.values[i] = FloatAt(layout, flat, first + i);
  return matrix;
}

void AddDelta(const TensorLayout& layout, std::span<const std::byte> flat, size_t first, Matrix& matrix) {
  for (size_t i = 0; i < matrix.values.size(); ++i) matrix.values[i] += FloatAt(layout, flat, first + i);
}

Matrix Times(const Matrix& b, const Matrix& r) {
  std::vector<double> product(b.rows * r.cols);
  AddProduct({b, r}, 1, product);
  return {b.rows, r.cols, std::move(product)};
}

// B·diag(e).
void ScaleColumns(const Matrix& e, Matrix& b) {
  for (size_t i = 0; i < b.rows; ++i) {
    for (size_t l = 0; l < b.cols; ++l) b(i, l) *= e(l, 0);
  }
}

// First element of the pair's tensor in a rolora update.
size_t LiveStart(std::span<const AdapterPair> pairs, const AdapterPair& pair) {
  size_t first = 0;
  for (const AdapterPair& before : pairs) {
    if (before.layer == pair.layer) break;
    first += LiveRoom(before);
  }
  return first;
}

// What client k's layer is after its steps. Trainable elements come first in the model's layout and in the update's, at equal places.
LowRank Trained(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> update) {
  const TensorLayout& layout = *round.model;
  LowRank factors{Read(layout, round.previous, pair.b, pair.out, pair.rank), Read(layout, round.previous, pair.a, pair.rank, pair.in)};
  switch (round.mode) {
    case AdapterMode::kFedSb: {
      Matrix r = Read(layout, round.previous, pair.r, pair.rank, pair.rank);
      AddDelta(layout, update, pair.r, r);
      factors.b = Times(factors.b, r);
      return factors;
    }
    case AdapterMode::kRoLora:
      AddDelta(layout, update, LiveStart(round.pairs, pair), round.moves_b ? factors.b : factors.a);
      return factors;
    case AdapterMode::kFfa:
      AddDelta(layout, update, pair.b, factors.b);
      return factors;
    default:
      AddDelta(layout, update, pair.b, factors.b);
      AddDelta(layout, update, pair.a, factors.a);
      if (pair.triplets) {
        Matrix e = Read(layout, round.previous, pair.e, pair.rank, 1);
        AddDelta(layout, update, pair.e, e);
        ScaleColumns(e, factors.b);
      }
      return factors;
  }
}

// Components of `part`, the b side times `scale`, from column `first` of `whole` on.
void Stack(const LowRank& part, double scale, size_t first, LowRank& whole) {
  for (size_t l = 0; l < part.a.rows; ++l) {
    for (size_t i = 0; i < part.b.rows; ++i) whole.b(i, first + l) = scale * part.b(i, l);
    for (size_t j = 0; j < part.a.cols; ++j) whole.a(first + l, j) = part.a(l, j);
  }
}

double Norm(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

}  // namespace

LowRank FactorsOf(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> flat) {
  LowRank factors{Read(*round.model, flat, pair.b, pair.out, pair.rank), Read(*round.model, flat, pair.a, pair.rank, pair.in)};
  if (round.mode == AdapterMode::kFedSb) factors.b = Times(factors.b, Read(*round.model, flat, pair.r, pair.rank, pair.rank));
  if (pair.triplets) ScaleColumns(Read(*round.model, flat, pair.e, pair.rank, 1), factors.b);
  return factors;
}

LowRank StackedSum(const AdapterRound& round, const AdapterPair& pair) {
  const size_t components = pair.rank * round.updates.size();
  LowRank sum{Matrix::Zero(pair.out, components), Matrix::Zero(components, pair.in)};
  for (size_t k = 0; k < round.updates.size(); ++k) Stack(Trained(round, pair, round.updates[k].flat), round.updates[k].share, k * pair.rank, sum);
  return sum;
}

std::vector<double> ResidualValues(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> flat) {
  return Read(*round.model, flat, pair.residual, pair.out, pair.in).values;
}

std::vector<double> ResidualOf(const AdapterRound& round, const AdapterPair& pair, std::span<const std::byte> next) {
  std::vector<double> residual = ResidualValues(round, pair, round.previous);
  AddProduct(StackedSum(round, pair), 1, residual);
  AddProduct(FactorsOf(round, pair, next), -1, residual);
  return residual;
}

std::vector<AdapterError> AdapterErrors(const AdapterRound& round, std::span<const std::byte> next) {
  std::vector<AdapterError> errors;
  for (const AdapterPair& pair : round.pairs) {
    const LowRank sum = StackedSum(round, pair), made = FactorsOf(round, pair, next);
    AdapterError& error = errors.emplace_back(AdapterError{.layer = pair.layer, .norm = ProductNorm(sum)});
    if (NeedsResidual(round.mode)) {
      std::vector<double> missing = ResidualOf(round, pair, next);
      for (size_t i = 0; i < missing.size(); ++i) missing[i] -= FloatAt(*round.model, next, pair.residual + i);
      error.error = Norm(missing);
      continue;
    }
    LowRank difference{Matrix::Zero(pair.out, sum.a.rows + pair.rank), Matrix::Zero(sum.a.rows + pair.rank, pair.in)};
    Stack(sum, 1, 0, difference);
    Stack(made, -1, sum.a.rows, difference);
    error.error = ProductNorm(difference);
  }
  return errors;
}

double RelativeError(std::span<const AdapterError> errors) {
  double error = 0, norm = 0;
  for (const AdapterError& one : errors) {
    error += one.error * one.error;
    norm += one.norm * one.norm;
  }
  return norm > 0 ? std::sqrt(error / norm) : 0;
}

}  // namespace tributary::aggregator
