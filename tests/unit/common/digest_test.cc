#include "common/digest.h"

#include <gtest/gtest.h>

#include <vector>

namespace tributary {
namespace {

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

std::string Hex(std::string_view bytes) {
  std::string hex;
  for (const char c : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex.push_back(kDigits[static_cast<unsigned char>(c) >> 4]);
    hex.push_back(kDigits[static_cast<unsigned char>(c) & 15]);
  }
  return hex;
}

TEST(Crc32cTest, GivesTheVectorsOfRfc3720) {
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xE3069283u);
  EXPECT_EQ(Crc32c({}), 0u);
  // RFC 3720, B.4. Its bytes are listed in transmission order: here as numbers.
  EXPECT_EQ(Crc32c(Bytes(std::string(32, '\0'))), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(Bytes(std::string(32, '\xff'))), 0x62A8AB43u);
  std::string rising, falling;
  for (int i = 0; i < 32; ++i) {
    rising.push_back(static_cast<char>(i));
    falling.push_back(static_cast<char>(31 - i));
  }
  EXPECT_EQ(Crc32c(Bytes(rising)), 0x46DD794Eu);
  EXPECT_EQ(Crc32c(Bytes(falling)), 0x113FDB5Cu);
}

TEST(Crc32cTest, ContinuesFromASeedAtEverySplit) {
  const std::string text = "The quick brown fox jumps over the lazy dog, twice and again.";
  const uint32_t whole = Crc32c(Bytes(text));
  for (size_t split = 0; split <= text.size(); ++split) {
    const uint32_t first = Crc32c(Bytes(std::string_view(text).substr(0, split)));
    EXPECT_EQ(Crc32c(Bytes(std::string_view(text).substr(split)), first), whole) << split;
  }
}

TEST(Sha256Test, GivesTheVectorsOfFips180) {
  EXPECT_EQ(Sha256Hex({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex(Bytes("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex(Bytes("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256Test, StreamingEqualsOneCall) {
  Sha256 sha;
  const std::string million(1'000'000, 'a');
  for (size_t at = 0; at < million.size(); at += 7919) sha.Update(Bytes(std::string_view(million).substr(at, 7919)));
  EXPECT_EQ(sha.HexDigest(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Xxh3Test, GivesTheReferenceValueOfTheEmptyInput) {
  // xxhsum -H2 of nothing.
  EXPECT_EQ(Hex(Xxh3Digest({})), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(Hex(Xxh3().Digest()), "99aa06d3014798d86001c324468d497f");
}

TEST(Xxh3Test, StreamingEqualsOneCallAndDigestDoesNotEndTheStream) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text.push_back(static_cast<char>(i * 31));
  Xxh3 hash;
  for (size_t at = 0; at < text.size(); at += 333) {
    hash.Update(Bytes(std::string_view(text).substr(at, 333)));
    EXPECT_EQ(hash.Digest(), Xxh3Digest(Bytes(std::string_view(text).substr(0, std::min(text.size(), at + 333)))));
  }
  Xxh3 moved = std::move(hash);
  EXPECT_EQ(moved.Digest(), Xxh3Digest(Bytes(text)));
}

}  // namespace
}  // namespace tributary
