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

const EggrollLayer kLayers[] = {{1, 0, 1, 1, 1}, {2, 7, 1, 64, 128}, {3, 1, 4, 133, 70}, {0xFFFFFFFFFFFFFFFF, 9, 32, 31, 257}};  // rank 32: the largest of a forward pass

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
  constexpr int64_t kMembers = 5, kRowsOfEach = 7;
  constexpr uint32_t kFirst = 3;
  constexpr float kScale = 0.3F;
  for (const EggrollLayer& layer : kLayers) {
    EggrollLayer bias = layer;
    bias.layer += 1;
    bias.columns = 1;
    for (const bool shared : {true, false}) {  // the first layer's input is that of all members
      const int64_t batch = kMembers * kRowsOfEach, inputs = shared ? kRowsOfEach : batch;
      const std::vector<float> x = Normals(static_cast<size_t>(inputs) * layer.columns, 4), base = Normals(static_cast<size_t>(inputs) * layer.rows, 5);
      const auto device_x = ToDevice(x), device_base = ToDevice(base), device_y = ToDevice(std::vector<float>(static_cast<size_t>(batch) * layer.rows));
      const EggrollForwardWork work{.weight = layer, .bias = bias, .first = kFirst, .members = kMembers, .rows = kRowsOfEach, .scale = kScale, .x = device_x.get(),
                                    .base = device_base.get(), .inputs = inputs, .y = device_y.get(), .relu = shared};
      ASSERT_EQ(LaunchEggrollForward(work, nullptr), cudaSuccess);
      std::vector<float> expected;
      for (int64_t row = 0; row < batch; ++row) {
        const auto member = static_cast<uint32_t>(kFirst + row / kRowsOfEach);
        const float scale = member % 2 == 0 ? kScale : -kScale, one = 1;
        const auto input = static_cast<size_t>(row % inputs);
        std::vector<float> y(base.begin() + static_cast<std::ptrdiff_t>(input * layer.rows), base.begin() + static_cast<std::ptrdiff_t>((input + 1) * layer.rows));
        EggrollForward(layer, member / 2, scale, std::span(x).subspan(input * layer.columns, layer.columns), y);
        EggrollForward(bias, member / 2, scale, std::span(&one, 1), y);
        for (const float value : y) expected.push_back(shared ? std::fmax(value, 0.0F) : value);
      }
      EXPECT_EQ(ToHost(device_y, expected.size()), expected) << layer.rows << "x" << layer.columns << ", rank " << layer.rank << ", shared " << shared;
    }
  }
}

TEST(CudaEggrollTest, SizesOutOfRangeAreRefused) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const EggrollForwardWork good{.weight = {1, 0, 32, 4, 4}, .bias = {1, 1, 32, 4, 1}, .first = 0, .members = 0, .rows = 2, .scale = 1, .x = nullptr, .base = nullptr, .inputs = 2, .y = nullptr};
  EXPECT_EQ(LaunchEggrollForward(good, nullptr), cudaSuccess) << "nothing to do";
  EggrollForwardWork work = good;
  work.weight.rank = work.bias.rank = 33;
  EXPECT_EQ(LaunchEggrollForward(work, nullptr), cudaErrorInvalidValue);
  work = good;
  work.bias.rows = 5;
  EXPECT_EQ(LaunchEggrollForward(work, nullptr), cudaErrorInvalidValue);
  work = good;
  work.members = 3;
  work.inputs = 4;
  EXPECT_EQ(LaunchEggrollForward(work, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchEggrollUpdate({1, 0, 1, 4, 4}, nullptr, 0, 1, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tributary::client
