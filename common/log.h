// Logging to stderr through spdlog: text for people, or one JSON object per line ({"ts","level","msg",…}) for machines.
// TRIB_LOG(info, "job {} committed version {}", id, version). Levels: trace debug info warn error.
// Threads: safe. stdout is never written: it belongs to data.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

#include "common/status.h"

namespace tributary {

enum class LogFormat { kText, kJson };

// Call once, early in main. `level` is one of the names above. INVALID_ARGUMENT for another.
absl::Status InitLogging(std::string_view program, LogFormat format, std::string_view level);
absl::StatusOr<LogFormat> ParseLogFormat(std::string_view text);

}  // namespace tributary

#define TRIB_LOG(level, ...) ::spdlog::level(__VA_ARGS__)
// A deliberately ignored error: it is at least seen.
#define TRIB_LOG_IF_ERROR(expression)                                                                      \
  do {                                                                                                     \
    if (::absl::Status trib_log_status_ = (expression); !trib_log_status_.ok())                            \
      ::spdlog::warn("{}:{}: {}", __FILE__, __LINE__, ::tributary::MessageOf(trib_log_status_));           \
  } while (false)
