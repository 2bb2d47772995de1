// UTF-8, as far as outside text has to be checked before it goes into JSON, YAML or a protobuf string. Pure.
#pragma once

#include <cstddef>
#include <string_view>

namespace tributary {
// Bytes of the well-formed character that begins at text[at] (1 to 4), or 0 when there is none: a stray or missing continuation
// byte, an overlong form, a surrogate, a value above U+10FFFF. at < text.size().
size_t Utf8CharacterBytes(std::string_view text, size_t at);
bool IsUtf8(std::string_view text);
}  // namespace tributary
