#include "client/torch/on_device.h"

#include <utility>

#ifdef TRIBUTARY_CUDA
#include "client/torch/device/device_encoder.h"
#include "client/torch/device/pinned_updates.h"
#endif

namespace tributary::client {

#ifdef TRIBUTARY_CUDA

std::shared_ptr<DeviceUpdate> KeepOnDevice(at::Tensor delta, LargeBytes rest, double max_abs) {
  if (!delta.is_cuda() || delta.scalar_type() != at::kFloat) return nullptr;
  const auto elements = static_cast<size_t>(delta.numel());
  const float* const values = delta.const_data_ptr<float>();
  const int device = delta.device().index();
  return MakeDeviceUpdate(device, std::make_shared<const at::Tensor>(std::move(delta)), values, elements, std::move(rest), max_abs);
}

void PrepareHostMemory(at::Device device) {
  if (device.is_cuda()) PinUpdates();
}

#else

std::shared_ptr<DeviceUpdate> KeepOnDevice(at::Tensor, LargeBytes, double) { return nullptr; }

void PrepareHostMemory(at::Device) {}

#endif

}  // namespace tributary::client
