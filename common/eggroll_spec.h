// What both sides of a job with strategy `eggroll` must agree on beside the arithmetic of eggroll.h: the settings, the matrices of a model, and
// whose noise is whose.
//
// Matrices: a trainable tensor [m, …] is one of m rows and as many columns as the rest has elements; a vector or a scalar is one of a single
// column, so that a bias gets plain noise. They are numbered by their places among the trainable tensors of the layout.
// Members: a cohort of C clients has population / C of them each, members 0, 1, … of the client's own noise: members 2p and 2p + 1 share noise p
// with signs + and −. Whose noise it is says a seed that the task names, the first 64 bits of SHA-256 over "eggroll|<job seed>|<version that the
// task starts from>|<client>": so who else takes part, in which order and after which crash changes nobody's members, and no two clients of a
// version share noise. Members whose client does not answer have fitness 0 in the sums.
// Log: what makes a version of the one before it, for clients that have that one. A slot for each client of the cohort, in the order of their
// names: the seed of its noise (8 bytes), then for each of its pairs Z of the first member less Z of the second (4 bytes, signed); little-endian,
// empty slots zero at the end. With server sgd there is nothing else to know, so weights need not travel after the first fetch.
// Threads: values and pure functions. Errors: INVALID_ARGUMENT naming the parameter, expected and got.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/eggroll.h"
#include "common/job_spec.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary {

inline constexpr char kEggrollSolver[] = "eggroll";    // local.solver
inline constexpr char kEggrollFitness[] = "fitness";   // the one tensor of an update: [members], −loss

struct EggrollSpec {
  static constexpr int64_t kMaxPopulation = int64_t{1} << 20;  // with kMaxRank sums of Z stay below 2^53, which doubles hold exactly
  static constexpr int64_t kMaxRank = 64;
  int64_t population = 256;  // N, of all clients of a version
  double sigma = 0.05;       // σ
  int64_t rank = 1;          // r
  double lr = 0.05;          // η, of the server's step

  static absl::StatusOr<EggrollSpec> Of(const StrategySpec& strategy);
};

struct EggrollTensor {
  EggrollLayer layer{};  // without seed
  size_t first = 0;      // its first element among the trainable ones
};
std::vector<EggrollTensor> EggrollTensors(const TensorLayout& model, int64_t rank);

// `version`: that the task starts from.
uint64_t EggrollNoiseSeed(int64_t job_seed, uint64_t version, const std::string& client);

// What one client's fitness says about its noise. Pairs are counted as one member with the sign of its first.
struct EggrollPart {
  uint64_t seed = 0;
  std::vector<EggrollMember> pairs;  // those that weigh something
};

// Σ over all clients' members of s·Z·A·Bᵀ, over all trainable elements.
std::vector<int64_t> EggrollTotals(std::span<const EggrollTensor> tensors, std::span<const EggrollPart> parts, size_t elements);

// σ·2⁻²⁰/√(N·r): the estimate of the gradient is this times −S.
double EggrollUnit(const EggrollSpec& spec);

// W ← fma(c, S, W), c = η·σ·2⁻²⁰/√(N·r), in the model's type.
class EggrollSgd {
 public:
  EggrollSgd(const EggrollSpec& spec, DType dtype);
  double operator()(double weight, double total) const {
    return dtype_ == DType::kF64 ? std::fma(wide_, total, weight) : static_cast<double>(std::fma(single_, static_cast<float>(total), static_cast<float>(weight)));
  }

 private:
  const DType dtype_;
  const float single_;
  const double wide_;
};

size_t EggrollLogBytes(int64_t clients, int64_t population);
inline constexpr size_t kEggrollDigestBytes = 16;  // what comes after the logs: XXH3-128 of the model they make
// Whether the logs of so many versions, and the hash, are less than the model.
inline bool EggrollLogsAreShorter(uint64_t versions, size_t log_bytes, size_t model_bytes) { return versions < model_bytes / (log_bytes + kEggrollDigestBytes); }
// Empty, which is no log: more parts than slots.
std::vector<std::byte> EggrollLog(std::span<const EggrollPart> parts, int64_t clients, int64_t population);
// DATA_LOSS: of another size, or with a weight that no fitness has.
absl::StatusOr<std::vector<EggrollPart>> ParseEggrollLog(std::span<const std::byte> log, int64_t clients, int64_t population);

// Σ_k A_k·B_kᵀ of one pair over all trainable elements: integers from −r to r.
void EggrollNoise(std::span<const EggrollTensor> tensors, uint64_t seed, uint32_t pair, std::span<float> noise);

}  // namespace tributary
