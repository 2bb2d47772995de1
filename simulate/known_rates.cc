#include "simulate/known_rates.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <algorithm>

#include "simulate/availability.h"
#include "simulate/delays.h"

namespace tributary::simulate {
namespace {

std::string ByName(const std::vector<std::string>& clients, const std::vector<double>& values) {
  std::string text;
  for (size_t i = 0; i < clients.size(); ++i) text += fmt::format("{}{}={}", i == 0 ? "" : ", ", clients[i], values[i]);
  return text;
}

// "0.5, 0.25" becomes "client-0=0.5, client-1=0.25"; other texts stay for the strategy to judge.
void Rename(const std::vector<std::string>& clients, std::string* text) {
  const std::vector<std::string> parts = absl::StrSplit(*text, ',');
  if (parts.size() != clients.size() || parts.size() < 2) return;
  std::vector<double> values(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!absl::SimpleAtod(parts[i], &values[i])) return;
  }
  *text = ByName(clients, values);
}

absl::StatusOr<std::vector<double>> ParticipationShares(int64_t clients, const JobSpec& spec) {
  TRIB_ASSIGN_OR_RETURN(const auto availability, Availability::Make(spec.simulate.participation, clients, 0));
  std::vector<double> shares = availability->Shares();
  const std::string& kind = spec.simulate.participation.kind;
  const int64_t available = kind == "fixed" ? spec.simulate.participation.size : clients;
  if (spec.cohort.size < available) {
    if (kind != "all" && kind != "fixed") {
      return InvalidArgument("strategy known_p: p: with a cohort of {} among a varying number of clients the probabilities are not known; give p, or a cohort.size of {}",
                             spec.cohort.size, clients);
    }
    std::fill(shares.begin(), shares.end(), static_cast<double>(spec.cohort.size) / static_cast<double>(clients));
  }
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] <= 0) return InvalidArgument("strategy known_p: p: client {} never takes part: its probability must be given", i);
  }
  return shares;
}

absl::StatusOr<std::vector<double>> ContributionFrequencies(int64_t clients, const JobSpec& spec) {
  const StrategySpec& strategy = spec.strategy;
  TRIB_ASSIGN_OR_RETURN(const auto delays, Delays::Make(spec.simulate.delay, clients, 0));
  std::vector<double> values;
  const auto param = [&](const std::string& name, const std::string& fallback) {
    const auto at = strategy.params.find(name);
    return at == strategy.params.end() ? fallback : at->second;
  };
  const auto refuse = [&](std::string_view why) {
    return InvalidArgument("strategy {}: weight known: {}; give `frequency`, contributions of each client per commit", strategy.name, why);
  };
  if (strategy.name == "fedfix") {
    double interval_s = 0;
    if (!absl::SimpleAtod(param("interval_s", ""), &interval_s) || !(interval_s > 0)) return refuse("interval_s is not a time");
    for (uint32_t i = 0; i < clients; ++i) {
      const std::optional<double> intervals = delays->MeanIntervals(i, interval_s);
      if (!intervals) return refuse("a trace implies no frequencies");
      values.push_back(1 / *intervals);
    }
    return values;
  }
  double buffer = 1;
  if (strategy.name == "fedbuff") {
    if (param("restart", "immediate") == "commit") return refuse("with restart commit the frequencies follow from the whole schedule");
    if (!absl::SimpleAtod(param("buffer", "10"), &buffer)) return refuse("buffer is not a number");
  }
  double sum = 0;
  for (uint32_t i = 0; i < clients; ++i) {
    const std::optional<double> seconds = delays->MeanSeconds(i);
    if (!seconds || !(*seconds > 0)) return refuse("the delays imply no frequencies");
    values.push_back(1 / *seconds);
    sum += values.back();
  }
  for (double& value : values) value *= buffer / sum;
  return values;
}

}  // namespace

absl::Status FillKnownRates(const std::vector<std::string>& clients, JobSpec* spec) {
  StrategySpec& strategy = spec->strategy;
  const auto count = static_cast<int64_t>(clients.size());
  for (const char* name : {"p", "frequency"}) {
    if (const auto at = strategy.params.find(name); at != strategy.params.end()) Rename(clients, &at->second);
  }
  if (strategy.name == "known_p" && !strategy.params.contains("p")) {
    TRIB_ASSIGN_OR_RETURN(const std::vector<double> shares, ParticipationShares(count, *spec));
    strategy.params["p"] = ByName(clients, shares);
  }
  const auto weight = strategy.params.find("weight");
  if (weight != strategy.params.end() && weight->second == "known" && !strategy.params.contains("frequency")) {
    TRIB_ASSIGN_OR_RETURN(const std::vector<double> frequencies, ContributionFrequencies(count, *spec));
    strategy.params["frequency"] = ByName(clients, frequencies);
  }
  return absl::OkStatus();
}

}  // namespace tributary::simulate
