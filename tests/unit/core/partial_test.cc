#include "aggregator/core/partial.h"

#include <gmock/gmock.h>

#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

std::vector<double> Mean(const Partial& partial) {
  std::vector<double> mean(partial.layout().float_count());
  partial.reducer().ReportBlock(partial.state().data(), mean.size(), partial.sum_weight(), mean.data());
  return mean;
}

TEST(PartialTest, RefusesTheSameUpdateTwice) {
  Partial partial(VectorLayout(3), Arithmetic::kFloat64, 2);
  ASSERT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1, 2, 3}), 1), IsOk());
  EXPECT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1, 2, 3}), 1), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("already counted")));
  EXPECT_EQ(partial.count(), 1u);
}

TEST(PartialTest, RefusesWeightsThatAreNotPositiveAndFinite) {
  Partial partial(VectorLayout(1), Arithmetic::kFloat64, 2);
  for (const double weight : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1}), weight), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight")));
  }
  EXPECT_EQ(partial.count(), 0u);
}

TEST(PartialTest, ANonFiniteUpdateLeavesTheStateAlone) {
  for (const Arithmetic arithmetic : {Arithmetic::kFloat64, Arithmetic::kFixedPoint}) {
    Partial partial(VectorLayout(3), arithmetic, 2);
    ASSERT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1, 2, 3}), 2), IsOk());
    const std::string before = partial.Save();
    EXPECT_THAT(partial.Accumulate(Id(2), AsBytes<float>({1, NAN, 3}), 1), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_EQ(partial.Save(), before);
  }
}

TEST(PartialTest, ASumThatOverflowsHalfWayIsUndone) {
  // The overflow is in the third block; the first two were already added.
  const int64_t n = 2 * kBlockElements + 10;
  std::vector<double> values(n, 1.0);
  values.back() = 1.7e308;
  Partial partial(VectorLayout(n, DType::kF64), Arithmetic::kFloat64, 2);
  ASSERT_THAT(partial.Accumulate(Id(1), AsBytes(values), 1), IsOk());
  const std::string before = partial.Save();
  EXPECT_THAT(partial.Accumulate(Id(2), AsBytes(values), 1), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("range")));
  EXPECT_EQ(partial.Save(), before);
  Partial other(VectorLayout(n, DType::kF64), Arithmetic::kFloat64, 2);
  ASSERT_THAT(other.Accumulate(Id(3), AsBytes(values), 1), IsOk());
  EXPECT_THAT(partial.Merge(std::move(other)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("range")));
  EXPECT_EQ(partial.Save(), before);
}

TEST(PartialTest, ManyUpdatesOnThreadsAreThemOneByOneBitForBit) {
  const size_t n = 5 * kBlockElements + 10;
  for (const Arithmetic arithmetic : {Arithmetic::kFloat64, Arithmetic::kFixedPoint}) {
    const TensorLayout layout = VectorLayout(static_cast<int64_t>(n));
    Partial one_by_one(layout, arithmetic, 60), together(layout, arithmetic, 60);
    std::vector<std::vector<std::byte>> flats;
    std::vector<PartialInput> inputs;
    for (uint64_t k = 0; k < 40; ++k) flats.push_back(AsBytes(ToFloats(RandomValues(n, k, 1e-3))));
    for (uint64_t k = 0; k < 40; ++k) {
      inputs.push_back({.id = Id(k), .update = flats[k], .weight = 0.1 + static_cast<double>(k)});
      ASSERT_THAT(one_by_one.Accumulate(Id(k), flats[k], inputs[k].weight), IsOk());
    }
    const ForEach threads = [](size_t count, const std::function<void(size_t)>& call) {
      std::vector<std::jthread> all;
      for (size_t i = 0; i < count; ++i) all.emplace_back(call, count - 1 - i);
    };
    ASSERT_THAT(together.AccumulateAll(std::span(inputs).first(7), threads), IsOk());
    ASSERT_THAT(together.AccumulateAll(std::span(inputs).subspan(7), threads), IsOk());
    EXPECT_EQ(together.Save(), one_by_one.Save());
  }
}

TEST(PartialTest, OneBadUpdateOfManyLeavesNoneOfThem) {
  const int64_t n = 2 * kBlockElements + 10;
  std::vector<double> good(n, 1.0), large(n, 1.0), bad(n, 1.0);
  large.back() = 1.7e308;
  bad.back() = NAN;
  const std::vector<std::byte> goods = AsBytes(good), larges = AsBytes(large), bads = AsBytes(bad);
  Partial partial(VectorLayout(n, DType::kF64), Arithmetic::kFloat64, 4);
  ASSERT_THAT(partial.Accumulate(Id(1), larges, 1), IsOk());
  const std::string before = partial.Save();
  const auto add = [&](uint64_t second, std::span<const std::byte> update) {
    const std::vector<PartialInput> inputs = {{.id = Id(2), .update = goods, .weight = 1}, {.id = Id(second), .update = update, .weight = 1}};
    return partial.AccumulateAll(inputs);
  };
  EXPECT_THAT(add(3, larges), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("range")));
  EXPECT_THAT(add(3, bads), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NaN")));
  EXPECT_THAT(add(2, goods), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("already counted")));
  EXPECT_EQ(partial.Save(), before);
  EXPECT_THAT(add(3, goods), IsOk());
  EXPECT_EQ(partial.count(), 3u);
}

TEST(PartialTest, FixedPointRefusesAnUpdateThatItsRangeCannotHold) {
  Partial partial(VectorLayout(2), Arithmetic::kFixedPoint, 10);
  EXPECT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1, 1}), 4.2e5), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fixed point")));
  EXPECT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1, 1}), 4.1e5), IsOk());
}

TEST(PartialTest, CountersTakeTheMaximumAndBuffersTheMean) {
  const TensorLayout layout = LayoutOf({{.name = "w", .shape = {1}, .dtype = DType::kF32, .kind = TensorKind::kTrainable},
                                        {.name = "mean", .shape = {1}, .dtype = DType::kF32, .kind = TensorKind::kBuffer},
                                        {.name = "batches", .shape = {2}, .dtype = DType::kI64, .kind = TensorKind::kCounter}});
  const auto update = [](float w, float buffer, int64_t a, int64_t b) {
    std::vector<std::byte> flat = AsBytes<float>({w, buffer});
    const std::vector<std::byte> counters = AsBytes<int64_t>({a, b});
    flat.insert(flat.end(), counters.begin(), counters.end());
    return flat;
  };
  Partial partial(layout, Arithmetic::kFloat64, 2);
  ASSERT_THAT(partial.Accumulate(Id(1), update(1, 10, -5, 7), 1), IsOk());
  ASSERT_THAT(partial.Accumulate(Id(2), update(3, 30, -9, 8), 3), IsOk());
  EXPECT_EQ(Mean(partial), (std::vector<double>{2.5, 25}));
  EXPECT_EQ(std::vector<int64_t>(partial.counters().begin(), partial.counters().end()), (std::vector<int64_t>{-5, 8}));
}

TEST(PartialTest, MergeRefusesOverlapAndStrangers) {
  Partial a(VectorLayout(2), Arithmetic::kFloat64, 2), b(VectorLayout(2), Arithmetic::kFloat64, 2);
  ASSERT_THAT(a.Accumulate(Id(1), AsBytes<float>({1, 2}), 1), IsOk());
  ASSERT_THAT(b.Accumulate(Id(1), AsBytes<float>({1, 2}), 1), IsOk());
  EXPECT_THAT(a.Merge(std::move(b)), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(a.Merge(Partial(VectorLayout(3), Arithmetic::kFloat64, 2)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layouts")));
  EXPECT_THAT(a.Merge(Partial(VectorLayout(2), Arithmetic::kFixedPoint, 2)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("arithmetic")));
  EXPECT_EQ(a.count(), 1u);
}

TEST(PartialTest, TheSumOfWeightsDoesNotDependOnOrder) {
  const std::vector<double> weights = {0.1, 1e9, 0.3, 7e-9, 123.456, 1e-3};
  std::vector<size_t> order = {0, 1, 2, 3, 4, 5};
  const double expected = OrderFreeSum(weights);
  do {
    Partial partial(VectorLayout(1), Arithmetic::kFloat64, 6);
    for (const size_t i : order) ASSERT_THAT(partial.Accumulate(Id(i), AsBytes<float>({1}), weights[i]), IsOk());
    ASSERT_EQ(partial.sum_weight(), expected);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(PartialTest, RestoreRefusesEveryTruncationAndForeignState) {
  Partial partial(VectorLayout(3), Arithmetic::kFloat64, 2);
  ASSERT_THAT(partial.Accumulate(Id(1), AsBytes<float>({1, 2, 3}), 2), IsOk());
  const std::string saved = partial.Save();
  Partial target(VectorLayout(3), Arithmetic::kFloat64, 2);
  for (size_t size = 0; size < saved.size(); ++size) {
    EXPECT_THAT(target.Restore(std::string_view(saved).substr(0, size)), StatusIs(absl::StatusCode::kInvalidArgument)) << size;
  }
  EXPECT_THAT(target.Restore(saved + "x"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(target.count(), 0u);
  EXPECT_THAT(Partial(VectorLayout(4), Arithmetic::kFloat64, 2).Restore(saved), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Partial(VectorLayout(3), Arithmetic::kFixedPoint, 2).Restore(saved), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(target.Restore(saved), IsOk());
  EXPECT_EQ(target.Save(), saved);
}

TEST(PartialTest, ManyUpdatesInOneBlockAreFoldedInChunks) {
  const auto reducer = MakeMeanReducer(DType::kF32, Arithmetic::kFloat64);
  std::vector<std::vector<std::byte>> flats;
  std::vector<UpdateView> views;
  for (size_t i = 0; i < 40; ++i) flats.push_back(AsBytes<float>({static_cast<float>(i), 1, 2}));
  for (const auto& flat : flats) views.push_back({.flat = flat.data(), .weight = 2});
  std::vector<double> state(2, 99.0);
  ASSERT_TRUE(reducer->FoldBlock(reinterpret_cast<std::byte*>(state.data()), 0, 2, views, true));
  EXPECT_EQ(state, (std::vector<double>{2 * 780, 2 * 40}));
}

}  // namespace
}  // namespace tributary::aggregator
