// Any bytes as an IDX file, plain or gzip: refused with a status, or read in agreement with its own header.
#include <cstdint>
#include <string>

#include "client/data/idx.h"
#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tributary::client::IdxFile;
  constexpr size_t kLimit = 1 << 20;
  const auto file = tributary::client::ParseIdx(std::string(reinterpret_cast<const char*>(data), size), kLimit);
  if (!file.ok()) {
    const absl::StatusCode code = file.status().code();
    TRIB_CHECK(code == absl::StatusCode::kInvalidArgument || code == absl::StatusCode::kResourceExhausted, "{}", file.status().ToString());
    return 0;
  }
  size_t product = 1;
  for (uint32_t extent : file->header.extents) product *= extent;
  TRIB_CHECK(product == file->header.elements && product * file->header.element_bytes <= kLimit, "{} elements", product);
  TRIB_CHECK(file->elements().size() == product * file->header.element_bytes, "{} bytes", file->elements().size());
  const auto values = tributary::client::IdxValues(*file);
  TRIB_CHECK(!values.ok() || values->size() == product, "values");
  const auto labels = tributary::client::IdxLabels(*file);
  TRIB_CHECK(!labels.ok() || labels->size() == product, "labels");
  return 0;
}
