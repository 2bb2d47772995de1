#include "common/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "common/check.h"
#include "common/utf8.h"

namespace tributary {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeader = 100'000'000;
constexpr std::string_view kMetadataKey = "__metadata__";

// Bits per element of every type of the format; 0 for an unknown one.
size_t BitsOf(std::string_view dtype) {
  struct Row {
    std::string_view name;
    size_t bits;
  };
  static constexpr Row kTypes[] = {{"BOOL", 8},    {"U8", 8},      {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},
                                   {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
                                   {"F32", 32},    {"F64", 64},    {"I64", 64},    {"U64", 64},    {"C64", 64},    {"F4", 4},
                                   {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  for (const Row& row : kTypes) {
    if (row.name == dtype) return row.bits;
  }
  return 0;
}

// Names in messages come from outside and may be long.
std::string Shown(std::string_view name) {
  constexpr size_t kShown = 80;
  if (name.size() <= kShown) return std::string(name);
  size_t end = kShown;
  while (end > 0 && (static_cast<unsigned char>(name[end]) & 0xc0) == 0x80) --end;
  return std::string(name.substr(0, end)) + "…";
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size() && i < 16; ++i) text += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  return text + (shape.size() > 16 ? ", …]" : "]");
}

struct HeaderEntry {
  SafetensorsEntry entry;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Reads the header as a stream of JSON events against the one structure that is allowed: nothing outside it is ever stored, so
// deep nesting and unknown members cost nothing.
class HeaderHandler final : public nlohmann::json_sax<json> {
 public:
  std::vector<HeaderEntry> tensors;
  std::map<std::string, std::string> metadata;
  absl::Status error;

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { return Unexpected(fmt::format("the number {}", value)); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected("the number " + Shown(text)); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Fail("extent {} is too large", value);
      if (tensors.back().entry.shape.size() >= 64) return Fail("more than 64 dimensions");
      tensors.back().entry.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == kOffsets) {
      if (offsets_ == 2) return Fail("data_offsets: expected 2 numbers, got more");
      (offsets_ == 0 ? tensors.back().begin : tensors.back().end) = value;
      ++offsets_;
      return true;
    }
    return Unexpected(fmt::format("the number {}", value));
  }

  bool string(string_t& text) override {
    if (state_ == kMetadata) {
      if (!metadata.emplace(key_, text).second) return Fail("key '{}' occurs twice", Shown(key_));
      return true;
    }
    if (state_ == kTensor && key_ == "dtype") {
      tensors.back().entry.dtype = text;
      return true;
    }
    return Unexpected("a string");
  }

  bool start_object(size_t) override {
    if (state_ == kStart) {
      state_ = kTop;
      return true;
    }
    if (state_ != kTop) return Unexpected("an object");
    if (key_ == kMetadataKey) {
      if (have_metadata_) return Fail("occurs twice");
      have_metadata_ = true;
      state_ = kMetadata;
      return true;
    }
    if (key_.empty()) return Fail("expected a name, got an empty one");
    if (!names_.insert(key_).second) return Fail("the name occurs twice");
    if (tensors.size() >= TensorLayout::kMaxTensors) return Fail("more than {} tensors", TensorLayout::kMaxTensors);
    tensors.emplace_back();
    tensors.back().entry.name = key_;
    have_dtype_ = have_shape_ = have_offsets_ = false;
    state_ = kTensor;
    return true;
  }

  bool key(string_t& text) override {
    key_ = text;
    if (state_ == kTop) {
      name_ = text;
      return true;
    }
    if (state_ == kMetadata) return true;
    bool* have = text == "dtype" ? &have_dtype_ : text == "shape" ? &have_shape_ : text == "data_offsets" ? &have_offsets_ : nullptr;
    if (have == nullptr) return Fail("expected dtype, shape and data_offsets, got key '{}'", Shown(text));
    if (*have) return Fail("key '{}' occurs twice", text);
    *have = true;
    return true;
  }

  bool end_object() override {
    if (state_ == kTensor) {
      if (!have_dtype_ || !have_shape_ || !have_offsets_) {
        return Fail("expected dtype, shape and data_offsets, {} is missing",
                    !have_dtype_ ? "dtype" : !have_shape_ ? "shape" : "data_offsets");
      }
      state_ = kTop;
    } else if (state_ == kMetadata) {
      state_ = kTop;
    } else {
      state_ = kDone;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (state_ != kTensor || (key_ != "shape" && key_ != "data_offsets")) return Unexpected("an array");
    state_ = key_ == "shape" ? kShape : kOffsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    if (state_ == kOffsets && offsets_ != 2) return Fail("data_offsets: expected 2 numbers, got {}", offsets_);
    state_ = kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    error = InvalidArgument("safetensors header: not valid JSON at byte {}", position);
    return false;
  }

 private:
  enum State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kDone };

  template <typename... Args>
  bool Fail(fmt::format_string<Args...> format, Args&&... args) {
    const std::string message = fmt::format(format, std::forward<Args>(args)...);
    error = state_ == kStart ? InvalidArgument("safetensors header: {}", message)
                             : InvalidArgument("safetensors header: '{}': {}", Shown(name_), message);
    return false;
  }

  bool Unexpected(const std::string& got) {
    switch (state_) {
      case kStart:
      case kTop:
        return Fail("expected an object, got {}", got);
      case kMetadata:
        return Fail("{}: expected a string, got {}", Shown(key_), got);
      case kTensor:
        return Fail("{}: expected {}, got {}", Shown(key_), key_ == "dtype" ? "a string" : "an array of numbers", got);
      case kShape:
        return Fail("shape: expected whole numbers >= 0, got {}", got);
      case kOffsets:
        return Fail("data_offsets: expected whole numbers >= 0, got {}", got);
      case kDone:
        break;
    }
    return Fail("unexpected {}", got);
  }

  State state_ = kStart;
  std::string key_;
  std::string name_;
  std::unordered_set<std::string> names_;
  size_t offsets_ = 0;
  bool have_metadata_ = false, have_dtype_ = false, have_shape_ = false, have_offsets_ = false;
};

// Bytes that shape × type take, or INVALID_ARGUMENT when that overflows or is no whole number of bytes.
absl::StatusOr<uint64_t> ExpectedBytes(const SafetensorsEntry& entry) {
  const size_t bits = BitsOf(entry.dtype);
  if (bits == 0) return InvalidArgument("tensor '{}': unknown type '{}'", Shown(entry.name), Shown(entry.dtype));
  uint64_t total = bits;
  for (const int64_t extent : entry.shape) {
    if (__builtin_mul_overflow(total, static_cast<uint64_t>(extent), &total)) {
      return InvalidArgument("tensor '{}': shape {} overflows", Shown(entry.name), ShapeText(entry.shape));
    }
  }
  if (total % 8 != 0) {
    return InvalidArgument("tensor '{}': shape {} of {} is no whole number of bytes", Shown(entry.name), ShapeText(entry.shape),
                           entry.dtype);
  }
  return total / 8;
}

absl::StatusOr<DType> ModelDType(const SafetensorsEntry& entry) {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kI64}) {
    if (entry.dtype == DTypeName(dtype)) return dtype;
  }
  return InvalidArgument("tensor '{}': expected type F32, F64 or I64, got {}", Shown(entry.name), entry.dtype);
}

// The header's length, from the first bytes of a file of `file_bytes`.
absl::StatusOr<uint64_t> HeaderBytes(std::span<const std::byte> head, uint64_t file_bytes) {
  if (head.size() < kLengthBytes) return InvalidArgument("safetensors: expected at least 8 bytes, got {}", file_bytes);
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header_bytes |= static_cast<uint64_t>(head[i]) << (8 * i);
  if (header_bytes > kMaxHeader) {
    return InvalidArgument("safetensors: expected a header of at most {} bytes, got {}", kMaxHeader, header_bytes);
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return InvalidArgument("safetensors: a header of {} bytes is announced, the file has {} after the length", header_bytes,
                           file_bytes - kLengthBytes);
  }
  return header_bytes;
}

// Entries without their bytes.
absl::StatusOr<SafetensorsView> ParseHeader(std::string_view header, uint64_t file_bytes) {
  if (header.empty() || header[0] != '{') return InvalidArgument("safetensors header: expected it to begin with '{{'");
  // The JSON reader takes a NUL for the end of its input.
  if (header.find('\0') != std::string_view::npos) return InvalidArgument("safetensors header: not valid JSON: it has a NUL byte");
  HeaderHandler handler;
  if (!json::sax_parse(header.begin(), header.end(), &handler)) {
    return handler.error.ok() ? InvalidArgument("safetensors header: not valid JSON") : handler.error;
  }

  std::vector<HeaderEntry>& tensors = handler.tensors;
  // (begin, end): an empty tensor sorts before the one that begins at the same place.
  std::stable_sort(tensors.begin(), tensors.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  const uint64_t data_begin = kLengthBytes + header.size();
  const uint64_t data_bytes = file_bytes - data_begin;
  SafetensorsView view;
  view.metadata = std::move(handler.metadata);
  view.entries.reserve(tensors.size());
  uint64_t expected_begin = 0;
  for (HeaderEntry& tensor : tensors) {
    const std::string name = Shown(tensor.entry.name);
    if (tensor.begin != expected_begin) {
      return InvalidArgument("tensor '{}': {}: expected its data to begin at {}, got {}", name,
                             tensor.begin < expected_begin ? "overlaps another" : "a hole before it", expected_begin, tensor.begin);
    }
    if (tensor.end < tensor.begin || tensor.end > data_bytes) {
      return InvalidArgument("tensor '{}': data_offsets [{}, {}] do not lie in the file's {} bytes of data", name, tensor.begin,
                             tensor.end, data_bytes);
    }
    TRIB_ASSIGN_OR_RETURN(const uint64_t size, ExpectedBytes(tensor.entry));
    if (size != tensor.end - tensor.begin) {
      return InvalidArgument("tensor '{}': shape {} of {} takes {} bytes, data_offsets give {}", name,
                             ShapeText(tensor.entry.shape), tensor.entry.dtype, size, tensor.end - tensor.begin);
    }
    tensor.entry.file_offset = data_begin + tensor.begin;
    tensor.entry.size_bytes = size;
    expected_begin = tensor.end;
    view.entries.push_back(std::move(tensor.entry));
  }
  if (expected_begin != data_bytes) {
    return InvalidArgument("safetensors: {} bytes of data, of which the tensors name {}", data_bytes, expected_begin);
  }
  return view;
}

// Which entry goes where in the flat form.
absl::StatusOr<std::vector<std::pair<const SafetensorsEntry*, const PlacedTensor*>>> MatchTensors(const SafetensorsView& view,
                                                                                                  const TensorLayout& layout) {
  // One pass over the entries with an index by name: both sides may have many thousand tensors.
  std::map<std::string_view, const PlacedTensor*> wanted;
  for (const PlacedTensor& tensor : layout.tensors()) wanted.emplace(tensor.spec.name, &tensor);
  std::vector<std::pair<const SafetensorsEntry*, const PlacedTensor*>> pairs;
  pairs.reserve(wanted.size());
  for (const SafetensorsEntry& entry : view.entries) {
    const auto found = wanted.find(entry.name);
    if (found == wanted.end()) return InvalidArgument("tensor '{}': the model has none of this name", Shown(entry.name));
    const TensorSpec& spec = found->second->spec;
    if (entry.dtype != DTypeName(spec.dtype)) {
      return InvalidArgument("tensor '{}': expected type {}, got {}", Shown(entry.name), DTypeName(spec.dtype), entry.dtype);
    }
    if (entry.shape != spec.shape) {
      return InvalidArgument("tensor '{}': expected shape {}, got {}", Shown(entry.name), ShapeText(spec.shape),
                             ShapeText(entry.shape));
    }
    pairs.emplace_back(&entry, found->second);
    wanted.erase(found);  // a second one of the name is unknown then
  }
  if (!wanted.empty()) return InvalidArgument("tensor '{}': missing", Shown(wanted.begin()->first));
  return pairs;
}

}  // namespace

const SafetensorsEntry* SafetensorsView::Find(std::string_view name) const {
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

absl::StatusOr<SafetensorsView> ParseSafetensors(std::span<const std::byte> bytes) {
  TRIB_ASSIGN_OR_RETURN(const uint64_t header_bytes, HeaderBytes(bytes, bytes.size()));
  TRIB_ASSIGN_OR_RETURN(SafetensorsView view,
                        ParseHeader({reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes}, bytes.size()));
  for (SafetensorsEntry& entry : view.entries) entry.bytes = bytes.subspan(entry.file_offset, entry.size_bytes);
  return view;
}

absl::StatusOr<SafetensorsView> ReadSafetensorsHeader(const ByteSource& file) {
  std::array<std::byte, kLengthBytes> length{};
  const auto head = std::span(length).first(std::min<uint64_t>(kLengthBytes, file.size()));
  TRIB_RETURN_IF_ERROR(file.Read(0, head));
  TRIB_ASSIGN_OR_RETURN(const uint64_t header_bytes, HeaderBytes(head, file.size()));
  std::string header(header_bytes, '\0');
  TRIB_RETURN_IF_ERROR(file.Read(kLengthBytes, std::as_writable_bytes(std::span(header))));
  return ParseHeader(header, file.size());
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Read(const std::filesystem::path& path) {
  SafetensorsFile file;
  TRIB_ASSIGN_OR_RETURN(file.content_, ReadFile(path, TensorLayout::kMaxBytes));
  auto view = ParseSafetensors(std::as_bytes(std::span(file.content_.data(), file.content_.size())));
  if (!view.ok()) return Annotate(view.status(), path.string());
  file.view_ = *std::move(view);
  // The smallest file with a tensor is longer than any small-string buffer, so moving `file` keeps the views in place.
  TRIB_CHECK(file.view_.entries.empty() || file.content_.size() > 40);
  return file;
}

absl::StatusOr<TensorLayout> LayoutOf(const SafetensorsView& view) {
  std::vector<TensorSpec> specs;
  specs.reserve(view.entries.size());
  for (const SafetensorsEntry& entry : view.entries) {
    TRIB_ASSIGN_OR_RETURN(const DType dtype, ModelDType(entry));
    TensorKind kind = dtype == DType::kI64 ? TensorKind::kCounter : TensorKind::kTrainable;
    if (const auto noted = view.metadata.find("kind:" + entry.name); noted != view.metadata.end()) {
      if (noted->second == "buffer" && dtype != DType::kI64) {
        kind = TensorKind::kBuffer;
      } else if (noted->second == "server_owned" && dtype != DType::kI64) {
        kind = TensorKind::kServerOwned;
      } else if (noted->second != TensorKindName(kind)) {
        return InvalidArgument("tensor '{}': '__metadata__' calls it '{}', which a tensor of {} cannot be", Shown(entry.name),
                               Shown(noted->second), entry.dtype);
      }
    }
    specs.push_back({entry.name, entry.shape, dtype, kind});
  }
  return TensorLayout::Create(std::move(specs));
}

absl::StatusOr<FlatModel> ToModel(const SafetensorsView& view) {
  FlatModel model;
  TRIB_ASSIGN_OR_RETURN(model.layout, LayoutOf(view));
  TRIB_ASSIGN_OR_RETURN(model.bytes, ToFlat(view, model.layout));
  return model;
}

absl::StatusOr<std::vector<std::byte>> ToFlat(const SafetensorsView& view, const TensorLayout& layout) {
  std::vector<std::byte> flat(layout.total_bytes());
  TRIB_RETURN_IF_ERROR(CopyFlat(view, layout, flat));
  return flat;
}

absl::Status CopyFlat(const SafetensorsView& view, const TensorLayout& layout, std::span<std::byte> out) {
  TRIB_CHECK(out.size() == layout.total_bytes(), "{} bytes for a layout of {}", out.size(), layout.total_bytes());
  TRIB_ASSIGN_OR_RETURN(const auto pairs, MatchTensors(view, layout));
  for (const auto& [entry, tensor] : pairs) {
    if (tensor->bytes != 0) std::memcpy(out.data() + tensor->offset_bytes, entry->bytes.data(), tensor->bytes);
  }
  return absl::OkStatus();
}

absl::Status ReadFlat(const ByteSource& file, const SafetensorsView& view, const TensorLayout& layout, std::span<std::byte> out) {
  TRIB_CHECK(out.size() == layout.total_bytes(), "{} bytes for a layout of {}", out.size(), layout.total_bytes());
  TRIB_ASSIGN_OR_RETURN(const auto pairs, MatchTensors(view, layout));
  for (const auto& [entry, tensor] : pairs) {
    TRIB_RETURN_IF_ERROR(file.Read(entry->file_offset, out.subspan(tensor->offset_bytes, tensor->bytes)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> SerializeSafetensors(const TensorLayout& layout, std::span<const std::byte> flat,
                                                 const std::map<std::string, std::string>& metadata) {
  if (flat.size() != layout.total_bytes()) {
    return InvalidArgument("safetensors: the layout takes {} bytes, got {}", layout.total_bytes(), flat.size());
  }
  std::map<std::string, std::string> notes = metadata;
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (tensor.spec.kind != TensorKind::kTrainable) notes["kind:" + tensor.spec.name] = TensorKindName(tensor.spec.kind);
  }
  for (const auto& note : notes) {
    if (!IsUtf8(note.first) || !IsUtf8(note.second)) return InvalidArgument("safetensors metadata: expected UTF-8 text");
  }
  // Written member by member: an ordered_json object looks every new key up linearly.
  std::string text = "{";
  if (!notes.empty()) text += json(kMetadataKey).dump() + ":" + json(notes).dump();
  for (const PlacedTensor& tensor : layout.tensors()) {
    const std::string& name = tensor.spec.name;
    if (name == kMetadataKey || !IsUtf8(name)) {
      return InvalidArgument("tensor '{}': the name cannot be written to a safetensors file", Shown(name));
    }
    const nlohmann::ordered_json entry = {{"dtype", DTypeName(tensor.spec.dtype)},
                                          {"shape", tensor.spec.shape},
                                          {"data_offsets", {tensor.offset_bytes, tensor.offset_bytes + tensor.bytes}}};
    text += (text.size() > 1 ? "," : "") + json(name).dump() + ":" + entry.dump();
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeader) return InvalidArgument("safetensors: the header would have {} bytes", text.size());
  std::string content;
  content.reserve(8 + text.size() + flat.size());
  for (size_t i = 0; i < 8; ++i) content.push_back(static_cast<char>(text.size() >> (8 * i)));
  content += text;
  if (!flat.empty()) content.append(reinterpret_cast<const char*>(flat.data()), flat.size());
  return content;
}

absl::Status WriteSafetensors(const std::filesystem::path& path, const TensorLayout& layout, std::span<const std::byte> flat,
                              const std::map<std::string, std::string>& metadata) {
  TRIB_ASSIGN_OR_RETURN(const std::string content, SerializeSafetensors(layout, flat, metadata));
  return WriteFileAtomically(path, content);
}

}  // namespace tributary
