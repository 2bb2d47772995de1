#include <fmt/format.h>

#include <cmath>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_json.h"
#include "cli/progress.h"

namespace tributary::cli {
namespace {

struct JobFlags {
  std::string job;
  std::string reason = "cancelled by the operator";
};

int List(const Context& context) {
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  const auto response = client->Call(&v1::Admin::Stub::ListJobs, v1::ListJobsRequest());
  if (!response.ok()) return ReportError(context, response.status());
  if (context.json) {
    nlohmann::json jobs = nlohmann::json::array();
    for (const v1::Job& job : response->jobs()) jobs.push_back(JobJson(job));
    PrintJson({{"jobs", jobs}});
    return kDone;
  }
  fmt::print("{:<32} {:<10} {:>10} {:>9}  {:<14} {}\n", "ID", "STATE", "VERSION", "ACCURACY", "STRATEGY", "SUBMITTED");
  for (const v1::Job& job : response->jobs()) {
    const v1::Metric* metric = LatestMetric(job);
    fmt::print("{:<32} {:<10} {:>10} {:>9}  {:<14} {}\n", job.id(), JobStateName(job.state()),
               fmt::format("{}/{}", job.version(), job.target_versions()), metric && std::isfinite(metric->accuracy()) ? fmt::format("{:.4f}", metric->accuracy()) : "-",
               job.strategy(), HumanTime(job.submitted_us()));
  }
  return kDone;
}

int Print(const Context& context, const absl::StatusOr<v1::Job>& job) {
  if (!job.ok()) return ReportError(context, job.status(), job.status().code() == absl::StatusCode::kNotFound ? "tributary jobs ls" : "");
  if (context.json) {
    PrintJson(JobJson(*job));
  } else {
    fmt::print("{}", JobText(*job));
  }
  return kDone;
}

template <typename Request, typename Method>
int CallAndPrint(const Context& context, Method method, const Request& request) {
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  return Print(context, client->Call(method, request));
}

int Watch(const Context& context, const JobFlags& flags) {
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  CatchInterrupts();
  ProgressPrinter printer;
  const auto job = WatchUntilEnd(
      *client, flags.job,
      [&](const v1::Job& j) {
        if (context.json) {
          fmt::print("{}\n", JobJson(j).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
          std::fflush(stdout);
        } else {
          printer.Show(j);
        }
      },
      [] { return Interrupts() > 0; });
  printer.End();
  if (!job.ok()) return ReportError(context, job.status(), job.status().code() == absl::StatusCode::kNotFound ? "tributary jobs ls" : "");
  if (Interrupts() > 0) fmt::print(stderr, "stopped watching; the job goes on (cancel it with 'tributary jobs cancel {}')\n", flags.job);
  return !JobEnded(job->state()) || job->state() == v1::JOB_STATE_DONE ? kDone : kFailed;
}

}  // namespace

void AddJobsCommands(CLI::App& app, Context& context) {
  auto flags = std::make_shared<JobFlags>();
  CLI::App* jobs = app.add_subcommand("jobs", "Experiment jobs: list, show, cancel, resume, watch");
  jobs->require_subcommand(1);
  jobs->footer("Example:\n  tributary jobs show fashion");

  CLI::App* ls = jobs->add_subcommand("ls", "All jobs, oldest first");
  ls->footer("Example:\n  tributary jobs ls --json");
  ls->callback([&context] { context.action = [&context] { return List(context); }; });

  const auto add = [&](const char* name, const char* help, const char* example, std::function<int()> action) {
    CLI::App* command = jobs->add_subcommand(name, help);
    command->add_option("JOB", flags->job, "Id, or an unambiguous beginning of an id or a name")->required();
    command->footer(std::string("Example:\n  ") + example);
    command->callback([&context, action] { context.action = action; });
    return command;
  };
  add("show", "One job: state, version, metrics, what it waits for", "tributary jobs show fashion --json", [&context, flags] {
    v1::GetJobRequest request;
    request.set_job(flags->job);
    return CallAndPrint(context, &v1::Admin::Stub::GetJob, request);
  });
  add("cancel", "Stop a job; its versions stay", "tributary jobs cancel fashion --reason 'wrong data'", [&context, flags] {
    v1::CancelJobRequest request;
    request.set_job(flags->job);
    request.set_reason(flags->reason);
    return CallAndPrint(context, &v1::Admin::Stub::CancelJob, request);
  })->add_option("--reason", flags->reason, "Shown with the job")->capture_default_str();
  add("resume", "Go on with a failed or cancelled job from its last version", "tributary jobs resume fashion", [&context, flags] {
    v1::ResumeJobRequest request;
    request.set_job(flags->job);
    return CallAndPrint(context, &v1::Admin::Stub::ResumeJob, request);
  });
  add("watch", "Follow a job until it ends (Ctrl-C stops watching, not the job)", "tributary jobs watch fashion",
      [&context, flags] { return Watch(context, *flags); });
}

}  // namespace tributary::cli
