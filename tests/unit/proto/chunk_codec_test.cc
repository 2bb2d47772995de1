#include "proto/chunk_codec.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <random>
#include <string>
#include <vector>

#include "common/digest.h"
#include "tests/support/status_matchers.h"
#include "tributary/v1/federation.pb.h"

namespace tributary {
namespace {

using testing::IsOk;
using testing::StatusIs;

std::span<const std::byte> AsBytes(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return out;
  for (const auto& slice : slices) out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return out;
}

// The same bytes, cut into slices of `piece` bytes with an empty slice now and then.
grpc::ByteBuffer Sliced(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    if (at % 3 == 0) slices.emplace_back();
    slices.emplace_back(bytes.data() + at, std::min(piece, bytes.size() - at));
  }
  return {slices.data(), slices.size()};
}

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string out(size, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

v1::DataChunk Message(const ChunkFields& fields, const std::string& payload) {
  v1::DataChunk message;
  message.set_upload_id(fields.upload_id);
  message.set_offset(fields.offset);
  message.set_crc32c(fields.crc32c);
  message.set_bytes(payload);
  message.set_total_bytes(fields.total_bytes);
  message.set_sha256(fields.sha256);
  message.set_xxh3_128(fields.xxh3_128);
  return message;
}

std::vector<std::pair<ChunkFields, std::string>> Cases() {
  std::vector<std::pair<ChunkFields, std::string>> cases;
  cases.push_back({{}, ""});
  cases.push_back({{1, 2, 3, 4, "a", "b"}, "x"});
  cases.push_back({{~0ull, ~0ull, ~0u, ~0ull, std::string(64, 'f'), std::string(16, '\xff')}, RandomBytes(200'000, 1)});
  cases.push_back({{7, 0, 0, 0, "", ""}, std::string(127, '\0')});
  cases.push_back({{7, 128, 0xffff, 0, "", ""}, RandomBytes(128, 2)});
  cases.push_back({{0, 0, 0, 1 << 20, std::string(64, '0'), std::string(16, '\0')}, ""});
  return cases;
}

TEST(ChunkCodecTest, EncodesTheBytesTheGeneratedMessageGives) {
  for (const auto& [fields, payload] : Cases()) {
    const auto owner = std::make_shared<int>(0);
    EXPECT_EQ(Flatten(EncodeChunk(fields, AsBytes(payload), owner)), Message(fields, payload).SerializeAsString());
  }
}

TEST(ChunkCodecTest, DecodesTheGeneratedMessageHoweverItIsSliced) {
  for (const auto& [fields, payload] : Cases()) {
    const std::string wire = Message(fields, payload).SerializeAsString();
    for (const size_t piece : {size_t{1}, size_t{3}, size_t{16384}, wire.size() + 1}) {
      if (piece == 1 && wire.size() > 10'000) continue;
      TRIB_ASSERT_OK_AND_ASSIGN(const ChunkReader reader, ChunkReader::Parse(Sliced(wire, piece)));
      EXPECT_EQ(reader.fields().upload_id, fields.upload_id);
      EXPECT_EQ(reader.fields().offset, fields.offset);
      EXPECT_EQ(reader.fields().crc32c, fields.crc32c);
      EXPECT_EQ(reader.fields().total_bytes, fields.total_bytes);
      EXPECT_EQ(reader.fields().sha256, fields.sha256);
      EXPECT_EQ(reader.fields().xxh3_128, fields.xxh3_128);
      ASSERT_EQ(reader.payload_bytes(), payload.size());
      std::vector<std::byte> copy(payload.size());
      EXPECT_EQ(reader.CopyPayload(copy), Crc32c(AsBytes(payload)));
      EXPECT_EQ(std::string(reinterpret_cast<const char*>(copy.data()), copy.size()), payload);
    }
  }
}

TEST(ChunkCodecTest, KeepsTheOwnerUntilTheBufferIsGone) {
  auto owner = std::make_shared<int>(0);
  const std::string payload(1000, 'x');
  {
    grpc::ByteBuffer buffer = EncodeChunk({}, AsBytes(payload), owner);
    EXPECT_EQ(owner.use_count(), 2);
    const grpc::ByteBuffer second = buffer;
    buffer.Clear();
    EXPECT_EQ(owner.use_count(), 2);
  }
  EXPECT_EQ(owner.use_count(), 1);
}

TEST(ChunkCodecTest, TakesFieldsInAnyOrderSkipsUnknownOnesAndLetsTheLastOneCount) {
  v1::DataChunk late;
  late.set_upload_id(9);
  late.set_offset(5);
  v1::DataChunk payload_first;
  payload_first.set_bytes("first");
  v1::DataChunk payload_last;
  payload_last.set_bytes("second");
  std::string wire = payload_first.SerializeAsString();
  wire += std::string("\x3a\x03zzz", 5);                      // field 7, bytes
  wire += std::string("\x41" "12345678", 9);                  // field 8, fixed64
  wire += std::string("\x4d" "1234", 5);                      // field 9, fixed32
  wire += std::string("\x50\xff\x01", 3);                     // field 10, varint
  wire += std::string("\x0a\x02hi", 4);                       // field 1 with the wrong wire type: unknown, as protobuf has it
  wire += payload_last.SerializeAsString() + late.SerializeAsString();
  TRIB_ASSERT_OK_AND_ASSIGN(const ChunkReader reader, ChunkReader::Parse(Sliced(wire, 2)));
  v1::DataChunk generated;
  ASSERT_TRUE(generated.ParseFromString(wire));
  EXPECT_EQ(reader.fields().upload_id, generated.upload_id());
  EXPECT_EQ(reader.fields().offset, generated.offset());
  ASSERT_EQ(reader.payload_bytes(), generated.bytes().size());
  std::string copy(reader.payload_bytes(), '\0');
  reader.CopyPayload(std::as_writable_bytes(std::span(copy.data(), copy.size())));
  EXPECT_EQ(copy, generated.bytes());
  EXPECT_EQ(copy, "second");
}

TEST(ChunkCodecTest, RefusesMalformedBytes) {
  const std::vector<std::string> rows = {
      std::string("\x00", 1),                                          // field 0
      std::string("\x08", 1),                                          // no value
      std::string("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12),  // varint of 11 bytes
      std::string("\x1d\x01\x02", 3),                                  // short fixed32
      std::string("\x22\x05" "abc", 5),                                // payload past the end
      std::string("\x22\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10),     // payload of 2^63 - 1 bytes
      std::string("\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),  // of 2^64 - 1
      std::string("\x32\x41", 2) + std::string(65, 'a'),               // sha256 of 65 bytes
      std::string("\x3a\x11", 2) + std::string(17, 'a'),               // xxh3_128 of 17 bytes
      std::string("\x3b\x3c", 2),                                      // a group
      std::string("\x3f", 1),                                          // wire type 7
      std::string("\xff\xff\xff\xff\xff\x01\x00", 7),                  // tag over 32 bits
      std::string("\x3a\x7f", 2),                                      // unknown field past the end
  };
  for (const std::string& row : rows) {
    EXPECT_THAT(ChunkReader::Parse(Sliced(row, 1)), StatusIs(absl::StatusCode::kInvalidArgument)) << ::testing::PrintToString(row);
  }
}

TEST(ChunkCodecTest, AgreesWithTheGeneratedParserOnDamagedMessages) {
  const std::string wire = Message({300, 70'000, 12345, 99, std::string(64, 'a'), std::string(16, 'b')}, RandomBytes(50, 3)).SerializeAsString();
  std::mt19937_64 random(20);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = wire;
    for (int hits = 1 + static_cast<int>(random() % 3); hits > 0; --hits) damaged[random() % damaged.size()] = static_cast<char>(random());
    if (random() % 4 == 0) damaged.resize(random() % damaged.size());
    const auto reader = ChunkReader::Parse(Sliced(damaged, 1 + random() % 40));
    if (!reader.ok()) continue;
    v1::DataChunk generated;
    if (!generated.ParseFromString(damaged)) continue;  // a sha256 that is not UTF-8
    ++accepted;
    EXPECT_EQ(reader->fields().upload_id, generated.upload_id());
    EXPECT_EQ(reader->fields().offset, generated.offset());
    EXPECT_EQ(reader->fields().crc32c, generated.crc32c());
    EXPECT_EQ(reader->fields().total_bytes, generated.total_bytes());
    EXPECT_EQ(reader->fields().sha256, generated.sha256());
    EXPECT_EQ(reader->fields().xxh3_128, generated.xxh3_128());
    EXPECT_EQ(reader->payload_bytes(), generated.bytes().size());
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace tributary
