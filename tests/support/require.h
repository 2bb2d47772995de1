// What a machine must have for a test to mean anything. Where it has not, the test is skipped and says why; where it was promised
// (TRIBUTARY_REQUIRE=bpf,gpu: set it in CI) the skip is a failure, so that skips cannot hide.
//   TRIB_REQUIRE_OR_SKIP("bpf", BpfMissing());   // in a test body or SetUp; "" means it is there
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

namespace tributary::testing {

inline bool IsRequired(std::string_view what) {
  const char* list = std::getenv("TRIBUTARY_REQUIRE");
  const std::string_view text = list == nullptr ? std::string_view() : std::string_view(list);
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    if (text.substr(at, comma - at) == what) return true;
    at = comma + 1;
  }
  return false;
}

}  // namespace tributary::testing

#define TRIB_REQUIRE_OR_SKIP(what, missing)                                                                      \
  do {                                                                                                           \
    if (const std::string& trib_missing_ = (missing); !trib_missing_.empty()) {                                   \
      if (::tributary::testing::IsRequired(what)) FAIL() << "TRIBUTARY_REQUIRE has " << what << ": " << trib_missing_; \
      GTEST_SKIP() << "needs " << what << ": " << trib_missing_;                                                 \
    }                                                                                                            \
  } while (false)
