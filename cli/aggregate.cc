// tributary aggregate: one aggregation of files on disk, with the daemon's own reducer, server step and strategy table.
#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <vector>

#include "aggregator/core/adapters.h"
#include "aggregator/core/aggregate.h"
#include "aggregator/core/kernels.h"
#include "aggregator/core/lora_product.h"
#include "aggregator/core/strategy.h"
#include "cli/adapter_files.h"
#include "cli/command.h"
#include "common/digest.h"
#include "common/safetensors.h"

namespace tributary::cli {
namespace {

struct AggregateFlags {
  std::string strategy = "fedavg";
  std::vector<std::string> params;
  std::string model;
  std::vector<std::string> updates;
  double lr = LocalSpec().lr;
  int64_t steps = 0;
  bool reproducible = false;
  std::string out;
};

struct UpdateFile {
  std::string path;
  double weight = 0;
  std::string client;             // "": its place in the list
  uint64_t staleness = 0;
  std::string base;               // the model it starts from, where the strategy needs it
  aggregator::Scalars scalars;
};

int UsageError(const Context& context, const absl::Status& status) {
  ReportError(context, status, "tributary aggregate --help");
  return kUsage;
}

// "PATH:WEIGHT" or "PATH:WEIGHT,NAME=VALUE,…"; the path may hold colons. The weight's range is checked by the caller.
absl::StatusOr<UpdateFile> ParseUpdate(const std::string& text) {
  const size_t colon = text.rfind(':');
  UpdateFile file;
  const std::vector<std::string> parts = absl::StrSplit(colon == std::string::npos ? "" : text.substr(colon + 1), ',');
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtod(parts.front(), &file.weight)) {
    return InvalidArgument("--update '{}': expected FILE:WEIGHT, the weight being a number", text);
  }
  file.path = text.substr(0, colon);
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    const std::string name = parts[i].substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : parts[i].substr(equals + 1);
    double number = 0;
    if (name == "client" && !value.empty()) {
      file.client = value;
    } else if (name == "base" && !value.empty()) {
      file.base = value;
    } else if (name == "staleness" && absl::SimpleAtoi(value, &file.staleness)) {
      continue;
    } else if (!name.empty() && absl::SimpleAtod(value, &number)) {
      if (!file.scalars.emplace(name, number).second) return InvalidArgument("--update '{}': '{}' was given before", text, name);
    } else {
      return InvalidArgument("--update '{}': expected client=NAME, staleness=N, base=FILE or NAME=NUMBER, got '{}'", text, parts[i]);
    }
  }
  return file;
}

absl::StatusOr<StrategySpec> ParseStrategy(const AggregateFlags& flags) {
  StrategySpec spec;
  spec.name = flags.strategy;
  for (const std::string& param : flags.params) {
    const size_t equals = param.find('=');
    if (equals == std::string::npos || equals == 0) return InvalidArgument("--param '{}': expected KEY=VALUE", param);
    if (!spec.params.emplace(param.substr(0, equals), param.substr(equals + 1)).second) {
      return InvalidArgument("--param '{}': the key was given before", param);
    }
  }
  return spec;
}

// The part of a flat model that one tensor is.
std::span<const std::byte> Part(std::span<const std::byte> flat, const PlacedTensor& tensor) {
  return flat.subspan(tensor.offset_bytes, tensor.bytes);
}

// INVALID_ARGUMENT naming the first tensor with a value that is not finite.
absl::Status CheckFinite(const std::string& path, const TensorLayout& layout, std::span<const std::byte> flat) {
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (tensor.spec.kind == TensorKind::kCounter) continue;
    if (!aggregator::Scan(Part(flat, tensor), tensor.spec.dtype).finite) {
      return InvalidArgument("{}: tensor '{}': expected finite values, got a NaN or an infinity", path, tensor.spec.name);
    }
  }
  return absl::OkStatus();
}

// The float tensor with the largest magnitude: the one to name when a sum leaves its range.
std::string LargestTensor(const TensorLayout& layout, std::span<const std::byte> flat) {
  std::string name;
  double largest = -1;
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (tensor.spec.kind == TensorKind::kCounter) continue;
    const double max_abs = aggregator::Scan(Part(flat, tensor), tensor.spec.dtype).max_abs;
    if (max_abs > largest) {
      largest = max_abs;
      name = tensor.spec.name;
    }
  }
  return name;
}

struct Outcome {
  size_t updates = 0;
  double sum_weight = 0;
  std::string model_sha256;
  std::vector<aggregator::AdapterError> adapter_errors;  // of a model of adapters
};

aggregator::RoundContributor ContributorOf(const UpdateFile& update, size_t place) {
  aggregator::RoundContributor contributor;
  // The place in the list is the update's identity: the same file twice is two updates.
  contributor.key = {.client = update.client.empty() ? fmt::format("{:08}", place) : update.client,
                     .task = place,
                     .update = UpdateId{.hi = 0, .lo = place}};
  contributor.claimed = update.weight;
  contributor.staleness = update.staleness;
  contributor.scalars = update.scalars;
  return contributor;
}

// What the engine does with a job's updates, for one commit whose clients are all that there are.
absl::StatusOr<Outcome> Aggregate(const AggregateFlags& flags, const StrategySpec& spec, const std::vector<UpdateFile>& updates) {
  JobSpec job;
  job.strategy = spec;
  job.local.lr = flags.lr;
  job.local.steps = flags.steps;
  job.cohort.size = static_cast<int64_t>(updates.size());
  auto made = aggregator::StrategyOf(job);
  // A name given on the command line is an input like any other: refused, not "not found".
  if (absl::IsNotFound(made.status())) return InvalidArgument("--strategy: {}", MessageOf(made.status()));
  if (!made.ok()) return made.status();
  const aggregator::Strategy& strategy = **made;
  if (strategy.weighs_experts()) {
    return InvalidArgument("--param expert_weights: tokens weights experts by counts that come with an update, and files have none; expected mean");
  }
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile model_file, SafetensorsFile::Read(flags.model));
  auto model = ToModel(model_file.view());
  const AdapterMode adapters = strategy.adapters();
  if (model.ok() && adapters != AdapterMode::kNone) model = AsAdapterModel(adapters, *model);
  if (!model.ok()) return Annotate(model.status(), flags.model);
  const TensorLayout& layout = model->layout;
  TRIB_RETURN_IF_ERROR(CheckFinite(flags.model, layout, model->bytes));
  TRIB_ASSIGN_OR_RETURN(const TensorLayout update_layout, strategy.UpdateLayout(layout));

  std::vector<aggregator::RoundContributor> contributors;
  aggregator::ClientTable clients;
  for (size_t i = 0; i < updates.size(); ++i) {
    contributors.push_back(ContributorOf(updates[i], i + 1));
    aggregator::RoundContributor& contributor = contributors.back();
    if (adapters == AdapterMode::kRoLora) contributor.scalars.try_emplace(kAdapterPhase, MovesB(1) ? 1 : 0);
    TRIB_RETURN_IF_ERROR(Annotate(aggregator::CheckScalars(strategy, contributor.scalars), updates[i].path));
    TRIB_RETURN_IF_ERROR(Annotate(aggregator::CheckPhase(strategy, contributor.scalars, 0), updates[i].path));
    if (!clients.Register(contributor.key.client)) {
      return InvalidArgument("{}: client '{}' has an update already", updates[i].path, contributor.key.client);
    }
  }
  const aggregator::RoundPolicies policies = strategy.MakePolicies(job.cohort);
  const auto arithmetic = flags.reproducible ? aggregator::Arithmetic::kFixedPoint : aggregator::Arithmetic::kFloat64;
  aggregator::Aggregate sum(strategy, layout, arithmetic, static_cast<int64_t>(updates.size()));
  std::vector<double> weights;
  std::vector<std::byte> base;
  std::vector<std::vector<std::byte>> kept;  // of adapters, for their errors
  for (size_t i = 0; i < updates.size(); ++i) {
    const UpdateFile& update = updates[i];
    aggregator::RoundContributor& contributor = contributors[i];
    TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(update.path));
    const auto flat = adapters == AdapterMode::kNone ? ToFlat(file.view(), update_layout) : ReadAdapterUpdate(adapters, layout, file.view());
    if (!flat.ok()) return Annotate(flat.status(), update.path);
    TRIB_RETURN_IF_ERROR(CheckFinite(update.path, update_layout, *flat));
    aggregator::AddMeasured(strategy, layout, *flat, &contributor.scalars);
    const auto weight = strategy.weights().Weight(
        {.client = contributor.key.client, .claimed = contributor.claimed, .scalars = contributor.scalars, .round = 1, .clients = &clients});
    if (!weight.ok()) return Annotate(weight.status(), update.path);
    const std::optional<double> factor = policies.staleness->Factor(contributor.staleness);
    if (!factor) return InvalidArgument("{}: the strategy refuses a staleness of {}", update.path, contributor.staleness);
    contributor.weight = *weight * *factor;
    weights.push_back(contributor.weight);
    if (adapters != AdapterMode::kNone) kept.push_back(*flat);
    const absl::Status folded = sum.Fold(contributor, *flat);
    if (!folded.ok()) {
      return Annotate(folded, fmt::format("{}: tensor '{}'", update.path, LargestTensor(update_layout, *flat)));
    }
    if (strategy.server_step().needs_base()) {
      if (updates.size() > 1) return InvalidArgument("strategy '{}' commits single updates, got {}", spec.name, updates.size());
      if (update.base.empty()) {
        base = model->bytes;
        continue;
      }
      TRIB_ASSIGN_OR_RETURN(const SafetensorsFile base_file, SafetensorsFile::Read(update.base));
      auto base_flat = ToFlat(base_file.view(), layout);
      if (!base_flat.ok()) return Annotate(base_flat.status(), update.base);
      base = *std::move(base_flat);
    }
  }
  aggregator::AdapterRound round{.mode = adapters, .model = &layout, .pairs = {}, .previous = model->bytes, .updates = {}};
  for (size_t i = 0; i < kept.size(); ++i) round.updates.push_back({.share = contributors[i].weight, .flat = kept[i]});
  std::sort(contributors.begin(), contributors.end(),
            [](const aggregator::RoundContributor& a, const aggregator::RoundContributor& b) { return a.key < b.key; });

  std::vector<std::byte> next(layout.total_bytes());
  aggregator::MemoryState state;
  const double sum_weight = aggregator::OrderFreeSum(std::move(weights));
  const absl::Status applied = sum.Step(
      {.facts = {.version = 1, .sum_weight = sum_weight, .registered = clients.size(), .contributors = contributors}, .previous = model->bytes, .base = base},
      &state, next);
  // Finite inputs whose result is not: still the inputs' fault here, nothing stored is damaged.
  if (absl::IsDataLoss(applied)) return InvalidArgument("the new model: {}", MessageOf(applied));
  TRIB_RETURN_IF_ERROR(applied);
  TRIB_RETURN_IF_ERROR(WriteSafetensors(flags.out, layout, next));
  Outcome outcome{.updates = updates.size(), .sum_weight = sum_weight, .model_sha256 = Sha256Hex(next), .adapter_errors = {}};
  if (adapters != AdapterMode::kNone) {
    TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(adapters, layout));
    round.pairs = pairs;
    for (aggregator::AdapterRound::Update& update : round.updates) update.share /= sum_weight;
    outcome.adapter_errors = aggregator::AdapterErrors(round, next);
  }
  return outcome;
}

int RunAggregate(const Context& context, const AggregateFlags& flags) {
  const auto spec = ParseStrategy(flags);
  if (!spec.ok()) return UsageError(context, spec.status());
  std::vector<UpdateFile> updates;
  for (const std::string& text : flags.updates) {
    const auto update = ParseUpdate(text);
    if (!update.ok()) return UsageError(context, update.status());
    if (!std::isfinite(update->weight) || update->weight <= 0) {
      return ReportError(context, InvalidArgument("{}: its weight must be finite and > 0, got {}", update->path, update->weight));
    }
    updates.push_back(*update);
  }
  const auto outcome = Aggregate(flags, *spec, updates);
  if (!outcome.ok()) return ReportError(context, outcome.status());
  const std::vector<aggregator::AdapterError>& errors = outcome->adapter_errors;
  const auto relative = [](const aggregator::AdapterError& one) { return aggregator::RelativeError(std::span(&one, 1)); };
  if (context.json) {
    nlohmann::json document = {{"strategy", flags.strategy},
                               {"updates", outcome->updates},
                               {"sum_weight", outcome->sum_weight},
                               {"reproducible", flags.reproducible},
                               {"model_sha256", outcome->model_sha256},
                               {"out", flags.out}};
    if (!errors.empty()) {
      document[aggregator::kAdapterError] = aggregator::RelativeError(errors);
      for (const aggregator::AdapterError& one : errors) {
        document["adapter_errors"].push_back({{"layer", one.layer}, {"error", one.error}, {"norm", one.norm}, {"relative", relative(one)}});
      }
    }
    PrintJson(document);
    return kDone;
  }
  fmt::print("{}: {} updates of weight {} in all\nmodel_sha256 {}\nout          {}\n", flags.strategy, outcome->updates, outcome->sum_weight,
             outcome->model_sha256, flags.out);
  if (errors.empty()) return kDone;
  fmt::print("\n{:<48} {:>12} {:>12} {:>12}\n", "ADAPTER", "OF THE SUM", "ERROR", "RELATIVE");
  for (const aggregator::AdapterError& one : errors) fmt::print("{:<48} {:>12.6g} {:>12.3g} {:>12.3g}\n", one.layer, one.norm, one.error, relative(one));
  fmt::print("{:<48} {:>12} {:>12} {:>12.3g}\n", "all", "", "", aggregator::RelativeError(errors));
  return kDone;
}

}  // namespace

void AddAggregateCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<AggregateFlags>();
  CLI::App* command = app.add_subcommand("aggregate", "One aggregation of files on disk: model + updates -> new model");
  command->add_option("--strategy", flags->strategy, "A name of 'tributary strategies'")->required();
  command->add_option("--param", flags->params, "KEY=VALUE of the strategy, repeatable")->allow_extra_args(false);
  command->add_option("--model", flags->model, "The model before, safetensors (F32 or F64, counters I64)")->required();
  command->add_option("--update", flags->updates,
                      "FILE.safetensors:WEIGHT[,NAME=VALUE...], repeatable; tensors are new - old, by the model's names. NAME: client (breaks "
                      "ties, names p), staleness, base (fedasync: the model it starts from), step_norm (fednova), initial_loss (qfedavg). With control "
                      "variates the change of c_i is in tensors control/NAME. eggroll: the tensor is fitness [population / updates], of noise that follows from client")
      ->required()
      ->allow_extra_args(false);
  command->add_option("--local-lr", flags->lr, "The clients' learning rate, for defaults that follow from it (qfedavg's lipschitz)")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--local-steps", flags->steps, "The clients' number of local steps (the momentum family and SCAFFOLD's uplink)")->check(CLI::PositiveNumber);
  command->add_flag("--reproducible", flags->reproducible, "Fixed-point sums: the same bytes in any order of --update");
  command->add_option("--out", flags->out, "Where the new model goes (replaced as a whole, or not at all)")->required();
  command->footer(
      "Example:\n  tributary aggregate --strategy fedavg --model m.safetensors --update a.safetensors:600 --update b.safetensors:200 "
      "--out next.safetensors\n  tributary aggregate --strategy krum --param byzantine=1 --model m.safetensors --update a.safetensors:1 ... "
      "--out next.safetensors\n  tributary aggregate --strategy fednova --model m.safetensors --update a.safetensors:600,step_norm=5 "
      "--update b.safetensors:200,step_norm=20 --out next.safetensors\n  tributary aggregate --strategy fedavg --param adapters=fedex --model "
      "adapter_model.safetensors --update a.safetensors:1 --update b.safetensors:1 --out next.safetensors   (PEFT's names; prints each adapter's error)");
  command->callback([&context, flags] { context.action = [&context, flags] { return RunAggregate(context, *flags); }; });
}

}  // namespace tributary::cli
