#include "cli/tensorboard.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "common/digest.h"
#include "common/file.h"
#include "tributary/v1/tensorboard.pb.h"

namespace tributary::cli {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr uint32_t kMaskDelta = 0xa282ead8;  // a stored CRC is rotated and shifted: CRCs of bytes that hold CRCs are weak

uint32_t MaskedCrc(std::string_view bytes) {
  const uint32_t crc = Crc32c(std::as_bytes(std::span(bytes)));
  return std::rotr(crc, 15) + kMaskDelta;
}

template <typename T>
void Append(std::string* out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out->append(bytes, sizeof(T));
}

void AppendRecord(std::string* out, const v1::TensorBoardEvent& event) {
  const std::string data = event.SerializeAsString();
  std::string length;
  Append<uint64_t>(&length, data.size());
  *out += length;
  Append(out, MaskedCrc(length));
  *out += data;
  Append(out, MaskedCrc(data));
}

}  // namespace

absl::Status WriteTensorBoard(const std::filesystem::path& dir, const std::string& job, const std::vector<v1::Metric>& metrics) {
  TRIB_RETURN_IF_ERROR(MakeDirectories(dir / job));
  std::string file;
  v1::TensorBoardEvent first;
  first.set_file_version("brain.Event:2");
  AppendRecord(&file, first);
  for (const v1::Metric& metric : metrics) {
    v1::TensorBoardEvent event;
    event.set_wall_time(metric.wall_s());
    event.set_step(static_cast<int64_t>(metric.version()));
    const auto add = [&](const char* tag, double value) {
      if (!std::isfinite(value)) return;
      v1::TensorBoardSummary::Value& scalar = *event.mutable_summary()->add_value();
      scalar.set_tag(tag);
      scalar.set_simple_value(static_cast<float>(value));
    };
    add("loss", metric.loss());
    add("accuracy", metric.accuracy());
    add("bytes_up", static_cast<double>(metric.bytes_up()));
    add("bytes_down", static_cast<double>(metric.bytes_down()));
    AppendRecord(&file, event);
  }
  return WriteFileAtomically(dir / job / "events.out.tfevents.0.tributary", std::string_view(file), /*durable=*/false);
}

}  // namespace tributary::cli
