// How fast the LibTorch learner is, one JSON line a call; gpu_bench.py sets it beside PyTorch in the same sitting.
//   learner_bench cohort [--device cuda] [--model cnn4] [--clients 1000] [--cohort 50] [--examples 50] [--batch 10] [--rounds 40] [--loop-rounds 4]
//       clients trained a second, updates on the host included: side by side, and the same one after the other; largest difference of their updates
//   learner_bench step   [--device cuda] [--model resnet18] [--params k=v,…] [--batch 128] [--steps 50] [--precision f32]
//       examples (of a language model tokens) a second of local SGD in one task, the task's beginning and end included
//   learner_bench population [--device cuda] [--model mlp] [--params k=v,…] [--members 4096] [--rank 1] [--batch 100] [--steps 1] [--rounds 5]
//       members of an EGGROLL client a second: forward passes over steps minibatches each
// Data are random. Each model is warmed up by whole calls before what is timed.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/core/random.h"
#include "client/torch/learner.h"
#include "common/eggroll_spec.h"

namespace tributary::client {
namespace {

using Flags = std::map<std::string, std::string>;

[[noreturn]] void Die(const std::string& text) {
  fmt::print(stderr, "error: {}\n", text);
  std::exit(1);
}

template <typename T>
T Need(absl::StatusOr<T> value) {
  if (!value.ok()) Die(MessageOf(value.status()));
  return *std::move(value);
}

std::string Text(const Flags& flags, const std::string& name, const std::string& otherwise) {
  const auto at = flags.find(name);
  return at == flags.end() ? otherwise : at->second;
}

int64_t Number(const Flags& flags, const std::string& name, int64_t otherwise) {
  return std::atoll(Text(flags, name, std::to_string(otherwise)).c_str());
}

double Seconds(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

JobSpec JobOf(const Flags& flags, const std::string& model) {
  JobSpec spec;
  spec.name = "bench";
  spec.model.zoo = Text(flags, "model", model);
  const std::string params = Text(flags, "params", "");
  for (size_t at = 0; at < params.size();) {
    const size_t end = std::min(params.find(',', at), params.size());
    const std::string one = params.substr(at, end - at);
    const size_t equals = one.find('=');
    if (equals == std::string::npos) Die("--params: expected name=value, got '" + one + "'");
    spec.model.params[one.substr(0, equals)] = one.substr(equals + 1);
    at = end + 1;
  }
  return spec;
}

// Images in [−√3, √3), of unit variance, with random labels; or tokens.
std::shared_ptr<const Examples> RandomExamples(std::vector<int64_t> shape, size_t count, int64_t classes, bool tokens) {
  auto all = std::make_shared<Examples>();
  all->example_shape = std::move(shape);
  all->classes = classes;
  CounterRandom random(1);
  all->x.resize(count * all->example_elements());
  for (float& x : all->x) {
    x = tokens ? static_cast<float>(random.Below(static_cast<uint64_t>(classes))) : static_cast<float>((2 * random.Uniform() - 1) * std::sqrt(3.0));
  }
  for (size_t i = 0; i < count; ++i) all->labels.push_back(static_cast<int64_t>(random.Below(static_cast<uint64_t>(classes))));
  return all;
}

TrainRequest RequestOf(const JobSpec& spec, const FlatModel& model, uint64_t seed) {
  TrainRequest request;
  request.spec = &spec;
  request.layout = &model.layout;
  request.update_layout = &model.layout;
  request.model = model.bytes;
  request.seed = seed;
  request.client = "bench";
  return request;
}

void Cohort(const Flags& flags) {
  JobSpec spec = JobOf(flags, "cnn4");
  const auto clients = static_cast<size_t>(Number(flags, "clients", 1000)), cohort = static_cast<size_t>(Number(flags, "cohort", 50)),
             examples = static_cast<size_t>(Number(flags, "examples", 50));
  const int64_t rounds = Number(flags, "rounds", 40), loop_rounds = Number(flags, "loop-rounds", 4);
  spec.local.batch = Number(flags, "batch", 10);
  spec.local.lr = 0.1;
  const std::string device = Text(flags, "device", "cuda");
  const FlatModel model = Need(InitialModel(spec));
  const auto all = RandomExamples({3, 32, 32}, clients * examples, 10, false);
  std::vector<Dataset> shards(clients, Dataset{.all = all, .indices = {}});
  for (size_t i = 0; i < clients * examples; ++i) shards[i / examples].indices.push_back(static_cast<uint32_t>(i));
  const auto members_of = [&](int64_t round) {
    std::vector<CohortMember> members;
    for (size_t i = 0; i < cohort; ++i) {
      const size_t client = (static_cast<size_t>(round) * cohort + i) % clients;
      members.push_back({RequestOf(spec, model, static_cast<uint64_t>(round) * cohort + i), &shards[client]});
    }
    return members;
  };
  const auto together = Need(MakeTorchLearner({.device = device, .cohort = cohort}));
  const auto alone = Need(MakeTorchLearner({.device = device}));
  double largest = 0, moved = 0;
  const auto train = [&](int64_t round, bool compare) {
    const std::vector<CohortMember> members = members_of(round);
    const auto results = together->TrainCohort(members);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].ok()) Die(MessageOf(results[i].status()));
      if (!compare) continue;
      const TrainResult expected = Need(alone->Train(members[i].request, members[i].data));
      double difference = 0, norm = 0;
      for (size_t k = 0; k < model.layout.trainable_count(); ++k) {
        float a, b;
        std::memcpy(&a, results[i]->update.data() + k * sizeof(float), sizeof(float));
        std::memcpy(&b, expected.update.data() + k * sizeof(float), sizeof(float));
        difference += (static_cast<double>(a) - static_cast<double>(b)) * (static_cast<double>(a) - static_cast<double>(b));
        norm += static_cast<double>(b) * static_cast<double>(b);
      }
      largest = std::max(largest, std::sqrt(difference / norm));
      moved = std::max(moved, std::sqrt(norm));
    }
  };
  train(0, true);
  for (int64_t round = 1; round < 4; ++round) train(round, false);
  const double cohort_s = Seconds([&] {
    for (int64_t round = 0; round < rounds; ++round) train(4 + round, false);
  });
  const double loop_s = Seconds([&] {
    for (int64_t round = 0; round < loop_rounds; ++round) {
      for (const CohortMember& member : members_of(round)) Need(alone->Train(member.request, member.data));
    }
  });
  const double cohort_rate = static_cast<double>(cohort) * static_cast<double>(rounds) / cohort_s;
  const double loop_rate = static_cast<double>(cohort) * static_cast<double>(loop_rounds) / loop_s;
  fmt::print("{{\"what\": \"cohort\", \"device\": \"{}\", \"model\": \"{}\", \"parameters\": {}, \"cohort\": {}, \"examples\": {}, \"batch\": {}, \"cohort_clients_per_s\": {:.1f}, "
             "\"loop_clients_per_s\": {:.1f}, \"cohort_is\": {:.2f}, \"largest_relative_difference\": {:.3g}, \"update_norm\": {:.3g}}}\n",
             together->device(), spec.model.zoo, model.layout.trainable_count(), cohort, examples, spec.local.batch, cohort_rate, loop_rate, cohort_rate / loop_rate, largest, moved);
}

void Step(const Flags& flags) {
  JobSpec spec = JobOf(flags, "resnet18");
  spec.local.batch = Number(flags, "batch", 128);
  spec.local.steps = Number(flags, "steps", 50);
  spec.local.lr = 0.01;
  spec.local.momentum = 0.9;
  const FlatModel model = Need(InitialModel(spec));
  const bool tokens = spec.model.zoo.find("transformer") != std::string::npos;
  const auto length = tokens ? static_cast<int64_t>(std::atoll(spec.model.params.contains("input") ? spec.model.params.at("input").c_str() : "128")) : 0;
  const auto batch = static_cast<size_t>(spec.local.batch);
  const auto all = tokens ? RandomExamples({length}, 8 * batch, 256, true) : RandomExamples({3, 32, 32}, 8 * batch, 10, false);
  Dataset data{.all = all, .indices = {}};
  for (size_t i = 0; i < 8 * batch; ++i) data.indices.push_back(static_cast<uint32_t>(i));
  const auto learner = Need(MakeTorchLearner({.device = Text(flags, "device", "cuda")}));
  double loss = 0;
  const auto task = [&] { loss = Need(learner->Train(RequestOf(spec, model, 1), &data)).metrics.at("train_loss"); };
  task();
  double best = 1e300;
  for (int run = 0; run < 3; ++run) best = std::min(best, Seconds(task));
  const double examples = static_cast<double>(spec.local.batch) * static_cast<double>(spec.local.steps);
  fmt::print("{{\"what\": \"step\", \"device\": \"{}\", \"model\": \"{}\", \"parameters\": {}, \"batch\": {}, \"steps\": {}, \"ms_per_step\": {:.4f}, \"examples_per_s\": {:.1f}, "
             "\"tokens_per_s\": {:.1f}, \"train_loss\": {:.5f}}}\n",
             learner->device(), spec.model.zoo, model.layout.trainable_count(), spec.local.batch, spec.local.steps, 1e3 * best / static_cast<double>(spec.local.steps), examples / best,
             examples * static_cast<double>(length) / best, loss);
}

void Population(const Flags& flags) {
  JobSpec spec = JobOf(flags, "mlp");
  spec.strategy = {.name = "eggroll", .params = {{"rank", Text(flags, "rank", "1")}}};
  spec.local.solver = kEggrollSolver;
  spec.local.batch = Number(flags, "batch", 100);
  spec.local.steps = Number(flags, "steps", 1);
  const int64_t members = Number(flags, "members", 4096), rounds = Number(flags, "rounds", 5);
  const FlatModel model = Need(InitialModel(spec));
  const TensorLayout update =
      Need(TensorLayout::Create({{.name = kEggrollFitness, .shape = {members}, .dtype = DType::kF32, .kind = TensorKind::kTrainable}}));
  const auto count = static_cast<size_t>(spec.local.batch * spec.local.steps);
  Dataset data{.all = RandomExamples({1, 28, 28}, count, 10, false), .indices = {}};
  for (size_t i = 0; i < count; ++i) data.indices.push_back(static_cast<uint32_t>(i));
  const auto learner = Need(MakeTorchLearner({.device = Text(flags, "device", "cuda")}));
  TrainRequest request = RequestOf(spec, model, 1);
  request.update_layout = &update;
  double loss = 0;
  const auto task = [&] {
    ++request.noise_seed;
    loss = Need(learner->Train(request, &data)).metrics.at("train_loss");
  };
  task();
  double best = 1e300;
  for (int64_t round = 0; round < rounds; ++round) best = std::min(best, Seconds(task));
  fmt::print("{{\"what\": \"population\", \"device\": \"{}\", \"model\": \"{}\", \"parameters\": {}, \"members\": {}, \"batch\": {}, \"steps\": {}, \"members_per_s\": {:.1f}, "
             "\"train_loss\": {:.5f}}}\n",
             learner->device(), spec.model.zoo, model.layout.trainable_count(), members, spec.local.batch, spec.local.steps, static_cast<double>(members) / best, loss);
}

int Main(int argc, char** argv) {
  Flags flags;
  for (int i = 2; i + 1 < argc; i += 2) flags[std::string(argv[i]).substr(2)] = argv[i + 1];
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "cohort") {
    Cohort(flags);
  } else if (what == "step") {
    Step(flags);
  } else if (what == "population") {
    Population(flags);
  } else {
    Die("usage: learner_bench cohort|step|population [--name value …]");
  }
  return 0;
}

}  // namespace
}  // namespace tributary::client

int main(int argc, char** argv) { return tributary::client::Main(argc, argv); }
