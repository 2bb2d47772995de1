#include "common/live_triplets.h"

#include <gmock/gmock.h>

#include <cstring>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

JobSpec TripletJob(bool regrow) {
  JobSpec spec;
  spec.model.adapter.kind = "adalora";
  spec.model.adapter.adalora.regrow = regrow;
  spec.strategy.params["adapters"] = "fedex";
  return spec;
}

template <typename T>
std::vector<std::byte> BytesOf(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

template <typename T>
std::vector<T> ValuesOf(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// Layers of 2 and 3 triplets.
TensorLayout TwoLayers(DType dtype) {
  std::vector<TensorSpec> specs;
  for (const AdapterShape& shape : {AdapterShape{.layer = "fc1", .in = 3, .out = 2, .rank = 2, .triplets = true},
                                    AdapterShape{.layer = "fc2", .in = 1, .out = 2, .rank = 3, .triplets = true}}) {
    for (AdapterTensor& tensor : AdapterTensors(AdapterMode::kFedEx, shape, dtype)) specs.push_back(std::move(tensor.spec));
  }
  return *TensorLayout::Create(std::move(specs));
}

template <typename T>
std::vector<T> VersionWith(const TensorLayout& layout, const std::vector<T>& masks) {
  std::vector<T> version(layout.float_count(), T{7});
  size_t at = 0;
  const std::vector<AdapterPair> pairs = FindAdapters(AdapterMode::kFedEx, layout).value_or(std::vector<AdapterPair>());
  for (const AdapterPair& pair : pairs) {
    for (size_t l = 0; l < pair.rank; ++l) version[pair.mask + l] = masks[at++];
  }
  return version;
}

template <typename T>
class LiveTripletsTest : public ::testing::Test {};
using FloatTypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LiveTripletsTest, FloatTypes);

TYPED_TEST(LiveTripletsTest, LeavesOutTheElementsOfTripletsThatAreOutAndPutsZerosInTheirPlaces) {
  using T = TypeParam;
  const TensorLayout layout = TwoLayers(sizeof(T) == 4 ? DType::kF32 : DType::kF64);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto live, LiveTriplets::Of(TripletJob(false), layout));
  ASSERT_NE(live, nullptr);
  const std::vector<std::byte> version = BytesOf(VersionWith<T>(layout, {0, 1, 1, 0, 1}));
  EXPECT_EQ(live->UpdateBytes(version), (1 * (3 + 2 + 2) + 2 * (1 + 2 + 2)) * sizeof(T));
  std::vector<T> update(layout.trainable_count());
  for (size_t i = 0; i < update.size(); ++i) update[i] = static_cast<T>(i + 1);
  const LargeBytes packed = live->Pack(version, BytesOf(update));
  // fc1: A 1–6, E 7–8, B 9–12, S 13–14; fc2: A 15–17, E 18–20, B 21–26, S 27–29.
  EXPECT_EQ(ValuesOf<T>(packed), (std::vector<T>{4, 5, 6, 8, 10, 12, 14, 15, 17, 18, 20, 21, 23, 24, 26, 27, 29}));
  EXPECT_EQ(packed.size(), live->UpdateBytes(version));
  TRIB_ASSERT_OK_AND_ASSIGN(const LargeBytes whole, live->Unpack(version, packed));
  EXPECT_EQ(ValuesOf<T>(whole), (std::vector<T>{0, 0, 0, 4, 5, 6, 0, 8, 0, 10, 0, 12, 0, 14, 15, 0, 17, 18, 0, 20, 21, 0, 23, 24, 0, 26, 27, 0, 29}));
  EXPECT_EQ(live->Pack(version, whole), packed);
}

TYPED_TEST(LiveTripletsTest, IsTheUpdateItselfWhereAllAreInAndNothingWhereNoneIs) {
  using T = TypeParam;
  const TensorLayout layout = TwoLayers(sizeof(T) == 4 ? DType::kF32 : DType::kF64);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto live, LiveTriplets::Of(TripletJob(false), layout));
  const std::vector<std::byte> all = BytesOf(VersionWith<T>(layout, {1, 1, 1, 1, 1})), none = BytesOf(VersionWith<T>(layout, {0, 0, 0, 0, 0}));
  std::vector<T> update(layout.trainable_count(), T{3});
  update.front() = update.back() = -1;
  EXPECT_EQ(ValuesOf<T>(live->Pack(all, BytesOf(update))), update);
  EXPECT_TRUE(live->Pack(none, BytesOf(update)).empty());
  TRIB_ASSERT_OK_AND_ASSIGN(const LargeBytes zeros, live->Unpack(none, {}));
  EXPECT_EQ(ValuesOf<T>(zeros), std::vector<T>(layout.trainable_count()));
}

TEST(LiveTripletsTest, AnUpdateOfAnotherSizeIsRefused) {
  const TensorLayout layout = TwoLayers(DType::kF32);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto live, LiveTriplets::Of(TripletJob(false), layout));
  const std::vector<std::byte> version = BytesOf(VersionWith<float>(layout, {1, 0, 0, 0, 0}));
  EXPECT_THAT(live->Unpack(version, std::vector<std::byte>(28)), IsOk());
  for (const size_t bytes : {0, 27, 29, 116}) {
    EXPECT_THAT(live->Unpack(version, std::vector<std::byte>(bytes)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("that are in 28")));
  }
}

TEST(LiveTripletsTest, OtherJobsSendAllThatTheyTrain) {
  EXPECT_EQ(*LiveTriplets::Of(TripletJob(true), TwoLayers(DType::kF32)), nullptr);
  EXPECT_EQ(*LiveTriplets::Of({}, TwoLayers(DType::kF32)), nullptr);
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout other, TensorLayout::Create({{"w", {3}, DType::kF32, TensorKind::kTrainable}}));
  EXPECT_THAT(LiveTriplets::Of(TripletJob(false), other), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected one of an adapter")));
}

}  // namespace
}  // namespace tributary
