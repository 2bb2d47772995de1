// IDX files (the format of MNIST): hostile by assumption.
//
//   0x00 0x00 | type (1 byte) | dimensions D (1 byte) | D extents, u32 big-endian | elements, row-major, big-endian
// Types read: 0x08 unsigned byte, 0x0D 32-bit float. Accepted: 1 to 4 dimensions, extents >= 1, exactly the bytes that the header
// says, at most `max_bytes` of them. A gzip file is inflated no further than its own header allows.
// Source: the description at the end of LeCun, Cortes, Burges, "The MNIST database". Threads: pure functions.
// Errors: INVALID_ARGUMENT naming expected and got; RESOURCE_EXHAUSTED over the limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace tributary::client {

struct IdxHeader {
  uint8_t type = 0;
  std::vector<uint32_t> extents;
  size_t header_bytes = 0;
  size_t element_bytes = 0;
  size_t elements = 0;  // product of the extents
};

// The header at the beginning of `bytes`, which may go on. `max_bytes` bounds elements × size.
absl::StatusOr<IdxHeader> ParseIdxHeader(std::string_view bytes, size_t max_bytes);

struct IdxFile {
  IdxHeader header;
  std::string content;  // the whole file, inflated
  std::string_view elements() const { return std::string_view(content).substr(header.header_bytes); }
};

// `bytes`: a whole IDX file, plain or gzip (told by its first two bytes).
absl::StatusOr<IdxFile> ParseIdx(std::string bytes, size_t max_bytes);

// Element values as they are (a byte gives 0 to 255). INVALID_ARGUMENT: a float that is not finite.
absl::StatusOr<std::vector<float>> IdxValues(const IdxFile& file);
// One-dimensional unsigned bytes.
absl::StatusOr<std::vector<int64_t>> IdxLabels(const IdxFile& file);

}  // namespace tributary::client
