#include "simulate/commit_maker.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "aggregator/core/coded_kernels.h"
#include "aggregator/core/job_check.h"
#include "simulate/threads.h"

namespace tributary::simulate {
namespace {

constexpr size_t kMostWaitingBytes = 256 << 20;
constexpr size_t kBytesWorthThreads = 8 << 20;  // less is done by the time that threads have started

// For work on so many bytes: on all cores, where they are worth it.
aggregator::ForEach ForBytes(size_t bytes) {
  if (bytes < kBytesWorthThreads) return {};
  return [](size_t count, const std::function<void(size_t)>& call) {
    OnThreads(std::thread::hardware_concurrency(), count, [&](size_t i, size_t) {
      call(i);
      return absl::OkStatus();
    }).IgnoreError();  // there is none
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<CommitMaker>> CommitMaker::Make(const JobSpec& spec, const aggregator::Strategy& strategy, const TensorLayout& layout,
                                                               std::span<const std::byte> initial) {
  TRIB_RETURN_IF_ERROR(aggregator::CheckJob(spec, strategy, layout));
  std::unique_ptr<CommitMaker> maker(new CommitMaker(spec, strategy, layout));
  TRIB_ASSIGN_OR_RETURN(maker->update_layout_, strategy.UpdateLayout(layout));
  maker->encoding_ = spec.Encoding(maker->update_layout_);
  TRIB_ASSIGN_OR_RETURN(maker->live_, LiveTriplets::Of(spec, layout));
  maker->scalars_ = aggregator::UpdateScalars(strategy, spec);
  TRIB_ASSIGN_OR_RETURN(maker->experts_, aggregator::MoeState::Create(spec, strategy, layout));
  if (spec.privacy.enabled) {
    TRIB_ASSIGN_OR_RETURN(maker->privacy_, aggregator::JobPrivacy::Create(spec, layout, strategy));
    maker->clip_ = spec.privacy.clip;
  }
  TRIB_RETURN_IF_ERROR(aggregator::PrepareState(strategy, layout, initial, &maker->state_.strategy));
  return maker;
}

absl::StatusOr<CommitMaker::Checked> CommitMaker::Check(std::span<const std::byte> update, const MoeStats& moe, aggregator::Scalars* scalars,
                                                        const std::optional<aggregator::ScanResult>& known) const {
  if (update.size() != encoding_.total_bytes()) return InvalidArgument("the update has {} bytes, one of this job {}", update.size(), encoding_.total_bytes());
  TRIB_RETURN_IF_ERROR(aggregator::CheckScalars(strategy_, scalars_, *scalars));
  if (experts_ != nullptr) TRIB_RETURN_IF_ERROR(experts_->CheckStats(moe));
  aggregator::ScanResult scan;
  if (known) {
    scan = *known;
  } else {
    TRIB_ASSIGN_OR_RETURN(scan, aggregator::ScanUpdate(encoding_, update));
  }
  if (!scan.finite) return InvalidArgument("the update is not finite");
  aggregator::AddMeasured(strategy_, layout_, update, scalars);
  const double factor = privacy_ == nullptr ? 1.0 : privacy_->ClipFactor(aggregator::TrainableSquares(encoding_, update, scan), clip_);
  return Checked{.clip_factor = factor, .scan = scan};
}

bool CommitMaker::folds_on_device() const {
  return encoding_.codec == Codec::kPlain && encoding_.dtype == DType::kF32 && privacy_ == nullptr && experts_ == nullptr && !spec_.record &&
         strategy_.whole_reducer() == nullptr && strategy_.norm_scalar().empty() && update_layout_ == layout_ &&
         layout_.trainable_count() == layout_.float_count() && layout_.counter_count() == 0;
}

absl::StatusOr<CommitMaker::Checked> CommitMaker::Check(const client::DeviceUpdate& update, const aggregator::Scalars& scalars) const {
  if (update.flat_bytes() != encoding_.total_bytes()) return InvalidArgument("the update has {} bytes, one of this job {}", update.flat_bytes(), encoding_.total_bytes());
  TRIB_RETURN_IF_ERROR(aggregator::CheckScalars(strategy_, scalars_, scalars));
  return Checked{.clip_factor = 1, .scan = {.finite = true, .sum_squares = 0, .max_abs = update.max_abs()}};
}

aggregator::Aggregate& CommitMaker::Open() {
  if (aggregate_) return *aggregate_;
  const auto arithmetic = spec_.reproducible ? aggregator::Arithmetic::kFixedPoint : aggregator::Arithmetic::kFloat64;
  return aggregate_.emplace(strategy_, layout_, arithmetic, std::max<int64_t>(1, spec_.ClientsAsked()), encoding_);
}

absl::Status CommitMaker::Fold(const aggregator::UpdateKeyRef& key, double weight, std::span<const std::byte> update, const MoeStats& moe,
                               std::shared_ptr<const void> owner, const aggregator::ScanResult& scan) {
  keys_.push_back(key);
  inputs_.push_back({.id = key.update, .update = update, .weight = weight, .scan = scan, .runs = experts_ == nullptr ? aggregator::WeightRuns() : experts_->RunsOf(moe)});
  owners_.push_back(std::move(owner));
  on_device_.push_back(nullptr);
  waiting_bytes_ += update.size();
  return waiting_bytes_ < kMostWaitingBytes ? absl::OkStatus() : FoldWaiting();
}

absl::Status CommitMaker::Fold(const aggregator::UpdateKeyRef& key, double weight, std::shared_ptr<client::DeviceUpdate> update, const aggregator::ScanResult& scan) {
  waiting_bytes_ += update->flat_bytes();
  keys_.push_back(key);
  inputs_.push_back({.id = key.update, .update = {}, .weight = weight, .scan = scan});
  owners_.push_back(nullptr);
  on_device_.push_back(std::move(update));
  return waiting_bytes_ < kMostWaitingBytes ? absl::OkStatus() : FoldWaiting();
}

absl::Status CommitMaker::FoldHere(size_t first, size_t last) {
  return Open().FoldAll(std::span(keys_).subspan(first, last - first), std::span(inputs_).subspan(first, last - first), ForBytes(waiting_bytes_));
}

absl::Status CommitMaker::FoldOnDevice(size_t first, size_t last) {
  std::vector<client::DeviceTerm> terms;
  for (size_t i = first; i < last; ++i) terms.push_back({on_device_[i].get(), inputs_[i].weight});
  const size_t elements = update_layout_.float_count();
  return Open().FoldElsewhere(std::span(inputs_).subspan(first, last - first), [&](std::span<std::byte> state, bool fresh) -> absl::StatusOr<bool> {
    if (spec_.reproducible) return terms[0].update->FoldFixed(terms, fresh, {reinterpret_cast<int64_t*>(state.data()), elements});
    return terms[0].update->Fold(terms, fresh, {reinterpret_cast<double*>(state.data()), elements});
  });
}

absl::Status CommitMaker::FoldWaiting() {
  absl::Status status;
  for (size_t first = 0, last = 0; first < keys_.size() && status.ok(); first = last) {
    const bool on_device = on_device_[first] != nullptr;
    for (last = first; last < keys_.size() && (on_device_[last] != nullptr) == on_device;) ++last;
    status = on_device ? FoldOnDevice(first, last) : FoldHere(first, last);
  }
  keys_.clear();
  inputs_.clear();
  owners_.clear();
  on_device_.clear();
  waiting_bytes_ = 0;
  return status;
}

absl::StatusOr<ModelRef> CommitMaker::NextModel(const aggregator::Commit& commit, const ModelRef& previous, std::span<const std::byte> base, bool anew) {
  aggregator::CommitFacts facts{
      .version = commit.version, .sum_weight = commit.sum_weight, .registered = commit.registered, .contributors = commit.contributors};
  // The step reads the sums, twice a float's bytes, and the model, and writes one.
  aggregator::Aggregate::Input input{.facts = facts, .previous = *previous, .base = base, .measured = &measured_, .for_each = ForBytes(4 * previous->size())};
  measured_.clear();
  std::unique_ptr<RandomWords> noise;
  if (privacy_ != nullptr) {
    noise = privacy_->NoiseOf(commit.version, std::nullopt);  // simulations have no secrets
    input.facts.sum_weight = privacy_->Denominator(commit.sum_weight);
    input.noise_stddev = privacy_->central() ? privacy_->SumStddev(clip_) : 0;
    input.noise = noise.get();
  }
  TRIB_RETURN_IF_ERROR(FoldWaiting());
  if (commit.contributors.empty() && input.noise_stddev == 0) return previous;
  aggregator::WeightRuns scales;
  if (experts_ != nullptr) scales = experts_->ScalesOf(commit.contributors, commit.sum_weight);
  input.scales = scales;
  auto next = std::make_shared<std::vector<std::byte>>(layout_.total_bytes());
  TRIB_RETURN_IF_ERROR(Open().Step(input, &state_, *next));
  if (experts_ != nullptr) {
    GlobalMoe moe = experts_->Next(moe_, commit.contributors);
    if (moe.step > moe_.step) TRIB_RETURN_IF_ERROR(experts_->MoveBiases(moe.step, commit.contributors, *next));
    moe_ = std::move(moe);
    experts_->Measure(commit.contributors, &measured_);
  }
  aggregate_.reset();
  if (anew) {
    TRIB_RETURN_IF_ERROR(aggregator::BeginClientsAnew(strategy_, layout_, *next, &state_.strategy));
    state_.rows.clear();  // of this version too: what they hold goes with the lost states
  }
  if (privacy_ != nullptr) clip_ = privacy_->NextClip(clip_, commit.contributors, update_layout_.trainable_count(), noise.get());
  return next;
}

}  // namespace tributary::simulate
