// tributary aggregate: one aggregation of files on disk, with the daemon's own reducer, server step and strategy table.
#include <absl/strings/numbers.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <vector>

#include "aggregator/core/kernels.h"
#include "aggregator/core/partial.h"
#include "aggregator/core/strategy.h"
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
  bool reproducible = false;
  std::string out;
};

struct UpdateFile {
  std::string path;
  double weight = 0;
};

int UsageError(const Context& context, const absl::Status& status) {
  ReportError(context, status, "tributary aggregate --help");
  return kUsage;
}

// "PATH:WEIGHT"; the path may hold colons. The weight's range is checked by the caller.
absl::StatusOr<UpdateFile> ParseUpdate(const std::string& text) {
  const size_t colon = text.rfind(':');
  UpdateFile file;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtod(text.substr(colon + 1), &file.weight)) {
    return InvalidArgument("--update '{}': expected FILE:WEIGHT, the weight being a number", text);
  }
  file.path = text.substr(0, colon);
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
};

absl::StatusOr<Outcome> Aggregate(const AggregateFlags& flags, const StrategySpec& spec, const std::vector<UpdateFile>& updates) {
  auto strategy = aggregator::MakeStrategy(spec);
  // A name given on the command line is an input like any other: refused, not "not found".
  if (absl::IsNotFound(strategy.status())) return InvalidArgument("--strategy: {}", MessageOf(strategy.status()));
  if (!strategy.ok()) return strategy.status();
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile model_file, SafetensorsFile::Read(flags.model));
  auto model = ToModel(model_file.view());
  if (!model.ok()) return Annotate(model.status(), flags.model);
  const TensorLayout& layout = model->layout;
  TRIB_RETURN_IF_ERROR(CheckFinite(flags.model, layout, model->bytes));

  const auto arithmetic = flags.reproducible ? aggregator::Arithmetic::kFixedPoint : aggregator::Arithmetic::kFloat64;
  aggregator::Partial partial(layout, (*strategy)->MakeReducer(layout.float_dtype(), arithmetic), arithmetic,
                              static_cast<int64_t>(updates.size()));
  for (size_t i = 0; i < updates.size(); ++i) {
    const UpdateFile& update = updates[i];
    TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(update.path));
    const auto flat = ToFlat(file.view(), layout);
    if (!flat.ok()) return Annotate(flat.status(), update.path);
    TRIB_RETURN_IF_ERROR(CheckFinite(update.path, layout, *flat));
    // The place in the list is the update's identity: the same file twice is two updates.
    const absl::Status folded = partial.Accumulate(UpdateId{.hi = 0, .lo = i + 1}, *flat, (*strategy)->Weight(update.weight));
    if (!folded.ok()) {
      return Annotate(folded, fmt::format("{}: tensor '{}'", update.path, LargestTensor(layout, *flat)));
    }
  }

  std::vector<std::byte> next(layout.total_bytes());
  aggregator::StrategyState state;
  const aggregator::StatePiece piece{.first = 0, .count = layout.float_count(), .state = partial.state().data()};
  const absl::Status applied = aggregator::ApplyServerStep((*strategy)->server_step(), layout, partial.reducer(), {&piece, 1},
                                                           partial.sum_weight(), partial.counters(), model->bytes, state, next);
  // Finite inputs whose result is not: still the inputs' fault here, nothing stored is damaged.
  if (absl::IsDataLoss(applied)) return InvalidArgument("the new model: {}", MessageOf(applied));
  TRIB_RETURN_IF_ERROR(applied);
  TRIB_RETURN_IF_ERROR(WriteSafetensors(flags.out, layout, next));
  return Outcome{.updates = updates.size(), .sum_weight = partial.sum_weight(), .model_sha256 = Sha256Hex(next)};
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
  if (context.json) {
    PrintJson({{"strategy", flags.strategy},
               {"updates", outcome->updates},
               {"sum_weight", outcome->sum_weight},
               {"reproducible", flags.reproducible},
               {"model_sha256", outcome->model_sha256},
               {"out", flags.out}});
    return kDone;
  }
  fmt::print("{}: {} updates of weight {} in all\nmodel_sha256 {}\nout          {}\n", flags.strategy, outcome->updates, outcome->sum_weight,
             outcome->model_sha256, flags.out);
  return kDone;
}

}  // namespace

void AddAggregateCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<AggregateFlags>();
  CLI::App* command = app.add_subcommand("aggregate", "One aggregation of files on disk: model + updates -> new model");
  command->add_option("--strategy", flags->strategy, "A name of 'tributary strategies'")->required();
  command->add_option("--param", flags->params, "KEY=VALUE of the strategy, repeatable")->allow_extra_args(false);
  command->add_option("--model", flags->model, "The model before, safetensors (F32 or F64, counters I64)")->required();
  command->add_option("--update", flags->updates, "FILE.safetensors:WEIGHT, repeatable; tensors are new - old, by the model's names")
      ->required()
      ->allow_extra_args(false);
  command->add_flag("--reproducible", flags->reproducible, "Fixed-point sums: the same bytes in any order of --update");
  command->add_option("--out", flags->out, "Where the new model goes (replaced as a whole, or not at all)")->required();
  command->footer(
      "Example:\n  tributary aggregate --strategy fedavg --model m.safetensors --update a.safetensors:600 --update b.safetensors:200 "
      "--out next.safetensors");
  command->callback([&context, flags] { context.action = [&context, flags] { return RunAggregate(context, *flags); }; });
}

}  // namespace tributary::cli
