// The daemon's table of anchors: who may speak under which id, where each id's records go, and what arrives at the daemon because the
// kernel did not redirect it. Rules: dataplane.md §5 and §6; picture: LANES.md.
//
// An anchor is a loopback TCP pair. The worker's end gets an identity, then a route, then its place in the sockhash, in this order, and
// is handed out; the daemon keeps no copy of it, so that the entry of a dead worker disappears by itself. The daemon's end receives
// *dead letters*: well-formed records that found no taker. They move nothing (the lane is the log): the daemon starts or re-routes the
// consumer. The daemon never writes to it.
//
// Every anchor has an epoch, higher than any before it of that id; calls that name a lower one are refused, so that the late news of an
// old owner's death cannot take down its successor. After a daemon restart on adopted maps, ids and epochs go on behind the old ones.
//
// Borrows the program. Thread-compatible. Errors: ALREADY_EXISTS, NOT_FOUND, FAILED_PRECONDITION (stale epoch, not paused, other
// domain), INVALID_ARGUMENT (id or domain 0); whatever the program or the sockets say. A call that fails leaves the id as it was.
#pragma once

#include <absl/time/time.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "aggregator/transport/anchor_pair.h"
#include "common/status.h"
#include "common/unique_fd.h"
#include "ebpf/verdict_program.h"

namespace tributary::aggregator {

class Anchors {
 public:
  using PairMaker = std::function<absl::StatusOr<AnchorPair>()>;
  static absl::StatusOr<std::unique_ptr<Anchors>> Create(ebpf::VerdictProgram* program, PairMaker make_pair = [] { return MakeAnchorPair(); });

  // Never 0, never one that was issued or seen before. RESOURCE_EXHAUSTED after 2^32 - 1.
  absl::StatusOr<uint32_t> IssueId();

  // Makes `id` known in its domain without an anchor (a cold consumer): what is sent to it becomes a dead letter.
  absl::Status Declare(uint32_t id, uint32_t domain);
  // A destination on another node: what is sent to it arrives here, to be forwarded.
  absl::Status DeclareRemote(uint32_t id, uint32_t domain);

  struct Anchor {
    uint32_t id = 0, domain = 0, epoch = 0;
    UniqueFd worker_end;  // send it (SCM_RIGHTS) and close it
  };
  absl::StatusOr<Anchor> Add(uint32_t id, uint32_t domain);
  // A new pair for an id that has one: for a worker that broke the framing of its dead letters, or one that outlived its daemon. The old
  // socket stops speaking for the id at once; what lies unread in it is lost and must be replayed from the lanes.
  absl::StatusOr<Anchor> Recycle(uint32_t id);

  // Removal in order: Pause (its records become dead letters), let the consumer drain its lanes, Remove. Deleting first would lose what
  // is queued in the socket.
  absl::Status Pause(uint32_t id);
  absl::Status Resume(uint32_t id);
  absl::Status Remove(uint32_t id, uint32_t epoch);
  // The process is gone (pidfd): nothing to drain. The id stays declared, cold.
  absl::Status Forget(uint32_t id, uint32_t epoch);
  // The id itself goes (end of a job): cold or remote ids only.
  absl::Status Withdraw(uint32_t id);

  struct DeadLetter {
    uint32_t source = 0;  // by the connection it came through; its desc.src says the same
    tb_desc desc{};
  };
  struct Offender {
    uint32_t id = 0, epoch = 0;
  };
  struct Incoming {
    std::vector<DeadLetter> letters;
    std::vector<Offender> offenders;  // sent other than whole records: Recycle them. Each anchor is reported once
    std::vector<Offender> closed;     // their worker ends are closed; whether the process lives is for its pidfd to say
  };
  // Readable when Read has something to take.
  int wait_fd() const { return epoll_.get(); }
  // Takes a bounded amount. `now` judges how long a piece of a record has waited for its rest.
  Incoming Read(absl::Time now);
  // An offender may be found only by waiting: call Read again after this time. Infinite: no need.
  absl::Duration NextCheck(absl::Time now) const;

  uint64_t forged_letters() const { return forged_letters_; }  // arrived under another's name: dropped
  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    uint32_t domain = 0, epoch = 0;
    UniqueFd daemon_end;
    std::array<std::byte, sizeof(tb_desc)> piece{};
    size_t held = 0;
    absl::Time piece_since = absl::InfiniteFuture();
    bool broken = false, closed = false;
  };
  Anchors(ebpf::VerdictProgram* program, PairMaker make_pair) : program_(program), make_pair_(std::move(make_pair)) {}
  absl::StatusOr<Anchor> Install(uint32_t id, uint32_t domain, uint32_t epoch, const tb_route* before);
  absl::Status SetFlag(uint32_t id, uint32_t flag, bool on);
  absl::StatusOr<Entry*> Find(uint32_t id, uint32_t epoch);
  void Close(Entry& entry);
  void ReadOne(uint32_t id, Entry& entry, absl::Time now, Incoming& incoming);
  void TakeBytes(uint32_t id, Entry& entry, std::span<const std::byte> bytes, Incoming& incoming);

  ebpf::VerdictProgram* const program_;
  const PairMaker make_pair_;
  UniqueFd epoll_;
  uint32_t last_id_ = 0;
  std::map<uint32_t, Entry> entries_;
  uint64_t forged_letters_ = 0;
};

}  // namespace tributary::aggregator
