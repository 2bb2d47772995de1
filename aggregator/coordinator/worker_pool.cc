#include "aggregator/coordinator/worker_pool.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>
#include <map>
#include <thread>
#include <utility>

#include "aggregator/coordinator/pool_job.h"
#include "aggregator/coordinator/pool_report.h"
#include "aggregator/coordinator/pool_scaler.h"
#include "aggregator/coordinator/seat_wiring.h"
#include "aggregator/coordinator/worker_fleet.h"
#include "aggregator/coordinator/worker_watchdog.h"
#include "aggregator/transport/transport.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kReadyTimeout = absl::Seconds(10);
// While something is under way the thread looks once a second whatever the doorbells say.
constexpr absl::Duration kSafetyTimeout = absl::Seconds(1);

}  // namespace

struct WorkerPool::Impl final : WorkerFleet::Owner {
  // Lets an object pool's listener, which may run late in another thread, find out that we are gone.
  struct Gate {
    absl::Mutex mutex;
    Impl* impl ABSL_GUARDED_BY(mutex) = nullptr;
  };

  Impl(const Options& o, Callbacks c, UniqueFd doorbell, std::unique_ptr<SeatWiring> seat_wiring)
      : options(o),
        callbacks(std::move(c)),
        progress(std::move(doorbell)),
        wiring(std::move(seat_wiring)),
        fleet(o.worker_program, progress.get(), this),
        watchdog(o.hang_patience),
        scaler(o.workers, o.scale_period, context.clock.Now()) {
    context.workers = options.workers;
    context.lane_capacity = wiring->LaneCapacity(options.lane_capacity);
    context.fleet = &fleet;
    context.wiring = wiring.get();
    context.reports = &reports;
  }

  const Options options;
  const Callbacks callbacks;
  const UniqueFd progress;  // rung by the workers, and by our own methods
  std::shared_ptr<Gate> gate = std::make_shared<Gate>();

  mutable absl::Mutex mutex;
  const std::unique_ptr<SeatWiring> wiring ABSL_PT_GUARDED_BY(mutex);
  WorkerFleet fleet ABSL_GUARDED_BY(mutex);
  WorkerWatchdog watchdog ABSL_GUARDED_BY(mutex);
  std::map<uint32_t, std::unique_ptr<PoolJob>> jobs ABSL_GUARDED_BY(mutex);
  std::vector<PoolReport> reports ABSL_GUARDED_BY(mutex);
  PoolContext context ABSL_GUARDED_BY(mutex);
  PoolScaler scaler ABSL_GUARDED_BY(mutex);
  ScaleStats scaling ABSL_GUARDED_BY(mutex);
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  // The thread sleeps, or is about to, as if nothing were under way. Whoever changes that rings: a worker that stops at once never would.
  bool dozing ABSL_GUARDED_BY(mutex) = false;
  std::jthread thread;  // last: joined first

  // ---- what the fleet asks (in Turn) ----

  void Greet(uint32_t worker) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    watchdog.Forget(worker);
    for (auto& [number, job] : jobs) job->Greet(worker);
  }

  absl::Status Hear(uint32_t worker, const WorkerMessage& message) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (message.kind == WorkerMessageKind::kPong) {
      watchdog.Answered(worker);
      return absl::OkStatus();
    }
    for (auto& [number, job] : jobs) {
      if (job->HasSeat(message.job)) return job->Hear(worker, message);
    }
    return absl::OkStatus();  // of a job, or an attempt at one, that is over
  }

  Work WorkOf(uint32_t worker) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    Work work;
    for (auto& [number, job] : jobs) job->AddWork(worker, &work);
    return work;
  }

  void OnStuck(uint32_t worker, const std::string& reason) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (auto& [number, job] : jobs) {
      Work work;
      job->AddWork(worker, &work);
      if (work.waiting) job->Lose(reason);
    }
  }

  // ---- which processes run ----

  bool Needed(uint32_t worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return std::any_of(jobs.begin(), jobs.end(), [worker](const auto& item) { return item.second->Needs(worker); });
  }

  // After a plan.
  void Rescale() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::vector<PoolScaler::Worker> all;
    for (uint32_t i = 0; i < options.workers; ++i) all.push_back({.running = !fleet.cold(i), .needed = Needed(i)});
    const PoolScaler::Orders orders = scaler.OnPlan(context.clock.Now(), all);
    for (const uint32_t worker : orders.start) Rouse(worker);
    for (const uint32_t worker : orders.end) {
      fleet.Rest(worker);
      ++scaling.evictions;
      for (auto& [number, job] : jobs) job->Forget(worker);
      TRIB_LOG(info, "worker {} is ended: the plans of late could do without it", worker);
    }
  }

  void Rouse(uint32_t worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    fleet.Rouse(worker);
    ++scaling.starts;
    TRIB_LOG(info, "worker {} is started: a plan needs it", worker);
  }

  // Roles change within plans, too: a lap that begins because sums were read has all its leaves again.
  void RouseNeeded() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (uint32_t i = 0; i < options.workers; ++i) {
      if (fleet.cold(i) && Needed(i)) Rouse(i);
    }
  }

  // Asks workers that get nothing done whether they live, and has those replaced that do not.
  void LookForHung(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (uint32_t i = 0; i < fleet.size(); ++i) {
      if (!fleet.active(i) || fleet.pid(i) == 0) continue;
      switch (watchdog.Look(i, WorkOf(i), now)) {
        case WorkerWatchdog::Verdict::kFine: break;
        case WorkerWatchdog::Verdict::kAsk: {
          WorkerMessage ping;
          ping.kind = WorkerMessageKind::kPing;
          fleet.Tell(i, ping);
          break;
        }
        case WorkerWatchdog::Verdict::kHung:
          fleet.Kill(i, DeadlineExceeded("it has work, and has neither got on with it nor answered for {}", absl::FormatDuration(options.hang_patience)));
          break;
      }
    }
  }

  // ---- the thread ----

  // Everything that is to be done now. Returns how long to sleep.
  absl::Duration Turn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    // Cursors first, then channels: a refusal is sent before the cursor passes its descriptor.
    const absl::Time now = absl::Now();
    for (const SeatWiring::News& news : wiring->Take(now)) {
      for (auto& [number, job] : jobs) job->Hear(news);
    }
    for (auto& [number, job] : jobs) job->ReadCursors();
    RouseNeeded();
    absl::Duration sleep = std::min(fleet.Turn(now), wiring->NextCheck(now));
    for (auto& [number, job] : jobs) {
      const bool again = job->Settle();
      if (job->under_way()) sleep = std::min(sleep, kSafetyTimeout);
      if (again) sleep = absl::ZeroDuration();
    }
    LookForHung(now);
    return std::max(sleep, absl::ZeroDuration());
  }

  void RunThread() {
    while (true) {
      std::vector<PoolReport> said;
      std::vector<pollfd> fds;
      absl::Duration sleep;
      {
        absl::MutexLock lock(&mutex);
        if (stopping) break;
        sleep = Turn();
        dozing = sleep > kSafetyTimeout;
        said.swap(reports);
        fds.push_back({progress.get(), POLLIN, 0});
        fds.push_back({wiring->wait_fd(), POLLIN, 0});  // poll() passes over a negative fd
        fleet.AddPollFds(&fds);
      }
      for (const PoolReport& report : said) Say(report);
      if (!said.empty()) continue;  // a callback may have caused work
      const timespec limit = absl::ToTimespec(std::min(sleep, absl::Hours(1)));
      ::ppoll(fds.data(), fds.size(), &limit, nullptr);
      if ((fds[0].revents & POLLIN) != 0) DrainEventFd(progress.get());
    }
    std::vector<std::unique_ptr<ChildProcess>> children;
    {
      absl::MutexLock lock(&mutex);
      children = fleet.Stop();
    }
    WorkerFleet::WaitForEnd(std::move(children));
  }

  void Say(const PoolReport& report) {
    switch (report.kind) {
      case PoolReport::Kind::kFolded:
        if (callbacks.folded) callbacks.folded(report.job, report.update);
        return;
      case PoolReport::Kind::kRefused:
        if (callbacks.refused) callbacks.refused(report.job, report.update, report.reason);
        return;
      case PoolReport::Kind::kLost:
        if (callbacks.lost) callbacks.lost(report.job, report.reason);
        return;
    }
  }

  bool Started() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return !fleet.start_status().ok() || fleet.all_ready(); }

  void OnSegment(uint32_t number, uint16_t segment, int fd, size_t bytes) {
    absl::MutexLock lock(&mutex);
    const auto found = jobs.find(number);
    if (found != jobs.end()) found->second->OnSegment(segment, fd, bytes);
  }

  // NOT_FOUND, or the job.
  absl::StatusOr<PoolJob*> Find(uint32_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const auto found = jobs.find(number);
    if (found == jobs.end()) return NotFound("worker pool: no job {}", number);
    return found->second.get();
  }
};

WorkerPool::WorkerPool(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Start(const Options& options, Callbacks callbacks) {
  if (options.workers == 0 || options.workers > kMaxWorkers) {
    return InvalidArgument("worker pool: expected 1 to {} workers, got {}", kMaxWorkers, options.workers);
  }
  if (options.lane_capacity == 0 || options.lane_capacity > TB_MAX_LANE_CAPACITY || !std::has_single_bit(options.lane_capacity)) {
    return InvalidArgument("worker pool: expected a lane capacity that is a power of two up to {}, got {}", TB_MAX_LANE_CAPACITY,
                           options.lane_capacity);
  }
  if (options.scale_period <= absl::ZeroDuration()) {
    return InvalidArgument("worker pool: expected a scale period above 0, got {}", absl::FormatDuration(options.scale_period));
  }
  UniqueFd progress(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!progress.valid()) return ErrnoStatus(errno, "worker pool: eventfd");
  TRIB_ASSIGN_OR_RETURN(std::unique_ptr<SeatWiring> wiring, SeatWiring::Create(options.transport, progress.get(), options.pin_folder));
  auto impl = std::make_unique<Impl>(options, std::move(callbacks), std::move(progress), std::move(wiring));
  {
    absl::MutexLock lock(&impl->mutex);
    for (uint32_t i = 0; i < options.workers; ++i) TRIB_RETURN_IF_ERROR(impl->fleet.Add().status());
  }
  {
    absl::MutexLock lock(&impl->gate->mutex);
    impl->gate->impl = impl.get();
  }
  Impl* raw = impl.get();
  std::unique_ptr<WorkerPool> pool(new WorkerPool(std::move(impl)));
  raw->thread = std::jthread([raw] { raw->RunThread(); });
  absl::MutexLock lock(&raw->mutex);
  raw->mutex.AwaitWithTimeout(absl::Condition(+[](Impl* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->Started(); }, raw),
                              kReadyTimeout);
  raw->fleet.ForgiveStart();
  if (!raw->fleet.start_status().ok()) return Annotate(raw->fleet.start_status(), "worker pool");
  if (!raw->Started()) {
    return Unavailable("worker pool: {} has not reported ready within {}", options.worker_program,
                       absl::FormatDuration(kReadyTimeout));
  }
  return pool;
}

WorkerPool::~WorkerPool() {
  std::vector<uint32_t> open;
  {
    absl::MutexLock lock(&impl_->mutex);
    for (const auto& [number, job] : impl_->jobs) open.push_back(number);
  }
  for (const uint32_t number : open) CloseJob(number);
  {
    absl::MutexLock lock(&impl_->gate->mutex);
    impl_->gate->impl = nullptr;
  }
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->stopping = true;
  }
  RingEventFd(impl_->progress.get());
  if (impl_->thread.joinable()) impl_->thread.join();
}

absl::Status WorkerPool::OpenJob(const JobOptions& options, ObjectPool* pool) {
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->jobs.contains(options.job)) return AlreadyExists("worker pool: job {} is open", options.job);
    TRIB_ASSIGN_OR_RETURN(std::unique_ptr<PoolJob> job, PoolJob::Create(options, pool, &impl_->context));
    impl_->jobs[options.job] = std::move(job);
  }
  // Without the lock: the listener is told of existing segments at once, and takes it.
  pool->SetSegmentListener([gate = impl_->gate, number = options.job](uint16_t segment, int fd, size_t bytes) {
    absl::MutexLock lock(&gate->mutex);
    if (gate->impl != nullptr) gate->impl->OnSegment(number, segment, fd, bytes);
  });
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(PoolJob* const job, impl_->Find(options.job));
  job->Open();
  return absl::OkStatus();
}

void WorkerPool::CloseJob(uint32_t job) {
  ObjectPool* pool = nullptr;
  {
    absl::MutexLock lock(&impl_->mutex);
    const auto found = impl_->jobs.find(job);
    if (found == impl_->jobs.end()) return;
    pool = found->second->objects();
    found->second->Close();
    impl_->jobs.erase(found);
    impl_->Rescale();
  }
  pool->SetSegmentListener({});
}

absl::StatusOr<size_t> WorkerPool::SlabMemory(const JobOptions& options) { return PoolJob::SlabMemory(options); }

absl::Status WorkerPool::BeginRound(uint32_t job, uint32_t round, const RoundGoals& goals) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
  absl::Status begun = found->BeginRound(round, goals);
  impl_->Rescale();
  return begun;
}

absl::Status WorkerPool::Replan(uint32_t job, const RoundPlanFunction& plan) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
  absl::Status planned = found->Replan(plan);
  if (found->lost()) RingEventFd(impl_->progress.get());
  impl_->Rescale();
  return planned;
}

void WorkerPool::Hurry(uint32_t job) {
  absl::MutexLock lock(&impl_->mutex);
  if (const absl::StatusOr<PoolJob*> found = impl_->Find(job); found.ok()) (*found)->Hurry();
}

absl::Status WorkerPool::Fold(uint32_t job, const UpdateId& update, const ObjectKey& key) {
  bool ring = false;
  {
    absl::MutexLock lock(&impl_->mutex);
    TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
    TRIB_RETURN_IF_ERROR(found->Fold(update, key));
    impl_->RouseNeeded();
    ring = found->Arm() || found->lost() || std::exchange(impl_->dozing, false);
  }
  if (ring) RingEventFd(impl_->progress.get());
  return absl::OkStatus();
}

absl::StatusOr<WorkerPool::Sums> WorkerPool::ReadSums(uint32_t job) {
  absl::MutexLock lock(&impl_->mutex);
  {
    TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
    TRIB_RETURN_IF_ERROR(found->StartReading());
    if (std::exchange(impl_->dozing, false)) RingEventFd(impl_->progress.get());
  }
  // The job may be closed meanwhile; ~WorkerPool closes all.
  const auto readable = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    const auto found = impl_->jobs.find(job);
    return found == impl_->jobs.end() || found->second->readable();
  };
  impl_->mutex.Await(absl::Condition(&readable));
  TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
  absl::StatusOr<Sums> sums = found->ReadSums();
  if (found->lost()) RingEventFd(impl_->progress.get());  // somebody has to say so
  return sums;
}

absl::Status WorkerPool::WriteSums(uint32_t job, std::span<const std::byte> state, std::span<const int64_t> counters) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
  absl::Status written = found->WriteSums(state, counters);
  impl_->RouseNeeded();
  return written;
}

std::vector<WorkerStatus> WorkerPool::Status() const {
  absl::MutexLock lock(&impl_->mutex);
  std::vector<WorkerStatus> all;
  for (uint32_t i = 0; i < impl_->fleet.size(); ++i) {
    if (!impl_->fleet.listed(i)) continue;
    WorkerStatus status;
    status.index = i;
    status.pid = impl_->fleet.pid(i);
    status.restarts = impl_->fleet.restarts(i);
    if (const auto tally = impl_->context.tallies.find(i); tally != impl_->context.tallies.end()) {
      status.folded = tally->second.folded;
      status.updates_per_second = tally->second.arrivals.At(impl_->context.clock.Now());
    }
    uint64_t busy_ns = 0, handled = 0;
    SeatRole role = SeatRole::kParked;
    for (const auto& [number, job] : impl_->jobs) job->AddStatus(i, &status, &busy_ns, &handled, &role);
    status.role = impl_->fleet.cold(i) ? "cold" : SeatRoleName(role);
    if (i < impl_->options.workers && role == SeatRole::kParked && impl_->scaler.parked_since(i) != absl::InfiniteFuture()) {
      status.parked_for = impl_->context.clock.Now() - impl_->scaler.parked_since(i);
    }
    if (handled != 0) status.seconds_per_update = static_cast<double>(busy_ns) * 1e-9 / static_cast<double>(handled);
    all.push_back(status);
  }
  return all;
}

WorkerPool::ScaleStats WorkerPool::Scaling() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->scaling;
}

WorkerPool::Traffic WorkerPool::TrafficOf() const {
  absl::MutexLock lock(&impl_->mutex);
  Traffic traffic;
  traffic.lanes = impl_->context.ended_lanes;
  for (const auto& [number, job] : impl_->jobs) traffic.lanes += job->Lanes();
  traffic.verdicts = impl_->wiring->Verdicts();
  return traffic;
}

absl::StatusOr<std::optional<LoadEstimator::Estimate>> WorkerPool::LoadOf(uint32_t job) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(PoolJob* const found, impl_->Find(job));
  return found->Load();
}

double WorkerPool::MeanLoad() {
  absl::MutexLock lock(&impl_->mutex);
  double sum = 0;
  for (const auto& [number, job] : impl_->jobs) {
    if (const auto load = job->Load()) sum += load->mean_load;
  }
  return sum;
}

absl::StatusOr<WorkerPool::TreeStats> WorkerPool::StatsOf(uint32_t job) const {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(const PoolJob* const found, impl_->Find(job));
  return found->stats();
}

}  // namespace tributary::aggregator
