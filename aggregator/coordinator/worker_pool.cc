#include "aggregator/coordinator/worker_pool.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <thread>
#include <utility>

#include "aggregator/core/kernels.h"
#include "aggregator/core/strategy.h"
#include "aggregator/store/slab.h"
#include "aggregator/transport/transport.h"
#include "aggregator/transport/worker_channel.h"
#include "common/log.h"
#include "common/process.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kReadyTimeout = absl::Seconds(10);
constexpr absl::Duration kStopGrace = absl::Seconds(2);
// While something is under way the thread looks once a second whatever the doorbells say.
constexpr absl::Duration kSafetyTimeout = absl::Seconds(1);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(10);
constexpr absl::Duration kMaxBackoff = absl::Seconds(2);
// A process that ends sooner than this without having done anything is not restarted at full speed.
constexpr absl::Duration kQuickDeath = absl::Seconds(1);
// Deaths in a row at the same place after which a descriptor, not bad luck, is held responsible.
constexpr uint32_t kDeathsWithoutProgress = 8;

absl::StatusOr<UniqueFd> MakeEventFd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, "worker pool: eventfd");
  return fd;
}

// One worker's part of a job. Lane and slab outlive the process that works on them.
struct Shard {
  uint32_t worker = 0;
  SlabShape shape;
  SharedRegion lane_region, slab_region;
  std::unique_ptr<LaneProducer> lane;
  Slab slab;
  uint32_t done = 0;  // the lane's cursor as last read
};

struct Entry {
  UpdateId update;
  ObjectKey key;
  uint64_t refused_by = 0;  // bit per shard
  std::string reason;
};

struct Segment {
  uint16_t number = 0;
  int fd = -1;  // the object pool's
  size_t bytes = 0;
};

struct Job {
  WorkerPool::JobOptions options;
  ObjectPool* pool = nullptr;
  std::unique_ptr<Reducer> reducer;
  uint32_t wire = 0;      // its number on the channels; a new one each time lanes and slabs are made
  bool opened = false;    // workers have been told
  bool lost = false;
  bool round_open = false;
  uint32_t round = 0;
  std::vector<Shard> shards;
  std::vector<Shard> lost_shards;
  std::vector<Segment> segments;
  // Every lane gets the same descriptors in the same order: entries[i] has lane cursor base + i in all of them.
  std::deque<Entry> entries;
  size_t pushed = 0;      // entries[0, pushed) are in the lanes
  uint32_t base = 0;
};

struct Worker {
  uint32_t index = 0;
  std::unique_ptr<ChildProcess> process;  // empty while dead
  std::unique_ptr<WorkerChannel> channel;
  UniqueFd doorbell;
  bool channel_broken = false;  // say and believe nothing more on it
  bool ready = false;
  uint32_t restarts = 0;
  uint64_t folded = 0;
  absl::Time started_at = absl::InfinitePast();
  absl::Time respawn_at = absl::InfinitePast();
  uint64_t progress_stamp = 0;  // at the last death
  uint32_t quick_deaths = 0;    // in a row: soon after the start and without progress; sets the backoff
  uint32_t stuck_deaths = 0;    // in a row: with work waiting and without progress
};

// What the callbacks have to say, collected under the lock, said without it.
struct Report {
  enum class Kind { kFolded, kRefused, kLost } kind;
  uint32_t job = 0;
  UpdateId update;
  std::string reason;
};

// Contiguous ranges on block borders, so that the blocks, and with them the bits, are the same for any number of workers.
std::vector<std::pair<size_t, size_t>> SplitRange(size_t elements, uint32_t workers) {
  const size_t blocks = (elements + kBlockElements - 1) / kBlockElements;
  const size_t shards = std::clamp<size_t>(blocks, 1, workers);
  std::vector<std::pair<size_t, size_t>> ranges;
  for (size_t i = 0; i < shards; ++i) {
    const size_t first = std::min(elements, blocks * i / shards * kBlockElements);
    const size_t last = std::min(elements, blocks * (i + 1) / shards * kBlockElements);
    ranges.emplace_back(first, last - first);
  }
  return ranges;
}

}  // namespace

struct WorkerPool::Impl {
  // Lets an object pool's listener, which may run late in another thread, find out that we are gone.
  struct Gate {
    absl::Mutex mutex;
    Impl* impl ABSL_GUARDED_BY(mutex) = nullptr;
  };

  Options options;
  Callbacks callbacks;
  UniqueFd progress;  // rung by the workers, and by our own methods
  std::shared_ptr<Gate> gate = std::make_shared<Gate>();

  mutable absl::Mutex mutex;
  std::vector<Worker> workers ABSL_GUARDED_BY(mutex);
  std::map<uint32_t, std::unique_ptr<Job>> jobs ABSL_GUARDED_BY(mutex);
  uint32_t next_wire ABSL_GUARDED_BY(mutex) = 1;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  bool start_over ABSL_GUARDED_BY(mutex) = false;
  absl::Status start_status ABSL_GUARDED_BY(mutex);
  std::vector<Report> reports ABSL_GUARDED_BY(mutex);
  std::jthread thread;  // last: joined first

  // ---- telling workers ----

  void Kill(Worker& worker, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    TRIB_LOG(warn, "worker {} (pid {}) is replaced: {}", worker.index, worker.process ? worker.process->pid() : 0, MessageOf(why));
    if (worker.process) worker.process->Signal(SIGKILL);
    worker.channel_broken = true;  // closed on the thread, which may be polling it; the end comes by pidfd
  }

  void Tell(Worker& worker, const WorkerMessage& message, std::vector<int> fds = {}) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (!worker.channel || worker.channel_broken) return;
    const absl::Status status = worker.channel->Send(message, std::move(fds));
    if (!status.ok() && status.code() != absl::StatusCode::kUnavailable) Kill(worker, status);
  }

  void TellSegment(Worker& worker, const Job& job, const Segment& segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    WorkerMessage message;
    message.kind = WorkerMessageKind::kSegment;
    message.job = job.wire;
    message.pool = PoolOf(job);
    message.segment = segment.number;
    message.segment_bytes = segment.bytes;
    message.slot_bytes = job.pool->slot_bytes();
    Tell(worker, message, {segment.fd});
  }

  static uint32_t PoolOf(const Job& job) { return job.pool->pool_id(); }

  // Segments first: a replacement may have to go on with a batch the moment it has lane and slab.
  void TellJob(Worker& worker, const Job& job, size_t shard_index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const Shard& shard = job.shards[shard_index];
    for (const Segment& segment : job.segments) TellSegment(worker, job, segment);
    const TensorLayout& layout = job.options.layout;
    WorkerMessage message;
    message.kind = WorkerMessageKind::kOpenJob;
    message.job = job.wire;
    message.dtype = static_cast<uint32_t>(layout.float_dtype());
    message.arithmetic = static_cast<uint32_t>(job.options.arithmetic);
    message.first_element = shard.shape.first_element;
    message.elements = shard.shape.elements;
    message.float_count = layout.float_count();
    message.counter_count = layout.counter_count();
    message.folds_counters = shard_index == 0 ? 1 : 0;
    message.lane_bytes = shard.lane_region.bytes.size();
    message.slab_bytes = shard.slab_region.bytes.size();
    std::memcpy(message.reducer, job.options.strategy.data(), job.options.strategy.size());  // length checked in OpenJob
    Tell(worker, message, {shard.lane_region.fd.get(), shard.slab_region.fd.get()});
  }

  void TellClosed(const Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    WorkerMessage message;
    message.kind = WorkerMessageKind::kCloseJob;
    message.job = job.wire;
    for (const Shard& shard : job.shards) Tell(workers[shard.worker], message);
  }

  // ---- jobs ----

  // Fresh lanes and slabs under a new wire number.
  absl::Status MakeShards(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const TensorLayout& layout = job.options.layout;
    const auto ranges = SplitRange(layout.float_count(), options.workers);
    std::vector<Shard> shards;
    for (size_t i = 0; i < ranges.size(); ++i) {
      Shard shard;
      // Small jobs have few shards: let different jobs use different workers.
      shard.worker = static_cast<uint32_t>((i + job.options.job) % options.workers);
      shard.shape = {ranges[i].first, ranges[i].second, static_cast<uint32_t>(job.reducer->state_bytes_per_element()),
                     i == 0 ? static_cast<uint32_t>(layout.counter_count()) : 0u};
      TRIB_ASSIGN_OR_RETURN(const size_t slab_bytes, SlabBytes(shard.shape));
      TRIB_ASSIGN_OR_RETURN(shard.slab_region, SharedRegion::Create("tributary-slab", slab_bytes));
      TRIB_ASSIGN_OR_RETURN(shard.slab, Slab::Format(shard.slab_region.bytes, shard.shape));
      TRIB_ASSIGN_OR_RETURN(shard.lane_region, SharedRegion::Create("tributary-lane", LaneBytes(options.lane_capacity)));
      TRIB_RETURN_IF_ERROR(FormatLane(shard.lane_region.bytes, options.lane_capacity));
      TRIB_ASSIGN_OR_RETURN(shard.lane, AttachRingProducer(shard.lane_region.bytes,
                                                           {.wait_fd = progress.get(),
                                                            .ring_fd = workers[shard.worker].doorbell.get()}));
      shards.push_back(std::move(shard));
    }
    job.shards = std::move(shards);
    job.lost_shards.clear();
    job.wire = next_wire++;
    job.pushed = 0;
    job.base = 0;
    return absl::OkStatus();
  }

  void ReleaseEntries(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (const Entry& entry : job.entries) job.pool->Release(entry.key);
    job.entries.clear();
    job.pushed = 0;
  }

  void Lose(Job& job, std::string reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (job.lost) return;
    TRIB_LOG(warn, "job {}: the sums of round {} are lost: {}", job.options.job, job.round, reason);
    job.lost = true;
    job.opened = false;
    TellClosed(job);
    // A worker may still be reading these objects; whatever it makes of them goes into slabs nobody looks at again.
    ReleaseEntries(job);
    job.lost_shards = std::move(job.shards);  // somebody may be reading sums: they stay mapped until BeginRound or CloseJob
    job.shards.clear();
    reports.push_back({Report::Kind::kLost, job.options.job, {}, std::move(reason)});
  }

  Job* FindWire(uint32_t wire) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (auto& [number, job] : jobs) {
      if (job->wire == wire && !job->lost) return job.get();
    }
    return nullptr;
  }

  // Pushes what has a credit in every lane.
  void Pump(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    while (!job.lost && job.pushed < job.entries.size()) {
      for (Shard& shard : job.shards) {
        const absl::StatusOr<uint32_t> done = shard.lane->Done();
        if (!done.ok()) return Lose(job, MessageOf(done.status()));
        if (shard.lane->pushed() - *done >= shard.lane->capacity()) return;
      }
      const Entry& entry = job.entries[job.pushed];
      for (size_t i = 0; i < job.shards.size(); ++i) {
        const tb_desc desc{.dst = job.shards[i].worker + 1, .src = 0, .key_hi = entry.key.hi, .key_lo = entry.key.lo,
                           .round = job.round, .kind = TB_KIND_UPDATE, .lane = static_cast<uint16_t>(i)};
        if (absl::Status status = job.shards[i].lane->Push(desc); !status.ok()) return Lose(job, MessageOf(status));
      }
      ++job.pushed;
    }
  }

  // True if a lane has moved past what Turn has seen of it: nobody will ring for that.
  bool Arm(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    bool moved = false;
    if (job.pushed == 0) return false;
    for (Shard& shard : job.shards) {
      moved = shard.lane->ArmProgress() || moved;
      const absl::StatusOr<uint32_t> done = shard.lane->Done();  // Pump may have read it since Turn did
      moved = moved || !done.ok() || *done != shard.done;
    }
    return moved;
  }

  // Reports the entries that every lane has passed. The refusals of `shard.done` have been read from the channels before.
  void Complete(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (job.lost || job.shards.empty()) return;
    size_t passed = job.pushed;
    for (const Shard& shard : job.shards) passed = std::min<size_t>(passed, shard.done - job.base);
    const uint64_t all = job.shards.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << job.shards.size()) - 1;
    for (size_t i = 0; i < passed; ++i) {
      Entry entry = std::move(job.entries.front());
      job.entries.pop_front();
      --job.pushed;
      ++job.base;
      job.pool->Release(entry.key);
      if (entry.refused_by == 0) {
        for (const Shard& shard : job.shards) ++workers[shard.worker].folded;
        reports.push_back({Report::Kind::kFolded, job.options.job, entry.update, ""});
      } else if (entry.refused_by == all) {
        reports.push_back({Report::Kind::kRefused, job.options.job, entry.update, std::move(entry.reason)});
      } else {
        Lose(job, fmt::format("update {}: refused by {} of {} workers and folded by the others ({})", ToHex(entry.update),
                              std::popcount(entry.refused_by), job.shards.size(), entry.reason));
        return;
      }
    }
  }

  // ---- worker processes (on the thread) ----

  absl::Status Spawn(Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    TRIB_ASSIGN_OR_RETURN(auto pair, WorkerChannel::CreatePair());
    SpawnOptions spawn;
    spawn.program = options.worker_program;
    spawn.args = {"--channel-fd", "3", "--parent", fmt::format("{}", ::getpid())};
    spawn.fds = {{pair.second.get(), 3}};
    TRIB_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Spawn(spawn));
    worker.process = std::make_unique<ChildProcess>(std::move(child));
    worker.channel = std::make_unique<WorkerChannel>(std::move(pair.first));
    worker.channel_broken = false;
    worker.ready = false;
    worker.started_at = absl::Now();
    WorkerMessage hello;
    hello.kind = WorkerMessageKind::kHello;
    Tell(worker, hello, {worker.doorbell.get(), progress.get()});
    for (auto& [number, job] : jobs) {
      if (job->lost || job->shards.empty()) continue;
      if (!job->opened) {  // OpenJob is under way: it will send the rest
        for (const Segment& segment : job->segments) TellSegment(worker, *job, segment);
        continue;
      }
      for (size_t i = 0; i < job->shards.size(); ++i) {
        if (job->shards[i].worker == worker.index) TellJob(worker, *job, i);
      }
    }
    return absl::OkStatus();
  }

  // Changes whenever the worker gets anything done, down to a single block.
  uint64_t ProgressStamp(const Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    uint64_t stamp = 0;
    for (auto& [number, job] : jobs) {
      for (Shard& shard : job->shards) {
        if (shard.worker != worker.index) continue;
        const tb_slab_header& header = shard.slab.header();
        stamp = stamp * 1000003 + header.completed_cursor * uint64_t{65537} + header.blocks_done + header.batch_size;
      }
    }
    return stamp;
  }

  void OnDeath(Worker& worker, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    worker.process.reset();
    worker.channel.reset();
    if (stopping) return;
    ++worker.restarts;
    const uint64_t stamp = ProgressStamp(worker);
    const bool progressed = stamp != worker.progress_stamp;
    worker.progress_stamp = stamp;
    std::vector<Job*> waiting;
    for (auto& [number, job] : jobs) {
      for (const Shard& shard : job->shards) {
        if (shard.worker == worker.index && shard.done != shard.lane->pushed()) waiting.push_back(job.get());
      }
    }
    worker.quick_deaths = progressed || now - worker.started_at > kQuickDeath ? 0 : worker.quick_deaths + 1;
    worker.stuck_deaths = progressed || waiting.empty() ? 0 : worker.stuck_deaths + 1;
    if (worker.stuck_deaths >= kDeathsWithoutProgress) {
      worker.stuck_deaths = 0;
      for (Job* job : waiting) Lose(*job, fmt::format("worker {} died {} times at the same place", worker.index, kDeathsWithoutProgress));
    }
    const absl::Duration backoff =
        worker.quick_deaths == 0 ? absl::ZeroDuration()
                                 : std::min(kMaxBackoff, kFirstBackoff * (1 << std::min(worker.quick_deaths - 1, 10u)));
    worker.respawn_at = now + backoff;
    TRIB_LOG(warn, "worker {} has died; replaced in {}", worker.index, absl::FormatDuration(backoff));
  }

  void OnMessage(Worker& worker, const WorkerMessage& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (message.kind == WorkerMessageKind::kReady) {
      worker.ready = true;
      return;
    }
    if (message.kind != WorkerMessageKind::kRefused && message.kind != WorkerMessageKind::kFailed) {
      return Kill(worker, InvalidArgument("kind {} is not for the daemon", static_cast<uint32_t>(message.kind)));
    }
    Job* job = FindWire(message.job);
    if (job == nullptr) return;  // of a job, or an attempt at one, that is over
    size_t shard_index = 0;
    while (shard_index < job->shards.size() && job->shards[shard_index].worker != worker.index) ++shard_index;
    if (shard_index == job->shards.size()) {
      return Kill(worker, InvalidArgument("a message about job {}, of which it has no part", job->options.job));
    }
    if (message.kind == WorkerMessageKind::kFailed) return Lose(*job, message.reason);
    for (Entry& entry : job->entries) {
      if (entry.key != ObjectKey{message.key_hi, message.key_lo}) continue;
      entry.refused_by |= uint64_t{1} << shard_index;
      entry.reason = message.reason;
      return;
    }
  }

  void DrainChannel(Worker& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (worker.channel_broken) worker.channel.reset();
    while (worker.channel && !worker.channel_broken) {
      const absl::StatusOr<WorkerChannel::Received> received = worker.channel->Receive(absl::ZeroDuration());
      if (received.ok()) {
        OnMessage(worker, received->message);
      } else if (received.status().code() == absl::StatusCode::kDeadlineExceeded) {
        return;
      } else if (received.status().code() == absl::StatusCode::kUnavailable) {
        worker.channel.reset();  // dead or dying: the pidfd says so too
      } else {
        Kill(worker, received.status());
      }
    }
  }

  // Everything that is to be done now. Returns how long to sleep.
  absl::Duration Turn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    absl::Duration sleep = absl::InfiniteDuration();
    // Cursors first, then channels: a refusal is sent before the cursor passes its descriptor.
    for (auto& [number, job] : jobs) {
      for (size_t i = 0; i < job->shards.size(); ++i) {
        const absl::StatusOr<uint32_t> done = job->shards[i].lane->Done();
        if (!done.ok()) {
          Kill(workers[job->shards[i].worker], done.status());
          Lose(*job, MessageOf(done.status()));
          break;
        }
        job->shards[i].done = *done;
      }
    }
    const absl::Time now = absl::Now();
    for (Worker& worker : workers) {
      const bool dead = worker.process && !worker.process->Running();
      DrainChannel(worker);  // in this order: the last words of a dead worker count
      if (dead) OnDeath(worker, now);
      if (worker.process == nullptr && !stopping) {
        if (worker.respawn_at <= now) {
          if (absl::Status status = Spawn(worker); !status.ok()) {
            TRIB_LOG(error, "worker {} cannot be started: {}", worker.index, MessageOf(status));
            if (!start_over) start_status = status;
            worker.respawn_at = now + kMaxBackoff;
          }
        }
        if (!worker.process) sleep = std::min(sleep, worker.respawn_at - now);
      }
    }
    for (auto& [number, job] : jobs) {
      Complete(*job);
      Pump(*job);
      if (job->pushed != 0) sleep = std::min(sleep, kSafetyTimeout);
      if (Arm(*job)) sleep = absl::ZeroDuration();
    }
    return std::max(sleep, absl::ZeroDuration());
  }

  void RunThread() {
    while (true) {
      std::vector<Report> said;
      std::vector<pollfd> fds;
      absl::Duration sleep;
      {
        absl::MutexLock lock(&mutex);
        if (stopping) break;
        sleep = Turn();
        said.swap(reports);
        fds.push_back({progress.get(), POLLIN, 0});
        for (const Worker& worker : workers) {
          if (worker.channel) fds.push_back({worker.channel->fd(), POLLIN, 0});
          if (worker.process) fds.push_back({worker.process->pidfd(), POLLIN, 0});
        }
      }
      for (const Report& report : said) Say(report);
      if (!said.empty()) continue;  // a callback may have caused work
      const timespec limit = absl::ToTimespec(std::min(sleep, absl::Hours(1)));
      ::ppoll(fds.data(), fds.size(), &limit, nullptr);
      if ((fds[0].revents & POLLIN) != 0) DrainEventFd(progress.get());
    }
    StopWorkers();
  }

  void Say(const Report& report) {
    switch (report.kind) {
      case Report::Kind::kFolded:
        if (callbacks.folded) callbacks.folded(report.job, report.update);
        return;
      case Report::Kind::kRefused:
        if (callbacks.refused) callbacks.refused(report.job, report.update, report.reason);
        return;
      case Report::Kind::kLost:
        if (callbacks.lost) callbacks.lost(report.job, report.reason);
        return;
    }
  }

  void StopWorkers() {
    std::vector<std::unique_ptr<ChildProcess>> children;
    {
      absl::MutexLock lock(&mutex);
      WorkerMessage stop;
      stop.kind = WorkerMessageKind::kStop;
      for (Worker& worker : workers) {
        Tell(worker, stop);
        if (worker.process) children.push_back(std::move(worker.process));
        worker.channel.reset();
      }
    }
    const absl::Time deadline = absl::Now() + kStopGrace;
    for (auto& child : children) {
      // A worker that does not stop in time is killed by ~ChildProcess.
      if (!child->Wait(std::max(deadline - absl::Now(), absl::ZeroDuration())).ok()) {
        TRIB_LOG(warn, "worker with pid {} has not stopped; killed", child->pid());
      }
    }
  }

  bool Started() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return !start_status.ok() || std::all_of(workers.begin(), workers.end(), [](const Worker& worker) { return worker.ready; });
  }

  void OnSegment(uint32_t number, uint16_t segment, int fd, size_t bytes) {
    absl::MutexLock lock(&mutex);
    const auto found = jobs.find(number);
    if (found == jobs.end()) return;
    Job& job = *found->second;
    for (const Segment& known : job.segments) {
      if (known.number == segment) return;
    }
    job.segments.push_back({segment, fd, bytes});
    if (!job.opened) return;  // OpenJob or BeginRound sends them all
    for (const Shard& shard : job.shards) TellSegment(workers[shard.worker], job, job.segments.back());
  }

  // NOT_FOUND, or the job.
  absl::StatusOr<Job*> Find(uint32_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const auto found = jobs.find(number);
    if (found == jobs.end()) return NotFound("worker pool: no job {}", number);
    return found->second.get();
  }

  void TellAll(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    job.opened = true;
    for (size_t i = 0; i < job.shards.size(); ++i) TellJob(workers[job.shards[i].worker], job, i);
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
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->callbacks = std::move(callbacks);
  TRIB_ASSIGN_OR_RETURN(impl->progress, MakeEventFd());
  {
    absl::MutexLock lock(&impl->mutex);
    for (uint32_t i = 0; i < options.workers; ++i) {
      Worker worker;
      worker.index = i;
      TRIB_ASSIGN_OR_RETURN(worker.doorbell, MakeEventFd());
      impl->workers.push_back(std::move(worker));
    }
  }
  {
    absl::MutexLock lock(&impl->gate->mutex);
    impl->gate->impl = impl.get();
  }
  Impl* raw = impl.get();
  std::unique_ptr<WorkerPool> pool(new WorkerPool(std::move(impl)));
  // Processes are started by this thread only: a child asks for its death when the *thread* that made it ends.
  raw->thread = std::jthread([raw] { raw->RunThread(); });
  absl::MutexLock lock(&raw->mutex);
  raw->mutex.AwaitWithTimeout(absl::Condition(+[](Impl* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->Started(); }, raw),
                              kReadyTimeout);
  raw->start_over = true;
  if (!raw->start_status.ok()) return Annotate(raw->start_status, "worker pool");
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
  WorkerMessage probe;
  if (options.strategy.size() >= sizeof(probe.reducer)) {
    return InvalidArgument("job {}: expected a strategy name of at most {} characters, got '{}'", options.job,
                           sizeof(probe.reducer) - 1, options.strategy);
  }
  StrategySpec spec;
  spec.name = options.strategy;
  TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Strategy> strategy, MakeStrategy(spec));
  auto job = std::make_unique<Job>();
  job->options = options;
  job->pool = pool;
  job->reducer = strategy->MakeReducer(options.layout.float_dtype(), options.arithmetic);
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->jobs.contains(options.job)) return AlreadyExists("worker pool: job {} is open", options.job);
    TRIB_RETURN_IF_ERROR(Annotate(impl_->MakeShards(*job), fmt::format("job {}", options.job)));
    impl_->jobs[options.job] = std::move(job);
  }
  // Without the lock: the listener is told of existing segments at once, and takes it.
  pool->SetSegmentListener([gate = impl_->gate, number = options.job](uint16_t segment, int fd, size_t bytes) {
    absl::MutexLock lock(&gate->mutex);
    if (gate->impl != nullptr) gate->impl->OnSegment(number, segment, fd, bytes);
  });
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(Job* const opened, impl_->Find(options.job));
  impl_->TellAll(*opened);
  return absl::OkStatus();
}

void WorkerPool::CloseJob(uint32_t job) {
  ObjectPool* pool = nullptr;
  {
    absl::MutexLock lock(&impl_->mutex);
    const auto found = impl_->jobs.find(job);
    if (found == impl_->jobs.end()) return;
    pool = found->second->pool;
    impl_->TellClosed(*found->second);
    impl_->ReleaseEntries(*found->second);
    impl_->jobs.erase(found);
  }
  pool->SetSegmentListener({});
}

absl::Status WorkerPool::BeginRound(uint32_t job, uint32_t round) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(Job* const found, impl_->Find(job));
  if (!found->entries.empty()) {
    return FailedPrecondition("job {}: round {} cannot begin, {} updates are under way", job, round, found->entries.size());
  }
  if (found->lost) {
    TRIB_RETURN_IF_ERROR(Annotate(impl_->MakeShards(*found), fmt::format("job {}", job)));
    found->lost = false;
    impl_->TellAll(*found);
  }
  // The workers sleep as far as this job goes: everything pushed is done, and `done` was their last touch of the slab.
  for (Shard& shard : found->shards) shard.slab.BeginRound(round);
  found->round = round;
  found->round_open = true;
  return absl::OkStatus();
}

absl::Status WorkerPool::Fold(uint32_t job, const UpdateId& update, const ObjectKey& key) {
  bool ring = false;
  {
    absl::MutexLock lock(&impl_->mutex);
    TRIB_ASSIGN_OR_RETURN(Job* const found, impl_->Find(job));
    if (found->lost || !found->round_open) {
      return FailedPrecondition("job {}: no round is open{}", job, found->lost ? " (its sums were lost)" : "");
    }
    if (found->entries.size() >= found->pool->capacity_slots()) {
      return ResourceExhausted("job {}: {} updates are queued, as many as the pool has slots", job, found->entries.size());
    }
    found->entries.push_back({update, key, 0, ""});
    impl_->Pump(*found);
    ring = impl_->Arm(*found) || found->lost;
  }
  if (ring) RingEventFd(impl_->progress.get());
  return absl::OkStatus();
}

absl::StatusOr<WorkerPool::Sums> WorkerPool::ReadSums(uint32_t job) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(Job* const found, impl_->Find(job));
  if (found->lost || !found->round_open) {
    return FailedPrecondition("job {}: no round is open{}", job, found->lost ? " (its sums were lost)" : "");
  }
  if (!found->entries.empty()) {
    return FailedPrecondition("job {}: expected nothing under way, got {} updates", job, found->entries.size());
  }
  Sums sums;
  for (Shard& shard : found->shards) {
    if (shard.slab.header().fresh != 0) return FailedPrecondition("job {}: nothing was folded in round {}", job, found->round);
    sums.pieces.push_back({shard.shape.first_element, shard.shape.elements, shard.slab.state()});
    if (shard.shape.counters != 0) sums.counters = {shard.slab.counters(), shard.shape.counters};
  }
  return sums;
}

absl::Status WorkerPool::WriteSums(uint32_t job, std::span<const std::byte> state, std::span<const int64_t> counters) {
  absl::MutexLock lock(&impl_->mutex);
  TRIB_ASSIGN_OR_RETURN(Job* const found, impl_->Find(job));
  const TensorLayout& layout = found->options.layout;
  const size_t element_bytes = found->reducer->state_bytes_per_element();
  if (found->lost || !found->round_open || !found->entries.empty()) {
    return FailedPrecondition("job {}: sums are restored right after BeginRound only", job);
  }
  if (state.size() != layout.float_count() * element_bytes || counters.size() != layout.counter_count()) {
    return InvalidArgument("job {}: expected {} bytes of sums and {} counters, got {} and {}", job,
                           layout.float_count() * element_bytes, layout.counter_count(), state.size(), counters.size());
  }
  for (Shard& shard : found->shards) {
    if (shard.slab.header().fresh == 0) return FailedPrecondition("job {}: the slab of round {} is in use", job, found->round);
  }
  for (Shard& shard : found->shards) {
    if (shard.slab.state_bytes() != 0) {
      std::memcpy(shard.slab.state(), state.data() + shard.shape.first_element * element_bytes, shard.slab.state_bytes());
    }
    if (shard.shape.counters != 0) std::memcpy(shard.slab.counters(), counters.data(), counters.size_bytes());
    shard.slab.header().fresh = 0;
  }
  return absl::OkStatus();
}

std::vector<WorkerStatus> WorkerPool::Status() const {
  absl::MutexLock lock(&impl_->mutex);
  std::vector<WorkerStatus> all;
  for (const Worker& worker : impl_->workers) {
    WorkerStatus status;
    status.index = worker.index;
    status.pid = worker.process ? worker.process->pid() : 0;
    status.folded = worker.folded;
    status.restarts = worker.restarts;
    for (const auto& [number, job] : impl_->jobs) {
      for (const Shard& shard : job->shards) {
        if (shard.worker == worker.index) status.queued += static_cast<uint32_t>(job->entries.size());
      }
    }
    all.push_back(status);
  }
  return all;
}

}  // namespace tributary::aggregator
