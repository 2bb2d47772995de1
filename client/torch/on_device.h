// An update that stays on its GPU until it is stored (client/torch/device/device_encoder.h).
// Threads: thread-compatible. May throw LibTorch's exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "client/core/device_update.h"
#include "common/large_bytes.h"

namespace tributary::client {

// `delta`: [trainable elements], 16-byte aligned, nobody changes it; what computed it has ended when the result is used. `rest`: the flat
// form's buffers and counters. `max_abs`: max |Δ|, finite. Null: this device, type or build cannot, and the update comes to the host.
std::shared_ptr<DeviceUpdate> KeepOnDevice(at::Tensor delta, LargeBytes rest, double max_abs);

// Has updates that come to the host come to memory into which the device copies at full speed, where this build can.
void PrepareHostMemory(at::Device device);

}  // namespace tributary::client
