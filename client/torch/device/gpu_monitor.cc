#include "client/torch/device/gpu_monitor.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <dlfcn.h>

#include <cstdlib>
#include <vector>

namespace tributary::client {
namespace {

// NVML's binary interface, as far as it is used here (nvml.h; its _v2 names are stable).
using NvmlDevice = void*;
struct NvmlMemory {
  unsigned long long total, free, used;
};
struct NvmlUtilisation {
  unsigned int gpu, memory;  // percent of the last sample period
};
constexpr int kSuccess = 0;
constexpr unsigned kUuidBytes = 96;

struct Closer {
  void operator()(void* library) const { ::dlclose(library); }
};
using Library = std::unique_ptr<void, Closer>;

template <typename Function>
bool Find(const Library& library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(::dlsym(library.get(), name));
  return *function != nullptr;
}

struct Nvml {
  int (*init)() = nullptr;
  int (*by_index)(unsigned, NvmlDevice*) = nullptr;
  int (*by_uuid)(const char*, NvmlDevice*) = nullptr;
  int (*uuid)(NvmlDevice, char*, unsigned) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*utilisation)(NvmlDevice, NvmlUtilisation*) = nullptr;
};

class Monitor final : public GpuMonitor {
 public:
  Monitor(Library library, const Nvml& nvml, NvmlDevice device, std::string id) : library_(std::move(library)), nvml_(nvml), device_(device), id_(std::move(id)) {}

  std::optional<DeviceUsage> Read() const override {
    NvmlMemory memory{};
    if (nvml_.memory(device_, &memory) != kSuccess) return std::nullopt;
    DeviceUsage usage{.id = id_, .memory_used_bytes = memory.used, .memory_total_bytes = memory.total};
    NvmlUtilisation busy{};
    if (nvml_.utilisation(device_, &busy) == kSuccess) usage.utilisation = static_cast<double>(busy.gpu) / 100;
    return usage;
  }

 private:
  const Library library_;  // stays loaded: the driver counts who uses it until the process ends
  const Nvml nvml_;
  const NvmlDevice device_;
  const std::string id_;
};

}  // namespace

std::unique_ptr<GpuMonitor> GpuMonitor::Open(int index, const std::string& library_name) {
  Library library(::dlopen(library_name.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (library == nullptr) return nullptr;
  Nvml nvml;
  if (!Find(library, "nvmlInit_v2", &nvml.init) || !Find(library, "nvmlDeviceGetHandleByIndex_v2", &nvml.by_index) ||
      !Find(library, "nvmlDeviceGetHandleByUUID", &nvml.by_uuid) || !Find(library, "nvmlDeviceGetUUID", &nvml.uuid) ||
      !Find(library, "nvmlDeviceGetMemoryInfo", &nvml.memory) || !Find(library, "nvmlDeviceGetUtilizationRates", &nvml.utilisation)) {
    return nullptr;
  }
  if (nvml.init() != kSuccess) return nullptr;
  NvmlDevice device = nullptr;
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  int found = -1;
  if (visible == nullptr || *visible == '\0') {
    found = nvml.by_index(static_cast<unsigned>(index), &device);
  } else {
    const std::vector<std::string> entries = absl::StrSplit(visible, ',');
    if (index >= static_cast<int>(entries.size())) return nullptr;
    const std::string& entry = entries[static_cast<size_t>(index)];
    unsigned number = 0;
    found = absl::SimpleAtoi(entry, &number) ? nvml.by_index(number, &device) : nvml.by_uuid(entry.c_str(), &device);
  }
  char uuid[kUuidBytes] = "";
  if (found != kSuccess || nvml.uuid(device, uuid, kUuidBytes) != kSuccess) return nullptr;
  uuid[kUuidBytes - 1] = '\0';
  return std::make_unique<Monitor>(std::move(library), nvml, device, uuid);
}

}  // namespace tributary::client
