// What tests of CUDA kernels share: whether there is a GPU, and values to and from it.
//   TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
#pragma once

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "client/cuda/device_memory.h"
#include "tests/support/require.h"
#include "tests/support/status_matchers.h"

namespace tributary::testing {

// "" if there is a device that runs our kernels.
inline std::string GpuMissing() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return devices > 0 ? "" : "no CUDA device";
}

// A copy of values on the device. Fails the test, and returns nothing, if there is no memory.
template <typename T>
client::DeviceArray<T> ToDevice(std::span<const T> values) {
  auto array = client::MakeDeviceArray<T>(values.size());
  EXPECT_THAT(array, IsOk());
  if (!array.ok()) return nullptr;
  EXPECT_EQ(cudaMemcpy(array->get(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  return *std::move(array);
}

template <typename T>
client::DeviceArray<T> ToDevice(const std::vector<T>& values) {
  return ToDevice(std::span<const T>(values));
}

// `count` elements of the device's, every byte of them `fill`, so that what a kernel forgets to write shows.
template <typename T>
client::DeviceArray<T> OnDevice(size_t count, int fill = 0xA5) {
  auto array = client::MakeDeviceArray<T>(count);
  EXPECT_THAT(array, IsOk());
  if (!array.ok()) return nullptr;
  EXPECT_EQ(cudaMemset(array->get(), fill, count * sizeof(T)), cudaSuccess);
  return *std::move(array);
}

// Waits for the device.
template <typename T>
std::vector<T> ToHost(const client::DeviceArray<T>& array, size_t count) {
  std::vector<T> values(count);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(values.data(), array.get(), count * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
  return values;
}

}  // namespace tributary::testing
