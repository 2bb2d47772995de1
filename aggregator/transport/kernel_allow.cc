#include "aggregator/transport/kernel_allow.h"

#include <array>
#include <charconv>
#include <cstdint>

namespace tributary::aggregator {
namespace {

using Version = std::array<uint32_t, 3>;  // compared from the left

// "6.12.34-rc1+…": up to three numbers, the third may be missing ("6.15" is 6.15.0). False: no such text.
bool ParseVersion(std::string_view text, Version* version) {
  Version parts{};
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
  *version = parts;
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
  Version version{};
  if (!ParseVersion(stable_version, &version)) return false;
  if (version >= Version{6, 15, 3}) return true;
  const auto [major, minor, patch] = version;
  return major == 6 && ((minor == 1 && patch >= 142) || (minor == 6 && patch >= 94) || (minor == 12 && patch >= 34));
}

}  // namespace tributary::aggregator
