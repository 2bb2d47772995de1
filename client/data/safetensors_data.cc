// Data sets as safetensors: x [N, …] of F32, F64 or U8 (bytes become p / 255), y [N] of I64, I32 or U8 (classes), or [N] or [N, 1] of
// F32 or F64 (regression targets). Other tensors of a file are ignored.
#include <cmath>
#include <cstring>
#include <utility>

#include "client/data/loaders.h"
#include "common/safetensors.h"

namespace tributary::client {
namespace {

template <typename From, typename To>
absl::Status Convert(const SafetensorsEntry& entry, double scale, const std::string& origin, std::vector<To>& out) {
  out.resize(entry.bytes.size() / sizeof(From));
  for (size_t i = 0; i < out.size(); ++i) {
    From value;
    std::memcpy(&value, entry.bytes.data() + i * sizeof(From), sizeof(From));
    if constexpr (std::is_floating_point_v<To>) {
      out[i] = static_cast<To>(static_cast<double>(value) * scale);
      if (!std::isfinite(out[i])) return InvalidArgument("{}: tensor '{}': element {} is not finite", origin, entry.name, i);
    } else {
      out[i] = static_cast<To>(value);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Examples> ReadExamples(const std::filesystem::path& path) {
  const std::string origin = path.string();
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(path));
  const SafetensorsEntry* x = file.view().Find("x");
  const SafetensorsEntry* y = file.view().Find("y");
  if (x == nullptr || y == nullptr) return InvalidArgument("{}: no tensor '{}'; a data file has x and y", origin, x == nullptr ? "x" : "y");
  if (x->shape.size() < 2 || x->bytes.empty()) return InvalidArgument("{}: tensor 'x': expected shape [N, …] with N >= 1", origin);
  const int64_t count = x->shape[0];
  if (y->shape.empty() || y->shape[0] != count || y->shape.size() > 2 || (y->shape.size() == 2 && y->shape[1] != 1)) {
    return InvalidArgument("{}: tensor 'y': expected shape [{}] as x has {} examples, got [{}]", origin, count, count,
                           fmt::format("{}", fmt::join(y->shape, ", ")));
  }
  Examples all;
  all.example_shape.assign(x->shape.begin() + 1, x->shape.end());
  if (x->dtype == "F32") {
    TRIB_RETURN_IF_ERROR((Convert<float, float>(*x, 1, origin, all.x)));
  } else if (x->dtype == "F64") {
    TRIB_RETURN_IF_ERROR((Convert<double, float>(*x, 1, origin, all.x)));
  } else if (x->dtype == "U8") {
    TRIB_RETURN_IF_ERROR((Convert<uint8_t, float>(*x, 1.0 / 255, origin, all.x)));
  } else {
    return InvalidArgument("{}: tensor 'x': expected F32, F64 or U8, got {}", origin, x->dtype);
  }
  if (y->dtype == "I64") {
    TRIB_RETURN_IF_ERROR((Convert<int64_t, int64_t>(*y, 1, origin, all.labels)));
  } else if (y->dtype == "I32") {
    TRIB_RETURN_IF_ERROR((Convert<int32_t, int64_t>(*y, 1, origin, all.labels)));
  } else if (y->dtype == "U8") {
    TRIB_RETURN_IF_ERROR((Convert<uint8_t, int64_t>(*y, 1, origin, all.labels)));
  } else if (y->dtype == "F32") {
    TRIB_RETURN_IF_ERROR((Convert<float, float>(*y, 1, origin, all.targets)));
  } else if (y->dtype == "F64") {
    TRIB_RETURN_IF_ERROR((Convert<double, float>(*y, 1, origin, all.targets)));
  } else {
    return InvalidArgument("{}: tensor 'y': expected I64, I32, U8, F32 or F64, got {}", origin, y->dtype);
  }
  constexpr int64_t kMaxClass = 1'000'000;  // as for csv
  for (size_t i = 0; i < all.labels.size(); ++i) {
    if (all.labels[i] < 0 || all.labels[i] > kMaxClass) {
      return InvalidArgument("{}: tensor 'y': expected classes from 0 to {}, element {} is {}", origin, kMaxClass, i, all.labels[i]);
    }
  }
  return all;
}

}  // namespace

absl::StatusOr<LoadedData> LoadSafetensors(const DataSpec& spec, Split split) {
  TRIB_ASSIGN_OR_RETURN(const SourceFiles source, FindFiles(spec, split, ".safetensors"));
  Examples all;
  std::vector<std::vector<uint32_t>> files;
  for (const auto& path : source.files) {
    TRIB_ASSIGN_OR_RETURN(Examples part, ReadExamples(path));
    TRIB_RETURN_IF_ERROR(AppendExamples(path.string(), std::move(part), all, files));
  }
  return FinishLoad(spec, split, source.hold_out, std::move(all), std::move(files));
}

}  // namespace tributary::client
