// How command groups plug into `tributary`: one file per group, each adds its subcommands to the CLI11 app and sets the context's
// action; main runs it. Output rules (ux.md §2): stdout is data, stderr everything else; --json prints exactly one document (watch:
// one object per line); errors have what, why and what to do next; exit codes of design.md §6.
// Threads: single-threaded.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <functional>
#include <string>
#include <string_view>

#include "common/status.h"

namespace tributary::cli {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kNotFound = 3, kUnreachable = 4, kRefused = 5 };

struct Context {
  bool json = false;
  std::string server;                 // effective HOST:PORT: flag, $TRIBUTARY_SERVER, config file, 127.0.0.1:7070
  std::function<int()> action;        // set by the chosen subcommand; returns an ExitCode
};

// Exit code of a status: NOT_FOUND 3; UNAVAILABLE, DEADLINE_EXCEEDED 4; UNAUTHENTICATED, PERMISSION_DENIED, INVALID_ARGUMENT,
// FAILED_PRECONDITION, ALREADY_EXISTS, RESOURCE_EXHAUSTED 5; else 1.
int ExitCodeOf(const absl::Status& status);
// Prints "error: what: why" and "hint: …" to stderr, or with --json {"error": {code, message, hint}} to stdout. Returns the exit code.
// An empty hint for a server that cannot be reached becomes the one that says how to start or name one.
int ReportError(const Context& context, const absl::Status& status, const std::string& hint = "");
// `text` from a file or a peer, safe to show on a terminal: control characters (escape sequences with them) become '?'.
// `lines`: newlines and tabs stay.
std::string Printable(std::string_view text, bool lines = false);
// One JSON document on stdout.
void PrintJson(const nlohmann::json& document);

// Groups. Each lives in the file of its name.
void AddRunCommand(CLI::App& app, Context& context);          // run.cc
void AddSubmitCommand(CLI::App& app, Context& context);       // submit.cc
void AddCompareCommand(CLI::App& app, Context& context);      // compare.cc
void AddReplayCommand(CLI::App& app, Context& context);       // replay.cc
void AddJobsCommands(CLI::App& app, Context& context);        // jobs.cc
void AddClientsCommands(CLI::App& app, Context& context);     // clients.cc
void AddNodesCommands(CLI::App& app, Context& context);       // nodes.cc
void AddStateCommands(CLI::App& app, Context& context);       // state.cc
void AddAggregateCommand(CLI::App& app, Context& context);    // aggregate.cc
void AddCatalogCommands(CLI::App& app, Context& context);     // catalog.cc: strategies, models, datasets
void AddPrivacyCommands(CLI::App& app, Context& context);      // privacy.cc: epsilon, calibrate
void AddDoctorCommand(CLI::App& app, Context& context);       // doctor.cc
void AddCompletionCommand(CLI::App& app, Context& context);   // completion.cc

}  // namespace tributary::cli
