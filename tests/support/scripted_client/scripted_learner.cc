#include "tests/support/scripted_client/scripted_learner.h"

#include <absl/strings/numbers.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cstring>

#include "client/core/random.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/safetensors.h"

namespace tributary::client {
namespace {

// Writes `value(i)` to the float elements [0, count) of a flat update.
template <typename Value>
void FillFloats(const TensorLayout& layout, size_t count, LargeBytes* update, Value value) {
  if (layout.float_dtype() == DType::kF64) {
    auto* floats = reinterpret_cast<double*>(update->data());
    for (size_t i = 0; i < count; ++i) floats[i] = value(i);
  } else {
    auto* floats = reinterpret_cast<float*>(update->data());
    for (size_t i = 0; i < count; ++i) floats[i] = static_cast<float>(value(i));
  }
}

uint64_t SeedOf(const std::string& client, uint64_t version) {
  const std::string text = fmt::format("{}|{}", client, version);
  const std::string digest = Xxh3Digest(std::as_bytes(std::span(text)));
  uint64_t seed = 0;
  std::memcpy(&seed, digest.data(), sizeof(seed));
  return seed;
}

}  // namespace

int SmallInteger(const std::string& client, uint64_t version, uint64_t element) {
  return static_cast<int>(CounterRandom(SeedOf(client, version), element).Below(9)) - 4;
}

int64_t ScriptedLearner::IndexOf(const std::string& client) const {
  const auto found = options_.index_of.find(client);
  return found == options_.index_of.end() ? 0 : found->second;
}

absl::StatusOr<uint64_t> ScriptedLearner::NextCount(const std::string& client) const {
  const std::filesystem::path path = options_.state / client / "scripted-counter";
  uint64_t count = 0;
  if (const absl::StatusOr<std::string> text = ReadFile(path, 64); text.ok() && !absl::SimpleAtoi(*text, &count)) {
    return DataLoss("{}: a number expected, got '{}'", path.string(), *text);
  } else if (!text.ok() && !absl::IsNotFound(text.status())) {
    return text.status();
  }
  TRIB_RETURN_IF_ERROR(MakeDirectories(path.parent_path()));
  TRIB_RETURN_IF_ERROR(WriteFileAtomically(path, std::to_string(count + 1)));
  return count;
}

absl::Status ScriptedLearner::FillOneHot(const TrainRequest& request, TrainResult* result) const {
  const size_t trainable = request.layout->trainable_count();
  const size_t half = trainable / 2;
  std::fill(result->update.begin(), result->update.end(), std::byte{0});  // buffers
  const size_t stride = half / static_cast<size_t>(options_.clients);
  uint64_t place = request.version;
  if (options_.by_counter) {
    TRIB_ASSIGN_OR_RETURN(place, NextCount(request.client));
  }
  if (place >= stride) {
    return OutOfRange("client '{}' has {} coordinates of its own, this update needs number {}: give the model more elements",
                      request.client, stride, place);
  }
  const size_t coordinate = static_cast<size_t>(IndexOf(request.client)) * stride + place;
  const uint64_t seed = SeedOf(request.client, request.version);
  FillFloats(*request.layout, trainable, &result->update, [&](size_t i) -> double {
    if (i < half) return i == coordinate ? 1.0 : 0.0;
    return static_cast<double>(CounterRandom(seed, i - half).Below(9)) - 4.0;
  });
  result->metrics["coordinate"] = static_cast<double>(coordinate);
  result->weight = 1;
  return absl::OkStatus();
}

absl::Status ScriptedLearner::FillOffset(const TrainRequest& request, TrainResult* result) const {
  const double base = options_.offset != 0 ? options_.offset : static_cast<double>(IndexOf(request.client) + 1);
  const double value = base + static_cast<double>(request.version) * 0.001;
  FillFloats(*request.update_layout, request.update_layout->float_count(), &result->update, [value](size_t) { return value; });
  result->weight = 1;
  return absl::OkStatus();
}

absl::Status ScriptedLearner::FillFromFile(const TrainRequest& request, TrainResult* result) const {
  std::filesystem::path path = options_.updates / fmt::format("{}.v{}.safetensors", request.client, request.version);
  if (!std::filesystem::exists(path)) path = options_.updates / fmt::format("{}.safetensors", request.client);
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(path));
  absl::StatusOr<std::vector<std::byte>> flat = ToFlat(file.view(), *request.update_layout);
  if (!flat.ok()) return Annotate(flat.status(), path.string());
  result->update.assign(flat->begin(), flat->end());
  result->weight = 1;
  const auto weight = file.view().metadata.find("weight");
  if (weight != file.view().metadata.end() && !absl::SimpleAtod(weight->second, &result->weight)) {
    return InvalidArgument("{}: metadata weight: a number expected, got '{}'", path.string(), weight->second);
  }
  for (const auto& [name, text] : file.view().metadata) {
    if (!name.starts_with("scalar.")) continue;
    double& value = result->scalars[name.substr(7)];
    if (!absl::SimpleAtod(text, &value)) return InvalidArgument("{}: metadata {}: a number expected, got '{}'", path.string(), name, text);
  }
  return absl::OkStatus();
}

absl::StatusOr<TrainResult> ScriptedLearner::Train(const TrainRequest& request, const Dataset*) {
  TrainResult result;
  result.examples = options_.examples;
  if (options_.kind == "file") {
    TRIB_RETURN_IF_ERROR(FillFromFile(request, &result));
  } else {
    result.update.resize(request.update_layout->total_bytes());
    TRIB_RETURN_IF_ERROR(options_.kind == "onehot" ? FillOneHot(request, &result) : FillOffset(request, &result));
    // Counters are values, not differences: as they were.
    const size_t floats = request.layout->float_bytes();
    const size_t counters = request.model.size() - floats;
    if (counters > 0) std::memcpy(result.update.data() + result.update.size() - counters, request.model.data() + floats, counters);
  }
  if (options_.weight > 0) result.weight = options_.weight;
  // Training time in slices, so that a cancelled task ends soon.
  for (int64_t done = 0; done < options_.train_ms;) {
    const int64_t slice = std::min<int64_t>(10, options_.train_ms - done);
    absl::SleepFor(absl::Milliseconds(slice));
    done += slice;
    if (!request.progress(static_cast<float>(done) / static_cast<float>(options_.train_ms))) return Cancelled("training was cancelled");
  }
  return result;
}

absl::StatusOr<EvaluateResult> ScriptedLearner::Evaluate(const TrainRequest& request, const Dataset*) {
  return EvaluateResult{1.0 / (1.0 + static_cast<double>(request.version)), 0.5, options_.examples};
}

}  // namespace tributary::client
