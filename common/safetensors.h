// Reading and writing safetensors files, hostile by assumption.
//
// Format: u64 little-endian header length, JSON header, raw tensor bytes. The reader demands: header <= 100 MB, offsets
// contiguous from 0 to the file's end in some order (no holes, no overlaps), sizes equal to shape × type, products checked for
// overflow, unique names. It accepts every dtype of the format; ToModel() below is narrower.
// Source: the format description of the `safetensors` package; checked against it in tests/integration.
// Threads: thread-compatible. Errors: INVALID_ARGUMENT naming file, tensor, expected and got; NOT_FOUND for a missing file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/byte_source.h"
#include "common/file.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // the file's own name: "F32", "F16", "BF16", "I64", "U8", …
  std::vector<int64_t> shape;
  uint64_t file_offset = 0;  // of its first byte
  uint64_t size_bytes = 0;
  std::span<const std::byte> bytes;  // into the buffer that was parsed; empty if only the header was read
};

struct SafetensorsView {
  std::vector<SafetensorsEntry> entries;         // in the order of their offsets
  std::map<std::string, std::string> metadata;   // "__metadata__"
  const SafetensorsEntry* Find(std::string_view name) const;
};

// `bytes` must outlive the view.
absl::StatusOr<SafetensorsView> ParseSafetensors(std::span<const std::byte> bytes);

// Reads and checks the header only: entries without bytes.
absl::StatusOr<SafetensorsView> ReadSafetensorsHeader(const ByteSource& file);

// A whole file in memory with its view.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Read(const std::filesystem::path& path);
  const SafetensorsView& view() const { return view_; }

 private:
  std::string content_;  // heap storage stays put under moves because files are never small-string sized (header >= 8 + 2)
  SafetensorsView view_;
};

// Tensors in the flat form of tensor_layout.h.
struct FlatModel {
  TensorLayout layout;
  std::vector<std::byte> bytes;  // layout.total_bytes()
};

// The model that a file describes: F32 and F64 tensors become trainable, or buffer where "__metadata__" has "kind:<name>" = "buffer"; I64 become counters.
// Other types are refused by name. Mixed F32/F64 is refused.
absl::StatusOr<TensorLayout> LayoutOf(const SafetensorsView& view);
// The file must have exactly `layout`'s tensors (any order in the file): for updates and checkpoints. `out`: layout.total_bytes().
absl::Status CopyFlat(const SafetensorsView& view, const TensorLayout& layout, std::span<std::byte> out);
// The same from a file whose header is `view`: each byte is read once, into its place. Errors of the source too.
absl::Status ReadFlat(const ByteSource& file, const SafetensorsView& view, const TensorLayout& layout, std::span<std::byte> out);
absl::StatusOr<std::vector<std::byte>> ToFlat(const SafetensorsView& view, const TensorLayout& layout);
absl::StatusOr<FlatModel> ToModel(const SafetensorsView& view);

// The serialized file: header padded with spaces so that data begins at a multiple of 8; tensors in layout order; kinds other
// than trainable noted in "__metadata__" as above, next to `metadata`.
absl::StatusOr<std::string> SerializeSafetensors(const TensorLayout& layout, std::span<const std::byte> flat,
                                                 const std::map<std::string, std::string>& metadata = {});
absl::Status WriteSafetensors(const std::filesystem::path& path, const TensorLayout& layout, std::span<const std::byte> flat,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace tributary
