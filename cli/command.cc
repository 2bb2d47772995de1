#include "cli/command.h"

#include <fmt/format.h>

#include <cstdio>

namespace tributary::cli {

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kDone;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnreachable;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kResourceExhausted:
      return kRefused;
    default:
      return kFailed;
  }
}

int ReportError(const Context& context, const absl::Status& status, const std::string& given_hint) {
  const bool away = status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kDeadlineExceeded;
  const std::string hint = given_hint.empty() && away
                               ? "start one with 'tributary-aggregator --store DIR', or name another with --server HOST:PORT"
                               : given_hint;
  if (context.json) {
    PrintJson({{"error", {{"code", CodeName(status.code())}, {"message", MessageOf(status)}, {"hint", hint}}}});
  } else {
    fmt::print(stderr, "error: {}\n", Printable(MessageOf(status), true));
    if (!hint.empty()) fmt::print(stderr, "hint: {}\n", hint);
  }
  return ExitCodeOf(status);
}

std::string Printable(std::string_view text, bool lines) {
  std::string shown;
  shown.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    if (c == 0xC2 && next >= 0x80 && next < 0xA0) {  // U+0080 to U+009F: terminals read some as escape sequences
      shown.push_back('?');
      ++i;
    } else if ((c < 0x20 && !(lines && (c == '\n' || c == '\t'))) || c == 0x7F) {
      shown.push_back('?');
    } else {
      shown.push_back(text[i]);
    }
  }
  return shown;
}

void PrintJson(const nlohmann::json& document) {
  // Names and messages may hold any bytes a file or a peer gave us; invalid UTF-8 is replaced, never thrown about.
  const std::string text = document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

}  // namespace tributary::cli
