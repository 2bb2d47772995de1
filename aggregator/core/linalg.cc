#include "aggregator/core/linalg.h"

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

using Dense = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Qr = Eigen::HouseholderQR<Eigen::MatrixXd>;

Eigen::Map<const Dense> View(const Matrix& matrix) {
  return {matrix.values.data(), static_cast<Eigen::Index>(matrix.rows), static_cast<Eigen::Index>(matrix.cols)};
}

// R [min(rows, cols), cols] of a thin QR.
Eigen::MatrixXd Upper(const Qr& qr) {
  const Eigen::Index k = std::min(qr.rows(), qr.cols());
  return qr.matrixQR().topRows(k).triangularView<Eigen::Upper>();
}

// Q·m, Q [rows, min(rows, cols)].
Eigen::MatrixXd TimesQ(const Qr& qr, const Eigen::MatrixXd& m) {
  Eigen::MatrixXd padded = Eigen::MatrixXd::Zero(qr.rows(), m.cols());
  padded.topRows(m.rows()) = m;
  return qr.householderQ() * padded;
}

}  // namespace

double ProductNorm(const LowRank& product) {
  const Qr b(View(product.b)), a(View(product.a).transpose());
  return (Upper(b) * Upper(a).transpose()).norm();
}

LowRank Truncated(const LowRank& product, size_t rank) {
  TRIB_CHECK(product.b.cols == product.a.rows, "factors of {} and {} components", product.b.cols, product.a.rows);
  const Qr b(View(product.b)), a(View(product.a).transpose());
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(Upper(b) * Upper(a).transpose(), Eigen::ComputeThinU | Eigen::ComputeThinV);
  const auto kept = std::min<Eigen::Index>(static_cast<Eigen::Index>(rank), svd.singularValues().size());
  const Eigen::VectorXd roots = svd.singularValues().head(kept).cwiseSqrt();
  Eigen::MatrixXd u = TimesQ(b, svd.matrixU().leftCols(kept)), v = TimesQ(a, svd.matrixV().leftCols(kept));
  for (Eigen::Index j = 0; j < kept; ++j) {
    Eigen::Index largest = 0;
    u.col(j).cwiseAbs().maxCoeff(&largest);
    const double signed_root = u(largest, j) < 0 ? -roots(j) : roots(j);
    u.col(j) *= signed_root;
    v.col(j) *= signed_root;
  }
  LowRank best{Matrix::Zero(product.b.rows, rank), Matrix::Zero(rank, product.a.cols)};
  for (size_t j = 0; j < static_cast<size_t>(kept); ++j) {
    const auto column = static_cast<Eigen::Index>(j);
    for (size_t i = 0; i < best.b.rows; ++i) best.b(i, j) = u(static_cast<Eigen::Index>(i), column);
    for (size_t i = 0; i < best.a.cols; ++i) best.a(j, i) = v(static_cast<Eigen::Index>(i), column);
  }
  return best;
}

void AddProduct(const LowRank& product, double scale, std::vector<double>& out) {
  TRIB_CHECK(out.size() == product.b.rows * product.a.cols, "{} elements for a product of {} x {}", out.size(), product.b.rows, product.a.cols);
  const size_t in = product.a.cols;
  for (size_t i = 0; i < product.b.rows; ++i) {
    double* row = out.data() + i * in;
    for (size_t l = 0; l < product.a.rows; ++l) {
      const double factor = scale * product.b(i, l);
      const double* a = product.a.values.data() + l * in;
      for (size_t j = 0; j < in; ++j) row[j] += factor * a[j];
    }
  }
}

}  // namespace tributary::aggregator
