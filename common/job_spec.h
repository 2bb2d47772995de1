// A job as its YAML describes it (design.md §6), checked as far as one can without knowing the strategies or the models:
// types, ranges, unknown keys (error with the nearest known key), contradictions. Strategy and model parameters stay text here
// and are checked by their registries.
// Threads: values. Errors: INVALID_ARGUMENT with file, line, column, key, expected and got.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/adapter_layout.h"
#include "common/adapter_spec.h"
#include "common/hierarchy_spec.h"
#include "common/privacy_spec.h"
#include "common/simulate_spec.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "common/update_codec.h"

namespace tributary {

using ParamMap = std::map<std::string, std::string>;

struct ModelSpec {            // exactly one of zoo, torchscript, tensors
  std::string zoo;            // a name of client/torch/models/models.def
  ParamMap params;
  std::string torchscript;    // path on the submitter's machine
  std::string tensors;        // safetensors: a model known by its tensors alone (scripted clients, benchmarks)
  std::string init;           // safetensors with the initial weights (of the adapters, if it has some); empty: the zoo's own initialisation from `seed`
  std::string base;           // with an adapter: safetensors with the frozen weights, which the server hands out once; empty: as `init` says of a zoo model
  AdapterSpec adapter;        // zoo only
  // What clients fetch once, beside the versions: its key, torchscript or base, and where it lies at the submitter's; "": nothing.
  std::string_view artifact_key() const { return !torchscript.empty() ? "torchscript" : !base.empty() ? "base" : ""; }
  const std::string& artifact_path() const { return base.empty() ? torchscript : base; }
  bool operator==(const ModelSpec&) const = default;
};

struct PartitionSpec {
  std::string kind = "iid";   // iid | dirichlet | shards | by_file
  double alpha = 0.5;         // dirichlet, > 0
  int64_t shards_per_client = 2;  // shards
  bool operator==(const PartitionSpec&) const = default;
};

struct DataSpec {
  std::string source;         // fashion-mnist | idx | safetensors | csv | text; empty: the learner brings its own data
  std::string path;           // file or folder on the *client's* machine
  std::string label;          // csv: the label column; empty: the last
  int64_t window = 128;       // text: tokens of an example, the model's `input`
  std::string tokenizer;         // text: a tokenizer.json (client/data/bpe.h) on the client's machine; empty: tokens are bytes
  std::string tokenizer_sha256;  // of that file, in lower-case hex; empty: not looked at
  PartitionSpec partition;
  int64_t seed = 0;
  bool operator==(const DataSpec&) const = default;
};

struct StrategySpec {
  std::string name = "fedavg";
  ParamMap params;
  bool operator==(const StrategySpec&) const = default;
};

// Its parameter `adapters`; kNone where it has none that is known.
AdapterMode AdaptersOf(const StrategySpec& strategy);

struct CohortSpec {
  int64_t size = 0;           // >= 1: updates wanted per version. Required; with Poisson sampling rate × population, rounded up
  bool poisson = false;       // sampling: fixed | poisson. Poisson: each client by itself, with probability `rate`
  double rate = 0;            // poisson: in (0, 1]
  // Clients among which cohorts are drawn: no version opens before so many are attached. 0: whoever comes first (no sampling at all); with
  // Poisson sampling all clients of a simulation, and refused by a daemon, which does not know how many will come.
  int64_t population = 0;
  uint64_t draw_key = 0;      // what they are drawn from: `seed`, or in a job with real privacy noise a secret of the aggregator's
  int64_t quorum = 0;         // 0: = size. After the deadline a version commits with at least this many
  absl::Duration deadline = absl::InfiniteDuration();  // deadline_s; counted from the version's start
  double over_select = 1.0;   // >= 1: clients asked = ceil(size × over_select)
  int64_t PoissonSize() const;  // rate × population, rounded up, at least 1
  bool operator==(const CohortSpec&) const = default;
};

struct LocalSpec {
  std::string solver = "sgd";
  int64_t epochs = 1;         // either epochs or steps
  int64_t steps = 0;          // > 0: that many minibatches instead of epochs
  int64_t batch = 32;
  double lr = 0.05;
  // One value for each client, in the order of the data's shards; empty: `steps` and `lr` are everybody's.
  std::vector<int64_t> client_steps;
  std::vector<double> client_lr;
  double momentum = 0.0;      // of sgd
  double weight_decay = 0.0;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // of adamw
  std::string precision = "f32";  // f32 | bf16: products and convolutions in bfloat16 (autocast), everything kept in the model's type
  bool operator==(const LocalSpec&) const = default;
  // Whether all clients make the same number of plain SGD steps at the same rate.
  bool PlainAndEqual() const { return solver == "sgd" && steps > 0 && client_steps.empty() && client_lr.empty() && momentum == 0 && weight_decay == 0; }
  // The same with the values of one client. INVALID_ARGUMENT: a list that ends before it.
  absl::StatusOr<LocalSpec> Of(int64_t client) const;
};

enum class Durability { kDurable, kEphemeral };

struct StopSpec {
  int64_t versions = 10;      // committed versions after the initial one
  double accuracy = 0.0;      // 0: off
  bool operator==(const StopSpec&) const = default;
};

struct EvaluateSpec {
  int64_t every = 1;                  // versions; the last one is always evaluated
  std::vector<std::string> clients;   // ids that evaluate; empty: every client that attached as an evaluator
  bool operator==(const EvaluateSpec&) const = default;
};

struct JobSpec {
  std::string name;
  ModelSpec model;
  DataSpec data;
  StrategySpec strategy;
  CohortSpec cohort;
  LocalSpec local;
  DType dtype = DType::kF32;
  std::string codec = "f32";
  double topk_fraction = 0.01;  // codec {kind: topk, fraction}: share of the trainable elements that is kept, in (0, 1]
  Durability durability = Durability::kDurable;
  StopSpec stop;
  EvaluateSpec evaluate;
  PrivacySpec privacy;
  HierarchySpec hierarchy;
  SimulateSpec simulate;
  bool record = false;        // keep the updates with the versions, for replay
  bool reproducible = false;
  double max_weight = 1e9;    // an update's weight must be in (0, max_weight]
  int64_t seed = 0;           // model initialisation, cohort draws

  bool operator==(const JobSpec&) const = default;
  int64_t EffectiveQuorum() const { return cohort.poisson ? 1 : cohort.quorum == 0 ? cohort.size : cohort.quorum; }
  int64_t ClientsAsked() const;   // ceil(size × over_select)
  UpdateEncoding Encoding(const TensorLayout& layout) const;  // of its updates
};

absl::StatusOr<JobSpec> ParseJobSpec(std::string_view yaml, const std::string& origin);
absl::StatusOr<JobSpec> ReadJobSpec(const std::filesystem::path& path);

// One canonical YAML text for equal specs (all keys, fixed order): stored, hashed and sent to clients. ParseJobSpec(CanonicalYaml(s)) == s.
std::string CanonicalYaml(const JobSpec& spec);

}  // namespace tributary
