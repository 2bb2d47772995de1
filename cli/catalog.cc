// strategies, models, datasets: what can be named in a job. Read from the .def tables themselves; no server, no LibTorch.
#include <fmt/format.h>

#include <array>
#include <string_view>
#include <vector>

#include "aggregator/core/strategy.h"
#include "cli/command.h"

namespace tributary::cli {
namespace {

struct CatalogEntry {
  std::string_view name;
  std::string_view help;
  std::string_view params;   // "name=default,…"
};

constexpr CatalogEntry kModels[] = {
#define TRIB_MODEL(name, factory, help, params) {#name, help, params},
#include "client/torch/models/models.def"
#undef TRIB_MODEL
#define TRIB_ANALYTIC(name, factory, help, params) {#name, help, params},
#include "client/core/analytic/analytic.def"
#undef TRIB_ANALYTIC
};

constexpr CatalogEntry kDatasets[] = {
#define TRIB_DATASET(name, loader, help) {name, help, ""},
#include "client/data/datasets.def"
#undef TRIB_DATASET
};

nlohmann::json ParamsJson(std::string_view params) {
  nlohmann::json list = nlohmann::json::array();
  while (!params.empty()) {
    const size_t comma = params.find(',');
    const std::string_view one = params.substr(0, comma);
    const size_t equals = one.find('=');
    list.push_back({{"name", one.substr(0, equals)}, {"default", equals == std::string_view::npos ? "" : one.substr(equals + 1)}});
    params = comma == std::string_view::npos ? std::string_view() : params.substr(comma + 1);
  }
  return list;
}

template <typename Entries>
int PrintCatalog(const Context& context, const char* key, const Entries& entries) {
  nlohmann::json list = nlohmann::json::array();
  for (const CatalogEntry& entry : entries) {
    if (context.json) {
      list.push_back({{"name", entry.name}, {"help", entry.help}, {"parameters", ParamsJson(entry.params)}});
    } else {
      fmt::print("{:<16} {}\n", entry.name, entry.help);
      if (!entry.params.empty()) fmt::print("{:<16}   params: {}\n", "", entry.params);
    }
  }
  if (context.json) PrintJson({{key, list}});
  return kDone;
}

int PrintStrategies(const Context& context) {
  nlohmann::json list = nlohmann::json::array();
  for (const aggregator::StrategyEntry& entry : aggregator::Strategies()) {
    const bool mergeable = entry.trait == aggregator::StrategyTrait::kMergeable;
    const std::vector<aggregator::ParamInfo> params = entry.params();
    if (context.json) {
      nlohmann::json parameters = nlohmann::json::array();
      for (const aggregator::ParamInfo& p : params) {
        parameters.push_back({{"name", p.name}, {"default", p.default_value}, {"range", p.range}, {"help", p.help}});
      }
      list.push_back({{"name", entry.name},
                      {"help", entry.help},
                      {"source", entry.source},
                      {"trait", mergeable ? "mergeable" : "needs_all"},
                      {"down", entry.down},
                      {"up", entry.up},
                      {"parameters", parameters}});
      continue;
    }
    fmt::print("{:<18} {} ({})\n{:<18}   down {}, up {}; {}\n", entry.name, entry.help, entry.source, "", entry.down, entry.up,
               mergeable ? "partial sums merge" : "needs all updates at once");
    for (const aggregator::ParamInfo& p : params) {
      fmt::print("{:<18}   {} = {}  {}  {}\n", "", p.name, p.default_value, p.range, p.help);
    }
  }
  if (context.json) PrintJson({{"strategies", list}});
  return kDone;
}

}  // namespace

void AddCatalogCommands(CLI::App& app, Context& context) {
  CLI::App* strategies = app.add_subcommand("strategies", "Aggregation strategies with their parameters and sources");
  strategies->footer("Example:\n  tributary strategies --json");
  strategies->callback([&context] { context.action = [&context] { return PrintStrategies(context); }; });
  CLI::App* models = app.add_subcommand("models", "Models of the zoo (model: {zoo: NAME, params: {…}})");
  models->footer("Example:\n  tributary models");
  models->callback([&context] { context.action = [&context] { return PrintCatalog(context, "models", kModels); }; });
  CLI::App* datasets = app.add_subcommand("datasets", "Data sources of a client (data: {source: NAME})");
  datasets->footer("Example:\n  tributary datasets");
  datasets->callback([&context] { context.action = [&context] { return PrintCatalog(context, "datasets", kDatasets); }; });
}

}  // namespace tributary::cli
