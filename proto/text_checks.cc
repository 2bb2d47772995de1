#include "proto/text_checks.h"

namespace tributary {
namespace {

bool IsSafeCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

// proto3 parsers refuse strings that are not UTF-8; messages built in memory were never parsed, so it is checked again here.
bool IsUtf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = p + text.size();
  while (p < end) {
    const unsigned char lead = *p++;
    if (lead < 0x80) continue;
    int more = 0;
    uint32_t code = 0;
    uint32_t least = 0;
    if ((lead & 0xe0) == 0xc0) {
      more = 1, code = lead & 0x1f, least = 0x80;
    } else if ((lead & 0xf0) == 0xe0) {
      more = 2, code = lead & 0x0f, least = 0x800;
    } else if ((lead & 0xf8) == 0xf0) {
      more = 3, code = lead & 0x07, least = 0x10000;
    } else {
      return false;
    }
    for (; more > 0; --more) {
      if (p == end || (*p & 0xc0) != 0x80) return false;
      code = code << 6 | (*p++ & 0x3f);
    }
    if (code < least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
  }
  return true;
}

}  // namespace

bool IsLowerHex(std::string_view text) {
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

std::string Show(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 64)) out += c >= 0x20 && c < 0x7f ? c : '?';
  if (text.size() > 64) out += "…";
  return out;
}

absl::Status CheckName(std::string_view what, std::string_view text, size_t max_bytes, std::string_view extra) {
  if (text.empty() || text.size() > max_bytes)
    return InvalidArgument("{}: expected 1 to {} characters, got {}", what, max_bytes, text.size());
  for (const char c : text) {
    if (!IsSafeCharacter(c) && extra.find(c) == std::string_view::npos)
      return InvalidArgument("{} '{}': expected characters of [A-Za-z0-9._-{}]", what, Show(text), extra);
  }
  return absl::OkStatus();
}

absl::Status CheckText(std::string_view what, std::string_view text, size_t max_bytes) {
  if (text.size() > max_bytes) return InvalidArgument("{}: expected at most {} bytes, got {}", what, max_bytes, text.size());
  if (!IsUtf8(text)) return InvalidArgument("{}: expected UTF-8", what);
  return absl::OkStatus();
}

}  // namespace tributary
