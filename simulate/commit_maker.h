// A node's arithmetic in one process: updates are checked as ingress checks them, clipped and folded as workers fold them, and models are
// made as the commit thread makes them, by the same code. What simulation and replay have in place of daemons.
//
// Keeps the strategy's state, rows of clients and, of jobs with adaptive clipping, the clip of the current version.
// Borrows spec, strategy and layout. Threads: thread-compatible. Errors: those of Aggregate, JobPrivacy and CheckScalars.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/moe_state.h"
#include "aggregator/core/privacy/job_privacy.h"
#include "aggregator/core/round.h"
#include "client/core/device_update.h"
#include "common/job_spec.h"
#include "common/live_triplets.h"
#include "simulate/training.h"

namespace tributary::simulate {

class CommitMaker {
 public:
  // `initial`: version 0.
  static absl::StatusOr<std::unique_ptr<CommitMaker>> Make(const JobSpec& spec, const aggregator::Strategy& strategy, const TensorLayout& layout,
                                                           std::span<const std::byte> initial);
  const TensorLayout& update_layout() const { return update_layout_; }
  const UpdateEncoding& encoding() const { return encoding_; }
  const LiveTriplets* live() const { return live_.get(); }                    // how updates travel; null: as they are
  const aggregator::JobPrivacy* privacy() const { return privacy_.get(); }  // null: the job has none
  double clip() const { return clip_; }
  const aggregator::MemoryState& state() const { return state_; }
  const std::map<std::string, double>& measured() const { return measured_; }  // of the last model made
  const GlobalMoe& moe() const { return moe_; }                                // as tasks of the current version are told it
  // Whether a version needs nothing of its updates but their sum, so that those on a device are folded there.
  bool folds_on_device() const;

  struct Checked {
    double clip_factor = 1;        // what the server's clip makes of the update's weight: a factor in (0, 1]
    aggregator::ScanResult scan;
  };
  // INVALID_ARGUMENT for another size, codes that mean nothing, values that are not finite, or numbers that are missing; those that the server
  // measures are added to `scalars`. `scan`: ScanUpdate's of this update, from who has asked already.
  absl::StatusOr<Checked> Check(std::span<const std::byte> update, const MoeStats& moe, aggregator::Scalars* scalars,
                                const std::optional<aggregator::ScanResult>& scan = std::nullopt) const;
  // The same of an update on a device, which is finite.
  absl::StatusOr<Checked> Check(const client::DeviceUpdate& update, const aggregator::Scalars& scalars) const;
  // `weight`: the engine's, times Check's factor; `moe`: as given to Check; `owner` keeps the bytes of `update`. Updates are folded together, ranges of the model side by
  // side on all cores: when the model is made, or before that when too many wait; an error comes then.
  absl::Status Fold(const aggregator::UpdateKeyRef& key, double weight, std::span<const std::byte> update, const MoeStats& moe,
                    std::shared_ptr<const void> owner, const aggregator::ScanResult& scan);
  absl::Status Fold(const aggregator::UpdateKeyRef& key, double weight, std::shared_ptr<client::DeviceUpdate> update, const aggregator::ScanResult& scan);
  // The model of `commit` from what was folded: `previous` itself where nothing changes it. `base`: for a step that needs it.
  // `anew`: all clients begin anew from the model made (BeginClientsAnew), and no row of them is known.
  absl::StatusOr<ModelRef> NextModel(const aggregator::Commit& commit, const ModelRef& previous, std::span<const std::byte> base, bool anew = false);

 private:
  CommitMaker(const JobSpec& spec, const aggregator::Strategy& strategy, const TensorLayout& layout) : spec_(spec), strategy_(strategy), layout_(layout) {}
  aggregator::Aggregate& Open();
  absl::Status FoldWaiting();
  // Of those that wait, [first, last): all in memory, or all on a device.
  absl::Status FoldHere(size_t first, size_t last);
  absl::Status FoldOnDevice(size_t first, size_t last);

  const JobSpec& spec_;
  const aggregator::Strategy& strategy_;
  const TensorLayout& layout_;
  TensorLayout update_layout_;
  UpdateEncoding encoding_;
  std::unique_ptr<const LiveTriplets> live_;
  std::vector<aggregator::ScalarInfo> scalars_;
  std::unique_ptr<aggregator::JobPrivacy> privacy_;
  double clip_ = 0;
  aggregator::MemoryState state_;
  std::map<std::string, double> measured_;
  std::unique_ptr<const aggregator::MoeState> experts_;  // null: the model has none
  GlobalMoe moe_;
  std::optional<aggregator::Aggregate> aggregate_;   // of the open version, once something is folded
  // Not folded yet.
  std::vector<aggregator::UpdateKeyRef> keys_;
  std::vector<aggregator::PartialInput> inputs_;
  std::vector<std::shared_ptr<const void>> owners_;
  std::vector<std::shared_ptr<client::DeviceUpdate>> on_device_;  // null: in memory
  size_t waiting_bytes_ = 0;
};

}  // namespace tributary::simulate
