// Errors of the world (network, disk, client bytes, missing privilege) as absl::Status, with messages made by fmt.
//
// A message names the object, what was expected and what came: InvalidArgument("tensor '{}': expected {} elements, got {}").
// Debian's absl::string_view is not std::string_view; these functions are the seam, so callers use std types only.
// Threads: all functions are pure. Errors of our own (broken invariants) are TRIB_CHECK's business, see check.h.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

namespace tributary {

#define TRIB_STATUS_MAKER(Name, Code)                                              \
  template <typename... Args>                                                      \
  absl::Status Name(fmt::format_string<Args...> format, Args&&... args) {          \
    return absl::Status(Code, fmt::format(format, std::forward<Args>(args)...));   \
  }
TRIB_STATUS_MAKER(Aborted, absl::StatusCode::kAborted)
TRIB_STATUS_MAKER(AlreadyExists, absl::StatusCode::kAlreadyExists)
TRIB_STATUS_MAKER(Cancelled, absl::StatusCode::kCancelled)
TRIB_STATUS_MAKER(DataLoss, absl::StatusCode::kDataLoss)
TRIB_STATUS_MAKER(DeadlineExceeded, absl::StatusCode::kDeadlineExceeded)
TRIB_STATUS_MAKER(FailedPrecondition, absl::StatusCode::kFailedPrecondition)
TRIB_STATUS_MAKER(Internal, absl::StatusCode::kInternal)
TRIB_STATUS_MAKER(InvalidArgument, absl::StatusCode::kInvalidArgument)
TRIB_STATUS_MAKER(NotFound, absl::StatusCode::kNotFound)
TRIB_STATUS_MAKER(OutOfRange, absl::StatusCode::kOutOfRange)
TRIB_STATUS_MAKER(PermissionDenied, absl::StatusCode::kPermissionDenied)
TRIB_STATUS_MAKER(ResourceExhausted, absl::StatusCode::kResourceExhausted)
TRIB_STATUS_MAKER(Unauthenticated, absl::StatusCode::kUnauthenticated)
TRIB_STATUS_MAKER(Unavailable, absl::StatusCode::kUnavailable)
TRIB_STATUS_MAKER(Unimplemented, absl::StatusCode::kUnimplemented)
#undef TRIB_STATUS_MAKER

// The message as a std::string (absl's own accessor returns absl::string_view).
inline std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

// "INVALID_ARGUMENT", "NOT_FOUND", …: the code's canonical name.
std::string CodeName(absl::StatusCode code);

// `error` is an errno value, read by the caller directly after the failed call. `what` names the object and the call.
// ENOENT becomes NOT_FOUND, EACCES and EPERM PERMISSION_DENIED, ENOSPC and ENOMEM and EMFILE RESOURCE_EXHAUSTED,
// EEXIST ALREADY_EXISTS, EAGAIN and ECONNREFUSED UNAVAILABLE, everything else INTERNAL.
absl::Status ErrnoStatus(int error, std::string_view what);

// The same error with "what: " before its message.
absl::Status Annotate(const absl::Status& status, std::string_view what);

}  // namespace tributary

#define TRIB_CONCAT_INNER(a, b) a##b
#define TRIB_CONCAT(a, b) TRIB_CONCAT_INNER(a, b)

#define TRIB_RETURN_IF_ERROR(expression)                        \
  do {                                                          \
    if (::absl::Status trib_status_ = (expression); !trib_status_.ok()) return trib_status_; \
  } while (false)

// TRIB_ASSIGN_OR_RETURN(auto value, Function());
#define TRIB_ASSIGN_OR_RETURN(lhs, expression) \
  TRIB_ASSIGN_OR_RETURN_INNER(TRIB_CONCAT(trib_or_, __LINE__), lhs, expression)
#define TRIB_ASSIGN_OR_RETURN_INNER(temporary, lhs, expression) \
  auto temporary = (expression);                                \
  if (!temporary.ok()) return temporary.status();               \
  lhs = *std::move(temporary)
