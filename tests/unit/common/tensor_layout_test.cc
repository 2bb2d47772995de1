#include "common/tensor_layout.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

TensorSpec Spec(std::string name, std::vector<int64_t> shape, TensorKind kind = TensorKind::kTrainable) {
  return {std::move(name), std::move(shape), kind == TensorKind::kCounter ? DType::kI64 : DType::kF32, kind};
}

TEST(TensorLayoutTest, OrdersByKindAndPlacesWithoutPadding) {
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout layout,
                            TensorLayout::Create({Spec("steps", {}, TensorKind::kCounter), Spec("mean", {3}, TensorKind::kBuffer),
                                                  Spec("w", {2, 5}), Spec("b", {}), Spec("none", {0, 7})}));
  std::vector<std::string> names;
  std::vector<size_t> offsets;
  for (const PlacedTensor& tensor : layout.tensors()) {
    names.push_back(tensor.spec.name);
    offsets.push_back(tensor.offset_bytes);
  }
  EXPECT_THAT(names, ::testing::ElementsAre("w", "b", "none", "mean", "steps"));
  EXPECT_THAT(offsets, ::testing::ElementsAre(0, 40, 44, 44, 56));
  EXPECT_EQ(layout.trainable_count(), 11u);
  EXPECT_EQ(layout.float_count(), 14u);
  EXPECT_EQ(layout.counter_count(), 1u);
  EXPECT_EQ(layout.total_bytes(), 64u);
  ASSERT_NE(layout.Find("mean"), nullptr);
  EXPECT_EQ(layout.Find("mean")->elements, 3u);
  EXPECT_EQ(layout.Find("absent"), nullptr);
}

TEST(TensorLayoutTest, WhatTheServerOwnsComesLastAmongFloatsAndIsInNoUpdate) {
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout layout,
                            TensorLayout::Create({Spec("bias", {2}, TensorKind::kServerOwned), Spec("steps", {}, TensorKind::kCounter), Spec("mean", {3}, TensorKind::kBuffer),
                                                  Spec("w", {5})}));
  EXPECT_EQ(layout.Find("bias")->offset_bytes, 32u);
  EXPECT_EQ(layout.float_count(), 10u);
  EXPECT_EQ(layout.summed_count(), 8u);
  EXPECT_EQ(layout.server_owned_count(), 2u);
  EXPECT_EQ(TensorKindName(TensorKind::kServerOwned), "server_owned");
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout update, WithGroups(layout, {""}));
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout without,
                            TensorLayout::Create({Spec("w", {5}), Spec("mean", {3}, TensorKind::kBuffer), Spec("steps", {}, TensorKind::kCounter)}));
  EXPECT_TRUE(update == without);
  EXPECT_NE(layout.Fingerprint(), update.Fingerprint());
}

TEST(TensorLayoutTest, AnEmptyOneIsAllowed) {
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout layout, TensorLayout::Create({}));
  EXPECT_EQ(layout.total_bytes(), 0u);
  EXPECT_EQ(layout.float_dtype(), DType::kF32);
}

TEST(TensorLayoutTest, RefusesHostileSpecs) {
  const auto refused = [](std::vector<TensorSpec> specs, const std::string& why) {
    EXPECT_THAT(TensorLayout::Create(std::move(specs)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused({Spec("w", {1}), Spec("w", {2})}, "occurs twice");
  refused({Spec("", {1})}, "name");
  refused({Spec(std::string(513, 'n'), {1})}, "name");
  refused({Spec("w", {2, -1})}, "negative extent -1");
  refused({Spec("w", {int64_t{1} << 32, int64_t{1} << 32})}, "elements");
  refused({Spec("w", {INT64_MAX, 4})}, "elements");
  refused({Spec("w", {int64_t{1} << 40, int64_t{1} << 40, 0})}, "elements");
  refused({Spec("w", {int64_t{1} << 39})}, "exceeds");
  refused({Spec("a", {int64_t{1} << 37}), Spec("b", {int64_t{1} << 37}), Spec("c", {1})}, "exceeds");
  refused({Spec("a", {1}), {"b", {1}, DType::kF64, TensorKind::kTrainable}}, "expected F32");
  refused({{"n", {1}, DType::kF32, TensorKind::kCounter}}, "must be I64");
  refused({{"n", {1}, DType::kI64, TensorKind::kTrainable}}, "must be F32 or F64");
  refused({{"n", {1}, DType::kI64, TensorKind::kBuffer}}, "buffer must be");
  refused({{"n", {1}, DType::kI64, TensorKind::kServerOwned}}, "server_owned must be");
  refused({{"n", {1}, static_cast<DType>(9), TensorKind::kBuffer}}, "unknown type");
  refused({{"n", {1}, DType::kF32, static_cast<TensorKind>(0)}}, "unknown kind");
  std::vector<TensorSpec> many;
  for (size_t i = 0; i <= TensorLayout::kMaxTensors; ++i) many.push_back(Spec(std::to_string(i), {1}));
  refused(std::move(many), "at most 100000");
}

TEST(TensorLayoutTest, FingerprintSeesNamesTypesKindsAndShapes) {
  const auto print = [](std::vector<TensorSpec> specs) { return TensorLayout::Create(std::move(specs))->Fingerprint(); };
  const std::string base = print({Spec("w", {2, 3})});
  // Stable over releases: stores of older ones hold this value.
  EXPECT_EQ(base, "eff45cb2f24d143da11d02905dff88574092ac5e9542b0e15006999b988ab56d");
  EXPECT_EQ(base, print({Spec("w", {2, 3})}));
  EXPECT_NE(base, print({Spec("v", {2, 3})}));
  EXPECT_NE(base, print({Spec("w", {3, 2})}));
  EXPECT_NE(base, print({Spec("w", {6})}));
  EXPECT_NE(base, print({Spec("w", {2, 3}, TensorKind::kBuffer)}));
  EXPECT_NE(base, print({{"w", {2, 3}, DType::kF64, TensorKind::kTrainable}}));
  EXPECT_NE(print({Spec("a", {1}), Spec("b", {1})}), print({Spec("b", {1}), Spec("a", {1})}));
}

}  // namespace
}  // namespace tributary
