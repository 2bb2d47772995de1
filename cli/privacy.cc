// privacy epsilon, privacy calibrate: the accountant by hand. No server.
#include <fmt/format.h>

#include <memory>

#include "aggregator/core/privacy/accountant.h"
#include "cli/command.h"

namespace tributary::cli {
namespace {

using aggregator::Accounting;
using aggregator::PrivacyAccountant;
using aggregator::PrivacyEvent;
using aggregator::PrivacySpend;
using aggregator::SamplingEvent;

struct Arguments {
  double sample_rate = 1;
  double noise_multiplier = 0;
  double epsilon = 0;
  double delta = 0;
  int64_t versions = 0;
  bool fixed_size = false;
  bool tree = false;
  std::string accountant;  // calibrate: rdp | pld; empty: pld where there is one
};

PrivacyEvent EventOf(const Arguments& arguments) {
  const SamplingEvent sampling = arguments.tree         ? SamplingEvent::kTree
                                 : arguments.fixed_size ? SamplingEvent::kFixedSize
                                                        : SamplingEvent::kPoisson;
  return {.sampling = sampling, .sample_rate = arguments.sample_rate, .noise_multiplier = arguments.noise_multiplier};
}

nlohmann::json SpendJson(const PrivacyEvent& event, const PrivacySpend& spend) {
  return {{"rdp", spend.rdp},
          {"rdp_order", spend.rdp_order},
          {"pld", spend.pld ? nlohmann::json(*spend.pld) : nlohmann::json()},
          {"sampling", aggregator::SamplingEventName(event.sampling)},
          {"adjacency", event.sampling == SamplingEvent::kFixedSize ? "replace" : "add_remove"}};
}

void PrintSpend(const PrivacyEvent& event, const PrivacySpend& spend) {
  fmt::print("{:<12} {:.6g}   (order {:.4g})\n", "ε by RDP", spend.rdp, spend.rdp_order);
  if (spend.pld) fmt::print("{:<12} {:.6g}\n", "ε by PLD", *spend.pld);
  switch (event.sampling) {
    case SamplingEvent::kPoisson:
      fmt::print("Poisson sampling; neighbours differ by one client more or less\n");
      break;
    case SamplingEvent::kFixedSize:
      fmt::print("fixed-size cohorts without replacement; neighbours replace one client; noise relative to twice the clip\n");
      break;
    case SamplingEvent::kTree:
      fmt::print("tree aggregation; every client is used once in these versions\n");
      break;
  }
}

int PrintEpsilon(const Context& context, const Arguments& arguments) {
  const PrivacyEvent event = EventOf(arguments);
  const auto accountant = PrivacyAccountant::Create(event, arguments.delta, arguments.versions);
  if (!accountant.ok()) return ReportError(context, accountant.status());
  const PrivacySpend spend = (*accountant)->Spend(arguments.versions);
  if (context.json) {
    PrintJson(SpendJson(event, spend));
  } else {
    PrintSpend(event, spend);
  }
  return kDone;
}

int PrintCalibration(const Context& context, const Arguments& arguments) {
  PrivacyEvent event = EventOf(arguments);
  const bool by_rdp = arguments.accountant.empty() ? event.sampling != SamplingEvent::kPoisson : arguments.accountant == "rdp";
  const auto noise = aggregator::CalibrateNoise(event, arguments.delta, arguments.versions, arguments.epsilon, by_rdp ? Accounting::kRdp : Accounting::kPld);
  if (!noise.ok()) return ReportError(context, noise.status());
  event.noise_multiplier = *noise;
  const auto accountant = PrivacyAccountant::Create(event, arguments.delta, arguments.versions);
  if (!accountant.ok()) return ReportError(context, accountant.status());
  const PrivacySpend spend = (*accountant)->Spend(arguments.versions);
  if (context.json) {
    nlohmann::json document = SpendJson(event, spend);
    document["noise_multiplier"] = *noise;
    document["accountant"] = by_rdp ? "rdp" : "pld";
    PrintJson(document);
  } else {
    fmt::print("noise multiplier {:.7g}, calibrated by {}\n", *noise, by_rdp ? "RDP" : "PLD");
    PrintSpend(event, spend);
  }
  return kDone;
}

void AddEventOptions(CLI::App& command, Arguments& arguments) {
  CLI::Option* rate = command.add_option("--sample-rate", arguments.sample_rate, "Expected cohort over registered clients, in (0, 1]; 1 without it");
  command.add_option("--versions", arguments.versions, "Versions that the noise is added to")->required();
  command.add_option("--delta", arguments.delta, "δ, in (0, 1)")->required();
  CLI::Option* fixed = command.add_flag("--fixed-size", arguments.fixed_size, "Cohorts of a fixed size, drawn without replacement (not Poisson)");
  command.add_flag("--tree", arguments.tree, "Tree aggregation: every client takes part once")->excludes(fixed)->excludes(rate);
}

}  // namespace

void AddPrivacyCommands(CLI::App& app, Context& context) {
  CLI::App* privacy = app.add_subcommand("privacy", "The privacy accountant by hand");
  privacy->require_subcommand(1);
  privacy->footer("Example:\n  tributary privacy epsilon --sample-rate 0.01 --noise-multiplier 1 --versions 1000 --delta 1e-5");
  const auto arguments = std::make_shared<Arguments>();
  CLI::App* epsilon = privacy->add_subcommand("epsilon", "What noise costs: ε at a given δ after some versions");
  AddEventOptions(*epsilon, *arguments);
  epsilon->add_option("--noise-multiplier", arguments->noise_multiplier, "Noise's standard deviation over the sensitivity")->required();
  epsilon->footer("Example:\n  tributary privacy epsilon --sample-rate 0.01 --noise-multiplier 1 --versions 1000 --delta 1e-5");
  epsilon->callback([&context, arguments] { context.action = [&context, arguments] { return PrintEpsilon(context, *arguments); }; });
  CLI::App* calibrate = privacy->add_subcommand("calibrate", "The least noise that keeps to ε at a given δ after some versions");
  AddEventOptions(*calibrate, *arguments);
  calibrate->add_option("--epsilon", arguments->epsilon, "The ε to keep to")->required();
  calibrate->add_option("--accountant", arguments->accountant, "rdp or pld (pld unless the event has none)")->check(CLI::IsMember({"rdp", "pld"}));
  calibrate->footer("Example:\n  tributary privacy calibrate --epsilon 2 --sample-rate 0.01 --versions 1000 --delta 1e-5");
  calibrate->callback([&context, arguments] { context.action = [&context, arguments] { return PrintCalibration(context, *arguments); }; });
}

}  // namespace tributary::cli
