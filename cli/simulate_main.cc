// `tributary-simulate`: the command `tributary simulate` with LibTorch linked, started by `tributary` for models that need it.
#include <exception>
#include <iostream>

#include "cli/command.h"
#include "cli/simulate.h"
#include "client/torch/learner.h"
#include "common/log.h"

int main(int argc, char** argv) {
  using namespace tributary::cli;
  Context context;
  CLI::App app("Simulates a job whose model needs LibTorch; start it by `tributary simulate`", "tributary-simulate");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_flag("--json", context.json, "One JSON document on stdout");
  std::string unused_server;
  app.add_option("--server", unused_server, "As `tributary` takes it; a simulation asks no server");
  AddSimulateCommand(app, context,
                     {.make_learner = [](const std::string& device) { return tributary::client::MakeTorchLearner({.device = device, .threads = 1}); },
                      .initial_model = tributary::client::InitialModel});
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  TRIB_LOG_IF_ERROR(tributary::InitLogging("tributary-simulate", tributary::LogFormat::kText, "warn"));
  try {
    return context.action();
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return kFailed;
  }
}
