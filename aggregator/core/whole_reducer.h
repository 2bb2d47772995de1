// Reduction at the root of updates that are kept whole until the commit: for rules that no sum can serve (order statistics, distances),
// and for those that keep a row per client.
//
// Updates come sorted by client id, so that order of arrival changes nothing and ties fall to the lower id. Everything is computed
// in fp64. Trees, shards and nodes are refused for these strategies (StrategyTrait::kNeedsAll).
// Threads: const methods are safe. Errors: INVALID_ARGUMENT where the rule cannot be applied to so many updates.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

struct RankSchedule;
struct StrategyState;

// One update in the flat form of its layout; borrowed for the call.
struct WholeUpdate {
  std::string client;
  std::span<const std::byte> flat;
  double weight = 1;
};

// Bytes of a client's row: the trainable part of its last counted update; empty before the first.
using RowReader = std::function<absl::StatusOr<std::vector<std::byte>>(const std::string& client)>;

struct WholeInput {
  const TensorLayout* layout = nullptr;  // of the model
  std::span<const WholeUpdate> updates;  // at least one
  int64_t registered = 0;                // N
  RowReader row{};                       // set if the reducer keeps rows
  uint64_t version = 0;                  // that is being made
  std::span<const std::byte> previous{};  // the model before
  const RankSchedule* ranks = nullptr;   // Strategy::ranks
};

class WholeReducer {
 public:
  virtual ~WholeReducer() = default;
  // Names of the vectors over the trainable elements that it keeps; they start at zero.
  virtual std::vector<std::string> state_vectors() const { return {}; }
  // Whether the commit replaces each contributor's row by the trainable part of its update.
  virtual bool keeps_rows() const { return false; }
  // Whether it adds the update's last group to the row instead: rows then are copies of what clients add up themselves.
  virtual bool adds_to_rows() const { return false; }
  // Whether Reduce gives sums over the updates, each of weight 1, instead of what takes the place of a mean.
  virtual bool gives_sums() const { return false; }
  // Whether it can serve `updates` of them at all.
  virtual absl::Status CheckCount(int64_t) const { return absl::OkStatus(); }
  // `out`: as many elements as an update has floating ones, what takes the place of the mean (trainable: of Δ; buffers: of values). Of updates
  // that are not over the model's elements (Strategy::updates_are_of_model): one for each trainable element of the model.
  virtual absl::Status Reduce(const WholeInput& input, StrategyState& state, std::span<double> out) const = 0;
  // What makes this version of the one before, where that is shorter than a model; empty: nothing does (Strategy::fitness_bytes).
  virtual std::vector<std::byte> FitnessLog(const WholeInput&) const { return {}; }
  // After the server step: what it makes of buffers that are the server's, and what it has measured of the version, by name (may be null).
  virtual absl::Status Finish(const WholeInput&, std::span<std::byte> /*next*/, std::map<std::string, double>* /*measured*/) const { return absl::OkStatus(); }
};

// Element i of the float region of an update.
double FloatAt(const TensorLayout& layout, std::span<const std::byte> flat, size_t i);
// out[i] = Σ_k factors[k]·x_k[i] / Σ_k factors[k], elements [first, layout.float_count()), in the order of the updates.
void MeanOf(const WholeInput& input, std::span<const double> factors, size_t first, std::span<double> out);
// The whole float region of an update in fp64.
std::vector<double> FloatsOf(const TensorLayout& layout, std::span<const std::byte> flat);

}  // namespace tributary::aggregator
