// make_store DIR JOB[:LAST]…: a store with finished jobs "<JOB>-00aa11", versions 0 to LAST (2) each, for state_test.py.
// In version v every element of "w" is v, "mean" is 10 v, "steps" is 100 v; "momentum" is v + 0.5; two contributors a version.
#include <absl/strings/numbers.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "aggregator/state/state_store.h"
#include "common/job_spec.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

absl::Status AddJob(StateStore& store, const std::string& wanted, int64_t submitted_us) {
  const size_t colon = wanted.find(':');
  const std::string name = wanted.substr(0, colon);
  uint64_t last = 2;
  if (colon != std::string::npos && !absl::SimpleAtoi(wanted.substr(colon + 1), &last)) return InvalidArgument("JOB:LAST");
  TRIB_ASSIGN_OR_RETURN(const TensorLayout layout,
                        TensorLayout::Create({{.name = "w", .shape = {2, 3}, .dtype = DType::kF32, .kind = TensorKind::kTrainable},
                                              {.name = "mean", .shape = {2}, .dtype = DType::kF32, .kind = TensorKind::kBuffer},
                                              {.name = "steps", .shape = {}, .dtype = DType::kI64, .kind = TensorKind::kCounter}}));
  TRIB_ASSIGN_OR_RETURN(const JobSpec spec,
                        ParseJobSpec("name: " + name + "\nmodel: {tensors: m.safetensors}\nstrategy: fedavgm\ncohort: {size: 2}\nstop: {versions: 2}\n", name));
  v1::JobRow job;
  job.set_id(name + "-00aa11");
  job.set_spec_yaml(CanonicalYaml(spec));
  *job.mutable_layout() = LayoutToProto(layout);
  job.set_state(v1::JOB_STATE_DONE);
  job.set_submitted_us(submitted_us);
  job.set_finished_us(submitted_us + 1);
  for (uint64_t version = 0; version <= last; ++version) {
    VersionCommit commit;
    job.set_updates_committed(version * 2);
    commit.job = job;
    v1::VersionInfo& info = *commit.version.mutable_info();
    info.set_version(version);
    info.set_trigger(version == 0 ? "submitted" : "cohort complete");
    std::vector<float> floats(6, static_cast<float>(version));
    floats.insert(floats.end(), 2, static_cast<float>(10 * version));
    const auto steps = static_cast<int64_t>(100 * version);
    std::vector<std::byte> flat(layout.total_bytes());
    std::memcpy(flat.data(), floats.data(), layout.float_bytes());
    std::memcpy(flat.data() + layout.float_bytes(), &steps, sizeof(steps));
    commit.tensors = flat;
    for (uint64_t i = 0; version > 0 && i < 2; ++i) {
      const UpdateId id{version, i};
      v1::Contributor& contributor = *info.add_contributors();
      contributor.set_client("client-" + std::to_string(i));
      contributor.set_task(version << 8 | i);
      contributor.set_update_id(ToBytes(id));
      contributor.set_weight(1.5);
      contributor.set_examples(600);
      commit.updates.emplace_back(id, v1::UpdateRow());
    }
    if (version > 0) commit.strategy_state.push_back({"momentum", std::vector<double>(6, static_cast<double>(version) + 0.5)});
    TRIB_RETURN_IF_ERROR(store.CommitVersion(std::move(commit)));
    v1::Metric metric;
    metric.set_version(version);
    metric.set_loss(1.0 / static_cast<double>(version + 1));
    metric.set_accuracy(0.25 * static_cast<double>(version));
    metric.set_evaluator("client-0");
    TRIB_RETURN_IF_ERROR(store.PutMetric(job.id(), metric));
  }
  return absl::OkStatus();
}

absl::Status Run(const std::string& dir, int jobs, char** names) {
  TRIB_ASSIGN_OR_RETURN(const auto store, StateStore::Open({.dir = dir}));
  for (int i = 0; i < jobs; ++i) TRIB_RETURN_IF_ERROR(AddJob(*store, names[i], 1'700'000'000'000'000 + i));
  return absl::OkStatus();
}

}  // namespace
}  // namespace tributary::aggregator

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const absl::Status status = tributary::aggregator::Run(argv[1], argc - 2, argv + 2);
  if (!status.ok()) std::fprintf(stderr, "make_store: %s\n", tributary::MessageOf(status).c_str());
  return status.ok() ? 0 : 1;
}
