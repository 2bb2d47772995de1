#include "aggregator/core/server_step.h"

#include <gmock/gmock.h>

#include "aggregator/core/partial.h"
#include "aggregator/core/strategy.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

class ServerStepTest : public ::testing::Test {
 protected:
  absl::Status Apply(const std::string& strategy_name, const TensorLayout& layout, const std::vector<double>& sums, double sum_weight,
                     const std::vector<StatePiece>& pieces, const std::vector<int64_t>& counters, const std::vector<std::byte>& previous) {
    auto strategy = MakeStrategy({.name = strategy_name, .params = {}});
    if (!strategy.ok()) return strategy.status();
    const auto reducer = MakeMeanReducer(layout.float_dtype(), Arithmetic::kFloat64);
    const StatePiece whole{.first = 0, .count = sums.size(), .state = reinterpret_cast<const std::byte*>(sums.data())};
    next_.assign(layout.total_bytes(), std::byte{0xee});
    const std::vector<StatePiece> all = pieces.empty() ? std::vector<StatePiece>{whole} : pieces;
    return ApplyServerStep((*strategy)->server_step(),
                           {.layout = &layout, .reducer = reducer.get(), .pieces = all, .counters = counters, .previous = previous, .base = {},
                            .facts = {.version = 1, .sum_weight = sum_weight, .registered = 1, .contributors = {}}},
                           state_, next_);
  }
  StrategyState state_;
  std::vector<std::byte> next_;
};

TEST_F(ServerStepTest, TrainablesStepBuffersTakeTheMeanCountersTheMaximum) {
  const TensorLayout layout = LayoutOf({{.name = "w", .shape = {2}, .dtype = DType::kF32, .kind = TensorKind::kTrainable},
                                        {.name = "running", .shape = {1}, .dtype = DType::kF32, .kind = TensorKind::kBuffer},
                                        {.name = "batches", .shape = {1}, .dtype = DType::kI64, .kind = TensorKind::kCounter}});
  std::vector<std::byte> previous = AsBytes<float>({1, 2, 3});
  const std::vector<std::byte> counter = AsBytes<int64_t>({40});
  previous.insert(previous.end(), counter.begin(), counter.end());
  ASSERT_THAT(Apply("fedavg", layout, {4, 8, 20}, 4, {}, {41}, previous), IsOk());
  EXPECT_EQ(FromBytes<float>(std::span<const std::byte>(next_).first(12)), (std::vector<float>{2, 4, 5}));
  EXPECT_EQ(FromBytes<int64_t>(std::span<const std::byte>(next_).subspan(12)), (std::vector<int64_t>{41}));
  ASSERT_THAT(Apply("fedavg", layout, {4, 8, 20}, 4, {}, {}, previous), IsOk());
  EXPECT_EQ(FromBytes<int64_t>(std::span<const std::byte>(next_).subspan(12)), (std::vector<int64_t>{40}));
}

TEST_F(ServerStepTest, PiecesInAnyOrderAndOfAnySizeGiveTheSameModel) {
  const size_t n = 2 * kBlockElements + 77;
  const TensorLayout layout = LayoutOf({{.name = "w", .shape = {static_cast<int64_t>(n) - 50}, .dtype = DType::kF64, .kind = TensorKind::kTrainable},
                                        {.name = "b", .shape = {50}, .dtype = DType::kF64, .kind = TensorKind::kBuffer}});
  const std::vector<double> sums = RandomValues(n, 3);
  const std::vector<std::byte> previous = AsBytes(RandomValues(n, 4));
  ASSERT_THAT(Apply("fedavgm", layout, sums, 7, {}, {}, previous), IsOk());
  const std::vector<std::byte> whole = next_;
  const StrategyState whole_state = state_;
  std::vector<StatePiece> pieces;
  for (const auto& [first, count] : std::vector<std::pair<size_t, size_t>>{{30000, n - 30000}, {0, 13}, {100, 29900}, {50, 0}, {13, 87}}) {
    pieces.push_back({.first = first, .count = count, .state = reinterpret_cast<const std::byte*>(sums.data() + first)});
  }
  state_ = {};
  ASSERT_THAT(Apply("fedavgm", layout, sums, 7, pieces, {}, previous), IsOk());
  EXPECT_EQ(next_, whole);
  EXPECT_EQ(state_, whole_state);
}

TEST_F(ServerStepTest, RefusesGapsOverlapsAndWrongSizes) {
  const TensorLayout layout = VectorLayout(4, DType::kF64);
  const std::vector<double> sums = {1, 2, 3, 4};
  const auto piece = [&](size_t first, size_t count) {
    return StatePiece{.first = first, .count = count, .state = reinterpret_cast<const std::byte*>(sums.data() + first)};
  };
  const std::vector<std::byte> previous = AsBytes<double>({0, 0, 0, 0});
  EXPECT_THAT(Apply("fedavg", layout, sums, 1, {piece(0, 2), piece(3, 1)}, {}, previous),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("from element 2")));
  EXPECT_THAT(Apply("fedavg", layout, sums, 1, {piece(0, 3), piece(2, 2)}, {}, previous), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Apply("fedavg", layout, sums, 1, {piece(0, 3)}, {}, previous), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Apply("fedavg", layout, sums, 1, {}, {1}, previous), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("counters")));
  EXPECT_THAT(Apply("fedavg", layout, sums, 1, {}, {}, AsBytes<double>({0, 0, 0})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("32 bytes")));
  for (const double sum_weight : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_THAT(Apply("fedavg", layout, sums, sum_weight, {}, {}, previous), StatusIs(absl::StatusCode::kInvalidArgument)) << sum_weight;
  }
}

TEST_F(ServerStepTest, ANonFiniteResultNamesTheTensor) {
  const TensorLayout layout = LayoutOf({{.name = "conv.weight", .shape = {2}, .dtype = DType::kF32, .kind = TensorKind::kTrainable},
                                        {.name = "fc.bias", .shape = {2}, .dtype = DType::kF32, .kind = TensorKind::kTrainable}});
  // 3e38 + 3e38 is fine in fp64 and leaves F32.
  EXPECT_THAT(Apply("fedavg", layout, {0, 0, 0, 3e38}, 1, {}, {}, AsBytes<float>({0, 0, 0, 3e38f})),
              StatusIs(absl::StatusCode::kDataLoss, AllOf(HasSubstr("'fc.bias', element 1"), HasSubstr("F32"))));
}

TEST_F(ServerStepTest, RefusesAStrategyVectorOfTheWrongSize) {
  state_.vectors["momentum"] = {1, 2};
  EXPECT_THAT(Apply("fedavgm", VectorLayout(3), {0, 0, 0}, 1, {}, {}, AsBytes<float>({0, 0, 0})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'momentum'")));
}

TEST_F(ServerStepTest, AModelWithoutFloatsKeepsWorking) {
  const TensorLayout layout = LayoutOf({{.name = "n", .shape = {}, .dtype = DType::kI64, .kind = TensorKind::kCounter}});
  ASSERT_THAT(Apply("fedavg", layout, {}, 1, {}, {9}, AsBytes<int64_t>({3})), IsOk());
  EXPECT_EQ(FromBytes<int64_t>(next_), (std::vector<int64_t>{9}));
}

}  // namespace
}  // namespace tributary::aggregator
