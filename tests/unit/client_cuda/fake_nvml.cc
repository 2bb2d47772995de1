// A management library of two GPUs, for tests of GpuMonitor: what it says is computed from the index, so that a mistaken device shows.
// $FAKE_NVML_REFUSES makes nvmlInit fail, as it does without a driver.
#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {

struct Memory {
  unsigned long long total, free, used;
};
struct Utilisation {
  unsigned int gpu, memory;
};

int nvmlInit_v2() { return std::getenv("FAKE_NVML_REFUSES") != nullptr ? 9 : 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index > 1) return 2;
  *device = reinterpret_cast<void*>(static_cast<uintptr_t>(index) + 1);
  return 0;
}

int nvmlDeviceGetUUID(void* device, char* uuid, unsigned length) {
  const char* const name = device == reinterpret_cast<void*>(1) ? "GPU-aaaa" : "GPU-bbbb";
  if (length <= std::strlen(name)) return 7;
  std::strcpy(uuid, name);
  return 0;
}

int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  for (unsigned index = 0; index < 2; ++index) {
    char name[16];
    nvmlDeviceGetHandleByIndex_v2(index, device);
    nvmlDeviceGetUUID(*device, name, sizeof(name));
    if (std::strncmp(name, uuid, std::strlen(uuid)) == 0) return 0;
  }
  return 6;
}

int nvmlDeviceGetMemoryInfo(void* device, Memory* memory) {
  const auto number = reinterpret_cast<uintptr_t>(device);
  *memory = {1000 * number, 900 * number, 100 * number};
  return 0;
}

int nvmlDeviceGetUtilizationRates(void* device, Utilisation* utilisation) {
  *utilisation = {static_cast<unsigned>(25 * reinterpret_cast<uintptr_t>(device)), 0};
  return 0;
}

}  // extern "C"
