#include "client/data/idx.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "client/data/loaders.h"
#include "common/file.h"

namespace tributary::client {
namespace {

constexpr size_t kMaxDimensions = 4;
constexpr size_t kMaxHeader = 4 + 4 * kMaxDimensions;
constexpr uint8_t kUnsignedByte = 0x08;
constexpr uint8_t kFloat32 = 0x0D;

uint32_t BigEndian32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[static_cast<size_t>(i)]);
  return value;
}

bool IsGzip(std::string_view bytes) { return bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b'; }

// At most `limit` inflated bytes of one gzip member. `complete` says whether the stream ended there.
struct Inflated {
  std::string bytes;
  bool complete = false;
};
absl::StatusOr<Inflated> Inflate(std::string_view compressed, size_t limit) {
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 16) != Z_OK) return ResourceExhausted("gzip: no memory to inflate");
  Inflated result;
  size_t read = 0;
  int code = Z_OK;
  while (code == Z_OK && result.bytes.size() < limit) {
    const size_t produced = result.bytes.size();
    const size_t room = std::min<size_t>(limit - produced, size_t{1} << 20);
    result.bytes.resize(produced + room);
    const size_t give = std::min<size_t>(compressed.size() - read, size_t{1} << 30);
    // zlib's interface lacks the const; it does not write to its input.
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(compressed.data() + read));
    stream.avail_in = static_cast<uInt>(give);
    stream.next_out = reinterpret_cast<Bytef*>(result.bytes.data() + produced);
    stream.avail_out = static_cast<uInt>(room);
    code = inflate(&stream, Z_NO_FLUSH);
    read += give - stream.avail_in;
    result.bytes.resize(produced + room - stream.avail_out);
    if (code == Z_BUF_ERROR || (code == Z_OK && stream.avail_in == 0 && read == compressed.size() && stream.avail_out > 0)) {
      inflateEnd(&stream);
      return InvalidArgument("gzip: the file ends in the middle of its stream ({} bytes inflated)", result.bytes.size());
    }
  }
  const std::string message = stream.msg != nullptr ? stream.msg : "no message";
  inflateEnd(&stream);
  if (code != Z_OK && code != Z_STREAM_END) return InvalidArgument("gzip: damaged stream after {} bytes: {}", result.bytes.size(), message);
  result.complete = code == Z_STREAM_END;
  if (result.complete && read != compressed.size()) {
    return InvalidArgument("gzip: {} bytes follow the end of the stream", compressed.size() - read);
  }
  return result;
}

// Fashion-MNIST's training images: mean and deviation of the pixels divided by 255.
constexpr float kFashionMean = 0.2860F;
constexpr float kFashionDeviation = 0.3530F;

absl::StatusOr<IdxFile> ReadIdx(const std::filesystem::path& folder, const std::string& name) {
  std::error_code error;
  std::filesystem::path path = folder / (name + ".gz");
  if (!std::filesystem::exists(path, error)) path = folder / name;
  if (!std::filesystem::exists(path, error)) {
    return NotFound("'{}': neither {}.gz nor {} is there{}", folder.string(), name, name,
                    folder == "/usr/share/datasets/fashion-mnist" ? " (install the Debian package dataset-fashion-mnist)" : "");
  }
  TRIB_ASSIGN_OR_RETURN(std::string bytes, ReadFile(path, kMaxDataBytes));
  auto file = ParseIdx(std::move(bytes), kMaxDataBytes / sizeof(float));
  if (!file.ok()) return Annotate(file.status(), path.string());
  return file;
}

// Pixels p become (p / 255 − mean) / deviation; floats stay as they are.
absl::StatusOr<LoadedData> LoadPair(const DataSpec& spec, const std::string& folder, Split split, float mean, float deviation) {
  const std::string prefix = split == Split::kTrain ? "train" : "t10k";
  TRIB_ASSIGN_OR_RETURN(const IdxFile images, ReadIdx(folder, prefix + "-images-idx3-ubyte"));
  TRIB_ASSIGN_OR_RETURN(const IdxFile labels, ReadIdx(folder, prefix + "-labels-idx1-ubyte"));
  const std::vector<uint32_t>& extents = images.header.extents;
  if (labels.header.extents[0] != extents[0]) {
    return InvalidArgument("'{}': {} images but {} labels in the {} files", folder, extents[0], labels.header.extents[0], prefix);
  }
  Examples all;
  if (extents.size() < 2) return InvalidArgument("'{}': the {} images have 1 dimension, expected 2 to 4", folder, prefix);
  if (extents.size() == 3) all.example_shape.push_back(1);  // grey images have one channel
  all.example_shape.insert(all.example_shape.end(), extents.begin() + 1, extents.end());
  TRIB_ASSIGN_OR_RETURN(all.x, IdxValues(images));
  TRIB_ASSIGN_OR_RETURN(all.labels, IdxLabels(labels));
  if (images.header.type == kUnsignedByte) {
    const float scale = 1 / (255 * deviation);
    for (float& value : all.x) value = value * scale - mean / deviation;
  }
  return FinishLoad(spec, split, /*hold_out=*/false, std::move(all), {});
}

}  // namespace

absl::StatusOr<IdxHeader> ParseIdxHeader(std::string_view bytes, size_t max_bytes) {
  if (bytes.size() < 4) return InvalidArgument("IDX: expected at least 4 bytes of header, got {}", bytes.size());
  IdxHeader header;
  if (bytes[0] != 0 || bytes[1] != 0) {
    return InvalidArgument("IDX: expected two zero bytes at the beginning, got {:#04x} {:#04x}", static_cast<uint8_t>(bytes[0]),
                           static_cast<uint8_t>(bytes[1]));
  }
  header.type = static_cast<uint8_t>(bytes[2]);
  if (header.type != kUnsignedByte && header.type != kFloat32) {
    return InvalidArgument("IDX: expected element type 0x08 (unsigned byte) or 0x0d (float), got {:#04x}", header.type);
  }
  header.element_bytes = header.type == kUnsignedByte ? 1 : 4;
  const auto dimensions = static_cast<uint8_t>(bytes[3]);
  if (dimensions < 1 || dimensions > kMaxDimensions) return InvalidArgument("IDX: expected 1 to {} dimensions, got {}", kMaxDimensions, dimensions);
  header.header_bytes = 4 + 4 * static_cast<size_t>(dimensions);
  if (bytes.size() < header.header_bytes) {
    return InvalidArgument("IDX: expected {} bytes of header for {} dimensions, got {}", header.header_bytes, dimensions, bytes.size());
  }
  header.elements = 1;
  for (size_t d = 0; d < dimensions; ++d) {
    const uint32_t extent = BigEndian32(bytes.substr(4 + 4 * d));
    if (extent == 0) return InvalidArgument("IDX: dimension {} has extent 0", d);
    if (header.elements > max_bytes / header.element_bytes / extent) {
      return ResourceExhausted("IDX: the header promises more than the limit of {} bytes", max_bytes);
    }
    header.elements *= extent;
    header.extents.push_back(extent);
  }
  return header;
}

absl::StatusOr<IdxFile> ParseIdx(std::string bytes, size_t max_bytes) {
  IdxFile file;
  bool complete = true;
  if (IsGzip(bytes)) {
    TRIB_ASSIGN_OR_RETURN(const Inflated head, Inflate(bytes, kMaxHeader));
    TRIB_ASSIGN_OR_RETURN(file.header, ParseIdxHeader(head.bytes, max_bytes));
    // One byte more than promised tells a file that holds more.
    TRIB_ASSIGN_OR_RETURN(Inflated whole, Inflate(bytes, file.header.header_bytes + file.header.elements * file.header.element_bytes + 1));
    complete = whole.complete;
    file.content = std::move(whole.bytes);
  } else {
    TRIB_ASSIGN_OR_RETURN(file.header, ParseIdxHeader(bytes, max_bytes));
    file.content = std::move(bytes);
  }
  const size_t promised = file.header.elements * file.header.element_bytes;
  const size_t got = file.content.size() - file.header.header_bytes;
  if (got != promised || !complete) {
    return InvalidArgument("IDX: the header promises {} bytes of elements, the file has {}{}", promised, complete ? "" : "at least ", got);
  }
  return file;
}

absl::StatusOr<std::vector<float>> IdxValues(const IdxFile& file) {
  const std::string_view bytes = file.elements();
  std::vector<float> values(file.header.elements);
  if (file.header.type == kUnsignedByte) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(bytes[i]);
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = BigEndian32(bytes.substr(4 * i, 4));
    std::memcpy(&values[i], &bits, sizeof(float));
    if (!std::isfinite(values[i])) return InvalidArgument("IDX: element {} is not finite", i);
  }
  return values;
}

absl::StatusOr<std::vector<int64_t>> IdxLabels(const IdxFile& file) {
  if (file.header.extents.size() != 1 || file.header.type != kUnsignedByte) {
    return InvalidArgument("IDX labels: expected 1 dimension of unsigned bytes, got {} of type {:#04x}", file.header.extents.size(),
                           file.header.type);
  }
  std::vector<int64_t> labels;
  labels.reserve(file.header.elements);
  for (char byte : file.elements()) labels.push_back(static_cast<uint8_t>(byte));
  return labels;
}

absl::StatusOr<LoadedData> LoadFashionMnist(const DataSpec& spec, Split split) {
  return LoadPair(spec, spec.path.empty() ? "/usr/share/datasets/fashion-mnist" : spec.path, split, kFashionMean, kFashionDeviation);
}

// Pixels of unknown statistics go from [0, 255] to [−1, 1].
absl::StatusOr<LoadedData> LoadIdx(const DataSpec& spec, Split split) {
  if (spec.path.empty()) return InvalidArgument("data source 'idx' needs data.path: the folder of the four IDX files");
  return LoadPair(spec, spec.path, split, 0.5F, 0.5F);
}

}  // namespace tributary::client
