#include "client/torch/example_store.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>

namespace tributary::client {
namespace {

// from_blob wants mutable pointers; nothing writes through them.
ExampleTensors Borrowed(const Examples& all) {
  const auto examples = static_cast<int64_t>(all.count());
  const auto elements = static_cast<int64_t>(all.example_elements());
  const auto floats = at::TensorOptions().dtype(at::kFloat);
  return {.x = at::from_blob(const_cast<float*>(all.x.data()), {examples, elements}, floats),
          .y = all.labels.empty() ? at::from_blob(const_cast<float*>(all.targets.data()), {examples, 1}, floats)
                                  : at::from_blob(const_cast<int64_t*>(all.labels.data()), {examples}, at::TensorOptions().dtype(at::kLong))};
}

}  // namespace

uint64_t FreeDeviceBytes(at::Device device) {
  if (device.is_cpu()) return 0;
  c10::DeviceAllocator* const allocator = c10::getDeviceAllocator(device.type());
  const auto stats = allocator->getDeviceStats(device.index());
  constexpr size_t kAll = 0;  // of large and small blocks
  const auto unused = stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
  return allocator->getMemoryInfo(device.index()).first + static_cast<uint64_t>(std::max<int64_t>(0, unused));
}

std::optional<ExampleTensors> ExampleStore::All(const std::shared_ptr<const Examples>& all) {
  if (device_.is_cpu()) return Borrowed(*all);
  std::erase_if(kept_, [](const Kept& kept) { return kept.holder.expired(); });
  for (const Kept& kept : kept_) {
    if (kept.examples == all.get()) return kept.tensors;
  }
  if (all->x.size() * sizeof(float) > FreeDeviceBytes(device_) / 2) return std::nullopt;
  const ExampleTensors host = Borrowed(*all);
  kept_.push_back({.examples = all.get(), .holder = all, .tensors = {.x = host.x.to(device_), .y = host.y.to(device_)}});
  return kept_.back().tensors;
}

ExampleTensors ExampleStore::Of(const Dataset& view) const {
  const ExampleTensors host = Borrowed(*view.all);
  at::Tensor rows = at::empty({static_cast<int64_t>(view.count())}, at::TensorOptions().dtype(at::kLong));
  std::copy(view.indices.begin(), view.indices.end(), rows.mutable_data_ptr<int64_t>());
  return {.x = host.x.index_select(0, rows).to(device_), .y = host.y.index_select(0, rows).to(device_)};
}

}  // namespace tributary::client
