#include "cli/job_json.h"

#include <absl/time/time.h>
#include <fmt/format.h>

#include <cmath>

#include "cli/command.h"

namespace tributary::cli {
namespace {

// "moe.max_vio" as {"moe": {"max_vio": …}}.
void PutMeasured(const std::string& name, double value, nlohmann::json* to) {
  size_t begin = 0;
  for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', begin)) {
    to = &(*to)[name.substr(begin, dot - begin)];
    begin = dot + 1;
  }
  (*to)[name.substr(begin)] = NumberOrNull(value);
}

}  // namespace

nlohmann::json NumberOrNull(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr); }

std::string JobStateName(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_QUEUED:
      return "queued";
    case v1::JOB_STATE_RUNNING:
      return "running";
    case v1::JOB_STATE_DONE:
      return "done";
    case v1::JOB_STATE_FAILED:
      return "failed";
    case v1::JOB_STATE_CANCELLED:
      return "cancelled";
    default:
      return "unknown";
  }
}

bool JobEnded(v1::JobState state) {
  return state == v1::JOB_STATE_DONE || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED;
}

nlohmann::json PrivacyJson(const v1::PrivacySpend& spend) {
  return {{"epsilon", NumberOrNull(spend.epsilon())},
          {"delta", spend.delta()},
          {"epsilon_rdp", NumberOrNull(spend.epsilon_rdp())},
          {"epsilon_pld", NumberOrNull(spend.epsilon_pld())},
          {"epsilon_budget", spend.epsilon_budget() > 0 ? nlohmann::json(spend.epsilon_budget()) : nlohmann::json(nullptr)},
          {"noise_multiplier", spend.noise_multiplier()},
          {"clip", spend.clip()},
          {"sampling", spend.sampling()},
          {"sample_rate", spend.sample_rate()},
          {"adjacency", spend.adjacency()},
          {"placement", spend.placement()},
          {"insecure_seed", spend.insecure_seed()}};
}

nlohmann::json JobJson(const v1::Job& job) {
  nlohmann::json metrics = nlohmann::json::array();
  for (const v1::Metric& m : job.metrics()) {
    metrics.push_back({{"version", m.version()},
                       {"virtual_or_wall_s", NumberOrNull(m.wall_s())},
                       {"loss", NumberOrNull(m.loss())},
                       {"accuracy", NumberOrNull(m.accuracy())},
                       {"examples", m.examples()},
                       {"evaluator", m.evaluator()},
                       {"bytes_up", m.bytes_up()},
                       {"bytes_down", m.bytes_down()}});
    for (const auto& [name, value] : m.measured()) PutMeasured(name, value, &metrics.back());
  }
  nlohmann::json rounds = nlohmann::json::array();
  for (const v1::RoundTiming& r : job.rounds()) {
    rounds.push_back({{"version", r.version()}, {"aggregate_s", r.aggregate_s()}, {"commit_s", r.commit_s()}, {"updates", r.updates()}});
    for (const auto& [name, value] : r.measured()) PutMeasured(name, value, &rounds.back());
  }
  nlohmann::json rejected = nlohmann::json::object();
  for (const auto& [reason, count] : job.updates_rejected()) rejected[reason] = count;
  return {{"id", job.id()},
          {"name", job.name()},
          {"state", JobStateName(job.state())},
          {"state_reason", job.state_reason()},
          {"strategy", job.strategy()},
          {"version", job.version()},
          {"target_versions", job.target_versions()},
          {"updates_committed", job.updates_committed()},
          {"updates_rejected", rejected},
          {"metrics", metrics},
          {"privacy", job.has_privacy() ? PrivacyJson(job.privacy()) : nlohmann::json(nullptr)},
          {"bytes_up", job.bytes_up()},
          {"bytes_down", job.bytes_down()},
          {"model_sha256", job.model_sha256()},
          {"waiting_for", job.waiting_for()},
          {"clients_in", job.clients_in()},
          {"clients_expected", job.clients_expected()},
          {"updates_per_s", NumberOrNull(job.updates_per_s())},
          {"submitted_us", job.submitted_us()},
          {"started_us", job.started_us()},
          {"finished_us", job.finished_us()},
          {"elapsed_s", NumberOrNull(job.elapsed_s())},
          {"rounds", rounds},
          {"spec", job.spec_yaml()}};
}

const v1::Metric* LatestMetric(const v1::Job& job) {
  const v1::Metric* latest = nullptr;
  for (const v1::Metric& m : job.metrics()) {
    if (latest == nullptr || m.version() >= latest->version()) latest = &m;
  }
  return latest;
}

std::string ProgressLine(const v1::Job& job) {
  std::string line = fmt::format("version {}/{}", job.version(), job.target_versions());
  if (!JobEnded(job.state())) line += fmt::format(" · clients {}/{}", job.clients_in(), job.clients_expected());
  if (const v1::Metric* metric = LatestMetric(job)) {
    line += std::isfinite(metric->accuracy()) ? fmt::format(" · accuracy {:.3f}", metric->accuracy())
                                              : fmt::format(" · loss {:.4g}", metric->loss());
  }
  if (std::isfinite(job.updates_per_s()) && job.updates_per_s() > 0) line += fmt::format(" · {:.1f} updates/s", job.updates_per_s());
  if (JobEnded(job.state())) {
    line += " · " + JobStateName(job.state());
    if (!job.state_reason().empty()) line += ": " + Printable(job.state_reason());
  } else if (!job.waiting_for().empty()) {
    line += " · " + Printable(job.waiting_for());
  }
  return line;
}

std::string HumanBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanTime(int64_t micros) {
  if (micros == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixMicros(micros), absl::LocalTimeZone());
}

std::string JobText(const v1::Job& job) {
  std::string text = fmt::format("job        {}\nstate      {}{}\nstrategy   {}\nversion    {} of {}\n", job.id(), JobStateName(job.state()),
                                 job.state_reason().empty() ? "" : " (" + Printable(job.state_reason()) + ")", job.strategy(), job.version(),
                                 job.target_versions());
  if (!job.waiting_for().empty()) text += fmt::format("waiting    {}\n", Printable(job.waiting_for()));
  text += fmt::format("updates    {} committed", job.updates_committed());
  for (const auto& [reason, count] : job.updates_rejected()) text += fmt::format(", {} refused ({})", count, Printable(reason));
  text += "\n";
  if (const v1::Metric* metric = LatestMetric(job)) {
    text += fmt::format("evaluated  version {}: loss {:.4f}", metric->version(), metric->loss());
    if (std::isfinite(metric->accuracy())) text += fmt::format(", accuracy {:.4f}", metric->accuracy());
    text += fmt::format(" on {} examples\n", metric->examples());
  }
  if (job.has_privacy()) {
    text += fmt::format("privacy    epsilon {:.4g}{} at delta {:.3g} ({}, q {:.4g}, {}){}\n", job.privacy().epsilon(),
                        job.privacy().epsilon_budget() > 0 ? fmt::format(" of {:.4g}", job.privacy().epsilon_budget()) : "", job.privacy().delta(),
                        job.privacy().sampling(), job.privacy().sample_rate(), job.privacy().adjacency(),
                        job.privacy().insecure_seed() ? "; the noise follows from the job's seed: no protection" : "");
  }
  text += fmt::format("traffic    {} up, {} down\nmodel      sha256 {}\nsubmitted  {}\n", HumanBytes(job.bytes_up()),
                      HumanBytes(job.bytes_down()), job.model_sha256(), HumanTime(job.submitted_us()));
  if (job.finished_us() != 0) text += fmt::format("finished   {}\n", HumanTime(job.finished_us()));
  return text;
}

}  // namespace tributary::cli
