// Any bytes as a message from outside: refused with INVALID_ARGUMENT, or converted and converted back equal. The first byte chooses
// the message. A data chunk that both our decoder and the generated one take must read the same, however it is sliced.
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/digest.h"
#include "proto/chunk_codec.h"
#include "proto/codec.h"
#include "proto/grpc_status.h"

namespace tributary {
namespace {

void CheckRefusal(const absl::Status& status) {
  TRIB_CHECK(status.ok() || status.code() == absl::StatusCode::kInvalidArgument, "{}", status.ToString());
}

void FuzzChunk(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += piece) slices.emplace_back(bytes.data() + at, std::min(piece, bytes.size() - at));
  const auto ours = ChunkReader::Parse(grpc::ByteBuffer(slices.data(), slices.size()));
  CheckRefusal(ours.status());
  if (!ours.ok()) return;
  std::string payload(ours->payload_bytes(), '\0');
  const uint32_t crc = ours->CopyPayload(std::as_writable_bytes(std::span(payload.data(), payload.size())));
  TRIB_CHECK(crc == Crc32c(std::as_bytes(std::span(payload.data(), payload.size()))));
  v1::DataChunk theirs;
  if (!theirs.ParseFromString(bytes)) return;  // a sha256 that is not UTF-8, which ours leaves to who compares it
  const ChunkFields& fields = ours->fields();
  TRIB_CHECK(fields.upload_id == theirs.upload_id() && fields.offset == theirs.offset() && fields.crc32c == theirs.crc32c());
  TRIB_CHECK(fields.total_bytes == theirs.total_bytes() && fields.sha256 == theirs.sha256() && payload == theirs.bytes());
  theirs.DiscardUnknownFields();
  std::string encoded;
  std::vector<grpc::Slice> out;
  TRIB_CHECK(EncodeChunk(fields, std::as_bytes(std::span(payload.data(), payload.size())), nullptr).Dump(&out).ok() ||
             theirs.ByteSizeLong() == 0);
  for (const auto& slice : out) encoded.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  TRIB_CHECK(encoded == theirs.SerializeAsString());
}

void FuzzUpload(const std::string& bytes) {
  v1::BeginUploadRequest message;
  if (!message.ParseFromString(bytes)) return;
  const auto upload = UploadFromProto(message);
  CheckRefusal(upload.status());
  if (!upload.ok()) return;
  TRIB_CHECK(upload->weight > 0 && upload->weight <= kMaxWeight && upload->metrics.size() <= kMaxMetrics);
  const v1::UpdateKey key = KeyToProto(upload->key.job, upload->key.task, upload->key.update);
  TRIB_CHECK(key.update_id() == message.key().update_id() && key.job() == message.key().job());
}

void FuzzLayout(const std::string& bytes) {
  v1::TensorLayout message;
  if (!message.ParseFromString(bytes)) return;
  const auto layout = LayoutFromProto(message);
  CheckRefusal(layout.status());
  if (!layout.ok()) return;
  const auto again = LayoutFromProto(LayoutToProto(*layout));
  TRIB_CHECK(again.ok() && *again == *layout);
}

}  // namespace
}  // namespace tributary

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tributary;
  google::protobuf::SetLogHandler(nullptr);
  if (size < 2) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  switch (data[0] % 6) {
    case 0:
      FuzzChunk(bytes, 1 + data[1]);
      break;
    case 1:
      FuzzUpload(bytes);
      break;
    case 2: {
      v1::ClientMessage message;
      if (message.ParseFromString(bytes)) CheckRefusal(CheckClientMessage(message));
      break;
    }
    case 3:
      FuzzLayout(bytes);
      break;
    case 4: {
      v1::QueryUpdateRequest message;
      if (message.ParseFromString(bytes)) CheckRefusal(CheckQuery(message));
      break;
    }
    default: {
      const auto delay = RetryDelayOf({grpc::RESOURCE_EXHAUSTED, "", bytes});
      TRIB_CHECK(!delay.has_value() || (*delay > absl::ZeroDuration() && *delay <= absl::Hours(1)));
      break;
    }
  }
  return 0;
}
