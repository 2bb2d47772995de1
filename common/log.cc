#include "common/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/ansicolor_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "common/utf8.h"

namespace tributary {
namespace {

// JSON string content. Bytes that are not valid UTF-8 become U+FFFD, so that every line parses whatever a message quotes.
void AppendJsonEscaped(std::string_view text, spdlog::memory_buf_t& out) {
  const auto put = [&out](std::string_view piece) { out.append(piece.data(), piece.data() + piece.size()); };
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '"' || c == '\\') {
      const char escaped[2] = {'\\', static_cast<char>(c)};
      put({escaped, 2});
      ++i;
    } else if (c == '\n') {
      put("\\n");
      ++i;
    } else if (c == '\t') {
      put("\\t");
      ++i;
    } else if (c < 0x20 || c == 0x7f) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", c);
      ++i;
    } else if (c < 0x80) {
      out.push_back(static_cast<char>(c));
      ++i;
    } else {
      const size_t length = Utf8CharacterBytes(text, i);
      put(length > 0 ? text.substr(i, length) : std::string_view("\\ufffd"));
      i += length > 0 ? length : 1;
    }
  }
}

std::string_view LevelName(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
      return "trace";
    case spdlog::level::debug:
      return "debug";
    case spdlog::level::info:
      return "info";
    case spdlog::level::warn:
      return "warn";
    default:
      return "error";
  }
}

// {"ts":"2026-01-31T12:00:00.123456Z","level":"info","program":"…","msg":"…"}
class JsonFormatter final : public spdlog::formatter {
 public:
  explicit JsonFormatter(std::string program) : program_(std::move(program)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto micros =
        std::chrono::duration_cast<std::chrono::microseconds>(message.time.time_since_epoch()).count();
    const std::time_t seconds = micros / 1'000'000;
    std::tm utc{};
    ::gmtime_r(&seconds, &utc);
    fmt::format_to(std::back_inserter(out), "{{\"ts\":\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z\",\"level\":\"{}\",\"program\":\"",
                   utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, micros % 1'000'000,
                   LevelName(message.level));
    AppendJsonEscaped(program_, out);
    constexpr std::string_view kMiddle = "\",\"msg\":\"";
    out.append(kMiddle.data(), kMiddle.data() + kMiddle.size());
    AppendJsonEscaped({message.payload.data(), message.payload.size()}, out);
    constexpr std::string_view kEnd = "\"}\n";
    out.append(kEnd.data(), kEnd.data() + kEnd.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(program_); }

 private:
  std::string program_;
};

}  // namespace

absl::Status InitLogging(std::string_view program, LogFormat format, std::string_view level) {
  spdlog::level::level_enum threshold = spdlog::level::off;
  for (const auto candidate : {spdlog::level::trace, spdlog::level::debug, spdlog::level::info, spdlog::level::warn,
                               spdlog::level::err}) {
    if (level == LevelName(candidate)) threshold = candidate;
  }
  if (threshold == spdlog::level::off) {
    return InvalidArgument("log level: expected trace, debug, info, warn or error, got '{}'", level);
  }
  // Colours only for a person at a terminal that wants them.
  const char* term = std::getenv("TERM");
  const char* no_color = std::getenv("NO_COLOR");
  const bool color = format == LogFormat::kText && ::isatty(STDERR_FILENO) == 1 && (no_color == nullptr || *no_color == '\0') &&
                     (term == nullptr || std::string_view(term) != "dumb");
  spdlog::sink_ptr sink;
  if (color) {
    sink = std::make_shared<spdlog::sinks::ansicolor_stderr_sink_mt>();
  } else {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  }
  auto logger = std::make_shared<spdlog::logger>(std::string(program), std::move(sink));
  if (format == LogFormat::kJson) {
    logger->set_formatter(std::make_unique<JsonFormatter>(std::string(program)));
  } else {
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %n %^%l%$ %v");
  }
  logger->set_level(threshold);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

absl::StatusOr<LogFormat> ParseLogFormat(std::string_view text) {
  if (text == "text") return LogFormat::kText;
  if (text == "json") return LogFormat::kJson;
  return InvalidArgument("log format: expected text or json, got '{}'", text);
}

}  // namespace tributary
