// Checks of short strings from outside that the codecs share.
// Errors: INVALID_ARGUMENT naming `what`. Threads: pure.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/status.h"

namespace tributary {

bool IsLowerHex(std::string_view text);
// Printable form of a hostile string for an error message: short, and ASCII only.
std::string Show(std::string_view text);
// 1 to `max_bytes` characters of [A-Za-z0-9._-] and `extra`.
absl::Status CheckName(std::string_view what, std::string_view text, size_t max_bytes, std::string_view extra = "");
// At most `max_bytes` of UTF-8.
absl::Status CheckText(std::string_view what, std::string_view text, size_t max_bytes);

}  // namespace tributary
