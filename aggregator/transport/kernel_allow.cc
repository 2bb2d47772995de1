#include "aggregator/transport/kernel_allow.h"

#include <array>
#include <charconv>
#include <compare>
#include <cstdint>

namespace tributary::aggregator {
namespace {

struct Version {
  uint32_t major = 0, minor = 0, patch = 0;
  auto operator<=>(const Version&) const = default;
};

// "6.12.34-rc1+…": up to three numbers, the third may be missing ("6.15" is 6.15.0). False: no such text.
bool ParseVersion(std::string_view text, Version* version) {
  std::array<uint32_t, 3> parts{};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto [next, error] = std::from_chars(at, end, parts[i]);
    if (error != std::errc()) return false;
    at = next;
    if (i == 2 || at == end || *at != '.') {
      if (i == 0) return false;
      break;
    }
    ++at;
  }
  *version = {parts[0], parts[1], parts[2]};
  return true;
}

}  // namespace

std::string StableVersion(std::string_view release, std::string_view version) {
  constexpr std::string_view kDebian = " Debian ";
  const size_t at = version.find(kDebian);
  if (at == std::string_view::npos) return std::string(release);
  const std::string_view rest = version.substr(at + kDebian.size());
  return std::string(rest.substr(0, rest.find_first_of(" -")));
}

bool KernelAllowed(std::string_view stable_version) {
  Version version;
  if (!ParseVersion(stable_version, &version)) return false;
  if (version >= Version{6, 15, 3}) return true;
  if (version.major != 6) return false;
  switch (version.minor) {
    case 1: return version.patch >= 142;
    case 6: return version.patch >= 94;
    case 12: return version.patch >= 34;
    default: return false;
  }
}

}  // namespace tributary::aggregator
