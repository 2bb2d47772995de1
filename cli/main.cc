// `tributary`: parses the command line, runs the chosen command, turns its result into the documented exit code.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "cli/app.h"
#include "common/log.h"

int main(int argc, char** argv) {
  using namespace tributary::cli;
  Context context;
  const std::unique_ptr<CLI::App> app = MakeApp(context);
  try {
    app->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app->exit(error, std::cout, std::cerr);  // --help, --version: to stdout
    const std::vector<std::string> args(argv + 1, argv + argc);
    // The flag itself may be what the parser did not reach.
    context.json = std::find(args.begin(), args.end(), "--json") != args.end();
    ReportError(context, tributary::InvalidArgument("{}", error.what()), UsageHint(*app, args));
    return kUsage;
  }
  TRIB_LOG_IF_ERROR(tributary::InitLogging("tributary", tributary::LogFormat::kText, "warn"));
  if (const absl::Status status = ResolveServer(context); !status.ok()) return ReportError(context, status);
  try {
    const int code = context.action();
    // Data that did not arrive is a failure, also when the disk said so only now.
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
    std::cerr << "error: writing to stdout failed\n";
    return code == kDone ? kFailed : code;
  } catch (const std::exception& error) {  // a full disk or a closed pipe behind stdout; file system errors
    std::cerr << "error: " << error.what() << "\n";
    return kFailed;
  }
}
