// What tests of whole simulations share: a learner whose updates are drawn, and a run with it.
#pragma once

#include <gmock/gmock.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "client/core/random.h"
#include "simulate/simulation.h"
#include "tests/support/host_update.h"
#include "tests/support/status_matchers.h"

namespace tributary::simulate {

inline constexpr int64_t kElements = 20'000;  // two blocks of a fold
inline constexpr size_t kClients = 7;

// Its update is drawn from the request's seed.
class DrawingLearner final : public client::Learner {
 public:
  explicit DrawingLearner(bool keeps) : keeps_(keeps) {}
  std::string device() const override { return "test"; }
  size_t cohort_size() const override { return 3; }
  absl::StatusOr<client::TrainResult> Train(const client::TrainRequest& request, const client::Dataset*) override {
    client::TrainResult result;
    client::CounterRandom random(request.seed, request.version);
    std::string bytes(request.layout->total_bytes(), '\0');
    for (size_t i = 0; i < request.layout->trainable_count(); ++i) {
      const auto value = static_cast<float>(scale * random.Normal());
      std::memcpy(bytes.data() + i * sizeof(float), &value, sizeof(float));
    }
    const bool stays = keeps_ && request.may_stay_on_device && !(mixed && request.shard % 3 == 1);
    if (stays) {
      ++stayed;
      result.on_device = std::make_shared<testing::HostUpdate>(std::move(bytes));
    } else {
      result.update.resize(bytes.size());
      std::memcpy(result.update.data(), bytes.data(), bytes.size());
    }
    result.examples = 3 + static_cast<uint64_t>(request.shard);
    result.weight = static_cast<double>(result.examples);
    return result;
  }
  absl::StatusOr<client::EvaluateResult> Evaluate(const client::TrainRequest&, const client::Dataset*) override { return client::EvaluateResult{}; }

  double scale = 0.1;
  bool mixed = false;  // some come to the host all the same
  int stayed = 0;

 private:
  const bool keeps_;
};

inline JobSpec Job(const std::string& strategy, bool reproducible) {
  JobSpec spec;
  spec.name = "device";
  spec.model.tensors = "m.safetensors";
  spec.strategy.name = strategy;
  spec.reproducible = reproducible;
  spec.cohort.size = 5;
  spec.stop.versions = 4;
  return spec;
}

inline absl::StatusOr<SimulationResult> RunWith(const JobSpec& spec, client::Learner* learner, TensorKind second = TensorKind::kTrainable,
                                                 aggregator::StateStore* store = nullptr) {
  SimulationOptions options;
  options.spec = spec;
  for (size_t i = 0; i < kClients; ++i) options.clients.push_back(fmt::format("c{}", i));
  TRIB_ASSIGN_OR_RETURN(options.initial.layout, TensorLayout::Create({{"w", {kElements}, DType::kF32, TensorKind::kTrainable}, {"b", {3}, DType::kF32, second}}));
  options.initial.bytes.resize(options.initial.layout.total_bytes());
  options.learners = {learner};
  options.store = store;
  options.data = [](uint32_t) -> absl::StatusOr<std::shared_ptr<const client::Dataset>> { return nullptr; };
  return RunSimulation(options);
}

}  // namespace tributary::simulate
