#include "client/torch/device/gpu_monitor.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace tributary::client {
namespace {

// One variable of the environment as a test wants it.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Variable() { ::unsetenv(name_); }

 private:
  const char* name_;
};

class GpuMonitorTest : public ::testing::Test {
 protected:
  GpuMonitorTest() { ::unsetenv("CUDA_VISIBLE_DEVICES"); }
};

TEST_F(GpuMonitorTest, ReadsTheDeviceThatItWasOpenedFor) {
  const auto monitor = GpuMonitor::Open(1, TRIB_FAKE_NVML);
  ASSERT_NE(monitor, nullptr);
  const auto usage = monitor->Read();
  ASSERT_TRUE(usage.has_value());
  EXPECT_EQ(usage->id, "GPU-bbbb");
  EXPECT_EQ(usage->memory_used_bytes, 200U);
  EXPECT_EQ(usage->memory_total_bytes, 2000U);
  EXPECT_EQ(usage->utilisation, 0.5);
}

TEST_F(GpuMonitorTest, FollowsTheOrderInWhichCudaShowsDevices) {
  {
    const Variable visible("CUDA_VISIBLE_DEVICES", "1,0");
    EXPECT_EQ(GpuMonitor::Open(0, TRIB_FAKE_NVML)->Read()->id, "GPU-bbbb");
    EXPECT_EQ(GpuMonitor::Open(1, TRIB_FAKE_NVML)->Read()->id, "GPU-aaaa");
    EXPECT_EQ(GpuMonitor::Open(2, TRIB_FAKE_NVML), nullptr);
  }
  const Variable visible("CUDA_VISIBLE_DEVICES", "GPU-bb");
  EXPECT_EQ(GpuMonitor::Open(0, TRIB_FAKE_NVML)->Read()->id, "GPU-bbbb");
}

TEST_F(GpuMonitorTest, TellsNothingWhereThereIsNothing) {
  EXPECT_EQ(GpuMonitor::Open(0, "libno-such-library.so.1"), nullptr);
  EXPECT_EQ(GpuMonitor::Open(0, "libm.so.6"), nullptr) << "a library without these functions";
  EXPECT_EQ(GpuMonitor::Open(7, TRIB_FAKE_NVML), nullptr);
  const Variable refuses("FAKE_NVML_REFUSES", "1");
  EXPECT_EQ(GpuMonitor::Open(0, TRIB_FAKE_NVML), nullptr);
}

}  // namespace
}  // namespace tributary::client
