// Tables as text: comma-separated, RFC 4180 quotes ("" is one quote inside quotes), LF or CRLF, an optional header row (a first row
// with a field that is no number). Every other field must be a finite number. Blank lines are skipped.
// Threads: pure. Errors: INVALID_ARGUMENT as "origin:line:column: …", where column counts fields from 1.
#pragma once

#include <string>
#include <string_view>

#include "client/core/dataset.h"
#include "common/status.h"

namespace tributary::client {

// `label`: name of the label's column (needs the header), or empty for the last. See data.h for classes against targets.
// example_shape is {columns - 1}.
absl::StatusOr<Examples> ParseCsv(std::string_view text, const std::string& label, const std::string& origin);

}  // namespace tributary::client
