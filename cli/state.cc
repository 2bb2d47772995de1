// tributary state: model versions, their contributors and strategy state; through the aggregator, or from disk with --store.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "cli/adapter_files.h"
#include "cli/command.h"
#include "cli/job_json.h"
#include "cli/state_source.h"
#include "common/file.h"
#include "common/ids.h"
#include "proto/codec.h"

namespace tributary::cli {
namespace {

struct StateFlags {
  std::string job;
  std::string store;
  std::optional<uint64_t> version;
  uint64_t from = 0;
  uint64_t to = 0;
  std::string out;
  std::string peft;
  bool strategy_state = false;
};

// Opens the source and resolves the job; `run` gets both and returns an exit code or an error.
template <typename Run>
int WithJob(const Context& context, const StateFlags& flags, Run run) {
  auto source = flags.store.empty() ? ConnectSource(context.server) : OpenStoreSource(flags.store);
  if (!source.ok()) {
    return ReportError(context, source.status(), flags.store.empty() ? "with the aggregator down, read its store by --store DIR" : "");
  }
  const auto id = (*source)->Resolve(flags.job);
  if (!id.ok()) return ReportError(context, id.status(), flags.store.empty() ? "tributary jobs ls" : "");
  const absl::StatusOr<int> code = run(**source, *id);
  return code.ok() ? *code : ReportError(context, code.status());
}

nlohmann::json MetricJson(const v1::Metric& metric) {
  return {{"version", metric.version()},
          {"virtual_or_wall_s", NumberOrNull(metric.wall_s())},
          {"loss", NumberOrNull(metric.loss())},
          {"accuracy", NumberOrNull(metric.accuracy())},
          {"examples", metric.examples()},
          {"evaluator", metric.evaluator()}};
}

std::string UpdateHex(const std::string& bytes) {
  const auto id = UpdateIdFromBytes(bytes);
  return id.ok() ? ToHex(*id) : "";
}

nlohmann::json VersionJson(const v1::VersionInfo& info) {
  nlohmann::json contributors = nlohmann::json::array(), metrics = nlohmann::json::array(), vectors = nlohmann::json::array();
  for (const v1::Contributor& c : info.contributors()) {
    contributors.push_back({{"client", c.client()},
                            {"task", c.task()},
                            {"update_id", UpdateHex(c.update_id())},
                            {"weight", NumberOrNull(c.weight())},
                            {"examples", c.examples()},
                            {"staleness", c.staleness()},
                            {"claimed", NumberOrNull(c.claimed())},
                            {"scalars", std::map<std::string, double>(c.scalars().begin(), c.scalars().end())}});
  }
  nlohmann::json clients = nlohmann::json::array();
  for (const v1::ClientParticipation& c : info.clients()) {
    clients.push_back({{"client", c.client()},
                       {"interval_sum", c.interval_sum()},
                       {"interval_count", c.interval_count()},
                       {"since", c.since()},
                       {"claimed", c.claimed()}});
  }
  for (const v1::Metric& metric : info.metrics()) metrics.push_back(MetricJson(metric));
  for (const std::string& name : info.strategy_state()) vectors.push_back(name);
  return {{"job", info.job()},           {"version", info.version()},           {"sha256", info.sha256()},   {"parent_sha256", info.parent_sha256()},
          {"bytes", info.bytes()},       {"committed_us", info.committed_us()}, {"trigger", info.trigger()}, {"epoch", info.epoch()},
          {"state_epoch", info.state_epoch()},
          {"pruned_us", info.pruned_us()},
          {"privacy", info.has_privacy() ? PrivacyJson(info.privacy()) : nlohmann::json(nullptr)},
          {"measured", std::map<std::string, double>(info.measured().begin(), info.measured().end())},
          {"contributors", contributors}, {"metrics", metrics},                  {"strategy_state", vectors},
          {"clients", clients}};
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

absl::StatusOr<int> List(const Context& context, StateSource& source, const std::string& id) {
  TRIB_ASSIGN_OR_RETURN(const auto versions, source.List(id));
  if (context.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const v1::VersionInfo& info : versions) list.push_back(VersionJson(info));
    PrintJson({{"job", id}, {"versions", list}});
    return kDone;
  }
  fmt::print("job {}\n{:>8}  {:<12} {:>10} {:>8} {:>9}  {:<19}  {}\n", id, "VERSION", "SHA-256", "SIZE", "CLIENTS", "ACCURACY", "COMMITTED", "TRIGGER");
  for (const v1::VersionInfo& info : versions) {
    const bool measured = info.metrics_size() > 0 && std::isfinite(info.metrics(0).accuracy());
    fmt::print("{:>8}  {:<12} {:>10} {:>8} {:>9}  {:<19}  {}\n", info.version(), info.sha256().substr(0, 12),
               info.pruned_us() == 0 ? HumanBytes(info.bytes()) : "pruned", info.contributors_size(), measured ? fmt::format("{:.4f}", info.metrics(0).accuracy()) : "-", HumanTime(info.committed_us()),
               info.trigger());
  }
  return kDone;
}

absl::StatusOr<int> Get(const Context& context, StateSource& source, const std::string& id, const StateFlags& flags) {
  TRIB_ASSIGN_OR_RETURN(const v1::VersionInfo info, source.Get(id, flags.version));
  TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, LayoutFromProto(info.layout()));
  if (context.json) {
    nlohmann::json document = VersionJson(info), tensors = nlohmann::json::array();
    for (const PlacedTensor& t : layout.tensors()) {
      tensors.push_back({{"name", t.spec.name}, {"dtype", DTypeName(t.spec.dtype)}, {"kind", TensorKindName(t.spec.kind)}, {"shape", t.spec.shape}});
    }
    document["tensors"] = tensors;
    PrintJson(document);
    return kDone;
  }
  fmt::print("job         {}\nversion     {}\nsha256      {}\nparent      {}\nsize        {}\ncommitted   {}\ntrigger     {}\nepoch       {}\n", info.job(),
             info.version(), info.sha256(), info.parent_sha256().empty() ? "-" : info.parent_sha256(), HumanBytes(info.bytes()),
             HumanTime(info.committed_us()), info.trigger().empty() ? "-" : info.trigger(), info.epoch());
  if (info.pruned_us() != 0) fmt::print("tensors     pruned at {}\n", HumanTime(info.pruned_us()));
  fmt::print("strategy    {}\n", info.strategy_state_size() == 0 ? "-" : fmt::format("{}", fmt::join(info.strategy_state(), ", ")));
  if (info.has_privacy()) {
    fmt::print("privacy     epsilon {:.6g} at delta {:.3g} for all versions up to this one{}\n", info.privacy().epsilon(), info.privacy().delta(),
               info.privacy().insecure_seed() ? "; the noise follows from the job's seed" : "");
  }
  for (const auto& [name, value] : info.measured()) fmt::print("measured    {} {:.6g}\n", name, value);
  for (const v1::Metric& m : info.metrics()) {
    fmt::print("metric      loss {:.6g}, accuracy {:.4f}, {} examples, by {}\n", m.loss(), m.accuracy(), m.examples(), m.evaluator());
  }
  fmt::print("\n{:<24} {:>12} {:>10} {:>9}  {}\n", "CONTRIBUTOR", "WEIGHT", "EXAMPLES", "STALENESS", "UPDATE");
  for (const v1::Contributor& c : info.contributors()) {
    fmt::print("{:<24} {:>12g} {:>10} {:>9}  {}\n", c.client(), c.weight(), c.examples(), c.staleness(), UpdateHex(c.update_id()));
  }
  if (info.clients_size() > 0) fmt::print("\n{:<24} {:>13} {:>9} {:>12} {:>12}\n", "CLIENT", "MEAN INTERVAL", "INTERVALS", "LAST ROUND", "CLAIMED");
  for (const v1::ClientParticipation& c : info.clients()) {
    fmt::print("{:<24} {:>13} {:>9} {:>12} {:>12}\n", c.client(),
               c.interval_count() > 0 ? fmt::format("{:.6g}", c.interval_sum() / c.interval_count()) : "-", c.interval_count(), c.since(), c.claimed());
  }
  fmt::print("\n{:<40} {:<6} {:<10} {}\n", "TENSOR", "TYPE", "KIND", "SHAPE");
  for (const PlacedTensor& t : layout.tensors()) {
    fmt::print("{:<40} {:<6} {:<10} {}\n", t.spec.name, DTypeName(t.spec.dtype), TensorKindName(t.spec.kind), ShapeText(t.spec.shape));
  }
  return kDone;
}

absl::StatusOr<int> ExportPeft(const Context& context, StateSource& source, const std::string& id, const StateFlags& flags) {
  TRIB_ASSIGN_OR_RETURN(const v1::VersionInfo info, source.Get(id, flags.version));
  TRIB_ASSIGN_OR_RETURN(const JobSpec spec, source.Spec(id));
  if (!spec.model.adapter.enabled()) return InvalidArgument("--peft: job '{}' trains its whole model, there is no adapter to export", id);
  TRIB_ASSIGN_OR_RETURN(const std::string file, source.Export(id, info.version(), false));
  TRIB_ASSIGN_OR_RETURN(const SafetensorsView view, ParseSafetensors(std::as_bytes(std::span(file))));
  TRIB_ASSIGN_OR_RETURN(const FlatModel model, ToModel(view));
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::string> written, WritePeft(flags.peft, spec, model));
  if (context.json) {
    PrintJson({{"job", id}, {"version", info.version()}, {"sha256", info.sha256()}, {"files", written}, {"out", flags.peft}});
  } else {
    fmt::print("adapter of job {} version {}: {} in {}\n", id, info.version(), fmt::join(written, ", "), flags.peft);
  }
  return kDone;
}

absl::StatusOr<int> Export(const Context& context, StateSource& source, const std::string& id, const StateFlags& flags) {
  if (!flags.peft.empty()) return ExportPeft(context, source, id, flags);
  TRIB_ASSIGN_OR_RETURN(const v1::VersionInfo info, source.Get(id, flags.version));
  if (flags.strategy_state && info.strategy_state_size() == 0) {
    return NotFound("job '{}' version {} has no strategy state", id, info.version());
  }
  TRIB_ASSIGN_OR_RETURN(const std::string file, source.Export(id, info.version(), flags.strategy_state));
  TRIB_RETURN_IF_ERROR(WriteFileAtomically(flags.out, std::string_view(file)));
  if (context.json) {
    PrintJson({{"job", id}, {"version", info.version()}, {"sha256", info.sha256()}, {"strategy_state", flags.strategy_state},
               {"bytes", file.size()}, {"out", flags.out}});
  } else {
    fmt::print("{} of job {} version {}: {} in {}\n", flags.strategy_state ? "strategy state" : "model", id, info.version(),
               HumanBytes(file.size()), flags.out);
  }
  return kDone;
}

// All jobs unless one is named: unlike the other commands this one does not need a single job.
int Verify(const Context& context, const StateFlags& flags) {
  auto source = flags.store.empty() ? ConnectSource(context.server) : OpenStoreSource(flags.store);
  if (!source.ok()) {
    return ReportError(context, source.status(), flags.store.empty() ? "with the aggregator down, check its store by --store DIR" : "");
  }
  std::string id;
  if (!flags.job.empty()) {
    const auto resolved = (*source)->Resolve(flags.job);
    if (!resolved.ok()) return ReportError(context, resolved.status());
    id = *resolved;
  }
  size_t looked_at = 0;
  const auto findings = (*source)->Verify(id, [&](const std::string&) { ++looked_at; });
  if (!findings.ok()) return ReportError(context, findings.status());
  if (context.json) {
    PrintJson({{"sound", findings->empty()}, {"versions", looked_at}, {"findings", *findings}});
  } else {
    for (const std::string& finding : *findings) fmt::print("{}\n", finding);
    fmt::print("{} versions looked at, {}\n", looked_at, findings->empty() ? "all sound" : fmt::format("{} findings", findings->size()));
  }
  return findings->empty() ? kDone : kFailed;
}

struct Difference {
  double max_abs = 0;
  double sum_squares = 0;        // of the difference
  double before_squares = 0;
  // ‖after − before‖ / ‖before‖; infinite where only the denominator is 0.
  double Relative() const {
    if (sum_squares == 0) return 0;
    return before_squares == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(sum_squares / before_squares);
  }
};

template <typename T>
void Compare(std::span<const std::byte> before, std::span<const std::byte> after, Difference* out) {
  for (size_t i = 0; i + sizeof(T) <= before.size(); i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, before.data() + i, sizeof(T));
    std::memcpy(&b, after.data() + i, sizeof(T));
    const double x = static_cast<double>(a), d = static_cast<double>(b) - x;
    out->max_abs = std::isnan(d) || d > out->max_abs || -d > out->max_abs ? std::abs(d) : out->max_abs;
    out->sum_squares += d * d;
    out->before_squares += x * x;
  }
}

absl::StatusOr<int> Diff(const Context& context, StateSource& source, const std::string& id, const StateFlags& flags) {
  TRIB_ASSIGN_OR_RETURN(const std::string file_before, source.Export(id, flags.from, false));
  TRIB_ASSIGN_OR_RETURN(const std::string file_after, source.Export(id, flags.to, false));
  TRIB_ASSIGN_OR_RETURN(const SafetensorsView view_before, ParseSafetensors(std::as_bytes(std::span(file_before))));
  TRIB_ASSIGN_OR_RETURN(const SafetensorsView view_after, ParseSafetensors(std::as_bytes(std::span(file_after))));
  TRIB_ASSIGN_OR_RETURN(const FlatModel before, ToModel(view_before));
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::byte> after, ToFlat(view_after, before.layout));
  nlohmann::json tensors = nlohmann::json::array();
  Difference all;
  if (!context.json) fmt::print("{:<40} {:<6} {:>12} {:>12}\n", "TENSOR", "TYPE", "MAX ABS", "RELATIVE L2");
  for (const PlacedTensor& t : before.layout.tensors()) {
    Difference one;
    const auto x = std::span(before.bytes).subspan(t.offset_bytes, t.bytes);
    const auto y = std::span(after).subspan(t.offset_bytes, t.bytes);
    if (t.spec.dtype == DType::kF32) Compare<float>(x, y, &one);
    if (t.spec.dtype == DType::kF64) Compare<double>(x, y, &one);
    if (t.spec.dtype == DType::kI64) Compare<int64_t>(x, y, &one);
    if (t.spec.kind != TensorKind::kCounter) {   // counts of batches would drown the weights
      all.max_abs = std::max(all.max_abs, one.max_abs);
      all.sum_squares += one.sum_squares;
      all.before_squares += one.before_squares;
    }
    if (context.json) {
      tensors.push_back({{"name", t.spec.name}, {"dtype", DTypeName(t.spec.dtype)}, {"kind", TensorKindName(t.spec.kind)}, {"shape", t.spec.shape},
                         {"max_abs", NumberOrNull(one.max_abs)}, {"relative_l2", NumberOrNull(one.Relative())}});
    } else {
      fmt::print("{:<40} {:<6} {:>12.6g} {:>12.6g}\n", t.spec.name, DTypeName(t.spec.dtype), one.max_abs, one.Relative());
    }
  }
  if (context.json) {
    PrintJson({{"job", id}, {"from", flags.from}, {"to", flags.to}, {"tensors", tensors}, {"max_abs", NumberOrNull(all.max_abs)},
               {"relative_l2", NumberOrNull(all.Relative())}});
  } else {
    fmt::print("{:<40} {:<6} {:>12.6g} {:>12.6g}\n", "all but counters", "", all.max_abs, all.Relative());
  }
  return kDone;
}

}  // namespace

void AddStateCommands(CLI::App& app, Context& context) {
  auto flags = std::make_shared<StateFlags>();
  CLI::App* state = app.add_subcommand("state", "The state store: versions, contributors, strategy state");
  state->require_subcommand(1);
  state->footer("Example:\n  tributary state ls fashion --store fashion-store");

  const auto add = [&](const char* name, const char* help, const char* example) {
    CLI::App* command = state->add_subcommand(name, help);
    command->add_option("JOB", flags->job, "Id, an unambiguous beginning of it, or a name (default: the only job)");
    command->add_option("--store", flags->store, "Read this folder instead of asking the aggregator (which must be down)");
    command->footer(std::string("Example:\n  ") + example);
    return command;
  };
  const auto version = [&](CLI::App* command) { command->add_option("--version", flags->version, "Default: the latest")->check(CLI::NonNegativeNumber); };

  CLI::App* ls = add("ls", "All versions of a job", "tributary state ls fashion --json");
  ls->callback([&context, flags] {
    context.action = [&context, flags] {
      return WithJob(context, *flags, [&](StateSource& source, const std::string& id) { return List(context, source, id); });
    };
  });

  CLI::App* get = add("get", "One version: hash, contributors, metrics, tensors", "tributary state get fashion --version 3");
  version(get);
  get->callback([&context, flags] {
    context.action = [&context, flags] {
      return WithJob(context, *flags, [&](StateSource& source, const std::string& id) { return Get(context, source, id, *flags); });
    };
  });

  CLI::App* export_command =
      add("export", "A version as a safetensors file", "tributary state export fashion --out fashion.safetensors\n  tributary state export languages --peft adapter/");
  version(export_command);
  CLI::Option* out = export_command->add_option("--out", flags->out, "The file (replaced as a whole, or not at all)");
  CLI::Option* peft = export_command->add_option("--peft", flags->peft, "Of a job with model.adapter: a folder for PEFT's adapter_config.json and adapter_model.safetensors");
  peft->excludes(out);
  export_command->add_flag("--strategy-state", flags->strategy_state, "The strategy's vectors (F64) instead of the model")->excludes(peft);
  export_command->callback([&context, flags] {
    if (flags->out.empty() && flags->peft.empty()) throw CLI::RequiredError("--out or --peft");
    context.action = [&context, flags] {
      return WithJob(context, *flags, [&](StateSource& source, const std::string& id) { return Export(context, source, id, *flags); });
    };
  });

  CLI::App* verify = add("verify", "Check every hash, the version chain and the dedupe rows (exit code 1: findings)",
                         "tributary state verify --store fashion-store");
  verify->callback([&context, flags] { context.action = [&context, flags] { return Verify(context, *flags); }; });

  CLI::App* diff = add("diff", "How far two versions are apart, tensor by tensor", "tributary state diff fashion 0 10");
  diff->add_option("V1", flags->from, "Version before")->required()->check(CLI::NonNegativeNumber);
  diff->add_option("V2", flags->to, "Version after")->required()->check(CLI::NonNegativeNumber);
  diff->get_option("JOB")->required();
  diff->callback([&context, flags] {
    context.action = [&context, flags] {
      return WithJob(context, *flags, [&](StateSource& source, const std::string& id) { return Diff(context, source, id, *flags); });
    };
  });
}

}  // namespace tributary::cli
