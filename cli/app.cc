#include "cli/app.h"

#include <absl/strings/numbers.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "cli/client.h"
#include "cli/simulate.h"
#include "common/file.h"
#include "common/suggest.h"
#include "common/yaml_reader.h"

namespace tributary::cli {

std::unique_ptr<CLI::App> MakeApp(Context& context) {
  auto app = std::make_unique<CLI::App>("Tributary: federated learning. Submit experiment jobs, watch them, inspect the state store.", "tributary");
  app->require_subcommand(1);
  app->fallthrough();   // --json and --server may follow the subcommand
  app->set_version_flag("--version", std::string("tributary ") + kVersion);
  app->add_flag("--json", context.json, "One JSON document on stdout");
  app->add_option("--server", context.server, "Aggregator, HOST:PORT (else $TRIBUTARY_SERVER, the configuration file, 127.0.0.1:7070)");
  app->footer("Example:\n  tributary run examples/fashion-fedavg.yaml --clients 10");
  AddRunCommand(*app, context);
  AddSimulateCommand(*app, context);
  AddReplayCommand(*app, context);
  AddCompareCommand(*app, context);
  AddSubmitCommand(*app, context);
  AddJobsCommands(*app, context);
  AddClientsCommands(*app, context);
  AddNodesCommands(*app, context);
  AddStateCommands(*app, context);
  AddAggregateCommand(*app, context);
  AddCatalogCommands(*app, context);
  AddPrivacyCommands(*app, context);
  AddDoctorCommand(*app, context);
  AddCompletionCommand(*app, context);
  return app;
}

namespace {

// Without a port gRPC would try 443 and the error would name a port nobody wrote.
absl::Status CheckAddress(const std::string& address, const std::string& where) {
  if (address.rfind("unix:", 0) == 0) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0 || port > 65535) {
    return InvalidArgument("{}: expected HOST:PORT, got '{}'", where, address);
  }
  return absl::OkStatus();
}

const CLI::App* FindSubcommand(const CLI::App& app, const std::string& name) {
  for (const CLI::App* sub : app.get_subcommands({})) {
    if (sub->get_name() == name) return sub;
  }
  return nullptr;
}

// The option of `app` or of a command above it that `flag` names.
const CLI::Option* FindOption(const CLI::App* app, const std::string& flag) {
  for (; app != nullptr; app = app->get_parent()) {
    if (const CLI::Option* option = app->get_option_no_throw(flag)) return option;
  }
  return nullptr;
}

}  // namespace

std::string UsageHint(const CLI::App& root, const std::vector<std::string>& args) {
  const CLI::App* app = &root;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].rfind("--", 0) == 0 && args[i].size() > 2) {
      const std::string flag = args[i].substr(0, args[i].find('='));
      if (const CLI::Option* option = FindOption(app, flag)) {
        if (args[i] == flag && option->get_items_expected_max() > 0) ++i;  // its value
        continue;
      }
      std::vector<std::string> known;
      for (const CLI::App* above = app; above != nullptr; above = above->get_parent()) {
        for (const CLI::Option* option : above->get_options()) {
          for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
        }
      }
      const std::string nearest = NearestOf(flag, known);
      if (!nearest.empty()) return fmt::format("did you mean '{}'?", nearest);
    } else if (const CLI::App* sub = FindSubcommand(*app, args[i])) {
      app = sub;
    } else if (const auto subs = app->get_subcommands({}); !subs.empty()) {
      std::vector<std::string> known;
      for (const CLI::App* one : subs) known.push_back(one->get_name());
      const std::string nearest = NearestOf(args[i], known);
      if (!nearest.empty()) return fmt::format("did you mean '{}'?", nearest);
      break;
    }
  }
  std::string command = "tributary";
  for (const CLI::App* above = app; above != nullptr && above->get_parent() != nullptr; above = above->get_parent()) {
    command.insert(sizeof("tributary") - 1, " " + above->get_name());
  }
  return fmt::format("see '{} --help'", command);
}

absl::Status ResolveServer(Context& context) {
  if (!context.server.empty()) return CheckAddress(context.server, "--server");
  if (const char* server = std::getenv("TRIBUTARY_SERVER"); server != nullptr && *server != '\0') {
    context.server = server;
    return CheckAddress(context.server, "$TRIBUTARY_SERVER");
  }
  context.server = kDefaultServer;
  const std::filesystem::path path = UserConfigFile();
  std::error_code unreadable;
  if (!std::filesystem::exists(path, unreadable)) return absl::OkStatus();
  TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  TRIB_ASSIGN_OR_RETURN(YamlReader reader, YamlReader::Parse(text, path.string()));
  reader.String("server", &context.server);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return CheckAddress(context.server, path.string() + ": server");
}

}  // namespace tributary::cli
