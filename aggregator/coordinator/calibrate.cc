#include "aggregator/coordinator/calibrate.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <random>
#include <utility>

#include "aggregator/store/object_pool.h"
#include "common/clock.h"

namespace tributary::aggregator {
namespace {

constexpr uint32_t kJob = 1;
constexpr size_t kLoneUpdates = 9;
constexpr double kFirstShare = 0.1;      // of the rate at which one worker would never rest
constexpr double kStepUp = 1.3;
constexpr int64_t kLeastUpdates = 20;    // a rate; fewer say nothing
constexpr int64_t kMostUpdates = 5000;
constexpr double kFarAbove = 3;          // times E of the lowest rate: the knee is behind us
constexpr absl::Duration kPatience = absl::Seconds(60);

class Rig {
 public:
  explicit Rig(const CalibrationOptions& options) : options_(options), random_(options.seed) {}
  ~Rig() {
    if (workers_ != nullptr) workers_->CloseJob(kJob);
  }

  absl::Status Open() {
    ObjectPool::Options pool;
    pool.pool_id = 1;
    pool.slot_payload_bytes = options_.layout.total_bytes();
    const size_t slot = SlotBytes(pool.slot_payload_bytes);
    pool.pool_bytes = slot * std::clamp<size_t>(options_.pool_bytes / slot, 2, Calibration::kMaxSlots);
    TRIB_ASSIGN_OR_RETURN(objects_, ObjectPool::Create(pool));
    TRIB_RETURN_IF_ERROR(FillSlots());
    WorkerPool::Options workers;
    workers.worker_program = options_.worker_program;
    workers.workers = options_.workers;
    WorkerPool::Callbacks callbacks;
    callbacks.folded = [this](uint32_t, const UpdateId& id) { Note(id); };
    callbacks.refused = [this](uint32_t, const UpdateId&, const std::string& reason) { Fail(reason); };
    callbacks.lost = [this](uint32_t, const std::string& reason) { Fail(reason); };
    TRIB_ASSIGN_OR_RETURN(workers_, WorkerPool::Start(workers, std::move(callbacks)));
    return workers_->OpenJob({.job = kJob, .strategy = options_.strategy, .layout = options_.layout, .arithmetic = options_.arithmetic,
                              .hierarchy = options_.hierarchy},
                             objects_.get());
  }

  absl::Status BeginRound(size_t updates) {
    {
      absl::MutexLock lock(&mutex_);
      arrivals_.clear();
      seconds_.clear();
    }
    return workers_->BeginRound(kJob, ++round_, {.updates = updates, .leaves = {}});
  }

  // One update that arrived at `at`, now or a little earlier.
  absl::Status Offer(absl::Time at) {
    WritableObject object;
    while (true) {
      absl::StatusOr<WritableObject> slot = objects_->Reserve(options_.layout.total_bytes());
      if (slot.ok()) {
        object = *std::move(slot);
        break;
      }
      if (slot.status().code() != absl::StatusCode::kResourceExhausted) return slot.status();
      absl::MutexLock lock(&mutex_);
      const size_t seen = seconds_.size();
      const auto moved = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return seconds_.size() != seen || !failed_.empty() || objects_->used_slots() < objects_->capacity_slots(); };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&moved), kPatience)) return DeadlineExceeded("calibration: no update was folded for {}", absl::FormatDuration(kPatience));
      if (!failed_.empty()) return Unavailable("calibration: {}", failed_);
    }
    object.header().weight = 1;
    UpdateId id;
    {
      absl::MutexLock lock(&mutex_);
      id.lo = arrivals_.size();
      arrivals_.push_back(at);
    }
    const ObjectKey key = objects_->Publish(std::move(object));
    absl::Status folding = workers_->Fold(kJob, id, key);
    if (!folding.ok()) objects_->Release(key);
    return folding;
  }

  // Times of all updates offered in the round.
  absl::StatusOr<std::vector<double>> Settle() {
    absl::MutexLock lock(&mutex_);
    const auto settled = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return seconds_.size() == arrivals_.size() || !failed_.empty(); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&settled), kPatience)) return DeadlineExceeded("calibration: updates were not folded within {}", absl::FormatDuration(kPatience));
    if (!failed_.empty()) return Unavailable("calibration: {}", failed_);
    return seconds_;
  }

  absl::StatusOr<double> LoneSeconds() {
    TRIB_RETURN_IF_ERROR(BeginRound(kLoneUpdates));
    std::vector<double> all;
    for (size_t i = 0; i < kLoneUpdates; ++i) {
      TRIB_RETURN_IF_ERROR(Offer(clock_.Now()));
      TRIB_ASSIGN_OR_RETURN(all, Settle());
    }
    std::nth_element(all.begin(), all.begin() + kLoneUpdates / 2, all.end());
    return all[kLoneUpdates / 2];
  }

  absl::StatusOr<double> MeanSecondsAt(double rate) {
    const auto updates = std::clamp(static_cast<int64_t>(rate * absl::ToDoubleSeconds(options_.step)), kLeastUpdates, kMostUpdates);
    TRIB_RETURN_IF_ERROR(BeginRound(static_cast<size_t>(updates)));
    std::exponential_distribution<double> gap(rate);
    absl::Time at = clock_.Now();
    for (int64_t i = 0; i < updates; ++i) {
      at += absl::Seconds(gap(random_));
      absl::SleepFor(at - clock_.Now());  // not at all when we are late
      TRIB_RETURN_IF_ERROR(Offer(at));
    }
    TRIB_ASSIGN_OR_RETURN(const std::vector<double> all, Settle());
    double sum = 0;
    for (const double seconds : all) sum += seconds;
    return sum / static_cast<double>(all.size());
  }

 private:
  absl::Status FillSlots() {
    std::vector<WritableObject> all;
    while (true) {
      absl::StatusOr<WritableObject> object = objects_->Reserve(options_.layout.total_bytes());
      if (!object.ok() && object.status().code() == absl::StatusCode::kResourceExhausted && !all.empty()) return absl::OkStatus();
      if (!object.ok()) return object.status();
      std::fill(object->payload().begin(), object->payload().end(), std::byte{0});  // finite in every type; first touch is not measured
      all.push_back(*std::move(object));
    }
  }
  void Note(const UpdateId& id) {
    const absl::Time now = clock_.Now();
    absl::MutexLock lock(&mutex_);
    if (id.lo < arrivals_.size()) seconds_.push_back(std::max(1e-9, absl::ToDoubleSeconds(now - arrivals_[id.lo])));
  }
  void Fail(const std::string& reason) {
    absl::MutexLock lock(&mutex_);
    failed_ = reason.empty() ? "an update was refused" : reason;
  }

  const CalibrationOptions& options_;
  const BootClock clock_;
  std::mt19937_64 random_;
  std::unique_ptr<ObjectPool> objects_;
  uint32_t round_ = 0;
  absl::Mutex mutex_;
  std::vector<absl::Time> arrivals_ ABSL_GUARDED_BY(mutex_);  // of the round, by number of the update
  std::vector<double> seconds_ ABSL_GUARDED_BY(mutex_);
  std::string failed_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<WorkerPool> workers_;  // last: its callbacks use the others
};

}  // namespace

absl::StatusOr<Calibration> CalibrateNode(const CalibrationOptions& options) {
  if (options.step <= absl::ZeroDuration()) return InvalidArgument("calibration: expected a step above 0, got {}", absl::FormatDuration(options.step));
  Rig rig(options);
  TRIB_RETURN_IF_ERROR(rig.Open());
  Calibration result;
  TRIB_RETURN_IF_ERROR(rig.LoneSeconds().status());  // warms workers and memory up
  TRIB_ASSIGN_OR_RETURN(result.lone_seconds, rig.LoneSeconds());
  double rate = kFirstShare / result.lone_seconds;
  int above = 0;  // twice in a row: one slow point may be noise
  while (result.curve.size() < Calibration::kMaxRates && above < 2) {
    TRIB_ASSIGN_OR_RETURN(const double seconds, rig.MeanSecondsAt(rate));
    result.curve.push_back({.rate = rate, .seconds = seconds});
    above = seconds > kFarAbove * result.curve.front().seconds ? above + 1 : 0;
    rate *= kStepUp;
  }
  TRIB_ASSIGN_OR_RETURN(result.capacity, CapacityFromCurve(result.curve));
  return result;
}

}  // namespace tributary::aggregator
