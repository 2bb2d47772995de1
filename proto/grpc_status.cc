#include "proto/grpc_status.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <string>
#include <utility>

namespace tributary {
namespace {

using google::protobuf::io::CodedInputStream;
using google::protobuf::internal::WireFormatLite;

constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr absl::Duration kMaxRetryDelay = absl::Hours(1);

void AppendVarint(std::string* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

void AppendBytes(std::string* out, uint32_t field, const std::string& bytes) {
  AppendVarint(out, field << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  AppendVarint(out, bytes.size());
  *out += bytes;
}

// Calls `visit` with the content of each length-delimited `field` of `message`; false if the message is malformed.
template <typename Visit>
bool ForEachBytes(const std::string& message, uint32_t field, Visit visit) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(message.data()), static_cast<int>(message.size()));
  while (const uint32_t tag = in.ReadTag()) {
    if (tag != (field << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED)) {
      if (!WireFormatLite::SkipField(&in, tag)) return false;
      continue;
    }
    uint32_t size = 0;
    std::string bytes;
    if (!in.ReadVarint32(&size) || size > message.size() || !in.ReadString(&bytes, static_cast<int>(size))) return false;
    visit(bytes);
  }
  return true;
}

// google.rpc.Status{1: code, 2: message, 3: details} holding google.rpc.RetryInfo{1: retry_delay}. Written by hand: the two
// messages are frozen, and Debian ships no library with them.
std::string Details(const absl::Status& status, absl::Duration delay) {
  google::protobuf::Duration duration;
  duration.set_seconds(absl::ToInt64Seconds(delay));
  duration.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(delay - absl::Seconds(duration.seconds()))));
  std::string info;
  AppendBytes(&info, 1, duration.SerializeAsString());
  google::protobuf::Any any;
  any.set_type_url(kRetryInfo);
  any.set_value(info);
  std::string out;
  AppendVarint(&out, 1 << 3 | WireFormatLite::WIRETYPE_VARINT);
  AppendVarint(&out, static_cast<uint64_t>(status.code()));
  AppendBytes(&out, 3, any.SerializeAsString());
  return out;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status, std::optional<absl::Duration> retry_delay) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = MessageOf(status);
  if (message.size() > kMaxStatusMessage) {
    size_t cut = kMaxStatusMessage;
    while (cut > 0 && (static_cast<unsigned char>(message[cut]) & 0xc0) == 0x80) --cut;  // not inside a UTF-8 character
    message.resize(cut);
  }
  const auto code = static_cast<grpc::StatusCode>(status.code());
  if (!retry_delay.has_value() || *retry_delay <= absl::ZeroDuration()) return {code, message};
  return {code, message, Details(status, std::min(*retry_delay, kMaxRetryDelay))};
}

absl::Status FromGrpc(const grpc::Status& status) {
  const int code = static_cast<int>(status.error_code());
  if (code < 0 || code > 16) return absl::UnknownError(status.error_message());
  return absl::Status(static_cast<absl::StatusCode>(code), status.error_message());
}

std::optional<absl::Duration> RetryDelayOf(const grpc::Status& status) {
  std::optional<absl::Duration> found;
  const std::string details = status.error_details();
  if (details.empty()) return found;
  const bool well_formed = ForEachBytes(details, 3, [&found](const std::string& bytes) {
    google::protobuf::Any any;
    if (!any.ParseFromString(bytes) || any.type_url() != kRetryInfo) return;
    const bool ok = ForEachBytes(any.value(), 1, [&found](const std::string& duration_bytes) {
      google::protobuf::Duration duration;
      if (!duration.ParseFromString(duration_bytes)) return;
      const absl::Duration delay = absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
      if (delay > absl::ZeroDuration() && delay <= kMaxRetryDelay) found = delay;
    });
    if (!ok) found.reset();
  });
  if (!well_formed) found.reset();
  return found;
}

void AddRetryDelay(grpc::ServerContextBase& context, absl::Duration delay) {
  if (delay <= absl::ZeroDuration()) return;
  context.AddTrailingMetadata(kRetryPushback, std::to_string(absl::ToInt64Milliseconds(std::min(delay, kMaxRetryDelay))));
}

}  // namespace tributary
