#include "aggregator/worker/worker_runtime.h"

#include <absl/time/time.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "aggregator/core/reducer.h"
#include "aggregator/core/strategy.h"
#include "aggregator/store/object_pool.h"
#include "aggregator/store/slab.h"
#include "aggregator/transport/transport.h"
#include "aggregator/worker/slab_fold.h"
#include "common/crash_points.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

// Updates per pass over the accumulators: enough to halve the memory traffic, few enough that their blocks fit L2 together.
constexpr size_t kFoldBatch = 8;
// The protocol loses no wake-up (transport/LANES.md); a sleeper looks anyway, and counts what it finds.
constexpr absl::Duration kSafetyTimeout = absl::Seconds(1);

void CopyText(char* to, size_t size, const std::string& text) {
  const size_t count = std::min(size - 1, text.size());
  std::memcpy(to, text.data(), count);
  to[count] = '\0';
}

}  // namespace

// One job here: where its objects are mapped, the lane they are announced on, the slab they go into.
class WorkerRuntime::Job {
 public:
  explicit Job(uint32_t number) : number_(number) {}

  absl::Status AddSegment(const WorkerMessage& message, UniqueFd fd) {
    if (message.pool > std::numeric_limits<uint16_t>::max() || message.segment > std::numeric_limits<uint16_t>::max()) {
      return InvalidArgument("job {}: segment {} of pool {}: expected 16-bit numbers", number_, message.segment, message.pool);
    }
    return segments_.Add(static_cast<uint16_t>(message.pool), static_cast<uint16_t>(message.segment), std::move(fd),
                         message.segment_bytes, message.slot_bytes);
  }

  absl::Status Open(const WorkerMessage& message, UniqueFd lane, UniqueFd slab, int doorbell_fd, int progress_fd,
                    WorkerChannel* channel) {
    if (consumer_) return AlreadyExists("job {}: opened twice", number_);
    const bool float_type = message.dtype == static_cast<uint32_t>(DType::kF32) || message.dtype == static_cast<uint32_t>(DType::kF64);
    const bool arithmetic = message.arithmetic == static_cast<uint32_t>(Arithmetic::kFloat64) ||
                            message.arithmetic == static_cast<uint32_t>(Arithmetic::kFixedPoint);
    if (!float_type || !arithmetic || message.float_count > TensorLayout::kMaxBytes ||
        message.counter_count > TensorLayout::kMaxBytes / 8 || message.first_element > message.float_count ||
        message.elements > message.float_count - message.first_element) {
      return InvalidArgument("job {}: type {}, arithmetic {}, elements {}+{} of {}, {} counters: not a range of a layout", number_,
                             message.dtype, message.arithmetic, message.first_element, message.elements, message.float_count,
                             message.counter_count);
    }
    dtype_ = static_cast<DType>(message.dtype);
    float_bytes_ = message.float_count * DTypeBytes(dtype_);
    payload_bytes_ = float_bytes_ + message.counter_count * 8;
    folds_counters_ = message.folds_counters != 0 && message.counter_count != 0;
    StrategySpec spec;
    spec.name = message.reducer;
    TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Strategy> strategy, MakeStrategy(spec));
    reducer_ = strategy->MakeReducer(dtype_, static_cast<Arithmetic>(message.arithmetic));
    TRIB_ASSIGN_OR_RETURN(lane_, SharedRegion::Receive(std::move(lane), message.lane_bytes));
    TRIB_ASSIGN_OR_RETURN(slab_, SharedRegion::Receive(std::move(slab), message.slab_bytes));
    lane_.fd.Reset();  // the mappings are enough
    slab_.fd.Reset();
    const SlabShape shape{message.first_element, message.elements, static_cast<uint32_t>(reducer_->state_bytes_per_element()),
                          folds_counters_ ? static_cast<uint32_t>(message.counter_count) : 0u};
    TRIB_ASSIGN_OR_RETURN(const Slab attached, Slab::Attach(slab_.bytes, shape));
    TRIB_ASSIGN_OR_RETURN(consumer_, AttachRingConsumer(lane_.bytes, {.wait_fd = doorbell_fd, .ring_fd = progress_fd}));
    fold_ = std::make_unique<SlabFold>(attached, reducer_.get());
    channel_ = channel;
    return Recover();
  }

  bool opened() const { return fold_ != nullptr; }
  LaneConsumer& consumer() { return *consumer_; }

  // Takes the next batch off the lane. False: nothing was queued.
  absl::StatusOr<bool> Take() {
    TRIB_ASSIGN_OR_RETURN(taken_, consumer_->Poll(descs_));
    return taken_ != 0;
  }

  // Folds what Take took. The control channel is drained in between: the segment a descriptor names was announced before the
  // descriptor was pushed, so it is mapped by now.
  absl::Status Process() {
    const size_t count = std::exchange(taken_, 0);
    if (count == 0) return absl::OkStatus();
    const uint32_t end = consumer_->tail();
    std::vector<FoldInput> inputs;
    std::vector<uint32_t> cursors;  // after inputs[i]
    for (size_t i = 0; i < count; ++i) {
      absl::StatusOr<FoldInput> input = Look(descs_[i]);
      if (!input.ok()) {
        TRIB_RETURN_IF_ERROR(Refuse(descs_[i], input.status()));
        continue;
      }
      inputs.push_back(*input);
      cursors.push_back(end - static_cast<uint32_t>(count - i) + 1);
    }
    if (inputs.empty()) {
      fold_->Skip(end);
    } else {
      TRIB_RETURN_IF_ERROR(FoldOrRefuse(inputs, cursors, end));
    }
    Done(end);
    return absl::OkStatus();
  }

 private:
  void Done(uint32_t cursor) {
    TRIB_CRASH_POINT(worker_before_done);
    consumer_->Release(cursor);
    TRIB_CRASH_POINT(worker_after_done);
  }

  // Brings lane and slab together after a predecessor's death (nothing to do for a new job).
  absl::Status Recover() {
    TRIB_ASSIGN_OR_RETURN(const SlabFold::Recovered found, fold_->Recover());
    TRIB_RETURN_IF_ERROR(TakeUpTo(found.completed_cursor));
    if (found.under_way) {
      TRIB_RETURN_IF_ERROR(TakeUpTo(found.batch_done_cursor));
      std::vector<FoldInput> inputs;
      for (uint32_t i = 0; i < found.batch_size; ++i) {
        TRIB_ASSIGN_OR_RETURN(FoldInput input, Look(found.batch[i]));
        input.view.weight = found.batch_weight[i];
        if (!(std::isfinite(input.view.weight) && input.view.weight > 0)) {
          return DataLoss("slab record: weight {} of batch entry {}", input.view.weight, i);
        }
        inputs.push_back(input);
      }
      switch (fold_->ResumeFold(inputs)) {
        case FoldResult::kBroken:
          return DataLoss("an update is not finite or out of range behind a block that was folded");
        case FoldResult::kUnchanged:  // as if the batch had never begun: find out which of them it is
          return RefoldSingly(inputs, found);
        case FoldResult::kFolded:
          break;
      }
      Done(found.batch_done_cursor);
    } else {
      consumer_->Release(found.completed_cursor);
    }
    return absl::OkStatus();
  }

  // A recovered batch whose first block fails. Positions of its members within the lane are not recorded (refused ones may lie
  // between), so commits are by the last cursor only, once for all that are left.
  absl::Status RefoldSingly(std::vector<FoldInput> inputs, const SlabFold::Recovered& found) {
    for (size_t i = 0; i < inputs.size();) {
      const FoldInput one[] = {inputs[i]};
      if (IsFinite(one[0])) {
        ++i;
        continue;
      }
      TRIB_RETURN_IF_ERROR(Refuse(inputs[i].desc, InvalidArgument("the update is not finite")));
      inputs.erase(inputs.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (inputs.empty()) {
      fold_->Skip(found.batch_done_cursor);
    } else if (fold_->Fold(inputs, found.batch_done_cursor) != FoldResult::kFolded) {
      return DataLoss("the sums leave their range");
    }
    Done(found.batch_done_cursor);
    return absl::OkStatus();
  }

  // Of the whole float region: slow, and only reached when a fold has failed.
  bool IsFinite(const FoldInput& input) const {
    return Scan({input.view.flat, float_bytes_}, dtype_).finite;
  }

  absl::Status TakeUpTo(uint32_t cursor) {
    uint32_t left = cursor - consumer_->tail();
    std::array<tb_desc, kFoldBatch> taken;
    while (left > 0) {
      TRIB_ASSIGN_OR_RETURN(const size_t count, consumer_->Poll(std::span(taken).first(std::min<size_t>(left, kFoldBatch))));
      if (count == 0) return DataLoss("slab record: cursor {} is {} past the lane's head", cursor, left);
      left -= static_cast<uint32_t>(count);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<FoldInput> Look(const tb_desc& desc) {
    if (desc.kind != TB_KIND_UPDATE) return InvalidArgument("expected a descriptor of an update, got kind {}", desc.kind);
    if (desc.round != fold_->round()) {
      return FailedPrecondition("expected a descriptor of round {}, got round {}", fold_->round(), desc.round);
    }
    TRIB_ASSIGN_OR_RETURN(const SegmentMap::Object object, segments_.Find({desc.key_hi, desc.key_lo}));
    if (object.payload.size() != payload_bytes_) {
      return DataLoss("expected {} payload bytes, got {}", payload_bytes_, object.payload.size());
    }
    if (!(std::isfinite(object.header.weight) && object.header.weight > 0)) {
      return DataLoss("expected a finite weight > 0, got {}", object.header.weight);
    }
    FoldInput input;
    input.desc = desc;
    input.view = {object.payload.data(), object.header.weight};
    if (folds_counters_) input.counters = object.payload.data() + float_bytes_;
    return input;
  }

  absl::Status FoldOrRefuse(std::span<const FoldInput> inputs, std::span<const uint32_t> cursors, uint32_t end) {
    switch (fold_->Fold(inputs, end)) {
      case FoldResult::kFolded:
        return absl::OkStatus();
      case FoldResult::kBroken:
        return DataLoss("an update is not finite or out of range behind a block that was folded");
      case FoldResult::kUnchanged:
        break;
    }
    // One of them is bad: one by one, so that only it is refused.
    for (size_t i = 0; i < inputs.size(); ++i) {
      switch (fold_->Fold(inputs.subspan(i, 1), cursors[i])) {
        case FoldResult::kFolded:
          break;
        case FoldResult::kBroken:
          return DataLoss("an update is not finite or out of range behind a block that was folded");
        case FoldResult::kUnchanged:
          TRIB_RETURN_IF_ERROR(Refuse(inputs[i].desc, InvalidArgument("the update is not finite, or takes a sum out of range")));
          fold_->Skip(cursors[i]);
          break;
      }
    }
    fold_->Skip(end);
    return absl::OkStatus();
  }

  absl::Status Refuse(const tb_desc& desc, const absl::Status& why) {
    WorkerMessage message;
    message.kind = WorkerMessageKind::kRefused;
    message.job = number_;
    message.round = desc.round;
    message.key_hi = desc.key_hi;
    message.key_lo = desc.key_lo;
    message.code = static_cast<uint32_t>(why.code());
    CopyText(message.reason, sizeof(message.reason), MessageOf(why));
    return channel_->Send(message);
  }

  const uint32_t number_;
  SegmentMap segments_;
  SharedRegion lane_, slab_;
  std::unique_ptr<Reducer> reducer_;
  std::unique_ptr<LaneConsumer> consumer_;
  std::unique_ptr<SlabFold> fold_;
  WorkerChannel* channel_ = nullptr;
  std::array<tb_desc, kFoldBatch> descs_;
  size_t taken_ = 0;
  DType dtype_ = DType::kF32;
  size_t float_bytes_ = 0;
  size_t payload_bytes_ = 0;
  bool folds_counters_ = false;
};

WorkerRuntime::WorkerRuntime(UniqueFd channel) : channel_(std::move(channel)) {}
WorkerRuntime::~WorkerRuntime() = default;

WorkerRuntime::Job& WorkerRuntime::JobOf(uint32_t number) {
  std::unique_ptr<Job>& job = jobs_[number];
  if (!job) job = std::make_unique<Job>(number);
  return *job;
}

void WorkerRuntime::Fail(uint32_t number, const absl::Status& why) {
  jobs_.erase(number);
  WorkerMessage message;
  message.kind = WorkerMessageKind::kFailed;
  message.job = number;
  message.code = static_cast<uint32_t>(why.code());
  CopyText(message.reason, sizeof(message.reason), MessageOf(why));
  TRIB_LOG(warn, "job {} dropped: {}", number, MessageOf(why));
  TRIB_LOG_IF_ERROR(channel_.Send(message));
}

absl::StatusOr<WorkerRuntime::Next> WorkerRuntime::Handle(WorkerChannel::Received received) {
  const WorkerMessage& message = received.message;
  switch (message.kind) {
    case WorkerMessageKind::kHello: {
      doorbell_ = std::move(received.fds[0]);
      progress_ = std::move(received.fds[1]);
      WorkerMessage ready;
      ready.kind = WorkerMessageKind::kReady;
      const absl::Status sent = channel_.Send(ready);
      if (sent.code() == absl::StatusCode::kUnavailable) return Next::kStop;  // the daemon is gone already
      TRIB_RETURN_IF_ERROR(sent);
      return Next::kGoOn;
    }
    case WorkerMessageKind::kOpenJob: {
      if (!doorbell_.valid()) return InvalidArgument("worker channel: a job before the doorbells");
      const absl::Status status = JobOf(message.job).Open(message, std::move(received.fds[0]), std::move(received.fds[1]),
                                                          doorbell_.get(), progress_.get(), &channel_);
      if (!status.ok()) Fail(message.job, status);
      return Next::kGoOn;
    }
    case WorkerMessageKind::kSegment: {
      const absl::Status status = JobOf(message.job).AddSegment(message, std::move(received.fds[0]));
      if (!status.ok()) Fail(message.job, status);
      return Next::kGoOn;
    }
    case WorkerMessageKind::kCloseJob:
      jobs_.erase(message.job);
      return Next::kGoOn;
    case WorkerMessageKind::kStop:
      return Next::kStop;
    default:
      return InvalidArgument("worker channel: kind {} is not for a worker", static_cast<uint32_t>(message.kind));
  }
}

absl::StatusOr<WorkerRuntime::Next> WorkerRuntime::DrainChannel() {
  while (true) {
    absl::StatusOr<WorkerChannel::Received> received = channel_.Receive(absl::ZeroDuration());
    if (received.status().code() == absl::StatusCode::kDeadlineExceeded) return Next::kGoOn;
    if (received.status().code() == absl::StatusCode::kUnavailable) return Next::kStop;  // the daemon is gone
    if (!received.ok()) return received.status();
    TRIB_ASSIGN_OR_RETURN(const Next next, Handle(*std::move(received)));
    if (next == Next::kStop) return next;
  }
}

bool WorkerRuntime::TakeAll() {
  bool busy = false;
  std::vector<std::pair<uint32_t, absl::Status>> failed;
  for (auto& [number, job] : jobs_) {
    if (!job->opened()) continue;
    const absl::StatusOr<bool> taken = job->Take();
    if (!taken.ok()) failed.emplace_back(number, taken.status());
    busy = busy || !taken.ok() || *taken;
  }
  for (const auto& [number, why] : failed) Fail(number, why);
  return busy;
}

void WorkerRuntime::ProcessAll() {
  std::vector<std::pair<uint32_t, absl::Status>> failed;
  for (auto& [number, job] : jobs_) {
    if (!job->opened()) continue;
    if (absl::Status status = job->Process(); !status.ok()) failed.emplace_back(number, std::move(status));
  }
  for (const auto& [number, why] : failed) Fail(number, why);
}

void WorkerRuntime::Sleep() {
  bool work = false;
  size_t lanes = 0;
  for (auto& [number, job] : jobs_) {
    if (!job->opened()) continue;
    ++lanes;
    work = job->consumer().Arm() || work;
  }
  bool timed_out = false;
  if (!work) {
    std::array<pollfd, 2> fds = {pollfd{channel_.fd(), POLLIN, 0}, pollfd{doorbell_.get(), POLLIN, 0}};
    const timespec limit = absl::ToTimespec(kSafetyTimeout);
    // Parked without a job: nothing can be missed, so no timeout either.
    timed_out = ::ppoll(fds.data(), fds.size(), lanes == 0 ? nullptr : &limit, nullptr) == 0;
    if ((fds[1].revents & POLLIN) != 0) DrainEventFd(doorbell_.get());
  }
  for (auto& [number, job] : jobs_) {
    if (!job->opened()) continue;
    const uint64_t late = job->consumer().late_wakeups();
    job->consumer().Disarm(timed_out);
    if (job->consumer().late_wakeups() != late) TRIB_LOG(error, "job {}: a doorbell was lost (late wake-up)", number);
  }
}

absl::Status WorkerRuntime::Run() {
  while (true) {
    const bool busy = TakeAll();
    TRIB_ASSIGN_OR_RETURN(const Next next, DrainChannel());
    if (next == Next::kStop) return absl::OkStatus();
    ProcessAll();
    if (!busy) Sleep();
  }
}

}  // namespace tributary::aggregator
