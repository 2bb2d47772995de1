#include "aggregator/core/admm.h"

#include <algorithm>

namespace tributary::aggregator {
namespace {

constexpr const char* kRowSum = "row_sum";
constexpr const char* kInitial = "initial";
constexpr const char* kExtrapolated = "s";

// What the reducer gives is the new model itself.
class TableStep final : public ServerStep {
 public:
  explicit TableStep(ClientStateKind state) : state_(state) {}
  // row_sum: Σ (row_i − initial) over the clients that have sent one.
  std::vector<std::string> state_vectors() const override { return {kInitial, kRowSum}; }
  bool starts_as_model(const std::string& name) const override { return name == kInitial; }
  bool goes_with_clients(const std::string&) const override { return state_ == ClientStateKind::kShared; }
  void ApplyBlock(const StepBlock& block, StrategyState&) const override { std::copy(block.sums.begin(), block.sums.end(), block.model.begin()); }

 private:
  ClientStateKind state_;
};

class TableReducer final : public WholeReducer {
 public:
  explicit TableReducer(int64_t clients) : clients_(clients) {}
  bool keeps_rows() const override { return true; }
  absl::Status Reduce(const WholeInput& input, StrategyState& state, std::span<double> out) const override {
    const TensorLayout& layout = *input.layout;
    const size_t trainable = layout.trainable_count();
    std::vector<double>& row_sum = state.vectors.at(kRowSum);
    const std::vector<double>& initial = state.vectors.at(kInitial);
    for (const WholeUpdate& update : input.updates) {
      TRIB_ASSIGN_OR_RETURN(const std::vector<std::byte> row, input.row(update.client));
      if (!row.empty() && row.size() != trainable * DTypeBytes(layout.float_dtype())) {
        return DataLoss("row of client '{}': expected {} bytes, got {}", update.client, trainable * DTypeBytes(layout.float_dtype()), row.size());
      }
      for (size_t i = 0; i < trainable; ++i) {
        row_sum[i] += FloatAt(layout, update.flat, i) - (row.empty() ? initial[i] : FloatAt(layout, row, i));
      }
    }
    const auto registered = static_cast<double>(clients_ > 0 ? clients_ : input.registered);
    for (size_t i = 0; i < trainable; ++i) out[i] = initial[i] + row_sum[i] / registered;
    MeanOf(input, std::vector<double>(input.updates.size(), 1.0), trainable, out);
    return absl::OkStatus();
  }

 private:
  int64_t clients_;
};

class ExtrapolatedMeanStep final : public ServerStep {
 public:
  explicit ExtrapolatedMeanStep(bool forget_once) : forget_once_(forget_once) {}
  std::vector<std::string> state_vectors() const override { return {kExtrapolated}; }
  bool starts_as_model(const std::string&) const override { return true; }
  // Σ h_i belongs to the start that all made together.
  bool goes_with_clients(const std::string&) const override { return true; }
  void ApplyBlock(const StepBlock& block, StrategyState& state) const override {
    double* s = state.vectors.at(kExtrapolated).data() + block.first;
    const bool forget = forget_once_ && block.facts->version == 2;
    for (size_t i = 0; i < block.model.size(); ++i) {
      const double mean = block.sums[i] / block.divisor;
      s[i] = 2 * mean - (forget ? 0.0 : block.model[i]);
      block.model[i] = mean;
    }
  }

 private:
  bool forget_once_;
};

}  // namespace

std::unique_ptr<Strategy> MakeTableStrategy(ClientStateKind state, int64_t clients) {
  return Assemble({.step = std::make_unique<TableStep>(state),
                   .weights = MakeClientCountingWeight(),
                   .whole = std::make_unique<TableReducer>(clients),
                   .client_state = state,
                   .sends_values = true});
}

std::unique_ptr<Strategy> MakeExtrapolatedMean(bool forget_once) {
  return Assemble({.step = std::make_unique<ExtrapolatedMeanStep>(forget_once),
                   .weights = MakeClientCountingWeight(),
                   .version_vectors = {kExtrapolated},
                   .in_place_of_model = kExtrapolated,
                   .client_state = ClientStateKind::kShared,
                   .sends_values = true});
}

ParamInfo RhoParam() {
  return {.name = "rho", .default_value = "1.0", .range = kRhoRange.ToString(), .help = "penalty of the distance to the server's point, in the client's solve"};
}

}  // namespace tributary::aggregator
