#include "aggregator/core/rows.h"

namespace tributary::aggregator {
namespace {

constexpr const char* kRowSum = "row_sum";

class RowReducer final : public WholeReducer {
 public:
  RowReducer(RowRule rule, int64_t clients) : rule_(rule), clients_(clients) {}
  std::vector<std::string> state_vectors() const override { return {kRowSum}; }
  bool keeps_rows() const override { return true; }

  absl::Status Reduce(const WholeInput& input, StrategyState& state, std::span<double> out) const override {
    const TensorLayout& layout = *input.layout;
    const size_t trainable = layout.trainable_count();
    std::vector<double>& row_sum = state.vectors.at(kRowSum);
    const auto registered = static_cast<double>(clients_ > 0 ? clients_ : input.registered);
    std::vector<double> change(trainable, 0.0);  // Σ (Δ − row), in the order of the clients' names
    for (const WholeUpdate& update : input.updates) {
      TRIB_ASSIGN_OR_RETURN(const std::vector<std::byte> row, input.row(update.client));
      if (!row.empty() && row.size() != trainable * DTypeBytes(layout.float_dtype())) {
        return DataLoss("row of client '{}': expected {} bytes, got {}", update.client, trainable * DTypeBytes(layout.float_dtype()), row.size());
      }
      for (size_t i = 0; i < trainable; ++i) change[i] += FloatAt(layout, update.flat, i) - (row.empty() ? 0.0 : FloatAt(layout, row, i));
    }
    const auto count = static_cast<double>(input.updates.size());
    for (size_t i = 0; i < trainable; ++i) {
      const double before = row_sum[i] / registered;
      row_sum[i] += change[i];
      out[i] = rule_ == RowRule::kAfter ? row_sum[i] / registered : change[i] / count + before;
    }
    MeanOf(input, std::vector<double>(input.updates.size(), 1.0), trainable, out);
    return absl::OkStatus();
  }

 private:
  RowRule rule_;
  int64_t clients_;
};

}  // namespace

std::vector<ParamInfo> RowParams() { return {ServerLrParam("1.0"), ClientsParam()}; }

absl::StatusOr<std::unique_ptr<Strategy>> MakeRowStrategy(const StrategySpec& spec, RowRule rule) {
  const std::vector<ParamInfo> params = RowParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const int64_t clients = reader.Integer("clients", 0);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = MakeAverageStep(server_lr),
                   .weights = MakeClientCountingWeight(),
                   .whole = std::make_unique<RowReducer>(rule, clients)});
}

}  // namespace tributary::aggregator
