#include "client/data/analytic_files.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "client/core/analytic_learner.h"
#include "client/data/loaders.h"

namespace tributary::client {
namespace {

template <typename T>
void Convert(const SafetensorsEntry& entry, std::vector<double>* out) {
  out->resize(entry.bytes.size() / sizeof(T));
  for (size_t i = 0; i < out->size(); ++i) {
    T value;
    std::memcpy(&value, entry.bytes.data() + i * sizeof(T), sizeof(T));
    (*out)[i] = static_cast<double>(value);
  }
}

absl::StatusOr<ProblemTensors> ReadTensors(const std::filesystem::path& path) {
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(path));
  ProblemTensors tensors;
  for (const SafetensorsEntry& entry : file.view().entries) {
    ProblemTensor& tensor = tensors[entry.name];
    tensor.shape = entry.shape;
    tensor.integer = entry.dtype == "I64" || entry.dtype == "I32" || entry.dtype == "U8";
    if (entry.dtype == "F64") {
      Convert<double>(entry, &tensor.values);
    } else if (entry.dtype == "F32") {
      Convert<float>(entry, &tensor.values);
    } else if (entry.dtype == "I64") {
      Convert<int64_t>(entry, &tensor.values);
    } else if (entry.dtype == "I32") {
      Convert<int32_t>(entry, &tensor.values);
    } else if (entry.dtype == "U8") {
      Convert<uint8_t>(entry, &tensor.values);
    } else {
      return InvalidArgument("{}: tensor '{}': expected F32, F64, I64, I32 or U8, got {}", path.string(), entry.name, entry.dtype);
    }
  }
  return tensors;
}

// 1 + the largest class of all clients, where the job does not say.
absl::Status FindClasses(const std::vector<ProblemTensors>& files, AnalyticParams* params) {
  if (params->classes > 0) return absl::OkStatus();
  double largest = 1;
  for (const ProblemTensors& tensors : files) {
    const auto y = tensors.find("y");
    if (y == tensors.end() || !y->second.integer) continue;
    for (const double label : y->second.values) largest = std::max(largest, label);
  }
  constexpr double kMaxClass = 100'000;
  if (largest >= kMaxClass) return InvalidArgument("data: class {} is beyond {}", largest, kMaxClass);
  params->classes = static_cast<int64_t>(largest) + 1;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Dataset>> ProblemOf(const JobSpec& spec, const AnalyticParams& params, ProblemTensors tensors,
                                                         const std::string& origin, size_t* dimension) {
  TRIB_ASSIGN_OR_RETURN(auto problem, MakeAnalyticProblem(spec.model.zoo, params, std::move(tensors), origin));
  if (*dimension == 0) *dimension = problem->dimension();
  if (problem->dimension() != *dimension) {
    return InvalidArgument("{}: its model has {} elements, that of the files before it {}", origin, problem->dimension(), *dimension);
  }
  auto data = std::make_shared<Dataset>();
  data->problems.push_back(std::move(problem));
  return std::shared_ptr<const Dataset>(std::move(data));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const AnalyticData>> LoadAnalytic(const JobSpec& spec) {
  if (spec.data.source != "safetensors" || spec.data.partition.kind != "by_file") {
    return InvalidArgument("model '{}' needs data: {{source: safetensors, path: …, partition: {{kind: by_file}}}}: one file for each client",
                           spec.model.zoo);
  }
  TRIB_ASSIGN_OR_RETURN(AnalyticParams params, ReadAnalyticParams(spec.model));
  TRIB_ASSIGN_OR_RETURN(const SourceFiles found, FindFiles(spec.data, Split::kTrain, ".safetensors"));
  std::vector<ProblemTensors> tensors;
  for (const auto& path : found.files) {
    TRIB_ASSIGN_OR_RETURN(tensors.emplace_back(), ReadTensors(path));
  }
  TRIB_RETURN_IF_ERROR(FindClasses(tensors, &params));
  auto data = std::make_shared<AnalyticData>();
  auto all = std::make_shared<Dataset>();
  size_t dimension = 0;
  for (size_t i = 0; i < found.files.size(); ++i) {
    TRIB_ASSIGN_OR_RETURN(auto client, ProblemOf(spec, params, std::move(tensors[i]), found.files[i].string(), &dimension));
    all->problems.push_back(client->problems[0]);
    data->clients.push_back(std::move(client));
    data->names.push_back(found.files[i].stem().string());
  }
  data->evaluation = all;
  if (!found.hold_out) {
    TRIB_ASSIGN_OR_RETURN(const SourceFiles test, FindFiles(spec.data, Split::kTest, ".safetensors"));
    TRIB_ASSIGN_OR_RETURN(ProblemTensors held_out, ReadTensors(test.files[0]));
    TRIB_ASSIGN_OR_RETURN(data->evaluation, ProblemOf(spec, params, std::move(held_out), test.files[0].string(), &dimension));
  }
  return std::shared_ptr<const AnalyticData>(std::move(data));
}

absl::StatusOr<std::shared_ptr<const AnalyticData>> AnalyticCache::Load(const JobSpec& spec) {
  std::string key = fmt::format("{}\n{}", spec.model.zoo, spec.data.path);
  for (const auto& [name, value] : spec.model.params) key += fmt::format("\n{}={}", name, value);
  const absl::MutexLock lock(&mutex_);
  if (const auto at = loaded_.find(key); at != loaded_.end()) return at->second;
  TRIB_ASSIGN_OR_RETURN(auto data, LoadAnalytic(spec));
  loaded_[key] = data;
  return data;
}

absl::StatusOr<std::shared_ptr<const Dataset>> AnalyticCache::ShardOf(const JobSpec& spec, int64_t shard, int64_t shards) {
  TRIB_ASSIGN_OR_RETURN(const auto data, Load(spec));
  if (shards > static_cast<int64_t>(data->clients.size())) {
    return InvalidArgument("partition 'by_file': '{}' has {} files for {} clients", spec.data.path, data->clients.size(), shards);
  }
  return data->clients[static_cast<size_t>(shard)];
}

absl::StatusOr<std::shared_ptr<const Dataset>> AnalyticCache::Evaluation(const JobSpec& spec) {
  TRIB_ASSIGN_OR_RETURN(const auto data, Load(spec));
  return data->evaluation;
}

absl::StatusOr<FlatModel> AnalyticStart(const JobSpec& spec, const AnalyticData& data) {
  TRIB_ASSIGN_OR_RETURN(FlatModel model, AnalyticInitialModel(spec.dtype, data.evaluation->problems));
  if (spec.model.init.empty()) return model;
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(spec.model.init));
  auto flat = ToFlat(file.view(), model.layout);
  if (!flat.ok()) return Annotate(flat.status(), spec.model.init);
  model.bytes = *std::move(flat);
  return model;
}

}  // namespace tributary::client
