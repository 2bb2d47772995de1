#include <fmt/format.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/initial_model.h"
#include "cli/job_json.h"
#include "cli/progress.h"

namespace tributary::cli {
namespace {

struct SubmitFlags {
  std::string job_file;
  bool watch = false;
};

int RunSubmit(const Context& context, const SubmitFlags& flags) {
  const auto submission = PrepareSubmission(flags.job_file);
  if (!submission.ok()) return ReportError(context, submission.status());
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  const auto response = Submit(*client, *submission);
  if (!response.ok()) return ReportError(context, response.status());
  for (const std::string& warning : submission->warnings) fmt::print(stderr, "warning: {}\n", warning);
  for (const std::string& warning : response->warnings()) fmt::print(stderr, "warning: {}\n", warning);
  if (!flags.watch) {
    if (context.json) {
      PrintJson({{"id", response->job()}});
    } else {
      fmt::print("{}\n", response->job());
      fmt::print(stderr, "hint: follow it with 'tributary jobs watch {}'\n", response->job());
    }
    return kDone;
  }
  CatchInterrupts();
  ProgressPrinter printer;
  const auto job = WatchUntilEnd(*client, response->job(), [&](const v1::Job& j) { printer.Show(j); }, [] { return Interrupts() > 0; });
  printer.End();
  if (!job.ok()) return ReportError(context, job.status());
  if (Interrupts() > 0) fmt::print(stderr, "stopped watching; job {} goes on (cancel it with 'tributary jobs cancel {}')\n", job->id(), job->id());
  if (context.json) PrintJson(JobJson(*job));
  return job->state() == v1::JOB_STATE_DONE || !JobEnded(job->state()) ? kDone : kFailed;
}

}  // namespace

void AddSubmitCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<SubmitFlags>();
  CLI::App* submit = app.add_subcommand("submit", "Submit an experiment job to a running aggregator");
  submit->add_option("JOB.yaml", flags->job_file, "The job")->required();
  submit->add_flag("--watch", flags->watch, "Follow the job until it ends (Ctrl-C stops watching, not the job)");
  submit->footer("Example:\n  tributary submit examples/fashion-fedavg.yaml --watch");
  submit->callback([&context, flags] { context.action = [&context, flags] { return RunSubmit(context, *flags); }; });
}

}  // namespace tributary::cli
