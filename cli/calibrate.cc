// tributary nodes calibrate: measures this machine's service capacity for a job's layout and writes it as JSON.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "aggregator/coordinator/calibrate.h"
#include "cli/calibrate.h"
#include "cli/client.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "proto/codec.h"

namespace tributary::cli {
namespace {

struct CalibrateFlags {
  std::string job;
  std::string model;
  std::string shape = "shard";
  std::string strategy = "fedavg";
  uint32_t workers = std::max(1u, std::min(64u, std::thread::hardware_concurrency()));
  uint32_t pool_mb = 512;
  double step_s = 1;
  bool reproducible = false;
  std::string out;
};

absl::StatusOr<TensorLayout> LayoutFor(const Context& context, const CalibrateFlags& flags) {
  if (!flags.model.empty()) {
    TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(flags.model));
    return LayoutOf(file.view());
  }
  TRIB_ASSIGN_OR_RETURN(Client client, Client::Connect(context.server));
  v1::GetVersionRequest request;
  request.set_job(flags.job);
  request.set_latest(true);
  TRIB_ASSIGN_OR_RETURN(const v1::VersionInfo version, client.Call(&v1::Admin::Stub::GetVersion, request));
  return LayoutFromProto(version.layout());
}

nlohmann::json ToJson(const CalibrateFlags& flags, const TensorLayout& layout, const aggregator::Calibration& measured) {
  nlohmann::json curve = nlohmann::json::array();
  for (const aggregator::CalibrationPoint& point : measured.curve) curve.push_back({{"updates_per_second", point.rate}, {"seconds", point.seconds}});
  return {{"capacity_updates", measured.capacity.updates},
          {"knee_updates_per_second", measured.capacity.knee_rate},
          {"knee_seconds", measured.capacity.knee_seconds},
          {"bent", measured.capacity.bent},
          {"lone_seconds", measured.lone_seconds},
          {"layout", layout.Fingerprint()},
          {"model_bytes", layout.total_bytes()},
          {"strategy", flags.strategy},
          {"shape", flags.shape},
          {"workers", flags.workers},
          {"cores", std::thread::hardware_concurrency()},
          {"reproducible", flags.reproducible},
          {"measured_us", WallMicros()},
          {"curve", curve}};
}

int Calibrate(const Context& context, const CalibrateFlags& flags) {
  if (flags.job.empty() == flags.model.empty()) {
    ReportError(context, InvalidArgument("expected one of --job and --model"), "tributary nodes calibrate --help");
    return kUsage;
  }
  const absl::StatusOr<TensorLayout> layout = LayoutFor(context, flags);
  if (!layout.ok()) return ReportError(context, layout.status(), flags.job.empty() ? "" : "tributary jobs ls");
  aggregator::CalibrationOptions options;
  options.worker_program = (ExecutableDir() / "tributary-worker").string();
  options.workers = flags.workers;
  options.strategy = flags.strategy;
  options.layout = *layout;
  options.arithmetic = flags.reproducible ? aggregator::Arithmetic::kFixedPoint : aggregator::Arithmetic::kFloat64;
  options.pool_bytes = size_t{flags.pool_mb} << 20;
  options.step = absl::Seconds(flags.step_s);
  if (flags.shape == "flat") options.hierarchy.shape = aggregator::PoolShape::kFlat;
  if (flags.shape == "tree") {
    options.hierarchy.shape = aggregator::PoolShape::kTree;
    options.hierarchy.leaves = std::min(flags.workers, 32u);
  }
  if (!context.json) fmt::print(stderr, "measuring; it takes the machine's cores for about {:.0f} s\n", flags.step_s * 15);
  const absl::StatusOr<aggregator::Calibration> measured = aggregator::CalibrateNode(options);
  if (!measured.ok()) return ReportError(context, measured.status());
  const nlohmann::json document = ToJson(flags, *layout, *measured);
  if (!flags.out.empty()) {
    if (absl::Status written = WriteFileAtomically(flags.out, document.dump(2) + "\n"); !written.ok()) return ReportError(context, written);
  }
  if (context.json) {
    PrintJson(document);
    return kDone;
  }
  fmt::print("{:>12} {:>12}\n", "UPDATES/S", "E ms");
  for (const aggregator::CalibrationPoint& point : measured->curve) fmt::print("{:>12.1f} {:>12.3f}\n", point.rate, point.seconds * 1e3);
  fmt::print("\ncapacity   {}{:.2f} updates in hand, at {:.1f} updates/s of {:.3f} ms each\n", measured->capacity.bent ? "" : "at least ",
             measured->capacity.updates, measured->capacity.knee_rate, measured->capacity.knee_seconds * 1e3);
  return kDone;
}

}  // namespace

void AddCalibrateCommand(CLI::App& nodes, Context& context) {
  const auto flags = std::make_shared<CalibrateFlags>();  // shared: lives as long as the callbacks
  CLI::App* command = nodes.add_subcommand("calibrate", "Measure this machine's service capacity for a model; do not run it beside a federation");
  command->add_option("--job", flags->job, "Layout of this job's model, from the aggregator");
  command->add_option("--model", flags->model, "Layout of this safetensors file");
  command->add_option("--workers", flags->workers, "Worker processes")->check(CLI::Range(1, 64))->capture_default_str();
  command->add_option("--shape", flags->shape, "flat, shard or tree")->check(CLI::IsMember({"flat", "shard", "tree"}))->capture_default_str();
  command->add_option("--strategy", flags->strategy, "Whose reducer is measured")->capture_default_str();
  command->add_flag("--reproducible", flags->reproducible, "Fixed-point sums");
  command->add_option("--pool-mb", flags->pool_mb, "MiB of shared memory for updates")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  command->add_option("--step-s", flags->step_s, "Seconds at each rate")->check(CLI::Range(0.01, 60.0))->capture_default_str();
  command->add_option("--out", flags->out, "Write the result there, as JSON");
  command->footer("Example:\n  tributary nodes calibrate --model model.safetensors --out capacity.json");
  command->callback([&context, flags] { context.action = [&context, flags] { return Calibrate(context, *flags); }; });
}

}  // namespace tributary::cli
