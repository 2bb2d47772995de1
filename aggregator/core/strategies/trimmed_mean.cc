// Coordinate-wise mean without the `trim` lowest and highest values (Yin et al., ICML 2018, Algorithm 1, option II).
#include "aggregator/core/robust.h"

namespace tributary::aggregator {
namespace {

class TrimmedMean final : public CoordinateRule {
 public:
  explicit TrimmedMean(int64_t trim) : trim_(trim) {}
  absl::Status CheckCount(int64_t updates) const override {
    if (trim_ <= (updates - 1) / 2) return absl::OkStatus();
    return InvalidArgument("with trim {} a commit needs more than {} updates, got {}", trim_, 2 * trim_, updates);
  }

 protected:
  double Value(std::span<const double> ascending) const override {
    const std::span<const double> kept = ascending.subspan(static_cast<size_t>(trim_), ascending.size() - 2 * static_cast<size_t>(trim_));
    double sum = 0;
    for (const double value : kept) sum += value;
    return sum / static_cast<double>(kept.size());
  }

 private:
  int64_t trim_;
};

}  // namespace

std::vector<ParamInfo> TrimmedMeanParams() {
  return {ServerLrParam("1.0"), {.name = "trim", .default_value = "1", .range = "[0, inf)", .help = "values left out at either end of each coordinate; 2 trim < updates"}};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeTrimmedMean(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = TrimmedMeanParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const int64_t trim = reader.Integer("trim", 0);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeRobust(server_lr, std::make_unique<TrimmedMean>(trim));
}

}  // namespace tributary::aggregator
