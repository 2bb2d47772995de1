// tributary replay: the recorded updates of a job folded again, under the same or another strategy.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "cli/command.h"
#include "cli/state_source.h"
#include "common/safetensors.h"
#include "simulate/replay.h"

namespace tributary::cli {
namespace {

struct ReplayFlags {
  std::string job;
  std::string store;
  std::string strategy;
  std::vector<std::string> params;
  std::string out;
};

absl::StatusOr<int> RunReplay(const Context& context, const ReplayFlags& flags) {
  std::optional<StrategySpec> strategy;
  if (!flags.strategy.empty()) strategy = StrategySpec{.name = flags.strategy, .params = {}};
  for (const std::string& param : flags.params) {
    const size_t equals = param.find('=');
    if (!strategy || equals == std::string::npos || equals == 0) return InvalidArgument("--param '{}': expected KEY=VALUE, with --strategy", param);
    strategy->params[param.substr(0, equals)] = param.substr(equals + 1);
  }
  std::string id;
  {
    TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<StateSource> source, OpenStoreSource(flags.store));
    TRIB_ASSIGN_OR_RETURN(id, source->Resolve(flags.job));
  }
  TRIB_ASSIGN_OR_RETURN(const auto store, aggregator::StateStore::Open({.dir = flags.store, .mode = aggregator::StateStore::Mode::kReadOnly}));
  TRIB_ASSIGN_OR_RETURN(const simulate::ReplayResult result, simulate::Replay(*store, id, strategy));
  if (!flags.out.empty()) {
    TRIB_RETURN_IF_ERROR(WriteSafetensors(flags.out, result.model.layout, result.model.bytes,
                                          {{"tributary.job", id}, {"tributary.strategy", result.strategy.name}}));
  }
  const auto differs = std::find_if(result.versions.begin(), result.versions.end(),
                                    [](const simulate::ReplayedVersion& version) { return version.sha256 != version.recorded_sha256; });
  const bool equal = differs == result.versions.end();
  if (context.json) {
    nlohmann::json versions = nlohmann::json::array();
    for (const simulate::ReplayedVersion& version : result.versions) {
      versions.push_back({{"version", version.version}, {"updates", version.updates}, {"sha256", version.sha256}, {"recorded_sha256", version.recorded_sha256}});
    }
    PrintJson({{"job", id}, {"strategy", result.strategy.name}, {"equal", equal}, {"refused", result.refused}, {"versions", versions}});
  } else {
    fmt::print("job {} under {}: {} versions, {}\n", id, result.strategy.name, result.versions.size(),
               equal ? "all with the recorded bits" : fmt::format("other bits from version {} on", differs->version));
    if (result.refused > 0) fmt::print("{} updates refused, the first: {}\n", result.refused, result.why_refused);
    if (!flags.out.empty()) fmt::print("model in {}\n", flags.out);
  }
  return kDone;
}

}  // namespace

void AddReplayCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<ReplayFlags>();
  CLI::App* replay = app.add_subcommand("replay", "Fold a recorded job's updates again, offline, under the same or another strategy");
  replay->add_option("JOB", flags->job, "Id, an unambiguous beginning of it, or a name (default: the only job)");
  replay->add_option("--store", flags->store, "The state store that holds the record")->required();
  replay->add_option("--strategy", flags->strategy, "Another strategy than the recorded one");
  replay->add_option("--param", flags->params, "Its parameters, KEY=VALUE; may be repeated")->expected(1)->take_all();
  replay->add_option("--out", flags->out, "Write the last model (safetensors)");
  replay->footer("Example:\n  tributary replay fashion --store runs --strategy fedavgm --param beta=0.5");
  replay->callback([&context, flags] {
    context.action = [&context, flags] {
      const absl::StatusOr<int> code = RunReplay(context, *flags);
      return code.ok() ? *code : ReportError(context, code.status());
    };
  });
}

}  // namespace tributary::cli
