// Any bytes as a safetensors file: refused, or read; and what is read as a model is written and read back equal.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "common/check.h"
#include "common/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tributary;
  const auto view = ParseSafetensors(std::as_bytes(std::span(data, size)));
  if (!view.ok()) {
    TRIB_CHECK(view.status().code() == absl::StatusCode::kInvalidArgument, "{}", view.status().ToString());
    return 0;
  }
  size_t named = 0;
  for (const SafetensorsEntry& entry : view->entries) {
    named += entry.bytes.size();
    // Touches both ends: a sanitizer sees a span that leaves the input.
    if (!entry.bytes.empty()) {
      volatile std::byte touched = entry.bytes.front() ^ entry.bytes.back();
      (void)touched;
    }
  }
  TRIB_CHECK(named <= size, "{} of {}", named, size);
  const auto model = ToModel(*view);
  if (!model.ok()) return 0;
  const auto written = SerializeSafetensors(model->layout, model->bytes);
  if (!written.ok()) return 0;
  const auto again = ParseSafetensors(std::as_bytes(std::span(written->data(), written->size())));
  TRIB_CHECK(again.ok(), "{}", again.status().ToString());
  const auto same = ToModel(*again);
  TRIB_CHECK(same.ok(), "{}", same.status().ToString());
  TRIB_CHECK(same->layout == model->layout && same->bytes == model->bytes);
  return 0;
}
