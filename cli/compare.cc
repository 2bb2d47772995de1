// tributary compare: several jobs side by side: a table, and their curves over versions, seconds and bytes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "cli/command.h"
#include "cli/curves.h"
#include "cli/job_json.h"
#include "cli/state_source.h"
#include "common/file.h"

namespace tributary::cli {
namespace {

struct CompareFlags {
  std::vector<std::string> jobs;
  std::vector<std::string> stores;
  std::string plot;
};

struct Compared {
  std::string id;
  uint64_t version = 0;
  uint64_t updates = 0;
  std::vector<v1::Metric> metrics;  // by version
};

// What a job is measured by: accuracy where all have one, else loss.
struct Goal {
  bool accuracy = false;
  double value = 0;   // reached by all of them
  bool Reached(const v1::Metric& metric) const { return accuracy ? metric.accuracy() >= value : metric.loss() <= value; }
};

absl::StatusOr<Compared> Load(StateSource& source, const std::string& id) {
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::VersionInfo> versions, source.List(id));
  Compared job{.id = id, .version = 0, .updates = 0, .metrics = {}};
  for (const v1::VersionInfo& info : versions) {
    job.version = std::max(job.version, info.version());
    job.updates += static_cast<uint64_t>(info.contributors_size());
    if (info.metrics_size() > 0) job.metrics.push_back(info.metrics(0));  // of several evaluators the first speaks
  }
  if (job.metrics.empty()) return FailedPrecondition("job '{}' has no evaluation to compare", id);
  return job;
}

absl::StatusOr<std::vector<Compared>> LoadAll(const Context& context, const CompareFlags& flags) {
  std::vector<std::unique_ptr<StateSource>> sources;
  for (const std::string& dir : flags.stores) {
    TRIB_ASSIGN_OR_RETURN(sources.emplace_back(), OpenStoreSource(dir));
  }
  if (sources.empty()) {
    TRIB_ASSIGN_OR_RETURN(sources.emplace_back(), ConnectSource(context.server));
  }
  std::vector<Compared> jobs;
  for (const std::string& name : flags.jobs) {
    absl::Status why;
    for (const auto& source : sources) {
      const absl::StatusOr<std::string> id = source->Resolve(name);
      if (id.ok()) {
        TRIB_ASSIGN_OR_RETURN(jobs.emplace_back(), Load(*source, *id));
        why = absl::OkStatus();
        break;
      }
      if (why.ok() || !absl::IsNotFound(id.status())) why = id.status();
    }
    TRIB_RETURN_IF_ERROR(why);
  }
  return jobs;
}

Goal CommonGoal(const std::vector<Compared>& jobs) {
  Goal goal;
  goal.accuracy = std::all_of(jobs.begin(), jobs.end(), [](const Compared& job) {
    return std::any_of(job.metrics.begin(), job.metrics.end(), [](const v1::Metric& m) { return std::isfinite(m.accuracy()); });
  });
  goal.value = goal.accuracy ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
  for (const Compared& job : jobs) {
    double best = goal.accuracy ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
    for (const v1::Metric& m : job.metrics) {
      if (goal.accuracy && std::isfinite(m.accuracy())) best = std::max(best, m.accuracy());
      if (!goal.accuracy && std::isfinite(m.loss())) best = std::min(best, m.loss());
    }
    goal.value = goal.accuracy ? std::min(goal.value, best) : std::max(goal.value, best);
  }
  return goal;
}

const v1::Metric* FirstAt(const Compared& job, const Goal& goal) {
  for (const v1::Metric& metric : job.metrics) {
    if (goal.Reached(metric)) return &metric;
  }
  return nullptr;
}

uint64_t Bytes(const v1::Metric& metric) { return metric.bytes_up() + metric.bytes_down(); }

nlohmann::json CompareJson(const std::vector<Compared>& jobs, const Goal& goal) {
  nlohmann::json list = nlohmann::json::array();
  for (const Compared& job : jobs) {
    nlohmann::json metrics = nlohmann::json::array();
    for (const v1::Metric& m : job.metrics) {
      metrics.push_back({{"version", m.version()}, {"virtual_or_wall_s", NumberOrNull(m.wall_s())}, {"bytes_up", m.bytes_up()},
                         {"bytes_down", m.bytes_down()}, {"loss", NumberOrNull(m.loss())}, {"accuracy", NumberOrNull(m.accuracy())}});
    }
    nlohmann::json entry = {{"id", job.id}, {"version", job.version}, {"updates_committed", job.updates}, {"metrics", metrics}, {"goal", nullptr}};
    if (const v1::Metric* at = FirstAt(job, goal)) {
      entry["goal"] = {{"version", at->version()}, {"virtual_or_wall_s", NumberOrNull(at->wall_s())}, {"bytes", Bytes(*at)}};
    }
    list.push_back(std::move(entry));
  }
  return {{"goal", {{"quantity", goal.accuracy ? "accuracy" : "loss"}, {"value", NumberOrNull(goal.value)}}}, {"jobs", list}};
}

void PrintTable(const std::vector<Compared>& jobs, const Goal& goal) {
  const std::string what = fmt::format("{} {} {:.4g}", goal.accuracy ? "accuracy" : "loss", goal.accuracy ? ">=" : "<=", goal.value);
  fmt::print("{:<32} {:>8} {:>9} {:>11} {:>10} {:>10} {:>10}   first {}\n{:<32} {:>8} {:>9} {:>11} {:>10} {:>10} {:>10}   {:>8} {:>10} {:>10}\n", "JOB",
             "VERSIONS", "UPDATES", "LOSS", "ACCURACY", "SECONDS", "BYTES", what, "", "", "", "last", "last", "last", "last", "version", "seconds", "bytes");
  for (const Compared& job : jobs) {
    const v1::Metric& last = job.metrics.back();
    const v1::Metric* at = FirstAt(job, goal);
    fmt::print("{:<32} {:>8} {:>9} {:>11.6g} {:>10} {:>10.6g} {:>10}   {:>8} {:>10} {:>10}\n", job.id, job.version, job.updates, last.loss(),
               std::isfinite(last.accuracy()) ? fmt::format("{:.4f}", last.accuracy()) : "-", last.wall_s(), HumanBytes(Bytes(last)),
               at == nullptr ? "-" : fmt::format("{}", at->version()), at == nullptr ? "-" : fmt::format("{:.6g}", at->wall_s()),
               at == nullptr ? "-" : HumanBytes(Bytes(*at)));
  }
}

absl::StatusOr<int> Compare(const Context& context, const CompareFlags& flags) {
  TRIB_ASSIGN_OR_RETURN(const std::vector<Compared> jobs, LoadAll(context, flags));
  const Goal goal = CommonGoal(jobs);
  if (!flags.plot.empty()) {
    std::vector<CurveSet> curves;
    for (const Compared& job : jobs) {
      CurveSet& set = curves.emplace_back(CurveSet{.name = job.id, .points = {}});
      for (const v1::Metric& m : job.metrics) {
        set.points.push_back({.version = static_cast<double>(m.version()), .seconds = m.wall_s(), .bytes = static_cast<double>(Bytes(m)),
                              .loss = m.loss(), .accuracy = m.accuracy()});
      }
    }
    const std::string svg = DrawCurves(curves, {Axis::kVersions, Axis::kSeconds, Axis::kBytes});
    TRIB_RETURN_IF_ERROR(WriteFileAtomically(flags.plot, std::string_view(svg), /*durable=*/false));
  }
  if (context.json) {
    PrintJson(CompareJson(jobs, goal));
  } else {
    PrintTable(jobs, goal);
    if (!flags.plot.empty()) fmt::print("curves in {}\n", flags.plot);
  }
  return kDone;
}

}  // namespace

void AddCompareCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* compare = app.add_subcommand("compare", "Jobs side by side: loss and accuracy over versions, seconds and bytes");
  compare->add_option("JOB", flags->jobs, "Ids, unambiguous beginnings, or names")->required()->expected(1, 64);
  compare->add_option("--store", flags->stores, "Read these folders instead of asking the aggregator; may be repeated")->expected(1)->take_all();
  compare->add_option("--plot", flags->plot, "Draw the curves (SVG)");
  compare->footer("Example:\n  tributary compare fedavg fedfix --store runs --plot curves.svg");
  compare->callback([&context, flags] {
    context.action = [&context, flags] {
      const absl::StatusOr<int> code = Compare(context, *flags);
      return code.ok() ? *code : ReportError(context, code.status());
    };
  });
}

}  // namespace tributary::cli
