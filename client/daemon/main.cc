// tributary-client: trains and evaluates for an aggregator, on this machine's data. Wiring only.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <string>

#include "client/daemon/flags.h"
#include "client/daemon/torch_seam.h"
#include "client/data/analytic_files.h"
#include "client/data/data.h"
#include "common/log.h"

namespace tributary::client {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int Complain(const absl::Status& status, int code) {
  fmt::print(stderr, "error: {}\n", MessageOf(status));
  return code;
}

absl::Status InitModel(const std::string& job, const std::string& out, std::optional<int64_t> seed) {
  TRIB_ASSIGN_OR_RETURN(JobSpec spec, ReadJobSpec(job));
  if (seed.has_value()) spec.seed = *seed;
  FlatModel model;
  if (IsAnalytic(spec)) {
    TRIB_ASSIGN_OR_RETURN(const auto data, LoadAnalytic(spec));
    TRIB_ASSIGN_OR_RETURN(model, AnalyticStart(spec, *data));
  } else {
    TRIB_ASSIGN_OR_RETURN(model, TorchInitialModel(spec));
  }
  return WriteSafetensors(out, model.layout, model.bytes, {{"job", spec.name}, {"seed", std::to_string(spec.seed)}});
}

DatasetProvider FilesOfThisMachine() {
  auto cache = std::make_shared<DataCache>();  // shared by the copies of the provider
  auto analytic = std::make_shared<AnalyticCache>();
  return [cache, analytic](const DataRequest& request) -> absl::StatusOr<std::shared_ptr<const Dataset>> {
    if (request.spec->data.source.empty()) return std::shared_ptr<const Dataset>();
    if (IsAnalytic(*request.spec)) {
      return request.evaluation ? analytic->Evaluation(*request.spec) : analytic->ShardOf(*request.spec, request.shard, request.shards);
    }
    absl::StatusOr<Dataset> data = request.evaluation ? cache->TestSet(request.spec->data)
                                                      : cache->ShardOf(request.spec->data, request.shard, request.shards);
    if (!data.ok()) return data.status();
    return std::make_shared<const Dataset>(*std::move(data));
  };
}

int Main(int argc, char** argv) {
  CLI::App app("Trains and evaluates for a Tributary aggregator, on this machine's data", "tributary-client");
  app.footer("Example:\n  tributary-client --server 10.0.0.5:7070 --name site-a --device cuda --data-dir /data/fashion");
  app.set_version_flag("--version", std::string("tributary-client 0.1.0"));
  ClientFlags flags;
  if (const absl::Status read = flags.ReadConfigFile(argc, argv); !read.ok()) return Complain(read, kUsage);
  flags.AddTo(app);

  CLI::App* init = app.add_subcommand("init-model", "Write the model a job starts from as safetensors");
  std::string job, out;
  int64_t seed = 0;
  init->add_option("--job", job, "Job file (YAML)")->required();
  init->add_option("--out", out, "File to write (safetensors)")->required();
  CLI::Option* seed_option = init->add_option("--seed", seed, "Replaces the job's seed");
  init->footer("Example:\n  tributary-client init-model --job examples/fashion-fedavg.yaml --out /tmp/model.safetensors");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;
  }
  if (const absl::Status logging = flags.InitLog("tributary-client"); !logging.ok()) return Complain(logging, kUsage);
  if (init->parsed()) {
    const absl::Status made = InitModel(job, out, seed_option->count() > 0 ? std::optional<int64_t>(seed) : std::nullopt);
    return made.ok() ? 0 : Complain(made, kFailed);
  }
  absl::StatusOr<ClientOptions> options = flags.Options();
  if (!options.ok()) return Complain(options.status(), kUsage);
  if (flags.print_config) fmt::print("{}", flags.Describe(app));
  if (flags.check_config || flags.print_config) return 0;
  absl::StatusOr<LearnerFactory> learner = TorchLearnerFactory(flags.device(), flags.threads());
  if (!learner.ok()) return Complain(learner.status(), kFailed);
  return RunClientProgram(*options, *learner, FilesOfThisMachine());
}

}  // namespace
}  // namespace tributary::client

int main(int argc, char** argv) { return tributary::client::Main(argc, argv); }
