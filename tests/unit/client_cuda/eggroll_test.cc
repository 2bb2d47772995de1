// The EGGROLL kernels against common/eggroll.h: equal bits.
#include "client/cuda/eggroll.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "client/core/random.h"
#include "tests/support/gpu.h"

namespace tributary::client {
namespace {

using ::tributary::testing::GpuMissing;
using ::tributary::testing::ToDevice;
using ::tributary::testing::ToHost;

const EggrollLayer kLayers[] = {{1, 0, 1, 1, 1}, {2, 7, 1, 64, 128}, {3, 1, 4, 133, 70}, {0xFFFFFFFFFFFFFFFF, 9, 32, 31, 257}};

std::vector<float> Normals(size_t count, uint64_t seed) {
  CounterRandom random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.Normal());
  return values;
}

TEST(CudaEggrollTest, UpdatesAsTheReferenceDoes) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  for (const EggrollLayer& layer : kLayers) {
    std::vector<float> weights = Normals(layer.rows * layer.columns, layer.seed);
    std::vector<EggrollMember> members;
    for (uint32_t i = 0; i < 37; ++i) members.push_back({i / 2, EggrollWeight(std::sin(i), i % 2 == 0 ? 1 : -1)});
    const float step = EggrollStep(0.05, 0.2, 37, layer.rank);
    const auto device_weights = ToDevice(weights);
    const auto device_members = ToDevice(members);
    ASSERT_EQ(LaunchEggrollUpdate(layer, device_members.get(), 37, step, device_weights.get(), nullptr), cudaSuccess);
    EggrollUpdate(layer, members, step, weights);
    EXPECT_EQ(ToHost(device_weights, weights.size()), weights) << layer.rows << "x" << layer.columns << ", rank " << layer.rank;
  }
}

TEST(CudaEggrollTest, PerturbsOutputsAsTheReferenceDoes) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  constexpr size_t kBatch = 9;
  for (const EggrollLayer& layer : kLayers) {
    const std::vector<float> x = Normals(kBatch * layer.columns, 4), scale = Normals(kBatch, 6);
    std::vector<float> y = Normals(kBatch * layer.rows, 5);
    std::vector<uint32_t> member;
    for (uint32_t row = 0; row < kBatch; ++row) member.push_back(row * 1000);
    const auto device_x = ToDevice(x), device_scale = ToDevice(scale), device_y = ToDevice(y);
    const auto device_member = ToDevice(member);
    const EggrollForwardWork work{.layer = layer, .member = device_member.get(), .scale = device_scale.get(), .x = device_x.get(), .y = device_y.get(), .batch = kBatch};
    ASSERT_EQ(LaunchEggrollForward(work, nullptr), cudaSuccess);
    for (size_t row = 0; row < kBatch; ++row) {
      EggrollForward(layer, member[row], scale[row], std::span(x).subspan(row * layer.columns, layer.columns), std::span(y).subspan(row * layer.rows, layer.rows));
    }
    EXPECT_EQ(ToHost(device_y, y.size()), y) << layer.rows << "x" << layer.columns << ", rank " << layer.rank;
  }
}

TEST(CudaEggrollTest, SizesOutOfRangeAreRefused) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  EXPECT_EQ(LaunchEggrollForward({.layer = {1, 0, 33, 4, 4}, .batch = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchEggrollUpdate({1, 0, 1, 4, 4}, nullptr, 0, 1, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tributary::client
