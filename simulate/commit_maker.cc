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
constexpr size_t kBytesWorthThreads = 8 << 20;  // less is folded by the time that threads have started

}  // namespace

absl::StatusOr<std::unique_ptr<CommitMaker>> CommitMaker::Make(const JobSpec& spec, const aggregator::Strategy& strategy, const TensorLayout& layout,
                                                               std::span<const std::byte> initial) {
  TRIB_RETURN_IF_ERROR(aggregator::CheckJob(spec, strategy, layout));
  std::unique_ptr<CommitMaker> maker(new CommitMaker(spec, strategy, layout));
  TRIB_ASSIGN_OR_RETURN(maker->update_layout_, aggregator::UpdateLayout(strategy, layout));
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
  waiting_bytes_ += update.size();
  return waiting_bytes_ < kMostWaitingBytes ? absl::OkStatus() : FoldWaiting();
}

absl::Status CommitMaker::FoldWaiting() {
  if (keys_.empty()) return absl::OkStatus();
  aggregator::ForEach for_each;
  if (waiting_bytes_ >= kBytesWorthThreads) {
    for_each = [](size_t count, const std::function<void(size_t)>& call) {
      OnThreads(std::thread::hardware_concurrency(), count, [&](size_t i, size_t) {
        call(i);
        return absl::OkStatus();
      }).IgnoreError();  // there is none
    };
  }
  const absl::Status status = Open().FoldAll(keys_, inputs_, for_each);
  keys_.clear();
  inputs_.clear();
  owners_.clear();
  waiting_bytes_ = 0;
  return status;
}

absl::StatusOr<ModelRef> CommitMaker::NextModel(const aggregator::Commit& commit, const ModelRef& previous, std::span<const std::byte> base, bool anew) {
  aggregator::CommitFacts facts{
      .version = commit.version, .sum_weight = commit.sum_weight, .registered = commit.registered, .contributors = commit.contributors};
  aggregator::Aggregate::Input input{.facts = facts, .previous = *previous, .base = base, .measured = &measured_};
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
