// Whether this program runs under a sanitizer: then memory is not what the product uses, and processes start and work several times slower.
#pragma once

namespace tributary::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace tributary::testing
