#include "cli/adapter_files.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "aggregator/core/linalg.h"
#include "aggregator/core/lora_product.h"
#include "aggregator/core/server_step.h"
#include "aggregator/core/whole_reducer.h"
#include "common/file.h"

namespace tributary::cli {
namespace {

std::span<const std::byte> BytesOf(const FlatModel& model, const PlacedTensor& tensor) {
  return std::span(model.bytes).subspan(tensor.offset_bytes, tensor.bytes);
}

nlohmann::ordered_json PeftConfig(const JobSpec& job) {
  const AdapterSpec& adapter = job.model.adapter;
  nlohmann::ordered_json config = {{"peft_type", "LORA"},
                                   {"task_type", nullptr},
                                   {"base_model_name_or_path", nullptr},
                                   {"inference_mode", true},
                                   {"lora_alpha", adapter.alpha},
                                   {"lora_dropout", adapter.dropout},
                                   {"target_modules", adapter.targets},
                                   {"bias", "none"},
                                   {"fan_in_fan_out", false},
                                   {"modules_to_save", nullptr},
                                   {"init_lora_weights", true}};
  if (!adapter.triplets()) {
    config["r"] = adapter.rank;
    config["use_rslora"] = adapter.rank_stabilised;
    return config;
  }
  const AdaLoraSpec& own = adapter.adalora;
  config["peft_type"] = "ADALORA";
  config["init_r"] = adapter.rank;
  config["target_r"] = own.target_rank;
  config["tinit"] = own.init_versions;
  config["tfinal"] = own.final_versions;
  config["deltaT"] = own.interval;
  config["beta1"] = own.beta1;
  config["beta2"] = own.beta2;
  config["orth_reg_weight"] = own.orthogonal;
  config["total_step"] = job.stop.versions;
  config["rank_pattern"] = nullptr;  // triplets that are out have E = 0 in the file; so α/r₀ stays
  return config;
}

}  // namespace

absl::StatusOr<FlatModel> AsAdapterModel(AdapterMode mode, const FlatModel& file) {
  TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterShape> shapes, AdapterShapes(file.layout));
  std::vector<TensorSpec> specs;
  for (const AdapterShape& shape : shapes) {
    for (AdapterTensor& tensor : AdapterTensors(mode, shape, file.layout.float_dtype())) specs.push_back(std::move(tensor.spec));
  }
  FlatModel model;
  TRIB_ASSIGN_OR_RETURN(model.layout, TensorLayout::Create(std::move(specs)));
  TRIB_RETURN_IF_ERROR(FindAdapters(mode, model.layout).status());
  model.bytes.resize(model.layout.total_bytes());
  for (const PlacedTensor& tensor : model.layout.tensors()) {
    const PlacedTensor* from = file.layout.Find(tensor.spec.name);
    if (from == nullptr && !NeededInFiles(tensor.spec)) continue;
    if (from == nullptr) return InvalidArgument("adapters: {} needs the tensor '{}'", AdapterModeName(mode), tensor.spec.name);
    if (from->bytes != tensor.bytes) return InvalidArgument("tensor '{}': expected [{}], got [{}]", tensor.spec.name, fmt::join(tensor.spec.shape, ", "), fmt::join(from->spec.shape, ", "));
    std::ranges::copy(BytesOf(file, *from), model.bytes.begin() + static_cast<ptrdiff_t>(tensor.offset_bytes));
  }
  for (const PlacedTensor& tensor : file.layout.tensors()) {
    if (model.layout.Find(tensor.spec.name) == nullptr) return InvalidArgument("tensor '{}': adapters: {} has none of this name", tensor.spec.name, AdapterModeName(mode));
  }
  return model;
}

absl::StatusOr<std::vector<std::byte>> ReadAdapterUpdate(AdapterMode mode, const TensorLayout& model, const SafetensorsView& file) {
  if (mode != AdapterMode::kRoLora) {
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, AdapterUpdateLayout(mode, model));
    return ToFlat(file, layout);
  }
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::byte> flat, ToFlat(file, model));  // all of it trains
  TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(mode, model));
  const size_t each = DTypeBytes(model.float_dtype());
  for (const AdapterPair& pair : pairs) {
    const auto a = std::span(flat).subspan(pair.a * each, pair.rank * pair.in * each);
    if (std::ranges::any_of(a, [](std::byte byte) { return byte != std::byte{0}; })) {
      return InvalidArgument("wrong_phase: version 1 moves B; layer '{}' has a change of A", pair.layer);
    }
  }
  return PackLive(model, pairs, /*moves_b=*/true, flat);
}

absl::StatusOr<std::vector<std::string>> WritePeft(const std::filesystem::path& folder, const JobSpec& job, const FlatModel& model) {
  const AdapterSpec& adapter = job.model.adapter;
  const AdapterMode mode = AdaptersOf(job.strategy);
  TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(mode, model.layout));
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder));
  const DType dtype = model.layout.float_dtype();
  const aggregator::AdapterRound round{.mode = mode, .model = &model.layout, .pairs = pairs, .previous = model.bytes, .updates = {}};
  std::vector<TensorSpec> factors, deltas;
  std::vector<double> factor_values, delta_values;
  for (const AdapterPair& pair : pairs) {
    const AdapterShape shape{.layer = pair.layer, .in = static_cast<int64_t>(pair.in), .out = static_cast<int64_t>(pair.out), .rank = static_cast<int64_t>(pair.rank),
                             .triplets = pair.triplets};
    const aggregator::LowRank product = aggregator::FactorsOf(round, pair, model.bytes);
    for (AdapterTensor& tensor : AdapterTensors(AdapterMode::kFedIt, shape, dtype)) {  // frozen factors are trainable to PEFT
      if (!NeededInFiles(tensor.spec)) continue;
      if (pair.triplets) {
        const size_t first = tensor.part == AdapterPart::kA ? pair.a : tensor.part == AdapterPart::kE ? pair.e : pair.b;
        const auto count = static_cast<size_t>(tensor.spec.shape[0] * tensor.spec.shape[1]);
        for (size_t i = 0; i < count; ++i) factor_values.push_back(aggregator::FloatAt(model.layout, model.bytes, first + i));
      } else {
        const aggregator::Matrix& factor = tensor.part == AdapterPart::kA ? product.a : product.b;
        factor_values.insert(factor_values.end(), factor.values.begin(), factor.values.end());
      }
      factors.push_back(std::move(tensor.spec));
    }
    if (!NeedsResidual(mode)) continue;
    deltas.push_back({.name = pair.layer + ".weight", .shape = {shape.out, shape.in}, .dtype = dtype});
    for (const double value : aggregator::ResidualValues(round, pair, model.bytes)) delta_values.push_back(adapter.Scale() * value);
  }
  std::vector<std::string> written = {"adapter_config.json", "adapter_model.safetensors"};
  const auto write = [&](const std::string& name, std::vector<TensorSpec> specs, const std::vector<double>& values) -> absl::Status {
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, TensorLayout::Create(std::move(specs)));
    std::vector<std::byte> bytes(layout.total_bytes());
    if (!aggregator::StoreFloats(dtype, values, bytes)) return InvalidArgument("{}: a value is not finite", name);
    return WriteSafetensors(folder / name, layout, bytes, {{"format", "pt"}});
  };
  TRIB_RETURN_IF_ERROR(write(written[1], std::move(factors), factor_values));
  if (!deltas.empty()) TRIB_RETURN_IF_ERROR(write(written.emplace_back("base_delta.safetensors"), std::move(deltas), delta_values));
  TRIB_RETURN_IF_ERROR(WriteFileAtomically(folder / written[0], std::string_view(PeftConfig(job).dump(2) + "\n")));
  return written;
}

}  // namespace tributary::cli
