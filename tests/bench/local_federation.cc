// FedAvg in one process, without daemons or network: the learner, the data and the partition of a job file, and a plain weighted mean
// in double. Tells what a job reaches and what its training alone costs.
//   local_federation JOB.yaml [--threads N] [--device cpu|cuda]
// One JSON document per committed version on stdout: version, accuracy, loss, train_s (all clients one after the other), evaluate_s.
#include <absl/strings/numbers.h>
#include <absl/time/clock.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "client/core/random.h"
#include "client/data/data.h"
#include "client/torch/learner.h"
#include "common/job_spec.h"

namespace tributary::client {
namespace {

template <typename T>
void AddMean(const TensorLayout& layout, const std::vector<TrainResult>& results, std::vector<std::byte>& model) {
  double weight = 0;
  for (const TrainResult& result : results) weight += result.weight;
  for (size_t i = 0; i < layout.float_count(); ++i) {
    double sum = 0;
    for (const TrainResult& result : results) {
      T value;
      std::memcpy(&value, result.update.data() + i * sizeof(T), sizeof(T));
      sum += result.weight * static_cast<double>(value);
    }
    T current;
    std::memcpy(&current, model.data() + i * sizeof(T), sizeof(T));
    const double mean = sum / weight;
    current = static_cast<T>(i < layout.trainable_count() ? static_cast<double>(current) + mean : mean);
    std::memcpy(model.data() + i * sizeof(T), &current, sizeof(T));
  }
}

absl::Status Run(const std::string& job, const TorchLearnerOptions& options) {
  TRIB_ASSIGN_OR_RETURN(const JobSpec spec, ReadJobSpec(job));
  TRIB_ASSIGN_OR_RETURN(FlatModel model, InitialModel(spec));
  TRIB_ASSIGN_OR_RETURN(const auto learner, MakeTorchLearner(options));
  DataCache cache;
  TRIB_ASSIGN_OR_RETURN(const Dataset test, cache.TestSet(spec.data));
  const absl::Time start = absl::Now();
  for (int64_t version = 1; version <= spec.stop.versions; ++version) {
    const absl::Time begin = absl::Now();
    TrainRequest request;
    request.spec = &spec;
    request.layout = &model.layout;
    request.artifact_path = spec.model.torchscript;
    request.model = model.bytes;
    request.version = static_cast<uint64_t>(version);
    std::vector<TrainResult> results;
    double train_loss = 0;
    for (int64_t client = 0; client < spec.cohort.size; ++client) {
      TRIB_ASSIGN_OR_RETURN(const Dataset shard, cache.ShardOf(spec.data, client, spec.cohort.size));
      request.seed = MixSeeds(MixSeeds(static_cast<uint64_t>(spec.seed), static_cast<uint64_t>(version)), static_cast<uint64_t>(client));
      request.client = fmt::format("client-{}", client);
      TRIB_ASSIGN_OR_RETURN(TrainResult result, learner->Train(request, &shard));
      train_loss += result.metrics["train_loss"] / static_cast<double>(spec.cohort.size);
      results.push_back(std::move(result));
    }
    if (spec.dtype == DType::kF64) {
      AddMean<double>(model.layout, results, model.bytes);
    } else {
      AddMean<float>(model.layout, results, model.bytes);
    }
    const absl::Time trained = absl::Now();
    request.model = model.bytes;
    TRIB_ASSIGN_OR_RETURN(const EvaluateResult result, learner->Evaluate(request, &test));
    fmt::print("{{\"version\": {}, \"accuracy\": {:.4f}, \"loss\": {:.4f}, \"train_loss\": {:.4f}, \"train_s\": {:.2f}, \"evaluate_s\": {:.2f}, "
               "\"total_s\": {:.2f}}}\n",
               version, result.accuracy, result.loss, train_loss, absl::ToDoubleSeconds(trained - begin),
               absl::ToDoubleSeconds(absl::Now() - trained), absl::ToDoubleSeconds(absl::Now() - start));
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace tributary::client

int main(int argc, char** argv) {
  tributary::client::TorchLearnerOptions options;
  std::string job;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--device" && i + 1 < argc) {
      options.device = argv[++i];
    } else if (argument == "--threads" && i + 1 < argc && absl::SimpleAtoi(argv[i + 1], &options.threads)) {
      ++i;
    } else if (job.empty() && argument.rfind("--", 0) != 0) {
      job = argument;
    } else {
      job.clear();
      break;
    }
  }
  if (job.empty()) {
    fmt::print(stderr, "usage: local_federation JOB.yaml [--threads N] [--device cpu|cuda]\n");
    return 2;
  }
  const absl::Status status = tributary::client::Run(job, options);
  if (!status.ok()) {
    fmt::print(stderr, "local_federation: {}\n", tributary::MessageOf(status));
    return 1;
  }
  return 0;
}
