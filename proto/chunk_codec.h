// v1::DataChunk on and off the wire without copying its payload, byte-compatible with the generated message.
//
// Encoding: a small slice of header fields, then a slice that refers to the caller's memory and keeps `owner` alive until gRPC
// has sent it; the bytes are those that SerializeAsString() would give.
// Decoding is two steps, because fields may come in any order: Parse() walks the buffer's slices, reads the small fields and
// notes where the payload lies; once the caller knows from them where it belongs, CopyPayload() copies it, exactly once, and
// takes the CRC32C of each piece while it is in cache. Unknown fields are skipped, of a repeated field the last one counts.
//
// Lifetime: a ChunkReader holds references to the buffer's slices; the buffer may be cleared.
// Errors: INVALID_ARGUMENT for malformed bytes (truncated, a length past the end, a wrong wire type, groups, which tributary.v1
// does not use, a sha256 over 64 bytes, an xxh3_128 over 16). Threads: thread-compatible.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

namespace tributary {

// The fields of a DataChunk except its payload.
struct ChunkFields {
  uint64_t upload_id = 0;
  uint64_t offset = 0;
  uint32_t crc32c = 0;
  uint64_t total_bytes = 0;
  std::string sha256;    // at most 64 bytes
  std::string xxh3_128;  // at most 16 bytes
};

// `owner` keeps `payload` alive; it is released when gRPC has done with the buffer (any thread).
grpc::ByteBuffer EncodeChunk(const ChunkFields& fields, std::span<const std::byte> payload, std::shared_ptr<const void> owner);

class ChunkReader {
 public:
  static absl::StatusOr<ChunkReader> Parse(const grpc::ByteBuffer& buffer);

  const ChunkFields& fields() const { return fields_; }
  size_t payload_bytes() const { return payload_bytes_; }
  // destination.size() must be payload_bytes(). Returns the payload's CRC32C.
  uint32_t CopyPayload(std::span<std::byte> destination) const;

 private:
  ChunkFields fields_;
  std::vector<grpc::Slice> slices_;
  size_t payload_slice_ = 0;   // where the payload begins: slice, and byte in it
  size_t payload_at_ = 0;
  size_t payload_bytes_ = 0;
};

}  // namespace tributary
