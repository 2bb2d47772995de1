#include "common/tensor_layout.h"

#include <algorithm>
#include <unordered_set>

#include "common/check.h"
#include "common/digest.h"

namespace tributary {

size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF64:
    case DType::kI64:
      return 8;
  }
  TRIB_CHECK(false, "dtype {}", static_cast<int>(dtype));
  return 0;
}

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF64:
      return "F64";
    case DType::kI64:
      return "I64";
  }
  return "?";
}

std::string_view TensorKindName(TensorKind kind) {
  switch (kind) {
    case TensorKind::kTrainable:
      return "trainable";
    case TensorKind::kBuffer:
      return "buffer";
    case TensorKind::kCounter:
      return "counter";
    case TensorKind::kServerOwned:
      return "server_owned";
  }
  return "?";
}

absl::StatusOr<TensorLayout> TensorLayout::Create(std::vector<TensorSpec> specs) {
  if (specs.size() > kMaxTensors) {
    return InvalidArgument("tensor layout: expected at most {} tensors, got {}", kMaxTensors, specs.size());
  }
  std::unordered_set<std::string_view> names;
  names.reserve(specs.size());
  bool have_float = false;
  TensorLayout layout;
  for (const TensorSpec& spec : specs) {
    if (spec.name.empty() || spec.name.size() > 512) {
      return InvalidArgument("tensor layout: expected a name of 1 to 512 bytes, got {} bytes", spec.name.size());
    }
    if (!names.insert(spec.name).second) return InvalidArgument("tensor '{}': the name occurs twice", spec.name);
    if (spec.dtype != DType::kF32 && spec.dtype != DType::kF64 && spec.dtype != DType::kI64) {
      return InvalidArgument("tensor '{}': unknown type {}", spec.name, static_cast<int>(spec.dtype));
    }
    switch (spec.kind) {
      case TensorKind::kCounter:
        if (spec.dtype != DType::kI64) {
          return InvalidArgument("tensor '{}': a counter must be I64, got {}", spec.name, DTypeName(spec.dtype));
        }
        break;
      case TensorKind::kTrainable:
      case TensorKind::kBuffer:
      case TensorKind::kServerOwned:
        if (spec.dtype == DType::kI64) {
          return InvalidArgument("tensor '{}': a {} must be F32 or F64, got I64", spec.name, TensorKindName(spec.kind));
        }
        if (have_float && spec.dtype != layout.float_dtype_) {
          return InvalidArgument("tensor '{}': expected {} like the tensors before it, got {}", spec.name,
                                 DTypeName(layout.float_dtype_), DTypeName(spec.dtype));
        }
        have_float = true;
        layout.float_dtype_ = spec.dtype;
        break;
      default:
        return InvalidArgument("tensor '{}': unknown kind {}", spec.name, static_cast<int>(spec.kind));
    }
  }
  names.clear();  // its views point into `specs`, which is moved from below
  layout.tensors_.reserve(specs.size());
  size_t offset = 0;
  for (const TensorKind kind : {TensorKind::kTrainable, TensorKind::kBuffer, TensorKind::kServerOwned, TensorKind::kCounter}) {
    for (TensorSpec& spec : specs) {
      if (spec.kind != kind) continue;
      size_t elements = 1;
      for (const int64_t extent : spec.shape) {
        if (extent < 0) return InvalidArgument("tensor '{}': negative extent {}", spec.name, extent);
        // Bounded at every step so that no intermediate overflows, also when a later extent is 0.
        if (__builtin_mul_overflow(elements, static_cast<size_t>(extent), &elements) || elements > kMaxBytes) {
          return InvalidArgument("tensor '{}': more than {} elements", spec.name, kMaxBytes);
        }
      }
      const size_t bytes = elements * DTypeBytes(spec.dtype);  // <= 2^43: cannot overflow
      if (bytes > kMaxBytes - offset) {
        return InvalidArgument("tensor '{}': the layout exceeds {} bytes", spec.name, kMaxBytes);
      }
      (kind == TensorKind::kCounter ? layout.counter_count_ : layout.float_count_) += elements;
      if (kind == TensorKind::kTrainable) layout.trainable_count_ += elements;
      if (kind == TensorKind::kServerOwned) layout.server_owned_count_ += elements;
      layout.tensors_.push_back({std::move(spec), elements, offset, bytes});
      offset += bytes;
    }
  }
  return layout;
}

absl::StatusOr<TensorLayout> WithGroups(const TensorLayout& model, const std::vector<std::string>& groups) {
  std::vector<TensorSpec> specs;
  for (const std::string& group : groups) {
    for (const PlacedTensor& tensor : model.tensors()) {
      if (tensor.spec.kind != TensorKind::kTrainable) continue;
      specs.push_back(tensor.spec);
      if (!group.empty()) specs.back().name = group + "/" + tensor.spec.name;
    }
  }
  for (const PlacedTensor& tensor : model.tensors()) {
    if (tensor.spec.kind == TensorKind::kBuffer || tensor.spec.kind == TensorKind::kCounter) specs.push_back(tensor.spec);
  }
  return TensorLayout::Create(std::move(specs));
}

const PlacedTensor* TensorLayout::Find(std::string_view name) const {
  const auto found =
      std::find_if(tensors_.begin(), tensors_.end(), [name](const PlacedTensor& tensor) { return tensor.spec.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

std::string TensorLayout::Fingerprint() const {
  Sha256 sha;
  const auto add = [&sha](std::string_view text) { sha.Update(std::as_bytes(std::span(text.data(), text.size()))); };
  for (const PlacedTensor& tensor : tensors_) {
    // The name's length comes first: no name can imitate the fields behind it.
    add(fmt::format("{}:", tensor.spec.name.size()));
    add(tensor.spec.name);
    add(fmt::format(";{};{};{};", DTypeName(tensor.spec.dtype), TensorKindName(tensor.spec.kind), tensor.spec.shape.size()));
    for (const int64_t extent : tensor.spec.shape) add(fmt::format("{},", extent));
    add("\n");
  }
  return sha.HexDigest();
}

bool TensorLayout::operator==(const TensorLayout& other) const {
  return std::equal(tensors_.begin(), tensors_.end(), other.tensors_.begin(), other.tensors_.end(),
                    [](const PlacedTensor& a, const PlacedTensor& b) { return a.spec == b.spec; });
}

}  // namespace tributary
