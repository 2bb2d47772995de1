// What connects the daemon and the seats of its jobs, whatever the transport: ids, anchors, and the daemon's own end of the update lanes.
//
// A job is a security domain (dataplane.md §6): the daemon's end and every seat have an id of their own in it, and with SK_MSG transports
// an anchor. A worker gets a seat's anchor each time a process of it is told of the seat; what was sent to a predecessor's is in the
// lanes. With `ring` nothing of this exists: ids are those of workers, ends are woken by the fleet's eventfds.
//
// Dead letters and offenders are news for the jobs. Borrows progress_fd. A JobWiring must not outlive its SeatWiring, nor lanes or seat
// ids their JobWiring. Thread-compatible: the pool's lock guards all of it. Errors: as the program's, Anchors' and the endpoints'.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "aggregator/transport/anchors.h"
#include "aggregator/transport/transport.h"
#include "common/status.h"
#include "common/unique_fd.h"
#include "ebpf/verdict_program.h"

namespace tributary::aggregator {

class JobWiring;

class SeatWiring {
 public:
  // `progress_fd` wakes the pool's thread. `pin_folder`: of VerdictProgram; what an earlier daemon left there is adopted, and the ids
  // of its workers, which ended with it, are taken out of it.
  static absl::StatusOr<std::unique_ptr<SeatWiring>> Create(TransportKind kind, int progress_fd, const std::filesystem::path& pin_folder);

  TransportKind kind() const { return kind_; }
  // A lane's capacity where `wanted` is asked for.
  uint32_t LaneCapacity(uint32_t wanted) const;
  // Readable when Take has something to do. -1 with `ring`.
  int wait_fd() const { return epoll_.get(); }

  struct News {
    enum class Kind {
      kDeadLetter,  // something for `id` did not arrive: it is in the lane
      kOffender,    // what came from `id` are no records: its process is to get a new anchor
    };
    Kind kind{};
    uint32_t id = 0;
  };
  // Before the lanes are looked at.
  std::vector<News> Take(absl::Time now);
  // What became of the records, since Create. nullopt with `ring`.
  std::optional<ebpf::VerdictCounts> Verdicts() const;
  // Call Take again after this time. Infinite: no need.
  absl::Duration NextCheck(absl::Time now) const;

 private:
  friend class JobWiring;
  friend class SeatId;
  SeatWiring(TransportKind kind, int progress_fd) : kind_(kind), progress_fd_(progress_fd) {}
  absl::StatusOr<uint32_t> Declare(uint32_t domain);  // a new id; domain 0: it is the domain's number, too
  absl::StatusOr<UniqueFd> NewAnchor(uint32_t id);
  void Release(uint32_t id);
  absl::Status Watch(int fd, uint32_t key);
  void Collect(absl::Time now);

  const TransportKind kind_;
  const int progress_fd_;
  // Empty with `ring`:
  std::unique_ptr<ebpf::VerdictProgram> program_;
  ebpf::VerdictCounts counted_before_{};  // under an earlier daemon
  std::unique_ptr<Anchors> anchors_;
  UniqueFd epoll_;
  std::map<uint32_t, uint32_t> epochs_;    // of the anchors, by id
  std::map<uint32_t, JobWiring*> jobs_;    // by the id of the daemon's end
  std::vector<News> news_;
};

// A seat's id. It is given back, with its anchor, at the end of this object.
class SeatId {
 public:
  SeatId() = default;
  SeatId(SeatWiring* wiring, uint32_t id) : wiring_(wiring), id_(id) {}
  SeatId(SeatId&& other) noexcept : wiring_(std::exchange(other.wiring_, nullptr)), id_(std::exchange(other.id_, 0)) {}
  SeatId& operator=(SeatId&& other) noexcept {
    std::swap(wiring_, other.wiring_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~SeatId() {
    if (wiring_ != nullptr) wiring_->Release(id_);
  }
  uint32_t value() const { return id_; }

 private:
  SeatWiring* wiring_ = nullptr;  // null with `ring`: nothing to give back
  uint32_t id_ = 0;
};

// The domain of one job, with the daemon's end in it.
class JobWiring {
 public:
  static absl::StatusOr<std::unique_ptr<JobWiring>> Open(SeatWiring* wiring);
  ~JobWiring();

  TransportKind kind() const { return wiring_->kind(); }
  uint32_t daemon_id() const { return daemon_id_; }
  absl::StatusOr<SeatId> AddSeat(uint32_t worker);
  // The socket through which the process that now has the seat will speak; the one before is silenced. Not with `ring`.
  absl::StatusOr<UniqueFd> NewAnchor(const SeatId& seat) { return wiring_->NewAnchor(seat.value()); }
  // The update lane of a seat. `doorbell`: the eventfd its worker sleeps on (`ring`).
  absl::StatusOr<std::unique_ptr<LaneProducer>> OpenUpdates(std::span<std::byte> region, const SeatId& seat, uint16_t lane, int doorbell);
  // Where there is a credit: pushes, if need be after making room for our own dead letters.
  absl::Status Push(LaneProducer& lane, const tb_desc& desc);

 private:
  friend class SeatWiring;
  explicit JobWiring(SeatWiring* wiring) : wiring_(wiring) {}

  SeatWiring* const wiring_;
  uint32_t daemon_id_ = 0;  // and the domain's number. 0 with `ring`
  std::unique_ptr<TransportEndpoint> endpoint_;
};

}  // namespace tributary::aggregator
