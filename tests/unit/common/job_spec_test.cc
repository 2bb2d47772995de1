#include "common/job_spec.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr char kMinimal[] = "name: n\nmodel: {zoo: cnn}\ncohort: {size: 2}\n";

constexpr char kFull[] = R"(name: fashion
model: {zoo: cnn, params: {width: 8, hidden: "64"}, init: start.safetensors}
data: {source: fashion-mnist, path: /data/fm, partition: {kind: dirichlet, alpha: 0.3}, seed: 7}
strategy: {name: fedavgm, momentum: 0.9}
cohort: {size: 10, quorum: 8, deadline_s: 60.5, over_select: 1.3}
local: {solver: sgd, steps: 20, batch: 16, lr: 0.1, momentum: 0.5, weight_decay: 1e-4, precision: bf16}
dtype: float64
codec: f64
durability: ephemeral
record: false
stop: {versions: 50, accuracy: 0.88}
evaluate: {every: 5, clients: [eval-1, eval-2]}
hierarchy: {shape: tree, leaf_fan_in: 3, timing: batch:8, placement: worstfit, plan: static:4, reuse: off}
reproducible: true
max_weight: 1000
seed: 9
)";

TEST(JobSpecTest, MinimalJobGetsTheDefaults) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(kMinimal, "j.yaml"));
  EXPECT_EQ(spec.name, "n");
  EXPECT_EQ(spec.strategy.name, "fedavg");
  EXPECT_EQ(spec.codec, "f32");
  EXPECT_EQ(spec.EffectiveQuorum(), 2);
  EXPECT_EQ(spec.ClientsAsked(), 2);
  EXPECT_EQ(spec.cohort.deadline, absl::InfiniteDuration());
  EXPECT_EQ(spec.stop.versions, 10);
  EXPECT_EQ(spec.hierarchy, HierarchySpec{});
  EXPECT_EQ(spec.hierarchy.timing, std::nullopt);
}

TEST(JobSpecTest, ReadsEveryKey) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(kFull, "j.yaml"));
  EXPECT_EQ(spec.model.params.at("width"), "8");
  EXPECT_EQ(spec.model.init, "start.safetensors");
  EXPECT_EQ(spec.data.partition.alpha, 0.3);
  EXPECT_EQ(spec.strategy.params.at("momentum"), "0.9");
  EXPECT_EQ(spec.cohort.deadline, absl::Milliseconds(60'500));
  EXPECT_EQ(spec.ClientsAsked(), 13);
  EXPECT_EQ(spec.EffectiveQuorum(), 8);
  EXPECT_EQ(spec.local.steps, 20);
  EXPECT_EQ(spec.dtype, DType::kF64);
  EXPECT_EQ(spec.durability, Durability::kEphemeral);
  EXPECT_EQ(spec.evaluate.clients.size(), 2u);
  EXPECT_TRUE(spec.reproducible);
  EXPECT_EQ(spec.seed, 9);
}

TEST(JobSpecTest, CanonicalTextRoundTripsAndIsStable) {
  const std::string quoted =
      "name: q\nmodel: {tensors: \"we \\\"ird\\\\ # : é.safetensors\"}\ncohort: {size: 3, over_select: 1.1}\n"
      "strategy: {name: fedavg, \"odd: key\": \"{}\"}\n";
  const std::string shards =
      "name: s\nmodel: {torchscript: net.pt}\ncohort: {size: 3}\ndata: {source: csv, path: d, label: 'y', partition: {kind: shards, "
      "shards_per_client: 3}}\n";
  const std::string ewma = std::string(kMinimal) +
                           "hierarchy: {timing: {kind: jit, slack_ms: 12}, plan: {kind: ewma, weight: 0.3, on: sample, period_s: 1.5}}\n";
  const std::string eager = std::string(kMinimal) + "hierarchy: {timing: eager, plan: {kind: static, leaves: 7}}\n";
  const std::string aged = std::string(kMinimal) + "hierarchy: {timing: {kind: batch, size: 2, age_ms: 250}, placement: 'odd \"one\"'}\n";
  for (const std::string& text : {std::string(kMinimal), std::string(kFull), quoted, shards, ewma, eager, aged}) {
    TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(text, "j.yaml"));
    const std::string canonical = CanonicalYaml(spec);
    TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(canonical, "canonical"));
    EXPECT_EQ(spec, again) << canonical;
    EXPECT_EQ(CanonicalYaml(again), canonical);
  }
}

TEST(JobSpecTest, HierarchyReadsShortAndLongForms) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec full, ParseJobSpec(kFull, "j"));
  EXPECT_EQ(full.hierarchy.shape, HierarchyShape::kTree);
  EXPECT_EQ(full.hierarchy.leaf_fan_in, 3);
  EXPECT_EQ(full.hierarchy.timing, (TimingSpec{.kind = TimingKind::kBatch, .batch = 8}));
  EXPECT_EQ(full.hierarchy.placement, "worstfit");
  EXPECT_EQ(full.hierarchy.plan, (PlanSpec{.kind = PlanKind::kStatic, .leaves = 4}));
  EXPECT_FALSE(full.hierarchy.reuse);

  const auto read = [](const std::string& section) {
    auto spec = ParseJobSpec(std::string(kMinimal) + "hierarchy: " + section + "\n", "j");
    EXPECT_THAT(spec, IsOk()) << section;
    return spec.ok() ? spec->hierarchy : HierarchySpec{};
  };
  EXPECT_EQ(read("{}"), HierarchySpec{});
  EXPECT_EQ(read("{timing: batch}").timing, TimingSpec{});
  EXPECT_EQ(read("{timing: lazy}").timing, TimingSpec{.kind = TimingKind::kLazy});
  EXPECT_EQ(read("{timing: {kind: batch, size: 9, age_ms: 20}}").timing, (TimingSpec{.batch = 9, .age = absl::Milliseconds(20)}));
  EXPECT_EQ(read("{timing: {kind: jit, slack_ms: 0}}").timing, (TimingSpec{.kind = TimingKind::kJit, .slack = absl::ZeroDuration()}));
  EXPECT_EQ(read("{plan: ewma}").plan, PlanSpec{});
  EXPECT_EQ(read("{plan: {kind: ewma, weight: 1, on: sample, period_s: 45}}").plan,
            (PlanSpec{.weight = 1, .on = EwmaSide::kSample, .period = absl::Seconds(45)}));
  EXPECT_EQ(read("{plan: {kind: static, leaves: 2}}").plan, (PlanSpec{.kind = PlanKind::kStatic, .leaves = 2}));
  for (const std::string shape : {"auto", "flat", "shard", "tree"}) {
    EXPECT_EQ(HierarchyShapeName(read("{shape: " + shape + "}").shape), shape);
  }
}

TEST(JobSpecTest, AMapAmongAModelsParametersIsReadAsItsKeys) {
  const auto spec = ParseJobSpec("name: n\nmodel: {zoo: moe_transformer, params: {layers: 2, router: {name: bip, iterations: 8}}}\ncohort: {size: 1}\n", "j");
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->model.params, (ParamMap{{"layers", "2"}, {"router.name", "bip"}, {"router.iterations", "8"}}));
  const auto again = ParseJobSpec(CanonicalYaml(*spec), "again");
  ASSERT_THAT(again, IsOk());
  EXPECT_EQ(again->model, spec->model);
}

TEST(JobSpecTest, EveryCombinationOfTheFourSwitchesIsRead) {
  for (const std::string timing : {"eager", "lazy", "batch:4", "jit"}) {
    for (const std::string placement : {"bestfit", "worstfit", "firstfit", "roundrobin"}) {
      for (const std::string plan : {"ewma", "static:3"}) {
        for (const std::string reuse : {"on", "off"}) {
          for (const std::string shape : {"auto", "flat", "shard", "tree"}) {
            const std::string text = kMinimal + fmt::format("hierarchy: {{shape: {}, leaf_fan_in: 2, timing: {}, placement: {}, plan: {}, reuse: {}}}\n",
                                                            shape, timing, placement, plan, reuse);
            TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(text, "j"));
            TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(CanonicalYaml(spec), "canonical"));
            EXPECT_EQ(again, spec) << text;
          }
        }
      }
    }
  }
}

TEST(JobSpecTest, StrategyMayBeAPlainName) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(std::string(kMinimal) + "strategy: fedavgm\n", "j"));
  EXPECT_EQ(spec.strategy.name, "fedavgm");
}

TEST(JobSpecTest, StrategyParametersMayBeListsAndMapsOfValues) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(std::string(kMinimal) + "strategy: {name: f, p: [0.5, b=0.25], staleness: {kind: hinge, a: 2}}\n", "j"));
  const ParamMap expected = {{"p", "0.5, b=0.25"}, {"staleness.kind", "hinge"}, {"staleness.a", "2"}};
  EXPECT_EQ(spec.strategy.params, expected);
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(CanonicalYaml(spec), "canonical"));
  EXPECT_EQ(again, spec);
}

TEST(JobSpecTest, Float64BringsItsCodec) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(std::string(kMinimal) + "dtype: float64\n", "j"));
  EXPECT_EQ(spec.codec, "f64");
}

TEST(JobSpecTest, WhatJobsAddSurvivesTheCanonicalText) {
  for (const std::string rest :
       {"cohort: {size: 2}\nlocal: {solver: adamw, steps: 3, weight_decay: 0.1, beta1: 0.8, beta2: 0.95, epsilon: 1e-6}\n", "cohort: {size: 2}\nlocal: {solver: adamw}\n",
        "cohort: {size: 2}\ndata: {source: text, path: a, window: 64, tokenizer: t.json, tokenizer_sha256: "
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef}\n", "cohort: {size: 2}\ncodec: int8\n", "cohort: {size: 2}\ncodec: {kind: topk, fraction: 0.05}\n", "cohort: {size: 2}\ncodec: topk\n",
        "cohort: {size: 2, population: 10}\nprivacy: {clip: 0.5, epsilon: 3, delta: 1e-6, epsilon_budget: 8}\n",
        "cohort: {sampling: poisson, rate: 0.3, population: 100}\nprivacy: {clip: 2, noise_multiplier: 1.5, delta: 1e-6, insecure_seed: true}\n",
        "cohort: {size: 2}\nprivacy: {mechanism: gaussian, placement: local, clip: 1, noise_multiplier: 1, delta: 1e-5, adjacency: replace}\n",
        "cohort: {sampling: poisson, rate: 0.3}\nprivacy: {clip: 2, noise_multiplier: 0, delta: 1e-6}\n",
        "cohort: {size: 2}\nprivacy: {clip: 2, noise_multiplier: 1, delta: 1e-6, adaptive_clip: {quantile: 0.7, rate: 0.1, count_stddev: 3}}\n",
        "cohort: {size: 2}\nprivacy: {clip: 2, noise_multiplier: 1, delta: 1e-6, adaptive_clip: {}}\n",
        "cohort: {size: 2}\nprivacy: {placement: distributed, clip: 1, noise_multiplier: 1, delta: 1e-5}\ncodec: int4\n"}) {
    TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec("name: n\nmodel: {zoo: cnn}\n" + rest, "j"));
    TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(CanonicalYaml(spec), "canonical"));
    EXPECT_EQ(again, spec) << CanonicalYaml(spec);
  }
}

TEST(JobSpecTest, AdamWHasARateOfItsOwn) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec("name: n\nmodel: {zoo: cnn}\ncohort: {size: 2}\nlocal: {solver: adamw}\n", "j"));
  EXPECT_EQ(spec.local.lr, 0.001);
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec given, ParseJobSpec("name: n\nmodel: {zoo: cnn}\ncohort: {size: 2}\nlocal: {solver: adamw, lr: 0.02}\n", "j"));
  EXPECT_EQ(given.local.lr, 0.02);
}

TEST(JobSpecTest, PoissonCohortsExpectTheirRateOfThePopulation) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec,
                            ParseJobSpec("name: n\nmodel: {zoo: cnn}\ncohort: {sampling: poisson, rate: 0.25, population: 90}\n", "j"));
  EXPECT_EQ(spec.cohort.size, 23);
  EXPECT_EQ(spec.EffectiveQuorum(), 1);
}

TEST(JobSpecTest, AsksForNoMoreThanTheProductSays) {
  TRIB_ASSERT_OK_AND_ASSIGN(JobSpec spec, ParseJobSpec(kMinimal, "j"));
  spec.cohort.size = 10;
  spec.cohort.over_select = 1.1;  // 11.000000000000002 in doubles
  EXPECT_EQ(spec.ClientsAsked(), 11);
}

struct Refusal {
  std::string line;  // added to the minimal job, or replacing the key's line there
  std::string why;
};
void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.line; }

class JobSpecRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(JobSpecRefusalTest, NamesTheKey) {
  const std::string key = GetParam().line.substr(0, GetParam().line.find(':'));
  std::string text;
  for (const std::string line : {"name: n\n", "model: {zoo: cnn}\n", "cohort: {size: 2}\n"}) {
    if (line.rfind(key + ":", 0) != 0) text += line;
  }
  text += GetParam().line + "\n";
  EXPECT_THAT(ParseJobSpec(text, "j.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("j.yaml"), HasSubstr(GetParam().why))));
}

INSTANTIATE_TEST_SUITE_P(
    Table, JobSpecRefusalTest,
    ::testing::Values(
        Refusal{"name: ''", "name"}, Refusal{"name: a/b", "letters"}, Refusal{"name: [x]", "name: expected text"},
        Refusal{"model: {}", "exactly one"}, Refusal{"model: {zoo: cnn, tensors: t}", "exactly one"},
        Refusal{"model: {zoo: ''}", "model.zoo"}, Refusal{"model: cnn", "expected a map"},
        Refusal{"model: {tensors: t, params: {a: 1}}", "model.params"}, Refusal{"model: {tensors: t, init: i}", "model.init"},
        Refusal{"model: {zoo: cnn, params: {a: [1]}}", "model.params.a"}, Refusal{"model: {zo: cnn}", "one of zoo"},
        Refusal{"data: {source: mnist}", "expected fashion-mnist, idx, safetensors, csv or text"},
        Refusal{"data: {source: fashion-mnsit}", "did you mean 'fashion-mnist'?"}, Refusal{"data: {source: text}", "data.path: required"},
        Refusal{"data: {source: csv}", "data.path"}, Refusal{"data: {path: x}", "without data.source"},
        Refusal{"data: {source: idx, path: x, label: y}", "only for source csv"},
        Refusal{"data: {source: fashion-mnist, partition: {kind: pie}}", "data.partition.kind"},
        Refusal{"data: {source: fashion-mnist, partition: {kind: by_file}}", "by_file"},
        Refusal{"data: {source: fashion-mnist, partition: {kind: dirichlet, alpha: 0}}", "alpha"},
        Refusal{"data: {source: fashion-mnist, partition: {kind: dirichlet, alpha: .nan}}", "finite"},
        Refusal{"data: {source: fashion-mnist, partition: {kind: iid, alpha: 1}}", "only for kind dirichlet"},
        Refusal{"data: {source: fashion-mnist, partition: {kind: shards, shards_per_client: 0}}", "shards_per_client"},
        Refusal{"data: {source: fashion-mnist, seed: -1}", "data.seed"}, Refusal{"strategy: {cutoff: 1}", "strategy.name: required"},
        Refusal{"strategy: ''", "strategy"}, Refusal{"strategy: {name: f, deep: {x: {y: 1}}}", "strategy.deep"},
        Refusal{"cohort: {}", "cohort.size: required"}, Refusal{"cohort: {size: 0}", "cohort.size: expected 1 to"},
        Refusal{"cohort: {size: -3}", "cohort.size"}, Refusal{"cohort: {size: 1000001}", "cohort.size"},
        Refusal{"cohort: {size: 2.5}", "integer"}, Refusal{"cohort: {size: 2, quorum: 3}", "at most cohort.size = 2"},
        Refusal{"cohort: {size: 2, quorum: 0}", "cohort.quorum"}, Refusal{"cohort: {size: 2, deadline_s: 0}", "cohort.deadline_s"},
        Refusal{"cohort: {size: 2, deadline_s: -1}", "cohort.deadline_s"}, Refusal{"cohort: {size: 2, deadline_s: 1e300}", "deadline_s"},
        Refusal{"cohort: {size: 2, deadline_s: .inf}", "finite"}, Refusal{"cohort: {size: 2, over_select: 0.9}", "over_select"},
        Refusal{"cohort: {size: 2, over_select: 11}", "over_select"}, Refusal{"cohort: {siez: 2, size: 2}", "did you mean 'size'?"},
        Refusal{"cohort: {size: 5, population: 4}", "at least cohort.size = 5"}, Refusal{"cohort: {size: 5, rate: 0.1}", "only with sampling poisson"},
        Refusal{"cohort: {sampling: poisson, population: 9}", "rate"},
        Refusal{"cohort: {sampling: poisson, rate: 0.1, population: 9, size: 3}", "how many take part is chance"},
        Refusal{"cohort: {sampling: bernoulli, size: 2}", "fixed or poisson"},
        Refusal{"cohort: {size: 5, population: 9, over_select: 1.2}", "no longer a uniform draw"},
        Refusal{"local: {epochs: 1, steps: 1}", "not both"}, Refusal{"local: {epochs: 0}", "local.epochs"},
        Refusal{"local: {steps: 0}", "local.steps"}, Refusal{"local: {batch: 0}", "local.batch"}, Refusal{"local: {lr: 0}", "local.lr"},
        Refusal{"local: {lr: nan}", "local.lr"}, Refusal{"local: {lr: -0.1}", "local.lr"}, Refusal{"local: {momentum: 1}", "local.momentum"},
        Refusal{"local: {momentum: -0.1}", "local.momentum"}, Refusal{"local: {weight_decay: -1}", "local.weight_decay"}, Refusal{"local: {precision: fp16}", "local.precision"},
        Refusal{"local: {beta1: 0.5}", "only for solver adamw, not sgd"}, Refusal{"local: {solver: adamw, beta2: 1}", "local.beta2"},
        Refusal{"local: {solver: adamw, epsilon: 0}", "local.epsilon"}, Refusal{"local: {solver: adamw, momentum: 0.9}", "adamw has beta1"},
        Refusal{"data: {source: csv, path: a, window: 64}", "only for source text"}, Refusal{"data: {source: text, path: a, window: 1}", "data.window"},
        Refusal{"data: {source: text, path: a, tokenizer: ''}", "data.tokenizer"}, Refusal{"data: {source: text, path: a, tokenizer_sha256: ab}", "64 digits"},
        Refusal{"data: {tokenizer: t.json}", "means nothing without data.source"},
        Refusal{"local: {steps: [1, 0]}", "integers from 1"}, Refusal{"local: {lr: []}", "empty list"}, Refusal{"local: {solver: adam}", "local.solver"},
        Refusal{"dtype: float16", "dtype"}, Refusal{"codec: f64", "dtype float32 needs codec f32"},
        Refusal{"dtype: float64\ncodec: int8", "dtype float64 needs codec f64"}, Refusal{"codec: {kind: int8, fraction: 0.1}", "only for kind topk"},
        Refusal{"codec: {kind: topk, fraction: 0}", "(0, 1]"}, Refusal{"codec: zip", "codec"}, Refusal{"durability: maybe", "durability"},
        Refusal{"record: maybe", "true or false"},
        Refusal{"privacy: {clip: 1, delta: 1e-5}", "noise_multiplier"}, Refusal{"privacy: {clip: 1, noise_multiplier: 1}", "delta"},
        Refusal{"privacy: {noise_multiplier: 1, delta: 1e-5}", "clip"}, Refusal{"privacy: {clip: 1, noise_multiplier: 1, delta: 1}", "(0, 1)"},
        Refusal{"privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5, adjacency: add_remove}", "one client more means one less"},
        Refusal{"privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5, placement: local}\ncodec: topk", "error feedback"},
        Refusal{"privacy: {mechanism: laplace, clip: 1, noise_multiplier: 1, delta: 1e-5}", "gaussian"},
        Refusal{"simulate: {delai: {}}", "did you mean 'delay'?"},
        Refusal{"simulate: {participation: {kind: fixed}}", "needs size"},
        Refusal{"simulate: {participation: {kind: all, p: 0.5}}", "only for kind bernoulli, markov, cyclic"},
        Refusal{"simulate: {delay: {kind: uniform, low: 2, high: 1}}", "low <= high"},
        Refusal{"simulate: {delay: {kind: trace}}", "exactly one of file and events"},
        Refusal{"simulate: {channel: {snr_db: 3, uplink_var: 1}}", "not both"},
        Refusal{"stop: {versions: 0}", "stop.versions"},
        Refusal{"stop: {accuracy: 1.1}", "stop.accuracy"}, Refusal{"stop: {accuracy: -0.1}", "stop.accuracy"},
        Refusal{"evaluate: {every: 0}", "evaluate.every"}, Refusal{"evaluate: {clients: [a/b]}", "evaluate.clients"},
        Refusal{"evaluate: {clients: one}", "expected a list"}, Refusal{"reproducible: 1", "true or false"},
        Refusal{"hierarchy: tree", "hierarchy: expected a map"}, Refusal{"hierarchy: {shpae: tree}", "did you mean 'shape'?"},
        Refusal{"hierarchy: {shape: ring}", "hierarchy.shape: expected auto, flat, shard or tree, got 'ring'"},
        Refusal{"hierarchy: {shape: tre}", "did you mean 'tree'?"}, Refusal{"hierarchy: {shape: [tree]}", "hierarchy.shape"},
        Refusal{"hierarchy: {leaf_fan_in: 0}", "hierarchy.leaf_fan_in: expected 1 to 4096, got 0"},
        Refusal{"hierarchy: {leaf_fan_in: two}", "hierarchy.leaf_fan_in: expected an integer"},
        Refusal{"hierarchy: {timing: eagr}", "expected eager, lazy, batch or jit, got 'eagr' (did you mean 'eager'?)"},
        Refusal{"hierarchy: {timing: ''}", "hierarchy.timing"}, Refusal{"hierarchy: {timing: }", "hierarchy.timing"},
        Refusal{"hierarchy: {timing: eager:3}", "eager takes no number, got 'eager:3'"},
        Refusal{"hierarchy: {timing: 'batch:'}", "expected batch:N with N from 1 to 4096, got 'batch:'"},
        Refusal{"hierarchy: {timing: batch:0}", "got 'batch:0'"}, Refusal{"hierarchy: {timing: batch:-1}", "got 'batch:-1'"},
        Refusal{"hierarchy: {timing: batch:4097}", "got 'batch:4097'"}, Refusal{"hierarchy: {timing: batch:4:4}", "got 'batch:4:4'"},
        Refusal{"hierarchy: {timing: batch:99999999999999999999}", "batch:N"}, Refusal{"hierarchy: {timing: [eager]}", "hierarchy.timing: expected a map"},
        Refusal{"hierarchy: {timing: {}}", "hierarchy.timing.kind: required"}, Refusal{"hierarchy: {timing: {kind: lasy}}", "did you mean 'lazy'?"},
        Refusal{"hierarchy: {timing: {kind: lazy, size: 3}}", "only for kind batch, not lazy"},
        Refusal{"hierarchy: {timing: {kind: jit, age_ms: 3}}", "only for kind batch, not jit"},
        Refusal{"hierarchy: {timing: {kind: batch, slack_ms: 3}}", "only for kind jit, not batch"},
        Refusal{"hierarchy: {timing: {kind: batch, age_ms: 0}}", "hierarchy.timing.age_ms: expected a number in [1,"},
        Refusal{"hierarchy: {timing: {kind: jit, slack_ms: -1}}", "hierarchy.timing.slack_ms"},
        Refusal{"hierarchy: {timing: {kind: batch, siez: 3}}", "did you mean 'size'?"},
        Refusal{"hierarchy: {placement: ''}", "hierarchy.placement: expected a name"}, Refusal{"hierarchy: {placement: {}}", "hierarchy.placement"},
        Refusal{"hierarchy: {plan: emwa}", "did you mean 'ewma'?"}, Refusal{"hierarchy: {plan: static}", "static needs the number of leaves"},
        Refusal{"hierarchy: {plan: static:0}", "expected static:N with N from 1 to 1024"}, Refusal{"hierarchy: {plan: ewma:2}", "ewma takes no number"},
        Refusal{"hierarchy: {plan: {}}", "hierarchy.plan.kind: required"}, Refusal{"hierarchy: {plan: {kind: static}}", "static needs the number of leaves"},
        Refusal{"hierarchy: {plan: {kind: ewma, leaves: 2}}", "only for kind static, not ewma"},
        Refusal{"hierarchy: {plan: {kind: static, leaves: 2, weight: 0.5}}", "only for kind ewma, not static"},
        Refusal{"hierarchy: {plan: {kind: static, leaves: 2, on: sample}}", "only for kind ewma, not static"},
        Refusal{"hierarchy: {plan: {kind: ewma, weight: 1.01}}", "hierarchy.plan.weight"},
        Refusal{"hierarchy: {plan: {kind: ewma, weight: -0.1}}", "hierarchy.plan.weight"},
        Refusal{"hierarchy: {plan: {kind: ewma, weight: .nan}}", "finite"}, Refusal{"hierarchy: {plan: {kind: ewma, on: both}}", "history or sample"},
        Refusal{"hierarchy: {plan: {kind: ewma, period_s: 0}}", "hierarchy.plan.period_s"},
        Refusal{"hierarchy: {reuse: true}", "hierarchy.reuse: expected on or off, got 'true'"}, Refusal{"hierarchy: {reuse: maybe}", "hierarchy.reuse"},
        Refusal{"max_weight: 0", "max_weight"}, Refusal{"max_weight: -1", "max_weight"}, Refusal{"max_weight: .inf", "finite"},
        Refusal{"seed: -1", "seed"}, Refusal{"cohrot: {size: 3}", "unknown key 'cohrot' (did you mean 'cohort'?)"},
        Refusal{"stategy: fedavg", "did you mean 'strategy'?"}, Refusal{"xyzzy: 1", "unknown key 'xyzzy'; known: name"}));

TEST(JobSpecTest, MissingKeysAreNamed) {
  EXPECT_THAT(ParseJobSpec("model: {zoo: cnn}\ncohort: {size: 2}\n", "j"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name: required")));
  EXPECT_THAT(ParseJobSpec("name: n\ncohort: {size: 2}\n", "j"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model: expected exactly one")));
  EXPECT_THAT(ParseJobSpec("name: n\nmodel: {zoo: cnn}\n", "j"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cohort.size: required")));
}

TEST(JobSpecTest, AMissingFileIsNotFound) {
  EXPECT_THAT(ReadJobSpec("/nonexistent/job.yaml"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/job.yaml")));
}

std::string WithModel(const std::string& model) { return "name: n\nmodel: {" + model + "}\ncohort: {size: 2}\n"; }

TEST(JobSpecTest, ReadsAnAdapterAndItsBase) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(WithModel("zoo: transformer, base: b.safetensors, adapter: {rank: 4, alpha: 8, targets: [q_proj, "
                                                                       "self_attn.v_proj], dropout: 0.1, rank_stabilised: true}"),
                                                             "j.yaml"));
  const AdapterSpec& adapter = spec.model.adapter;
  EXPECT_TRUE(adapter.enabled());
  EXPECT_EQ(spec.model.base, "b.safetensors");
  EXPECT_EQ(adapter.rank, 4);
  EXPECT_EQ(adapter.targets, (std::vector<std::string>{"q_proj", "self_attn.v_proj"}));
  EXPECT_EQ(adapter.dropout, 0.1);
  EXPECT_DOUBLE_EQ(adapter.Scale(), 4);  // 8/√4
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(CanonicalYaml(spec), "canonical"));
  EXPECT_EQ(again, spec);
}

TEST(JobSpecTest, AListOfRanksIsOneForEachClient) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(WithModel("zoo: mlp, adapter: {rank: [2, 8, 4], targets: [fc1]}"), "j.yaml"));
  EXPECT_EQ(spec.model.adapter.rank, 8);
  EXPECT_DOUBLE_EQ(spec.model.adapter.Scale(), 2);  // of alpha 16
  TRIB_ASSERT_OK_AND_ASSIGN(const int64_t third, spec.model.adapter.RankOf(2));
  EXPECT_EQ(third, 4);
  EXPECT_THAT(spec.model.adapter.RankOf(3), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rank has 3 values, client 3 has none")));
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(CanonicalYaml(spec), "canonical"));
  EXPECT_EQ(again, spec);
}

TEST(JobSpecTest, ReadsTheBudgetOfAdaLora) {
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec plain, ParseJobSpec(WithModel("zoo: mlp, adapter: {kind: adalora, targets: [fc1]}"), "j.yaml"));
  EXPECT_TRUE(plain.model.adapter.triplets());
  EXPECT_EQ(plain.model.adapter.rank, 12);
  EXPECT_EQ(plain.model.adapter.adalora, AdaLoraSpec{});
  EXPECT_DOUBLE_EQ(plain.model.adapter.Scale(), 16 / 12.00001);
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(WithModel("zoo: mlp, adapter: {kind: adalora, rank: 6, target_rank: 3, targets: [fc1], init_versions: 2, "
                                                                       "final_versions: 4, interval: 5, regrow: false, beta1: 0.9, beta2: 0.8, orthogonal: 0.5}"),
                                                             "j.yaml"));
  EXPECT_EQ(spec.model.adapter.adalora, (AdaLoraSpec{.target_rank = 3, .init_versions = 2, .final_versions = 4, .interval = 5, .regrow = false, .beta1 = 0.9, .beta2 = 0.8, .orthogonal = 0.5}));
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec again, ParseJobSpec(CanonicalYaml(spec), "canonical"));
  EXPECT_EQ(again, spec);
}

TEST(JobSpecTest, RefusesAdaptersThatMakeNoSense) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"zoo: mlp, adapter: {rank: 4}", "targets"},
      {"zoo: mlp, adapter: {targets: []}", "expected names of linear layers"},
      {"zoo: mlp, adapter: {targets: [\"a b\"]}", "expected names of linear layers, got 'a b'"},
      {"zoo: mlp, adapter: {targets: [fc1], rank: 0}", "expected 1 to 4096, got 0"},
      {"zoo: mlp, adapter: {targets: [fc1], rank: [2, x]}", "got 'x'"},
      {"zoo: mlp, adapter: {targets: [fc1], rank: []}", "empty list"},
      {"zoo: mlp, adapter: {targets: [fc1], alpha: -1}", "alpha"},
      {"zoo: mlp, adapter: {targets: [fc1], dropout: 1}", "expected a number in [0, 1), got 1"},
      {"zoo: mlp, adapter: {targets: [fc1], kind: lore}", "expected lora or adalora, got 'lore'"},
      {"zoo: mlp, adapter: {targets: [fc1], ranks: 4}", "did you mean 'rank'"},
      {"zoo: mlp, adapter: {targets: [fc1], target_rank: 4}", "target_rank"},
      {"zoo: mlp, adapter: {kind: adalora, targets: [fc1], rank: 6}", "expected at most rank = 6, got 8"},
      {"zoo: mlp, adapter: {kind: adalora, targets: [fc1], rank_stabilised: true}", "rank_stabilised"},
      {"zoo: mlp, adapter: {kind: adalora, targets: [fc1], interval: 0}", "interval"},
      {"zoo: mlp, adapter: {targets: [fc1], regrow: false}", "regrow"},
      {"zoo: mlp, adapter: {kind: adalora, targets: [fc1], beta1: 1}", "expected a number in (0, 1), got 1"},
      {"tensors: a.safetensors, adapter: {targets: [fc1]}", "only a model of the zoo"},
      {"zoo: mlp, base: a.safetensors", "only beside an adapter"},
  };
  for (const auto& [model, message] : wrong) {
    EXPECT_THAT(ParseJobSpec(WithModel(model), "j.yaml"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << model;
  }
}

}  // namespace
}  // namespace tributary
