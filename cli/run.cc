// `tributary run`: a whole federation on this machine. Starts an aggregator, client daemons and an evaluator as children, submits the
// job, shows progress, stops everything, leaves the state store behind.
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>
#include <thread>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/initial_model.h"
#include "cli/job_json.h"
#include "cli/progress.h"
#include "common/file.h"
#include "common/job_spec.h"
#include "common/process.h"

namespace tributary::cli {
namespace {

namespace fs = std::filesystem;

struct RunFlags {
  std::string job_file;
  int64_t clients = 0;
  std::string out;
  int64_t workers = 0;
  std::string device = "auto";
};

// The last lines of a log file, for an error message.
std::string Tail(const fs::path& path, size_t lines = 5) {
  const std::string text = ReadFile(path).value_or("");
  size_t at = text.size();
  for (size_t i = 0; i <= lines && at != 0 && at != std::string::npos; ++i) at = text.rfind('\n', at - 1);
  return at == std::string::npos ? text : text.substr(at == 0 ? 0 : at + 1);
}

// The children of one run. Destroying it stops them: clients first, so that they detach from a living aggregator.
class LocalFederation {
 public:
  explicit LocalFederation(fs::path out) : out_(std::move(out)) {}
  ~LocalFederation() { Stop(); }

  absl::StatusOr<std::string> StartAggregator(int64_t workers) {
    const fs::path port_file = out_ / "port";
    std::error_code ignored;
    fs::remove(port_file, ignored);
    std::vector<std::string> args = {"--listen", "127.0.0.1:0", "--store", (out_ / "store").string(), "--port-file", port_file.string()};
    if (workers > 0) args.insert(args.end(), {"--workers", std::to_string(workers)});
    TRIB_RETURN_IF_ERROR(Start("tributary-aggregator", "aggregator", args));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!fs::exists(port_file)) {
      TRIB_RETURN_IF_ERROR(Check());
      if (Interrupts() > 0) return Cancelled("interrupted while the aggregator started");
      if (std::chrono::steady_clock::now() > end) return Internal("the aggregator did not serve within 20 s: {}", Tail(LogOf("aggregator")));
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    TRIB_ASSIGN_OR_RETURN(std::string server, ReadFile(port_file));
    while (!server.empty() && server.back() == '\n') server.pop_back();
    return server;
  }

  absl::Status Start(const std::string& program, const std::string& name, const std::vector<std::string>& args) {
    SpawnOptions options;
    options.program = ExecutableDir() / program;
    if (!fs::exists(options.program)) return FailedPrecondition("{} is missing (it is built beside this program)", options.program.string());
    options.args = args;
    options.stdout_file = LogOf(name);
    options.stderr_file = LogOf(name);
    options.own_group = true;  // Ctrl-C comes here; Stop() then ends the children in order
    TRIB_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Spawn(options));
    children_.push_back({name, std::move(child)});
    return absl::OkStatus();
  }

  // An error if a child has ended that nobody stopped.
  absl::Status Check() {
    for (auto& [name, child] : children_) {
      if (!child.Running()) return Internal("{} ended unexpectedly; the end of {}:\n{}", name, LogOf(name).string(), Tail(LogOf(name)));
    }
    return absl::OkStatus();
  }

  void Stop() {
    while (!children_.empty()) {
      ChildProcess& child = children_.back().second;
      child.Signal(SIGTERM);
      // In slices, so that a second Ctrl-C is heard while a child takes its time.
      for (int slice = 0; slice < kGraceSlices && Interrupts() < 2; ++slice) {
        if (child.Wait(absl::Milliseconds(100)).ok()) break;
      }
      child.Stop(absl::ZeroDuration());
      children_.pop_back();
    }
  }

 private:
  static constexpr int kGraceSlices = 150;  // 15 s

  fs::path LogOf(const std::string& name) const { return out_ / "logs" / (name + ".log"); }
  fs::path out_;
  std::vector<std::pair<std::string, ChildProcess>> children_;
};

fs::path DefaultOut(const std::string& name) {
  const std::string stamp = absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone());
  return fs::path("tributary-runs") / (name + "-" + stamp);
}

absl::StatusOr<v1::Job> RunFederation(const RunFlags& flags, const JobSpec& spec, const fs::path& out, ProgressPrinter& printer) {
  fmt::print(stderr, "preparing the initial model of {}\n", flags.job_file);
  TRIB_ASSIGN_OR_RETURN(const Submission submission, PrepareSubmission(flags.job_file));
  TRIB_RETURN_IF_ERROR(MakeDirectories(out / "logs"));
  LocalFederation federation(out);
  TRIB_ASSIGN_OR_RETURN(const std::string server, federation.StartAggregator(flags.workers));
  const int64_t clients = flags.clients > 0 ? flags.clients : spec.ClientsAsked();
  fmt::print(stderr, "aggregator on {}, logs in {}\n", server, (out / "logs").string());
  const bool learns = !spec.data.source.empty();
  if (learns) {
    // Many small models train side by side, each on one thread: thread teams that spin for each other's cores are far slower.
    const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
    std::vector<std::string> args = {"--server", server, "--name", "client", "--identities", std::to_string(clients),
                                     "--state", (out / "clients").string(), "--device", flags.device,
                                     "--threads", "1", "--train-threads", std::to_string(std::min(cores, clients))};
    // The person who runs this also wrote the job: code in it is theirs.
    if (!spec.model.torchscript.empty()) args.push_back("--allow-torchscript");
    TRIB_RETURN_IF_ERROR(federation.Start("tributary-client", "clients", args));
    // A job may name who evaluates: the one evaluator here is then the first of them.
    const std::string evaluator = spec.evaluate.clients.empty() ? "evaluator" : spec.evaluate.clients.front();
    args = {"--server", server, "--name", evaluator, "--evaluator", "--state", (out / "evaluator").string(), "--device", flags.device,
            "--threads", "1"};
    if (!spec.model.torchscript.empty()) args.push_back("--allow-torchscript");
    TRIB_RETURN_IF_ERROR(federation.Start("tributary-client", "evaluator", args));
  } else {
    fmt::print(stderr, "this job names no data source: its {} clients are yours to start, with --server {}\n", clients, server);
  }
  TRIB_ASSIGN_OR_RETURN(Client client, Client::Connect(server));
  TRIB_ASSIGN_OR_RETURN(const v1::SubmitJobResponse response, Submit(client, submission));
  for (const std::string& warning : submission.warnings) fmt::print(stderr, "warning: {}\n", warning);
  for (const std::string& warning : response.warnings()) fmt::print(stderr, "warning: {}\n", warning);
  absl::Status child_status;
  auto job = WatchUntilEnd(
      client, response.job(), [&](const v1::Job& j) { printer.Show(j); },
      [&] {
        if (Interrupts() > 0) return true;
        if (child_status.ok()) child_status = federation.Check();
        return !child_status.ok();
      });
  printer.End();
  if (!child_status.ok()) return child_status;
  if (!job.ok()) return job.status();
  if (Interrupts() > 0) fmt::print(stderr, "interrupted: stopping the federation (Ctrl-C again: at once)\n");
  federation.Stop();
  return job;
}

int Run(const Context& context, const RunFlags& flags) {
  const auto spec = ReadJobSpec(flags.job_file);
  if (!spec.ok()) return ReportError(context, spec.status());
  const fs::path out = flags.out.empty() ? DefaultOut(spec->name) : fs::path(flags.out);
  if (fs::exists(out / "store")) {
    return ReportError(context, AlreadyExists("{} already holds a state store", out.string()), "name another folder with --out");
  }
  CatchInterrupts();
  ProgressPrinter printer;
  const auto start = std::chrono::steady_clock::now();
  const auto job = RunFederation(flags, *spec, out, printer);
  printer.End();
  if (!job.ok()) return ReportError(context, job.status(), fs::exists(out / "logs") ? fmt::format("logs are in {}", (out / "logs").string()) : "");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::string store = (out / "store").string();
  if (context.json) {
    nlohmann::json document = JobJson(*job);
    document["store"] = store;
    document["wall_s"] = seconds;
    PrintJson(document);
  } else {
    const v1::Metric* metric = LatestMetric(*job);
    fmt::print("\njob        {} {}{}\n", job->id(), JobStateName(job->state()), job->state_reason().empty() ? "" : ": " + job->state_reason());
    if (metric != nullptr && std::isfinite(metric->accuracy())) {
      fmt::print("accuracy   {:.4f} on {} held-out examples (version {})\n", metric->accuracy(), metric->examples(), metric->version());
    } else if (metric != nullptr) {
      fmt::print("loss       {:.6g} on {} held-out examples (version {})\n", metric->loss(), metric->examples(), metric->version());
    }
    fmt::print("time       {:.1f} s\nstore      {}\nlook at it:\n", seconds, store);
    fmt::print("  tributary state ls --store {}\n  tributary state get {} --store {}\n  tributary state export {} --store {} --out model.safetensors\n",
               store, job->id(), store, job->id(), store);
  }
  return job->state() == v1::JOB_STATE_DONE ? kDone : kFailed;
}

}  // namespace

void AddRunCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* run = app.add_subcommand("run", "A whole federation on this machine: aggregator, clients, evaluator, one job");
  run->add_option("JOB.yaml", flags->job_file, "The job")->required();
  run->add_option("--clients", flags->clients, "Virtual clients, each with its own shard of the data (default: cohort size × over_select)")
      ->check(CLI::PositiveNumber);
  run->add_option("--out", flags->out, "Folder for state store, client state and logs (default: tributary-runs/<name>-<time>)");
  run->add_option("--workers", flags->workers, "Aggregation worker processes (default: the aggregator's own)")->check(CLI::PositiveNumber);
  run->add_option("--device", flags->device, "Device the clients train on")->check(CLI::IsMember({"auto", "cpu", "cuda"}))->capture_default_str();
  run->footer("Example:\n  tributary run examples/fashion-fedavg.yaml --clients 10 --out /tmp/fashion");
  run->callback([&context, flags] { context.action = [&context, flags] { return Run(context, *flags); }; });
}

}  // namespace tributary::cli
