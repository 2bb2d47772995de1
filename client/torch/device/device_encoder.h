// Updates on a GPU (client/core/device_update.h): the kernels of privatise.h over one Δ, in parts of 4 MiB, which come to the host through two
// buffers of pinned memory in turn and in the order of their bytes: while the sink stores one part, the next is encoded and copied. Sums of
// many are those of fold.h, made in memory of the device that is used again.
//
// `delta`: [elements] floats of the device's memory, 16-byte aligned, complete when this is called; `holder` keeps it until the update goes.
// `rest`: the flat form's buffers and counters. `max_abs`: max |Δ|, finite. Pinned buffers are used again by later updates.
// Threads: as DeviceUpdate. Errors: RESOURCE_EXHAUSTED (no device or pinned memory), INTERNAL (CUDA's, by name), EncodeUpdate's.
#pragma once

#include <cstddef>
#include <memory>

#include "client/core/device_update.h"
#include "common/large_bytes.h"

namespace tributary::client {

std::unique_ptr<DeviceUpdate> MakeDeviceUpdate(int device, std::shared_ptr<const void> holder, const float* delta, size_t elements, LargeBytes rest,
                                               double max_abs);

}  // namespace tributary::client
