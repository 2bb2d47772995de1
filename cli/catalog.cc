// strategies, models, routers, datasets, codecs: what can be named in a job. Read from the tables themselves; no server, no LibTorch. docs/ is made
// of it (scripts/docs.py).
#include <fmt/format.h>

#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "aggregator/core/strategy.h"
#include "cli/command.h"
#include "common/codec_table.h"
#include "common/expert_bias.h"
#include "common/expert_quantile.h"
#include "common/moe_spec.h"

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

constexpr CatalogEntry kAdapters[] = {
#define TRIB_ADAPTER(kind, help, params) {#kind, help, params},
#include "client/torch/lora/lora.def"
#undef TRIB_ADAPTER
};

constexpr CatalogEntry kRouters[] = {
#define TRIB_ROUTER(name, factory, foresight, help, params) {#name, help, params},
#include "client/core/moe/routers/routers.def"
#undef TRIB_ROUTER
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

nlohmann::json EntriesJson(std::span<const CatalogEntry> entries) {
  nlohmann::json list = nlohmann::json::array();
  for (const CatalogEntry& entry : entries) list.push_back({{"name", entry.name}, {"help", entry.help}, {"parameters", ParamsJson(entry.params)}});
  return list;
}

void PrintEntries(std::span<const CatalogEntry> entries) {
  for (const CatalogEntry& entry : entries) {
    fmt::print("{:<16} {}\n", entry.name, entry.help);
    if (!entry.params.empty()) fmt::print("{:<16}   params: {}\n", "", entry.params);
  }
}

int PrintCatalog(const Context& context, const char* key, std::span<const CatalogEntry> entries) {
  context.json ? PrintJson({{key, EntriesJson(entries)}}) : PrintEntries(entries);
  return kDone;
}

int PrintModels(const Context& context) {
  if (context.json) {
    PrintJson({{"models", EntriesJson(kModels)}, {"adapters", EntriesJson(kAdapters)}});
    return kDone;
  }
  PrintEntries(kModels);
  fmt::print("\nadapters of the zoo's models (model: {{zoo: NAME, adapter: {{kind: KIND, …}}}}):\n");
  PrintEntries(kAdapters);
  return kDone;
}

// How many vectors of the model's size travel with a version and with an update, under the strategy's defaults.
struct Traffic {
  size_t down = 0, up = 0;
  bool synchronous = true;
};

absl::StatusOr<Traffic> TrafficOf(const aggregator::StrategyEntry& entry) {
  StrategySpec spec;
  spec.name = std::string(entry.name);
  TRIB_ASSIGN_OR_RETURN(const auto strategy, entry.make(spec, {}));
  const size_t model = strategy->in_place_of_model().empty() ? 1 : 0;
  const size_t down = strategy->fitness_bytes() > 0 ? 0 : model + strategy->version_vectors().size();
  return Traffic{.down = down, .up = strategy->updates_are_of_model() ? strategy->update_groups().size() : 0, .synchronous = strategy->synchronous()};
}

nlohmann::json StrategyJson(const aggregator::StrategyEntry& entry, const Traffic& traffic) {
  nlohmann::json parameters = nlohmann::json::array();
  for (const aggregator::ParamInfo& p : entry.params()) {
    parameters.push_back({{"name", p.name}, {"default", p.default_value}, {"range", p.range}, {"help", p.help}});
  }
  return {{"name", entry.name},
          {"help", entry.help},
          {"source", entry.source},
          {"trait", entry.trait == aggregator::StrategyTrait::kMergeable ? "mergeable" : "needs_all"},
          {"synchronous", traffic.synchronous},
          {"down", entry.down},
          {"down_model_sizes", traffic.down},
          {"up", entry.up},
          {"up_model_sizes", traffic.up},
          {"parameters", parameters}};
}

int PrintStrategies(const Context& context) {
  nlohmann::json list = nlohmann::json::array();
  for (const aggregator::StrategyEntry& entry : aggregator::Strategies()) {
    const absl::StatusOr<Traffic> traffic = TrafficOf(entry);
    if (!traffic.ok()) return ReportError(context, traffic.status());
    if (context.json) {
      list.push_back(StrategyJson(entry, *traffic));
      continue;
    }
    fmt::print("{:<18} {} ({})\n{:<18}   down {} ({}×), up {} ({}×); {}{}\n", entry.name, entry.help, entry.source, "", entry.down, traffic->down, entry.up,
               traffic->up, entry.trait == aggregator::StrategyTrait::kMergeable ? "partial sums merge" : "needs all updates at once",
               traffic->synchronous ? "" : "; asynchronous");
    for (const aggregator::ParamInfo& p : entry.params()) {
      fmt::print("{:<18}   {} = {}  {}  {}\n", "", p.name, p.default_value, p.range, p.help);
    }
  }
  if (context.json) PrintJson({{"strategies", list}});
  return kDone;
}

int PrintCodecs(const Context& context) {
  nlohmann::json list = nlohmann::json::array();
  for (const CodecInfo& info : Codecs()) {
    if (context.json) {
      list.push_back({{"name", info.name}, {"help", info.help}, {"source", info.source}, {"bits_per_element", info.bits}});
    } else {
      fmt::print("{:<6} {:>6.4g} bits an element  {} ({})\n", info.name, info.bits, info.help, info.source);
    }
  }
  if (context.json) PrintJson({{"codecs", list}});
  return kDone;
}

}  // namespace

void AddCatalogCommands(CLI::App& app, Context& context) {
  CLI::App* strategies = app.add_subcommand("strategies", "Aggregation strategies with their parameters and sources");
  strategies->footer("Example:\n  tributary strategies --json");
  strategies->callback([&context] { context.action = [&context] { return PrintStrategies(context); }; });
  CLI::App* models = app.add_subcommand("models", "Models of the zoo (model: {zoo: NAME, params: {…}})");
  models->footer("Example:\n  tributary models");
  models->callback([&context] { context.action = [&context] { return PrintModels(context); }; });
  CLI::App* routers = app.add_subcommand("routers", "Routers of mixtures of experts (model: {zoo: moe_transformer, params: {router: {name: NAME, …}}})");
  routers->footer("Example:\n  tributary routers");
  routers->callback([&context] { context.action = [&context] { return PrintCatalog(context, "routers", kRouters); }; });
  CLI::App* datasets = app.add_subcommand("datasets", "Data sources of a client (data: {source: NAME})");
  datasets->footer("Example:\n  tributary datasets");
  datasets->callback([&context] { context.action = [&context] { return PrintCatalog(context, "datasets", kDatasets); }; });
  CLI::App* codecs = app.add_subcommand("codecs", "How updates may travel (codec: NAME)");
  codecs->footer("Example:\n  tributary codecs");
  codecs->callback([&context] { context.action = [&context] { return PrintCodecs(context); }; });
}

}  // namespace tributary::cli
