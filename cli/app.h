// The whole command tree, as main, completion and the tests see it.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"

namespace tributary::cli {

inline constexpr char kVersion[] = "0.1.0";

// `context` must outlive the app.
std::unique_ptr<CLI::App> MakeApp(Context& context);

// What to try after a command line that did not parse: the nearest command or flag, else where its help is.
std::string UsageHint(const CLI::App& root, const std::vector<std::string>& args);

// flag (already in context.server) > $TRIBUTARY_SERVER > configuration file > 127.0.0.1:7070.
absl::Status ResolveServer(Context& context);

}  // namespace tributary::cli
