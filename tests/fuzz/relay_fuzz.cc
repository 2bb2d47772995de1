// Any bytes as a message between nodes: refused with INVALID_ARGUMENT (a damaged chunk: DATA_LOSS), or converted and converted back equal.
// The first byte chooses the message.
#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"
#include "proto/relay_codec.h"

namespace tributary {
namespace {

void CheckRefusal(const absl::Status& status) {
  TRIB_CHECK(status.ok() || status.code() == absl::StatusCode::kInvalidArgument || status.code() == absl::StatusCode::kDataLoss, "{}",
             status.ToString());
}

void FuzzHeader(const std::string& bytes) {
  v1::PartialHeader message;
  if (!message.ParseFromString(bytes)) return;
  const auto partial = PartialFromProto(message);
  CheckRefusal(partial.status());
  if (!partial.ok()) return;
  TRIB_CHECK(!partial->contributors.empty() && partial->sum_weight > 0);
  const auto again = PartialFromProto(PartialToProto(*partial));
  TRIB_CHECK(again.ok() && *again == *partial);
}

// Chunks one after another, as a stream would bring them, into 64 bytes that nothing may be written beyond of.
void FuzzChunks(const std::string& bytes) {
  std::vector<std::byte> sums(80, std::byte{0x5a});
  PartialReceiver receiver{std::span(sums).first(64)};
  size_t at = 0;
  while (at < bytes.size() && !receiver.complete()) {
    const size_t length = std::min<size_t>(static_cast<unsigned char>(bytes[at]), bytes.size() - at - 1);
    v1::PartialChunk chunk;
    if (chunk.ParseFromString(bytes.substr(at + 1, length))) CheckRefusal(receiver.Take(chunk));
    at += 1 + length;
  }
  CheckRefusal(receiver.CheckDigest(std::string(16, 'x')));
  for (size_t i = 64; i < sums.size(); ++i) TRIB_CHECK(sums[i] == std::byte{0x5a});
  CheckRefusal(CheckSums(std::span(sums).first(64), 64, v1::SUMS_TYPE_F64, 1, 1));
  CheckRefusal(CheckSums(std::span(sums).first(64), 64, v1::SUMS_TYPE_FIXED40, 1, 1));
}

template <typename Message>
void FuzzCheck(const std::string& bytes, absl::Status (*check)(const Message&)) {
  Message message;
  if (message.ParseFromString(bytes)) CheckRefusal(check(message));
}

}  // namespace
}  // namespace tributary

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tributary;
  google::protobuf::SetLogHandler(nullptr);
  if (size < 1) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0: FuzzHeader(bytes); break;
    case 1: FuzzChunks(bytes); break;
    case 2: FuzzCheck<v1::NodeMessage>(bytes, CheckNodeMessage); break;
    case 3: FuzzCheck<v1::TopMessage>(bytes, CheckTopMessage); break;
    default: FuzzCheck<v1::PartialAnswer>(bytes, CheckPartialAnswer); break;
  }
  return 0;
}
