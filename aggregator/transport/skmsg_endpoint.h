// The end of the transports `skmsg` and `skmsg-inline` in a worker (or in the daemon as a producer): one anchor socket, through which
// 32-byte records are sent and received, and all lanes of this process. What is sent is routed and policed by the verdict program
// (ebpf/README.md); what comes back was sent by whom its `src` says, in this process's own domain: the kernel has checked both.
// An endpoint needs no privilege and no BPF: only the socket, which the daemon made (anchors.h).
//
//   skmsg         descriptors travel in the lane alone; a record is a doorbell, sent to a consumer that sleeps
//   skmsg-inline  each descriptor travels in a record too, and a consumer takes a slot only together with its equal record. A record that
//                 did not arrive (dead letter) leaves its slot, and all behind it, where they are until Replay() or a replacement
//
// When the daemon ends, its end of the anchor closes: records between workers go on, DaemonGone() becomes true, and the records that
// would have gone to the daemon are lost (they moved nothing). ReplaceSocket() takes the new anchor that the next daemon, or the same one
// after it has recycled this anchor, gives out.
//
// Threads: one thread for the endpoint and all its lanes. It must outlive them. Errors: INVALID_ARGUMENT for something that is no TCP
// socket; UNAVAILABLE from Push when the kernel takes no more records because the daemon does not read its dead letters.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "aggregator/transport/transport.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

// Capacity for inline lanes: what may lie unread in the kernel is bounded by credits alone (about 1.3 KB a record).
inline constexpr uint32_t kInlineLaneCapacity = 64;

class SkMsgEndpoint final : public TransportEndpoint {
 public:
  // `kind`: kSkMsg or kSkMsgInline. `self`: the identity that the daemon gave the socket.
  static absl::StatusOr<std::unique_ptr<SkMsgEndpoint>> Create(UniqueFd anchor, uint32_t self, TransportKind kind);
  ~SkMsgEndpoint() override;

  TransportKind kind() const override { return kind_; }
  absl::StatusOr<std::unique_ptr<LaneProducer>> OpenProducer(std::span<std::byte> region, const LaneOptions& options) override;
  absl::StatusOr<std::unique_ptr<LaneConsumer>> OpenConsumer(std::span<std::byte> region, const LaneOptions& options) override;
  int wait_fd() const override;
  void Drain() override;

  // Reads what is left in the old socket, then uses the new one; every lane announces again what it cannot know to have arrived.
  absl::Status ReplaceSocket(UniqueFd anchor);
  bool DaemonGone() const { return gone_; }
  uint32_t self() const { return self_; }

  struct Counters {
    uint64_t received = 0;    // records
    uint64_t stray = 0;       // for no lane here, or for a descriptor that was taken already (harmless: a replay was faster)
    uint64_t sent = 0;
    uint64_t send_errors = 0; // treated as dead letters
  };
  const Counters& counters() const { return counters_; }

  // ---- for this folder's lanes ----
  enum class Role : uint8_t { kProducer, kConsumer };
  enum class SendResult { kSent, kFull, kBroken };
  // One end of one lane, as its endpoint sees it.
  class Port {
   public:
    virtual void OnDoorbell() = 0;
    virtual void OnRecord(const tb_desc&) = 0;
    virtual void OnNewSocket() = 0;

   protected:
    ~Port() = default;
  };
  using PortKey = std::tuple<Role, uint32_t /*peer*/, uint16_t /*lane*/>;
  absl::Status Register(PortKey key, Port* port);  // ALREADY_EXISTS
  void Unregister(PortKey key);
  // kFull: the socket has no room, even after a short wait.
  SendResult Send(const tb_desc& record);
  // Sleeps until records came (and takes them), the timeout, or `peer_pidfd` becomes readable.
  void Sleep(absl::Duration timeout, int peer_pidfd);
  bool Readable() const;

 private:
  SkMsgEndpoint(UniqueFd anchor, uint32_t self, TransportKind kind) : socket_(std::move(anchor)), self_(self), kind_(kind) {}
  // Takes what is there, at most a bounded amount; with `block` waits for the first byte (the socket's own timeout bounds that).
  void Receive(bool block);
  void TakeRecords(size_t bytes);
  void Deliver(const tb_desc& record);
  void NoteDaemonGone();

  UniqueFd socket_;
  UniqueFd edge_epoll_;  // once the daemon is gone: poll() would call the closed connection readable for ever
  const uint32_t self_;
  const TransportKind kind_;
  bool gone_ = false;
  Counters counters_;
  std::map<PortKey, Port*> ports_;
  std::array<std::byte, 128 * sizeof(tb_desc)> buffer_;
  size_t held_ = 0;  // bytes of an unfinished record at the front of buffer_
};

}  // namespace tributary::aggregator
