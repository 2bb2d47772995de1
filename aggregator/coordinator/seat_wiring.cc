#include "aggregator/coordinator/seat_wiring.h"

#include <absl/time/clock.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "aggregator/transport/skmsg_endpoint.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr uint32_t kAnchorsKey = 0;  // in the epoll set; the others are ids, never 0
constexpr int kPushTries = 8;
constexpr int kReadsForRoom = 256;   // of 16 KiB an anchor: all that a socket may hold

}  // namespace

absl::StatusOr<std::unique_ptr<SeatWiring>> SeatWiring::Create(TransportKind kind, int progress_fd, const std::filesystem::path& pin_folder) {
  std::unique_ptr<SeatWiring> self(new SeatWiring(kind, progress_fd));
  if (kind == TransportKind::kRing) return self;
  TRIB_ASSIGN_OR_RETURN(self->program_, ebpf::LoadVerdictProgram({.pin_folder = pin_folder}));
  TRIB_ASSIGN_OR_RETURN(self->anchors_, Anchors::Create(self->program_.get()));
  TRIB_ASSIGN_OR_RETURN(const ebpf::ProgramFacts facts, self->program_->Facts());
  if (!pin_folder.empty()) {
    TRIB_LOG(info, "verdict program {}: {}{}{}", facts.program_id, facts.adopted ? "adopted from an earlier start" : facts.pinned ? "pinned" : "not pinned",
             facts.pin_note.empty() ? "" : ": ", facts.pin_note);
  }
  if (facts.adopted) {
    // Ids go on behind these (Anchors::Create has seen them); nobody who is still alive may speak for them.
    TRIB_ASSIGN_OR_RETURN(const auto routes, self->program_->Routes());
    for (const auto& [id, route] : routes) {
      const absl::Status gone = self->program_->DeleteSocket(id);
      if (!gone.ok() && gone.code() != absl::StatusCode::kNotFound) return gone;
      TRIB_RETURN_IF_ERROR(self->anchors_->Withdraw(id));
    }
  }
  TRIB_ASSIGN_OR_RETURN(self->counted_before_, self->program_->Counts());
  self->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!self->epoll_.valid()) return ErrnoStatus(errno, "seat wiring: epoll");
  TRIB_RETURN_IF_ERROR(self->Watch(self->anchors_->wait_fd(), kAnchorsKey));
  return self;
}

absl::Status SeatWiring::Watch(int fd, uint32_t key) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = key;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return ErrnoStatus(errno, "seat wiring: epoll");
  return absl::OkStatus();
}

uint32_t SeatWiring::LaneCapacity(uint32_t wanted) const {
  return kind_ == TransportKind::kSkMsgInline ? std::min(wanted, kInlineLaneCapacity) : wanted;
}

absl::StatusOr<uint32_t> SeatWiring::Declare(uint32_t domain) {
  TRIB_ASSIGN_OR_RETURN(const uint32_t id, anchors_->IssueId());
  TRIB_RETURN_IF_ERROR(anchors_->Declare(id, domain == 0 ? id : domain));
  return id;
}

absl::StatusOr<UniqueFd> SeatWiring::NewAnchor(uint32_t id) {
  TRIB_ASSIGN_OR_RETURN(Anchors::Anchor anchor, anchors_->Recycle(id));
  epochs_[id] = anchor.epoch;
  return std::move(anchor.worker_end);
}

// The job, or the job's interest in the seat, is over: there is nothing to drain. What is still sent to the id has no route.
void SeatWiring::Release(uint32_t id) {
  const auto anchored = epochs_.find(id);
  if (anchored == epochs_.end()) {
    TRIB_LOG_IF_ERROR(anchors_->Withdraw(id));
    return;
  }
  TRIB_LOG_IF_ERROR(anchors_->Pause(id));
  TRIB_LOG_IF_ERROR(anchors_->Remove(id, anchored->second));
  epochs_.erase(anchored);
}

void SeatWiring::Collect(absl::Time now) {
  std::array<epoll_event, 64> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  bool letters = anchors_->NextCheck(now) <= absl::ZeroDuration();
  for (int i = 0; i < count; ++i) {
    const uint32_t key = events[static_cast<size_t>(i)].data.u32;
    letters = letters || key == kAnchorsKey;
    if (const auto job = jobs_.find(key); job != jobs_.end()) job->second->endpoint_->Drain();
  }
  if (!letters) return;
  const Anchors::Incoming incoming = anchors_->Read(now);
  for (const Anchors::DeadLetter& letter : incoming.letters) {
    const auto known = std::find_if(news_.begin(), news_.end(), [&](const News& news) { return news.id == letter.desc.dst && news.kind == News::Kind::kDeadLetter; });
    if (known == news_.end()) news_.push_back({News::Kind::kDeadLetter, letter.desc.dst});
  }
  for (const Anchors::Offender& offender : incoming.offenders) news_.push_back({News::Kind::kOffender, offender.id});
  // A closed anchor says nothing about its process: the fleet watches that.
}

std::vector<SeatWiring::News> SeatWiring::Take(absl::Time now) {
  if (kind_ != TransportKind::kRing) Collect(now);
  return std::exchange(news_, {});
}

std::optional<ebpf::VerdictCounts> SeatWiring::Verdicts() const {
  if (!program_) return std::nullopt;
  absl::StatusOr<ebpf::VerdictCounts> counts = program_->Counts();
  if (!counts.ok()) {
    TRIB_LOG(warn, "verdict counters: {}", MessageOf(counts.status()));
    return std::nullopt;
  }
  for (size_t i = 0; i < counts->size(); ++i) (*counts)[i] -= counted_before_[i];
  return *counts;
}

absl::Duration SeatWiring::NextCheck(absl::Time now) const { return anchors_ ? anchors_->NextCheck(now) : absl::InfiniteDuration(); }

// ---- a job ----

absl::StatusOr<std::unique_ptr<JobWiring>> JobWiring::Open(SeatWiring* wiring) {
  std::unique_ptr<JobWiring> self(new JobWiring(wiring));
  if (wiring->kind() == TransportKind::kRing) {
    self->endpoint_ = MakeRingEndpoint(0, wiring->progress_fd_);
    return self;
  }
  TRIB_ASSIGN_OR_RETURN(self->daemon_id_, wiring->Declare(0));
  TRIB_ASSIGN_OR_RETURN(UniqueFd anchor, wiring->NewAnchor(self->daemon_id_));
  TRIB_ASSIGN_OR_RETURN(self->endpoint_, SkMsgEndpoint::Create(std::move(anchor), self->daemon_id_, wiring->kind()));
  wiring->jobs_[self->daemon_id_] = self.get();
  TRIB_RETURN_IF_ERROR(wiring->Watch(self->endpoint_->wait_fd(), self->daemon_id_));
  return self;
}

JobWiring::~JobWiring() {
  if (daemon_id_ == 0) return;
  // Closing alone would leave it in the epoll set while a child that is just being spawned still has its copy.
  if (endpoint_) ::epoll_ctl(wiring_->epoll_.get(), EPOLL_CTL_DEL, endpoint_->wait_fd(), nullptr);
  wiring_->jobs_.erase(daemon_id_);
  endpoint_.reset();
  wiring_->Release(daemon_id_);
}

absl::StatusOr<SeatId> JobWiring::AddSeat(uint32_t worker) {
  if (kind() == TransportKind::kRing) return SeatId(nullptr, worker + 1);
  TRIB_ASSIGN_OR_RETURN(const uint32_t id, wiring_->Declare(daemon_id_));
  return SeatId(wiring_, id);
}

absl::StatusOr<std::unique_ptr<LaneProducer>> JobWiring::OpenUpdates(std::span<std::byte> region, const SeatId& seat, uint16_t lane, int doorbell) {
  if (kind() == TransportKind::kRing) return endpoint_->OpenProducer(region, {.ring_fd = doorbell});
  return endpoint_->OpenProducer(region, {.peer = seat.value(), .lane = lane});
}

absl::Status JobWiring::Push(LaneProducer& lane, const tb_desc& desc) {
  absl::Status pushed = lane.Push(desc);
  for (int tries = 0; kind() != TransportKind::kRing && pushed.code() == absl::StatusCode::kUnavailable && tries < kPushTries; ++tries) {
    for (int reads = 0; reads < kReadsForRoom; ++reads) wiring_->Collect(absl::Now());
    RingEventFd(wiring_->progress_fd_);  // there may be news
    pushed = lane.Push(desc);
  }
  return pushed;
}

}  // namespace tributary::aggregator
