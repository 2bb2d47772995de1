// How full and how busy a GPU is, from the driver's management library (NVML), which is loaded when asked for: without a driver, or with one
// that refuses, there is nothing to tell and nobody is disturbed. No CUDA toolkit is needed to build it.
// Threads: safe. Errors: none; what cannot be read is absent.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "client/core/learner.h"

namespace tributary::client {

class GpuMonitor {
 public:
  // The GPU that this process's CUDA calls device `index` ($CUDA_VISIBLE_DEVICES is heeded). Null: no such thing can be read.
  static std::unique_ptr<GpuMonitor> Open(int index, const std::string& library = "libnvidia-ml.so.1");
  virtual ~GpuMonitor() = default;
  virtual std::optional<DeviceUsage> Read() const = 0;
};

}  // namespace tributary::client
