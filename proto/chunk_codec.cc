#include "proto/chunk_codec.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/digest.h"

namespace tributary {
namespace {

enum Field : uint32_t { kUploadId = 1, kOffset = 2, kCrc32c = 3, kBytes = 4, kTotalBytes = 5, kSha256 = 6, kXxh3 = 7 };
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

// Largest header: four varint fields of 1 + 10 bytes, one fixed32 of 5. The trailer: a varint field and strings of 64 and 16.
class SmallWriter {
 public:
  void Varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) Byte(static_cast<uint8_t>(value | 0x80));
    Byte(static_cast<uint8_t>(value));
  }
  void Tag(Field field, WireType type) { Varint(field << 3 | type); }
  void VarintField(Field field, uint64_t value) {
    if (value == 0) return;  // proto3: defaults are not sent
    Tag(field, kVarint);
    Varint(value);
  }
  void Fixed32Field(Field field, uint32_t value) {
    if (value == 0) return;
    Tag(field, kFixed32);
    for (int shift = 0; shift < 32; shift += 8) Byte(static_cast<uint8_t>(value >> shift));
  }
  void StringField(Field field, const std::string& value) {
    if (value.empty()) return;
    Tag(field, kLengthDelimited);
    Varint(value.size());
    for (const char c : value) Byte(static_cast<uint8_t>(c));
  }
  grpc::Slice TakeSlice() {
    grpc::Slice slice(bytes_.data(), size_);
    size_ = 0;
    return slice;
  }
  bool empty() const { return size_ == 0; }

 private:
  void Byte(uint8_t byte) {
    TRIB_CHECK(size_ < bytes_.size(), "chunk header over {} bytes", bytes_.size());
    bytes_[size_++] = byte;
  }
  std::array<uint8_t, 128> bytes_;
  size_t size_ = 0;
};

// A cursor over the bytes of a list of slices.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
    SkipEmpty();
  }
  size_t left() const { return left_; }
  size_t slice() const { return slice_; }
  size_t at() const { return at_; }

  // Precondition: left() > 0.
  uint8_t Next() {
    const uint8_t byte = slices_[slice_].begin()[at_];
    Advance(1);
    return byte;
  }
  // Precondition: bytes <= left().
  void Advance(size_t bytes) {
    left_ -= bytes;
    while (bytes > 0) {
      const size_t step = std::min(bytes, slices_[slice_].size() - at_);
      at_ += step;
      bytes -= step;
      SkipEmpty();
    }
  }
  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (left_ == 0) return false;
      const uint8_t byte = Next();
      if (shift < 64) *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;  // more than ten bytes
  }
  bool Fixed32(uint32_t* value) {
    if (left_ < 4) return false;
    *value = 0;
    for (int shift = 0; shift < 32; shift += 8) *value |= static_cast<uint32_t>(Next()) << shift;
    return true;
  }

 private:
  void SkipEmpty() {
    while (slice_ < slices_.size() && at_ == slices_[slice_].size()) {
      ++slice_;
      at_ = 0;
    }
  }
  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t at_ = 0;
  size_t left_ = 0;
};

bool SkipField(SliceCursor* in, uint32_t type) {
  uint64_t length = 0;
  switch (type) {
    case kVarint:
      return in->Varint(&length);
    case kFixed64:
      length = 8;
      break;
    case kFixed32:
      length = 4;
      break;
    case kLengthDelimited:
      if (!in->Varint(&length)) return false;
      break;
    default:
      return false;  // groups
  }
  if (length > in->left()) return false;
  in->Advance(length);
  return true;
}

void ReleaseOwner(void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); }

}  // namespace

grpc::ByteBuffer EncodeChunk(const ChunkFields& fields, std::span<const std::byte> payload, std::shared_ptr<const void> owner) {
  std::array<grpc::Slice, 3> slices;
  size_t count = 0;
  SmallWriter out;
  out.VarintField(kUploadId, fields.upload_id);
  out.VarintField(kOffset, fields.offset);
  out.Fixed32Field(kCrc32c, fields.crc32c);
  if (!payload.empty()) {
    out.Tag(kBytes, kLengthDelimited);
    out.Varint(payload.size());
    slices[count++] = out.TakeSlice();
    // gRPC's slices are of void*, but nothing writes through one.
    slices[count++] = grpc::Slice(const_cast<std::byte*>(payload.data()), payload.size(), ReleaseOwner,
                                  new std::shared_ptr<const void>(std::move(owner)));
  }
  out.VarintField(kTotalBytes, fields.total_bytes);
  TRIB_CHECK(fields.sha256.size() <= 64, "sha256 of {} bytes", fields.sha256.size());
  out.StringField(kSha256, fields.sha256);
  TRIB_CHECK(fields.xxh3_128.size() <= 16, "xxh3_128 of {} bytes", fields.xxh3_128.size());
  out.StringField(kXxh3, fields.xxh3_128);
  if (!out.empty()) slices[count++] = out.TakeSlice();
  return {slices.data(), count};
}

absl::StatusOr<ChunkReader> ChunkReader::Parse(const grpc::ByteBuffer& buffer) {
  ChunkReader out;
  if (!buffer.Valid()) return out;  // an empty message: all defaults
  if (const grpc::Status status = buffer.Dump(&out.slices_); !status.ok())
    return InvalidArgument("data chunk: {}", status.error_message());
  SliceCursor in(out.slices_);
  const size_t total = in.left();
  const auto malformed = [&](std::string_view what) {
    return InvalidArgument("data chunk: malformed {} at byte {} of {}", what, total - in.left(), total);
  };
  while (in.left() > 0) {
    uint64_t tag = 0;
    if (!in.Varint(&tag) || tag > UINT32_MAX || tag >> 3 == 0) return malformed("tag");
    const auto field = static_cast<uint32_t>(tag >> 3);
    const auto type = static_cast<uint32_t>(tag & 7);
    if (type == kVarint && (field == kUploadId || field == kOffset || field == kTotalBytes)) {
      uint64_t* const value = field == kUploadId ? &out.fields_.upload_id
                              : field == kOffset ? &out.fields_.offset
                                                 : &out.fields_.total_bytes;
      if (!in.Varint(value)) return malformed("number");
    } else if (type == kFixed32 && field == kCrc32c) {
      if (!in.Fixed32(&out.fields_.crc32c)) return malformed("crc32c");
    } else if (type == kLengthDelimited && field == kBytes) {
      uint64_t length = 0;
      if (!in.Varint(&length) || length > in.left()) return malformed("length of bytes");
      out.payload_slice_ = in.slice();
      out.payload_at_ = in.at();
      out.payload_bytes_ = length;
      in.Advance(length);
    } else if (type == kLengthDelimited && (field == kSha256 || field == kXxh3)) {
      std::string& text = field == kSha256 ? out.fields_.sha256 : out.fields_.xxh3_128;
      uint64_t length = 0;
      if (!in.Varint(&length) || length > in.left() || length > (field == kSha256 ? 64u : 16u)) return malformed("hash");
      text.clear();
      for (; length > 0; --length) text.push_back(static_cast<char>(in.Next()));
    } else if (!SkipField(&in, type)) {
      return malformed("field");
    }
  }
  return out;
}

uint32_t ChunkReader::CopyPayload(std::span<std::byte> destination) const {
  TRIB_CHECK(destination.size() == payload_bytes_, "{} bytes for a payload of {}", destination.size(), payload_bytes_);
  uint32_t crc = 0;
  size_t slice = payload_slice_;
  size_t at = payload_at_;
  size_t done = 0;
  while (done < payload_bytes_) {
    const size_t bytes = std::min(slices_[slice].size() - at, payload_bytes_ - done);
    std::memcpy(destination.data() + done, slices_[slice].begin() + at, bytes);
    crc = Crc32c(destination.subspan(done, bytes), crc);
    done += bytes;
    ++slice;
    at = 0;
  }
  return crc;
}

}  // namespace tributary
