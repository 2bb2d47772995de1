#include "cli/simulate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <thread>

#include "cli/curves.h"
#include "cli/job_json.h"
#include "cli/progress.h"
#include "cli/tensorboard.h"
#include "client/core/analytic_learner.h"
#include "client/data/analytic_files.h"
#include "client/core/consensus_check.h"
#include "client/data/data.h"
#include "common/file.h"
#include "common/process.h"
#include "simulate/simulation.h"
#include "tributary/v1/admin.pb.h"

namespace tributary::cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxShownElements = 4096;  // a model up to this size is printed with --json

struct SimulateFlags {
  std::string job_file;
  int64_t clients = 0;
  std::optional<int64_t> seed;
  std::string out;
  std::string plot;
  std::string tensorboard;
  std::string trajectory;
  std::string client_state;
  std::string device = "auto";
  int64_t threads = 0;
  bool contributors = false;
};

// Everything a simulation borrows.
struct Prepared {
  simulate::SimulationOptions options;
  std::vector<std::unique_ptr<client::Learner>> learners;
  std::unique_ptr<aggregator::StateStore> store;
};

std::vector<std::string> ClientIds(int64_t count) {
  if (count == 1) return {"client"};  // the names that the daemon of `tributary run` gives its identities
  std::vector<std::string> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(fmt::format("client-{}", i));
  return ids;
}

absl::Status PrepareAnalytic(const SimulateFlags& flags, Prepared* prepared) {
  simulate::SimulationOptions& options = prepared->options;
  TRIB_ASSIGN_OR_RETURN(const auto data, client::LoadAnalytic(options.spec));
  const auto files = static_cast<int64_t>(data->clients.size());
  if (flags.clients > files) return InvalidArgument("--clients: '{}' has {} files, one for each client; got {}", options.spec.data.path, files, flags.clients);
  options.clients = ClientIds(flags.clients > 0 ? flags.clients : files);
  options.data = [data](uint32_t client) -> absl::StatusOr<std::shared_ptr<const client::Dataset>> { return data->clients[client]; };
  options.evaluation = data->evaluation;
  if (const size_t used = options.clients.size(); used < data->clients.size() && data->evaluation->problems.size() == data->clients.size()) {
    auto those = std::make_shared<client::Dataset>(*data->evaluation);  // the objective is that of the clients that are there
    those->problems.resize(used);
    options.evaluation = std::move(those);
  }
  TRIB_ASSIGN_OR_RETURN(options.initial, client::AnalyticStart(options.spec, *data));
  for (const std::string& warning : client::ConsensusWarnings(options.spec, options.evaluation->problems)) fmt::print(stderr, "warning: {}\n", warning);
  // One step of a small problem takes less than handing it to another thread.
  const int64_t learners = flags.threads > 0 ? flags.threads : 1;
  for (int64_t i = 0; i < learners; ++i) prepared->learners.push_back(std::make_unique<client::AnalyticLearner>());
  return absl::OkStatus();
}

absl::Status PrepareZoo(const SimulateFlags& flags, const ZooSeam& seam, Prepared* prepared) {
  simulate::SimulationOptions& options = prepared->options;
  const JobSpec& spec = options.spec;
  if (!spec.model.tensors.empty() || spec.data.source.empty()) {
    return InvalidArgument("simulate needs a model that can be trained and data: model.zoo or model.torchscript, and data.source");
  }
  options.clients = ClientIds(flags.clients > 0 ? flags.clients : spec.ClientsAsked());
  const auto cache = std::make_shared<client::DataCache>();
  const auto shards = static_cast<int64_t>(options.clients.size());
  auto shard_of = std::make_shared<std::vector<std::shared_ptr<const client::Dataset>>>(options.clients.size());
  options.data = [cache, shards, shard_of, data = spec.data](uint32_t client) -> absl::StatusOr<std::shared_ptr<const client::Dataset>> {
    auto& shard = (*shard_of)[client];
    if (shard == nullptr) {
      TRIB_ASSIGN_OR_RETURN(client::Dataset made, cache->ShardOf(data, client, shards));
      shard = std::make_shared<const client::Dataset>(std::move(made));
    }
    return shard;
  };
  TRIB_RETURN_IF_ERROR(options.data(0).status());  // reads and divides the data: what is wrong with them is said before anything runs
  TRIB_ASSIGN_OR_RETURN(client::Dataset test, cache->TestSet(spec.data));
  options.evaluation = std::make_shared<const client::Dataset>(std::move(test));
  TRIB_ASSIGN_OR_RETURN(options.initial, seam.initial_model(spec));
  if (const std::string& path = spec.model.artifact_path(); !path.empty()) {
    TRIB_ASSIGN_OR_RETURN(options.artifact, ReadFile(path));
  }
  // A module of one's own may draw (dropout), and LibTorch has one generator for all threads: one client after the other then.
  const bool alone = !spec.model.torchscript.empty();
  if (alone && flags.threads > 1) return InvalidArgument("--threads: TorchScript modules are trained one client after the other: expected 1, got {}", flags.threads);
  TRIB_ASSIGN_OR_RETURN(prepared->learners.emplace_back(), seam.make_learner(flags.device));
  // Nor does a second learner help one that trains whole cohorts: both would share the GPU.
  const bool cohorts = prepared->learners[0]->cohort_size() > 1;
  const int64_t learners = alone || cohorts ? 1 : flags.threads > 0 ? flags.threads : std::max<int64_t>(1, std::thread::hardware_concurrency());
  while (static_cast<int64_t>(prepared->learners.size()) < learners) {
    TRIB_ASSIGN_OR_RETURN(prepared->learners.emplace_back(), seam.make_learner(flags.device));
  }
  return absl::OkStatus();
}

// "version 120/400 · 12.5 s simulated · loss 0.31 · 24,000 updates/s" on stderr: rewritten on a terminal, every ten seconds elsewhere.
class ProgressLinePrinter {
 public:
  explicit ProgressLinePrinter(int64_t target) : target_(target), terminal_(isatty(STDERR_FILENO) == 1 && !Dumb()) {}
  void Show(const simulate::Progress& progress) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000))) return;
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    std::string line = fmt::format("version {}/{} · {:.6g} s simulated", progress.version, target_, progress.virtual_s);
    if (std::isfinite(progress.accuracy)) {
      line += fmt::format(" · accuracy {:.3f}", progress.accuracy);
    } else if (std::isfinite(progress.loss)) {
      line += fmt::format(" · loss {:.4g}", progress.loss);
    }
    line += fmt::format(" · {:.0f} updates/s", static_cast<double>(progress.updates) / std::max(seconds, 1e-9));
    fmt::print(stderr, "{}{}", terminal_ ? "\r\x1b[K" : "", line);
    if (!terminal_) fmt::print(stderr, "\n");
    std::fflush(stderr);
    open_ = terminal_;
  }
  void End() {
    if (open_) fmt::print(stderr, "\n");
    open_ = false;
  }

 private:
  static bool Dumb() {
    const char* term = std::getenv("TERM");
    return term == nullptr || std::string_view(term) == "dumb";
  }
  const int64_t target_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point shown_ = begin_;
  bool open_ = false;
};

v1::Job JobOf(const simulate::SimulationResult& result) {
  const JobSpec& spec = result.spec;
  v1::Job job;
  job.set_id(result.id);
  job.set_name(spec.name);
  job.set_state(result.state == simulate::SimulationState::kDone        ? v1::JOB_STATE_DONE
                : result.state == simulate::SimulationState::kCancelled ? v1::JOB_STATE_CANCELLED
                                                                        : v1::JOB_STATE_FAILED);
  job.set_state_reason(result.reason);
  job.set_strategy(spec.strategy.name);
  job.set_version(result.version);
  job.set_target_versions(static_cast<uint64_t>(spec.stop.versions));
  job.set_updates_committed(result.updates_committed);
  job.mutable_updates_rejected()->insert(result.updates_rejected.begin(), result.updates_rejected.end());
  for (const v1::Metric& metric : result.metrics) *job.add_metrics() = metric;
  job.set_bytes_up(result.bytes_up);
  job.set_bytes_down(result.bytes_down);
  job.set_model_sha256(result.model_sha256);
  job.set_spec_yaml(CanonicalYaml(spec));
  job.set_clients_expected(static_cast<uint64_t>(spec.cohort.size));
  job.set_elapsed_s(result.virtual_s);
  if (result.privacy) *job.mutable_privacy() = *result.privacy;
  return job;
}

nlohmann::json ModelJson(const FlatModel& model) {
  if (model.layout.float_count() + model.layout.counter_count() > kMaxShownElements) return nullptr;
  nlohmann::json tensors = nlohmann::json::object();
  for (const PlacedTensor& tensor : model.layout.tensors()) {
    nlohmann::json values = nlohmann::json::array();
    for (size_t i = 0; i < tensor.elements; ++i) {
      const std::byte* at = model.bytes.data() + tensor.offset_bytes + i * DTypeBytes(tensor.spec.dtype);
      if (tensor.spec.dtype == DType::kF64) {
        double value;
        std::memcpy(&value, at, sizeof(value));
        values.push_back(NumberOrNull(value));
      } else if (tensor.spec.dtype == DType::kF32) {
        float value;
        std::memcpy(&value, at, sizeof(value));
        values.push_back(NumberOrNull(static_cast<double>(value)));
      } else {
        int64_t value;
        std::memcpy(&value, at, sizeof(value));
        values.push_back(value);
      }
    }
    tensors[tensor.spec.name] = std::move(values);
  }
  return tensors;
}

nlohmann::json HistoryJson(const std::vector<simulate::SimulatedVersion>& history) {
  nlohmann::json list = nlohmann::json::array();
  for (const simulate::SimulatedVersion& version : history) {
    nlohmann::json contributors = nlohmann::json::array();
    for (const aggregator::RoundContributor& c : version.contributors) {
      contributors.push_back({{"client", c.key.client}, {"staleness", c.staleness}, {"weight", c.weight}});
    }
    list.push_back({{"version", version.version}, {"virtual_or_wall_s", version.virtual_s}, {"trigger", version.trigger}, {"contributors", contributors}});
    if (version.privacy) list.back()["privacy"] = PrivacyJson(*version.privacy);
  }
  return list;
}

CurveSet CurvesOf(const std::string& name, const std::vector<v1::Metric>& metrics) {
  CurveSet curves{.name = name, .points = {}};
  for (const v1::Metric& m : metrics) {
    curves.points.push_back({.version = static_cast<double>(m.version()), .seconds = m.wall_s(), .bytes = static_cast<double>(m.bytes_up() + m.bytes_down()),
                             .loss = m.loss(), .accuracy = m.accuracy()});
  }
  return curves;
}

void PrintResult(const SimulateFlags& flags, const simulate::SimulationResult& result, size_t clients, double wall_s) {
  fmt::print("job        {} {}: {}\n", result.id,
             result.state == simulate::SimulationState::kDone ? "done" : result.state == simulate::SimulationState::kCancelled ? "cancelled" : "failed",
             result.reason);
  if (!result.metrics.empty()) {
    const v1::Metric& last = result.metrics.back();
    fmt::print("loss       {:.10g}{} (version {})\n", last.loss(),
               std::isfinite(last.accuracy()) ? fmt::format(", accuracy {:.4f}", last.accuracy()) : "", last.version());
  }
  fmt::print("simulated  {} clients, {:.6g} s, {} updates in {} versions\n", clients, result.virtual_s, result.updates_committed, result.version);
  for (const auto& [reason, count] : result.updates_rejected) fmt::print("refused    {}: {}\n", count, reason);
  if (result.privacy) {
    fmt::print("privacy    epsilon {:.6g} at delta {:.3g} ({}, q {:.4g}); simulated noise follows from the seed\n", result.privacy->epsilon(),
               result.privacy->delta(), result.privacy->sampling(), result.privacy->sample_rate());
  }
  fmt::print("took       {:.2f} s: {:.0f} clients trained a second, {:.0f} engine events a second\n", wall_s,
             static_cast<double>(result.clients_trained) / wall_s, static_cast<double>(result.engine_events) / wall_s);
  fmt::print("model      sha256 {}\n", result.model_sha256);
  if (!flags.out.empty()) fmt::print("store      {}\n  tributary state ls {} --store {}\n", flags.out, result.id, flags.out);
  if (!flags.plot.empty()) fmt::print("curves     {}\n", flags.plot);
  if (!flags.tensorboard.empty()) fmt::print("events     {}\n", flags.tensorboard);
}

// "client-3/c_i" and so on, in F64.
absl::Status WriteClientState(const std::string& file, const std::vector<std::string>& clients, const simulate::SimulationResult& result) {
  std::vector<TensorSpec> specs;
  std::map<std::string, const std::vector<double>*> values;
  for (size_t i = 0; i < clients.size(); ++i) {
    for (const auto& [name, vector] : result.client_states[i]->vectors) {
      const std::string key = fmt::format("{}/{}", clients[i], name);
      specs.push_back({.name = key, .shape = {static_cast<int64_t>(vector.size())}, .dtype = DType::kF64});
      values[key] = &vector;
    }
  }
  if (specs.empty()) return FailedPrecondition("--client-state: the clients of this job keep nothing between their updates");
  TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, TensorLayout::Create(std::move(specs)));
  std::vector<std::byte> flat(layout.total_bytes());
  for (const PlacedTensor& tensor : layout.tensors()) std::memcpy(flat.data() + tensor.offset_bytes, values.at(tensor.spec.name)->data(), tensor.bytes);
  return WriteSafetensors(file, layout, flat);
}

absl::Status WriteCurves(const SimulateFlags& flags, const std::string& name, const simulate::SimulationResult& result) {
  if (!flags.plot.empty()) {
    const CurveSet curves = CurvesOf(name, result.metrics);
    TRIB_RETURN_IF_ERROR(WriteFileAtomically(flags.plot, std::string_view(DrawCurves({&curves, 1}, {Axis::kVersions, Axis::kSeconds})), false));
  }
  if (!flags.tensorboard.empty()) TRIB_RETURN_IF_ERROR(WriteTensorBoard(flags.tensorboard, result.id, result.metrics));
  if (!flags.trajectory.empty()) {
    const auto versions = static_cast<int64_t>(result.model_times_s.size());
    const auto elements = static_cast<int64_t>(result.models.size()) / versions;
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout,
                          TensorLayout::Create({{.name = "models", .shape = {versions, elements}, .dtype = DType::kF64},
                                                {.name = "virtual_s", .shape = {versions}, .dtype = DType::kF64}}));
    std::vector<double> flat = result.models;
    flat.insert(flat.end(), result.model_times_s.begin(), result.model_times_s.end());
    TRIB_RETURN_IF_ERROR(WriteSafetensors(flags.trajectory, layout, std::as_bytes(std::span(flat))));
  }
  return absl::OkStatus();
}

// Runs the program beside this one that has LibTorch, with the same arguments; returns only if that fails.
absl::Status BecomeTorchProgram() {
  const fs::path program = ExecutableDir() / "tributary-simulate";
  if (!fs::exists(program)) {
    return FailedPrecondition("this model needs LibTorch, and {} is missing: run scripts/deps.sh and build preset 'release'", program.string());
  }
  TRIB_ASSIGN_OR_RETURN(std::string arguments, ReadFile("/proc/self/cmdline"));
  std::vector<char*> argv;
  for (size_t at = 0; at < arguments.size(); at += std::strlen(&arguments[at]) + 1) argv.push_back(&arguments[at]);
  argv.push_back(nullptr);
  ::execv(program.c_str(), argv.data());
  return ErrnoStatus(errno, fmt::format("start {}", program.string()));
}

absl::StatusOr<int> Simulate(const Context& context, const SimulateFlags& flags, const ZooSeam& seam) {
  Prepared prepared;
  TRIB_ASSIGN_OR_RETURN(prepared.options.spec, ReadJobSpec(flags.job_file));
  JobSpec& spec = prepared.options.spec;
  if (flags.seed) spec.seed = *flags.seed;
  const bool analytic = client::IsAnalytic(spec);
  if (!analytic && !seam.make_learner) return BecomeTorchProgram();
  TRIB_RETURN_IF_ERROR(analytic ? PrepareAnalytic(flags, &prepared) : PrepareZoo(flags, seam, &prepared));
  for (const auto& learner : prepared.learners) prepared.options.learners.push_back(learner.get());
  if (!flags.out.empty()) {
    TRIB_ASSIGN_OR_RETURN(prepared.store, aggregator::StateStore::Open({.dir = flags.out, .synced = false}));
    prepared.options.store = prepared.store.get();
  }
  prepared.options.keep_history = flags.contributors;
  prepared.options.keep_models = !flags.trajectory.empty();
  ProgressLinePrinter printer(spec.stop.versions);
  CatchInterrupts();
  prepared.options.progress = [&printer](const simulate::Progress& progress) {
    printer.Show(progress);
    return Interrupts() == 0;
  };
  prepared.options.interrupted = [] { return Interrupts() > 0; };
  const auto begin = std::chrono::steady_clock::now();
  TRIB_ASSIGN_OR_RETURN(const simulate::SimulationResult result, simulate::RunSimulation(prepared.options));
  printer.End();
  const double wall_s = std::max(1e-9, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  prepared.store.reset();
  TRIB_RETURN_IF_ERROR(WriteCurves(flags, spec.name, result));
  if (!flags.client_state.empty()) TRIB_RETURN_IF_ERROR(WriteClientState(flags.client_state, prepared.options.clients, result));
  if (context.json) {
    nlohmann::json document = JobJson(JobOf(result));
    document["clients"] = prepared.options.clients.size();
    document["seed"] = spec.seed;
    document["virtual_s"] = result.virtual_s;
    document["wall_s"] = wall_s;
    document["clients_trained"] = result.clients_trained;
    document["engine_events"] = result.engine_events;
    document["clients_trained_per_s"] = static_cast<double>(result.clients_trained) / wall_s;
    document["engine_events_per_s"] = static_cast<double>(result.engine_events) / wall_s;
    document["model"] = ModelJson(result.model);
    document["store"] = flags.out.empty() ? nlohmann::json(nullptr) : nlohmann::json(flags.out);
    if (flags.contributors) document["versions"] = HistoryJson(result.history);
    PrintJson(document);
  } else {
    PrintResult(flags, result, prepared.options.clients.size(), wall_s);
  }
  return result.state == simulate::SimulationState::kDone ? kDone : kFailed;
}

}  // namespace

void AddSimulateCommand(CLI::App& app, Context& context, ZooSeam seam) {
  auto flags = std::make_shared<SimulateFlags>();
  CLI::App* simulate = app.add_subcommand("simulate", "A job on a virtual clock in this process: the same engine, strategies and learners");
  simulate->add_option("JOB.yaml", flags->job_file, "The job, with its simulate: block")->required();
  simulate->add_option("--clients", flags->clients, "Clients (default: one a file, else cohort size × over_select)")->check(CLI::PositiveNumber);
  simulate->add_option("--seed", flags->seed, "Replaces the job's seed")->check(CLI::NonNegativeNumber);
  simulate->add_option("--out", flags->out, "State store to write the versions into (made if missing)");
  simulate->add_option("--plot", flags->plot, "Draw loss and accuracy over versions and seconds (SVG)");
  simulate->add_option("--tensorboard", flags->tensorboard, "Folder for TensorBoard's event files");
  simulate->add_option("--trajectory", flags->trajectory, "The models of all versions as one safetensors file (models, virtual_s), in F64");
  simulate->add_option("--client-state", flags->client_state, "What each client keeps after its last counted update, as one safetensors file, in F64");
  simulate->add_option("--device", flags->device, "Device of LibTorch models")->check(CLI::IsMember({"auto", "cpu", "cuda"}))->capture_default_str();
  simulate->add_option("--threads", flags->threads, "Clients trained side by side on the CPU (default: one a core; 1 for analytic models and TorchScript)")->check(CLI::PositiveNumber);
  simulate->add_flag("--contributors", flags->contributors, "With --json: who contributed to each version, with staleness and weight");
  simulate->footer("Example:\n  tributary simulate examples/fedfix.yaml --seed 3 --plot curves.svg --json");
  simulate->callback([&context, flags, seam] {
    context.action = [&context, flags, seam] {
      const absl::StatusOr<int> code = Simulate(context, *flags, seam);
      return code.ok() ? *code : ReportError(context, code.status());
    };
  });
}

}  // namespace tributary::cli
