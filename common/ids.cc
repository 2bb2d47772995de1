#include "common/ids.h"

#include <sys/random.h>

#include <cstring>

#include "common/check.h"

namespace tributary {
namespace {

void FillRandom(void* out, size_t bytes) {
  auto* cursor = static_cast<unsigned char*>(out);
  while (bytes > 0) {
    const ssize_t n = ::getrandom(cursor, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    TRIB_CHECK(n > 0, "getrandom failed with errno {}", errno);
    cursor += n;
    bytes -= static_cast<size_t>(n);
  }
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Shared rule of client ids and job names; `what` begins the message.
absl::Status ValidateIdentifier(std::string_view what, std::string_view id) {
  if (id.empty() || id.size() > 64) {
    return InvalidArgument("{}: expected 1 to 64 characters, got {}", what, id.size());
  }
  for (size_t i = 0; i < id.size(); ++i) {
    const char c = id[i];
    const bool allowed = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
                         c == '-';
    if (!allowed) {
      return InvalidArgument("{}: expected only letters, digits, '.', '_' and '-', got byte 0x{:02x} at position {}", what,
                             static_cast<unsigned char>(c), i);
    }
  }
  if (id[0] == '.' || id[0] == '-') return InvalidArgument("{} '{}': must not start with '{}'", what, id, id[0]);
  return absl::OkStatus();
}

}  // namespace

UpdateId RandomUpdateId() {
  UpdateId id;
  FillRandom(&id, sizeof(id));
  return id;
}

uint64_t RandomU64() {
  uint64_t value = 0;
  FillRandom(&value, sizeof(value));
  return value;
}

std::string RandomHex(size_t bytes) {
  std::string raw(bytes, '\0');
  FillRandom(raw.data(), raw.size());
  std::string hex;
  hex.reserve(bytes * 2);
  for (const char c : raw) hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return hex;
}

std::string ToHex(const UpdateId& id) { return fmt::format("{:016x}{:016x}", id.hi, id.lo); }

absl::StatusOr<UpdateId> UpdateIdFromHex(std::string_view hex) {
  if (hex.size() != 32) return InvalidArgument("update id: expected 32 hex digits, got {} characters", hex.size());
  UpdateId id;
  for (size_t i = 0; i < 32; ++i) {
    const int value = HexValue(hex[i]);
    if (value < 0) {
      return InvalidArgument("update id: expected a hex digit at position {}, got byte 0x{:02x}", i,
                             static_cast<unsigned char>(hex[i]));
    }
    uint64_t& half = i < 16 ? id.hi : id.lo;
    half = half << 4 | static_cast<uint64_t>(value);
  }
  return id;
}

std::string ToBytes(const UpdateId& id) {
  std::string bytes(16, '\0');
  for (size_t i = 0; i < 8; ++i) {
    bytes[i] = static_cast<char>(id.hi >> (56 - 8 * i));
    bytes[8 + i] = static_cast<char>(id.lo >> (56 - 8 * i));
  }
  return bytes;
}

absl::StatusOr<UpdateId> UpdateIdFromBytes(std::string_view bytes) {
  if (bytes.size() != 16) return InvalidArgument("update id: expected 16 bytes, got {}", bytes.size());
  UpdateId id;
  for (size_t i = 0; i < 8; ++i) {
    id.hi = id.hi << 8 | static_cast<unsigned char>(bytes[i]);
    id.lo = id.lo << 8 | static_cast<unsigned char>(bytes[8 + i]);
  }
  return id;
}

absl::Status ValidateClientId(std::string_view id) { return ValidateIdentifier("client id", id); }
absl::Status ValidateJobName(std::string_view name) { return ValidateIdentifier("job name", name); }

}  // namespace tributary
