#include "common/job_spec.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>

#include "common/file.h"
#include "common/ids.h"
#include "common/suggest.h"
#include "common/yaml_section.h"

namespace tributary {
namespace {

constexpr int64_t kMaxCount = 1'000'000'000;
constexpr int64_t kMaxCohort = 1'000'000;
constexpr double kAdamWRate = 0.001;  // where a job names none
constexpr int64_t kMaxTextWindow = int64_t{1} << 20;
constexpr double kMaxDeadlineSeconds = 1e7;  // 115 days

using Section = YamlSection;

void ReadModel(YamlReader& top, ModelSpec* model) {
  bool present = false;
  Section map(top.Map("model", &present));
  map.reader().String("zoo", &model->zoo);
  map.reader().Scalars("params", &model->params);
  map.reader().String("torchscript", &model->torchscript);
  map.reader().String("tensors", &model->tensors);
  map.reader().String("init", &model->init);
  map.reader().String("base", &model->base);
  ReadAdapter(map.reader(), "adapter", &model->adapter);
  for (const auto& [key, value] : std::map<std::string_view, std::string>{
           {"zoo", model->zoo}, {"torchscript", model->torchscript}, {"tensors", model->tensors}, {"init", model->init}, {"base", model->base}}) {
    if (map.Has(key) && value.empty()) map.Fail(key, "expected a value, got an empty text");
  }
  const int sources = map.Has("zoo") + map.Has("torchscript") + map.Has("tensors");
  if (sources != 1) {
    top.Fail("model", fmt::format("expected exactly one of zoo, torchscript and tensors, got {}", sources));
  }
  if (map.Has("params") && !map.Has("zoo")) map.Fail("params", "only a model of the zoo has parameters");
  if (map.Has("init") && map.Has("tensors")) map.Fail("init", "a model given by tensors already has its initial weights");
  if (map.Has("adapter") && !map.Has("zoo")) map.Fail("adapter", "only a model of the zoo shows which of its layers are linear");
  if (map.Has("base") && !map.Has("adapter")) map.Fail("base", "only beside an adapter: what is trained begins as init says");
}

void ReadData(YamlReader& top, DataSpec* data) {
  Section map(top.Map("data"));
  map.Choice("source", &data->source, {"fashion-mnist", "idx", "safetensors", "csv", "text"});
  map.reader().String("path", &data->path);
  map.reader().String("label", &data->label);
  map.Int("window", &data->window, 2, kMaxTextWindow);
  map.reader().String("tokenizer", &data->tokenizer);
  map.reader().String("tokenizer_sha256", &data->tokenizer_sha256);
  map.Int("seed", &data->seed, 0, INT64_MAX);
  for (const std::string_view key : {"path", "label", "window", "tokenizer", "tokenizer_sha256", "partition"}) {
    if (map.Has(key) && !map.Has("source")) map.Fail(key, "means nothing without data.source");
  }
  if (map.Has("label") && data->source != "csv") map.Fail("label", fmt::format("only for source csv, not {}", data->source));
  for (const std::string_view key : {"window", "tokenizer", "tokenizer_sha256"}) {
    if (map.Has(key) && data->source != "text") map.Fail(key, fmt::format("only for source text, not {}", data->source));
  }
  if (map.Has("tokenizer") && data->tokenizer.empty()) map.Fail("tokenizer", "expected the path of a tokenizer.json on the client's machine, got an empty text");
  if (map.Has("tokenizer_sha256")) {
    const std::string& hash = data->tokenizer_sha256;
    if (hash.size() != 64 || hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
      map.Fail("tokenizer_sha256", fmt::format("expected 64 digits of 0-9a-f, got '{}'", hash));
    }
    if (!map.Has("tokenizer")) map.Fail("tokenizer_sha256", "means nothing without tokenizer");
  }
  if (map.Has("source") && data->source != "fashion-mnist" && data->path.empty()) {
    map.Fail("path", fmt::format("required with source {}: a file or folder on the client's machine", data->source));
  }
  Section partition(map.reader().Map("partition"));
  PartitionSpec& spec = data->partition;
  partition.Choice("kind", &spec.kind, {"iid", "dirichlet", "shards", "by_file"});
  partition.Double("alpha", &spec.alpha, "in (0, 1e6]", [](double v) { return v > 0 && v <= 1e6; });
  partition.Int("shards_per_client", &spec.shards_per_client, 1, kMaxCohort);
  if (partition.Has("alpha") && spec.kind != "dirichlet") {
    partition.Fail("alpha", fmt::format("only for kind dirichlet, not {}", spec.kind));
  }
  if (partition.Has("shards_per_client") && spec.kind != "shards") {
    partition.Fail("shards_per_client", fmt::format("only for kind shards, not {}", spec.kind));
  }
  if (spec.kind == "by_file" && data->source == "fashion-mnist") {
    partition.Fail("kind", "by_file needs one file per client, fashion-mnist has one for all");
  }
}

void ReadStrategy(YamlReader& top, StrategySpec* strategy) {
  if (top.IsScalar("strategy")) {  // the short form `strategy: fedavg`
    top.String("strategy", &strategy->name);
  } else {
    Section map(top.Map("strategy"));
    map.reader().String("name", &strategy->name,
                        top.Has("strategy") ? YamlReader::kRequired : YamlReader::kOptional);
    map.reader().RemainingScalars(&strategy->params);
  }
  if (strategy->name.empty()) top.Fail("strategy", "expected a name, got an empty text");
}

void ReadCohort(YamlReader& top, CohortSpec* cohort) {
  Section map(top.Map("cohort"));
  std::string sampling = "fixed";
  map.Choice("sampling", &sampling, {"fixed", "poisson"});
  cohort->poisson = sampling == "poisson";
  map.Int("population", &cohort->population, 1, kMaxCohort);
  map.Double("rate", &cohort->rate, "in (0, 1]", [](double v) { return v > 0 && v <= 1; });
  if (cohort->poisson) {
    if (!map.Has("rate")) map.Fail("sampling", "poisson needs the probability with which each client takes part: rate");
    for (const std::string_view key : {"size", "over_select"}) {
      if (map.Has(key)) map.Fail(key, "not with sampling poisson: how many take part is chance");
    }
    cohort->size = cohort->PoissonSize();
  } else {
    if (map.Has("rate")) map.Fail("rate", "only with sampling poisson, not fixed");
    map.Int("size", &cohort->size, 1, kMaxCohort, YamlReader::kRequired);
    if (map.Has("population") && cohort->population < cohort->size) {
      map.Fail("population", fmt::format("expected at least cohort.size = {}, got {}", cohort->size, cohort->population));
    }
  }
  map.Int("quorum", &cohort->quorum, 1, kMaxCohort);
  if (cohort->quorum > cohort->size) {
    map.Fail("quorum", fmt::format("expected at most cohort.size = {}, got {}", cohort->size, cohort->quorum));
  }
  double seconds = 0;
  map.Double("deadline_s", &seconds, "in [0.001, 1e7]", [](double v) { return v >= 0.001 && v <= kMaxDeadlineSeconds; });
  // Whole milliseconds, so that the canonical text gives the same value again.
  if (seconds >= 0.001 && seconds <= kMaxDeadlineSeconds) cohort->deadline = absl::Milliseconds(std::llround(seconds * 1000));
  map.Double("over_select", &cohort->over_select, "in [1, 10]", [](double v) { return v >= 1 && v <= 10; });
  if (cohort->population > 0 && cohort->over_select > 1) {
    map.Fail("over_select", "not with population: taking the first to answer is no longer a uniform draw");
  }
}

// A list with one value for each client.
template <typename T, typename Parse>
std::vector<T> ReadEach(Section& map, std::string_view key, std::string_view wanted, Parse parse) {
  std::vector<std::string> texts;
  map.reader().StringList(key, &texts);
  std::vector<T> values;
  for (const std::string& text : texts) {
    T value{};
    if (!parse(text, &value)) map.Fail(key, fmt::format("expected {}, got '{}'", wanted, text));
    values.push_back(value);
  }
  if (values.empty()) map.Fail(key, "expected a value, or a list of one for each client, got an empty list");
  return values;
}

void ReadLocal(YamlReader& top, LocalSpec* local) {
  Section map(top.Map("local"));
  map.Choice("solver", &local->solver, {"sgd", "adamw", "exact", "eggroll"});
  const bool adamw = local->solver == "adamw";
  if (adamw) local->lr = kAdamWRate;
  map.Int("epochs", &local->epochs, 1, kMaxCount);
  if (map.Has("steps") && !map.reader().IsScalar("steps")) {
    local->client_steps = ReadEach<int64_t>(map, "steps", "integers from 1 to 1e9", [](const std::string& text, int64_t* out) {
      return absl::SimpleAtoi(text, out) && *out >= 1 && *out <= kMaxCount;
    });
    if (!local->client_steps.empty()) local->steps = local->client_steps[0];
  } else {
    map.Int("steps", &local->steps, 1, kMaxCount);
  }
  if (map.Has("epochs") && map.Has("steps")) map.Fail("steps", "give either epochs or steps, not both");
  map.Int("batch", &local->batch, 1, kMaxCount);
  if (map.Has("lr") && !map.reader().IsScalar("lr")) {
    local->client_lr = ReadEach<double>(map, "lr", "numbers in (0, 1e6]", [](const std::string& text, double* out) {
      return absl::SimpleAtod(text, out) && *out > 0 && *out <= 1e6;
    });
    if (!local->client_lr.empty()) local->lr = local->client_lr[0];
  } else {
    map.Double("lr", &local->lr, "in (0, 1e6]", [](double v) { return v > 0 && v <= 1e6; });
  }
  map.Double("momentum", &local->momentum, "in [0, 1)", [](double v) { return v >= 0 && v < 1; });
  map.Double("weight_decay", &local->weight_decay, "in [0, 1e6]", [](double v) { return v >= 0 && v <= 1e6; });
  map.Double("beta1", &local->beta1, "in [0, 1)", [](double v) { return v >= 0 && v < 1; });
  map.Double("beta2", &local->beta2, "in [0, 1)", [](double v) { return v >= 0 && v < 1; });
  map.Double("epsilon", &local->epsilon, "in (0, 1]", [](double v) { return v > 0 && v <= 1; });
  for (const std::string_view key : {"beta1", "beta2", "epsilon"}) {
    if (map.Has(key) && !adamw) map.Fail(key, fmt::format("only for solver adamw, not {}", local->solver));
  }
  if (map.Has("momentum") && adamw) map.Fail("momentum", "only for solver sgd: adamw has beta1");
  map.Choice("precision", &local->precision, {"f32", "bf16"});
}

void ReadNumerics(Section& top, JobSpec* spec) {
  std::string dtype = "float32";
  top.Choice("dtype", &dtype, {"float32", "float64"});
  spec->dtype = dtype == "float64" ? DType::kF64 : DType::kF32;
  spec->codec = spec->dtype == DType::kF64 ? "f64" : "f32";
  const std::vector<std::string> known = {"f32", "f64", "bf16", "f16", "int8", "int4", "topk"};
  if (top.Has("codec") && !top.reader().IsScalar("codec")) {
    Section map(top.reader().Map("codec"));
    if (!map.Has("kind")) map.reader().String("kind", &spec->codec, YamlReader::kRequired);
    map.Choice("kind", &spec->codec, known);
    map.Double("fraction", &spec->topk_fraction, "in (0, 1]", [](double v) { return v > 0 && v <= 1; });
    if (map.Has("fraction") && spec->codec != "topk") map.Fail("fraction", fmt::format("only for kind topk, not {}", spec->codec));
  } else {
    top.Choice("codec", &spec->codec, known);
  }
  if (top.Has("codec") && (spec->dtype == DType::kF64) != (spec->codec == "f64")) {
    top.Fail("codec", fmt::format("dtype {} needs codec {}, got {}", dtype, spec->dtype == DType::kF64 ? "f64" : "f32 or a smaller one", spec->codec));
  }
  std::string durability = "durable";
  top.Choice("durability", &durability, {"durable", "ephemeral"});
  spec->durability = durability == "ephemeral" ? Durability::kEphemeral : Durability::kDurable;
}

// What of the rest of a job does not go with noise that is accounted for.
void CheckPrivacy(Section& top, const JobSpec& spec) {
  if (spec.cohort.over_select > 1) {
    top.Fail("privacy", "cohort.over_select lets the fastest in, not a uniform draw: what a version costs is not known then");
  }
  if (spec.codec == "topk" && spec.privacy.placement != NoisePlacement::kCentral) {
    top.Fail("privacy", fmt::format("codec topk with {} noise: error feedback would add the noise of earlier updates to later ones",
                                    NoisePlacementName(spec.privacy.placement)));
  }
}

}  // namespace

AdapterMode AdaptersOf(const StrategySpec& strategy) {
  const auto adapters = strategy.params.find("adapters");
  return adapters == strategy.params.end() ? AdapterMode::kNone : AdapterModeOf(adapters->second).value_or(AdapterMode::kNone);
}

absl::StatusOr<LocalSpec> LocalSpec::Of(int64_t client) const {
  LocalSpec own = *this;
  own.client_steps.clear();
  own.client_lr.clear();
  const auto index = static_cast<size_t>(client);
  if ((!client_steps.empty() && index >= client_steps.size()) || (!client_lr.empty() && index >= client_lr.size())) {
    return InvalidArgument("local: {} has {} values, client {} has none", !client_steps.empty() && index >= client_steps.size() ? "steps" : "lr",
                           !client_steps.empty() && index >= client_steps.size() ? client_steps.size() : client_lr.size(), client);
  }
  if (!client_steps.empty()) own.steps = client_steps[index];
  if (!client_lr.empty()) own.lr = client_lr[index];
  return own;
}

int64_t CohortSpec::PoissonSize() const {
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(rate * static_cast<double>(population) - 1e-9)));
}

int64_t JobSpec::ClientsAsked() const {
  // The small slack keeps 10 × 1.1 = 11.000000000000002 from asking for 12.
  const double asked = std::ceil(static_cast<double>(cohort.size) * cohort.over_select - 1e-9);
  return std::max(cohort.size, static_cast<int64_t>(asked));
}

UpdateEncoding JobSpec::Encoding(const TensorLayout& layout) const {
  // Names other than those of the list above never get into a JobSpec.
  return UpdateEncoding::Of(CodecOf(codec).value_or(Codec::kPlain), topk_fraction, layout);
}

absl::StatusOr<JobSpec> ParseJobSpec(std::string_view yaml, const std::string& origin) {
  TRIB_ASSIGN_OR_RETURN(YamlReader reader, YamlReader::Parse(yaml, origin));
  JobSpec spec;
  Section top(reader);
  reader.String("name", &spec.name, YamlReader::kRequired);
  if (const absl::Status valid = ValidateJobName(spec.name); !valid.ok() && reader.Has("name")) {
    reader.Fail("name", MessageOf(valid));
  }
  ReadModel(reader, &spec.model);
  ReadData(reader, &spec.data);
  ReadStrategy(reader, &spec.strategy);
  ReadCohort(reader, &spec.cohort);
  ReadLocal(reader, &spec.local);
  ReadNumerics(top, &spec);
  ReadSimulate(reader, "simulate", &spec.simulate);
  reader.Bool("record", &spec.record);
  Section stop(reader.Map("stop"));
  stop.Int("versions", &spec.stop.versions, 1, kMaxCount);
  stop.Double("accuracy", &spec.stop.accuracy, "in [0, 1]", [](double v) { return v >= 0 && v <= 1; });
  Section evaluate(reader.Map("evaluate"));
  evaluate.Int("every", &spec.evaluate.every, 1, kMaxCount);
  evaluate.reader().StringList("clients", &spec.evaluate.clients);
  for (const std::string& id : spec.evaluate.clients) {
    if (const absl::Status valid = ValidateClientId(id); !valid.ok()) evaluate.Fail("clients", MessageOf(valid));
  }
  ReadPrivacy(reader, "privacy", spec.cohort.poisson, &spec.privacy);
  if (reader.Has("privacy")) CheckPrivacy(top, spec);
  ReadHierarchy(reader, "hierarchy", &spec.hierarchy);
  reader.Bool("reproducible", &spec.reproducible);
  top.Double("max_weight", &spec.max_weight, "greater than 0", [](double v) { return v > 0; });
  top.Int("seed", &spec.seed, 0, INT64_MAX);
  spec.cohort.draw_key = static_cast<uint64_t>(spec.seed);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return spec;
}

absl::StatusOr<JobSpec> ReadJobSpec(const std::filesystem::path& path) {
  TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, size_t{1} << 20));
  return ParseJobSpec(text, path.string());
}

std::string CanonicalYaml(const JobSpec& spec) {
  std::string out;
  const auto line = [&out](std::string_view indent, std::string_view key, const std::string& value) {
    out += fmt::format("{}{}: {}\n", indent, key, value);
  };
  const auto number = [](auto value) { return fmt::format("{}", value); };
  line("", "name", Quoted(spec.name));
  out += "model:\n";
  if (!spec.model.zoo.empty()) {
    line("  ", "zoo", Quoted(spec.model.zoo));
    std::string params;
    for (const auto& entry : spec.model.params) {
      params += (params.empty() ? "" : ", ") + Quoted(entry.first) + ": " + Quoted(entry.second);
    }
    line("  ", "params", "{" + params + "}");
  }
  if (!spec.model.torchscript.empty()) line("  ", "torchscript", Quoted(spec.model.torchscript));
  if (!spec.model.tensors.empty()) line("  ", "tensors", Quoted(spec.model.tensors));
  if (!spec.model.init.empty()) line("  ", "init", Quoted(spec.model.init));
  if (!spec.model.base.empty()) line("  ", "base", Quoted(spec.model.base));
  if (spec.model.adapter.enabled()) line("  ", "adapter", CanonicalAdapter(spec.model.adapter));
  out += "data:\n";
  line("  ", "seed", number(spec.data.seed));
  if (!spec.data.source.empty()) {
    line("  ", "source", Quoted(spec.data.source));
    if (!spec.data.path.empty()) line("  ", "path", Quoted(spec.data.path));
    if (!spec.data.label.empty()) line("  ", "label", Quoted(spec.data.label));
    if (spec.data.source == "text" && spec.data.window != DataSpec().window) line("  ", "window", number(spec.data.window));
    if (!spec.data.tokenizer.empty()) line("  ", "tokenizer", Quoted(spec.data.tokenizer));
    if (!spec.data.tokenizer_sha256.empty()) line("  ", "tokenizer_sha256", Quoted(spec.data.tokenizer_sha256));
    out += "  partition:\n";
    line("    ", "kind", Quoted(spec.data.partition.kind));
    if (spec.data.partition.kind == "dirichlet") line("    ", "alpha", number(spec.data.partition.alpha));
    if (spec.data.partition.kind == "shards") line("    ", "shards_per_client", number(spec.data.partition.shards_per_client));
  }
  out += "strategy:\n";
  line("  ", "name", Quoted(spec.strategy.name));
  for (const auto& entry : spec.strategy.params) line("  ", Quoted(entry.first), Quoted(entry.second));
  out += "cohort:\n";
  if (spec.cohort.poisson) {
    line("  ", "sampling", "poisson");
    line("  ", "rate", number(spec.cohort.rate));
  } else {
    line("  ", "size", number(spec.cohort.size));
  }
  if (spec.cohort.population != 0) line("  ", "population", number(spec.cohort.population));
  if (spec.cohort.quorum != 0) line("  ", "quorum", number(spec.cohort.quorum));
  if (spec.cohort.deadline != absl::InfiniteDuration()) {
    line("  ", "deadline_s", number(static_cast<double>(absl::ToInt64Milliseconds(spec.cohort.deadline)) / 1000.0));
  }
  if (!spec.cohort.poisson) line("  ", "over_select", number(spec.cohort.over_select));
  out += "local:\n";
  line("  ", "solver", Quoted(spec.local.solver));
  if (!spec.local.client_steps.empty()) {
    line("  ", "steps", fmt::format("[{}]", fmt::join(spec.local.client_steps, ", ")));
  } else if (spec.local.steps > 0) {
    line("  ", "steps", number(spec.local.steps));
  } else {
    line("  ", "epochs", number(spec.local.epochs));
  }
  line("  ", "batch", number(spec.local.batch));
  line("  ", "lr", spec.local.client_lr.empty() ? number(spec.local.lr) : fmt::format("[{}]", fmt::join(spec.local.client_lr, ", ")));
  if (spec.local.solver != "adamw") line("  ", "momentum", number(spec.local.momentum));
  line("  ", "weight_decay", number(spec.local.weight_decay));
  if (spec.local.solver == "adamw") {
    line("  ", "beta1", number(spec.local.beta1));
    line("  ", "beta2", number(spec.local.beta2));
    line("  ", "epsilon", number(spec.local.epsilon));
  }
  if (spec.local.precision != LocalSpec{}.precision) line("  ", "precision", Quoted(spec.local.precision));
  line("", "dtype", spec.dtype == DType::kF64 ? "float64" : "float32");
  line("", "codec", spec.codec == "topk" ? fmt::format("{{kind: topk, fraction: {}}}", spec.topk_fraction) : Quoted(spec.codec));
  if (spec.privacy.enabled) line("", "privacy", CanonicalPrivacy(spec.privacy));
  line("", "record", spec.record ? "true" : "false");
  line("", "simulate", CanonicalSimulate(spec.simulate));
  line("", "durability", spec.durability == Durability::kEphemeral ? "ephemeral" : "durable");
  out += "stop:\n";
  line("  ", "versions", number(spec.stop.versions));
  line("  ", "accuracy", number(spec.stop.accuracy));
  out += "evaluate:\n";
  line("  ", "every", number(spec.evaluate.every));
  std::string clients;
  for (const std::string& id : spec.evaluate.clients) clients += (clients.empty() ? "" : ", ") + Quoted(id);
  line("  ", "clients", "[" + clients + "]");
  out += CanonicalHierarchy(spec.hierarchy);
  line("", "reproducible", spec.reproducible ? "true" : "false");
  line("", "max_weight", number(spec.max_weight));
  line("", "seed", number(spec.seed));
  return out;
}

}  // namespace tributary
