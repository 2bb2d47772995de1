// GoogleTest matchers for absl::Status and StatusOr (Debian's Abseil has none).
//   EXPECT_THAT(f(), IsOk());  EXPECT_THAT(f(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("job")));
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/status.h"

namespace tributary::testing {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}

MATCHER_P(StatusIs, code, "has status " + CodeName(code)) {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).code() == code;
}

MATCHER_P2(StatusIs, code, message, "has status " + CodeName(code) + " and a matching message") {
  const std::string text = MessageOf(StatusOf(arg));
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).code() == code && ::testing::ExplainMatchResult(message, text, result_listener);
}

}  // namespace tributary::testing

#define TRIB_ASSERT_OK_AND_ASSIGN(lhs, expression) TRIB_ASSERT_OK_INNER(TRIB_CONCAT(trib_test_or_, __LINE__), lhs, expression)
#define TRIB_ASSERT_OK_INNER(temporary, lhs, expression)           \
  auto temporary = (expression);                                   \
  ASSERT_TRUE(temporary.ok()) << temporary.status().ToString();    \
  lhs = *std::move(temporary)
