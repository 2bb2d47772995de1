// A lane in private memory with both ends attached, for each way of waking. Shared by the conformance suite and the ring's own tests.
#pragma once

#include <sys/eventfd.h>

#include <memory>
#include <ostream>
#include <vector>

#include "aggregator/transport/transport.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

enum class Wake { kFutex, kEventFd };
inline std::ostream& operator<<(std::ostream& out, Wake wake) { return out << (wake == Wake::kFutex ? "ring_futex" : "ring_eventfd"); }

inline tb_desc Desc(uint32_t number) {
  return {.dst = number, .src = ~number, .key_hi = number * uint64_t{7}, .key_lo = number * uint64_t{11}, .round = number,
          .kind = TB_KIND_UPDATE, .lane = static_cast<uint16_t>(number)};
}
// Every field belongs to the same number: not torn, not mixed.
inline bool IsDesc(const tb_desc& desc, uint32_t number) {
  const tb_desc want = Desc(number);
  return desc.dst == want.dst && desc.src == want.src && desc.key_hi == want.key_hi && desc.key_lo == want.key_lo &&
         desc.round == want.round && desc.kind == want.kind && desc.lane == want.lane;
}

class LaneRig {
 public:
  LaneRig(Wake wake, uint32_t capacity) : memory_((LaneBytes(capacity) + 63) / 64) {
    if (wake == Wake::kEventFd) {
      consumer_fd_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      producer_fd_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    }
    EXPECT_TRUE(FormatLane(region(), capacity).ok());
    producer = AttachRingProducer(region(), {.wait_fd = producer_fd_.get(), .ring_fd = consumer_fd_.get()}).value();
    Reattach();
  }
  std::span<std::byte> region() { return {memory_.data()->bytes, memory_.size() * 64}; }
  tb_lane_header& header() { return *reinterpret_cast<tb_lane_header*>(region().data()); }
  // As a replacement of a dead consumer would.
  void Reattach() {
    consumer = AttachRingConsumer(region(), {.wait_fd = consumer_fd_.get(), .ring_fd = producer_fd_.get()}).value();
  }

 private:
  struct Line {
    alignas(64) std::byte bytes[64];
  };
  std::vector<Line> memory_;
  UniqueFd consumer_fd_, producer_fd_;

 public:
  std::unique_ptr<LaneProducer> producer;
  std::unique_ptr<LaneConsumer> consumer;
};

}  // namespace tributary::aggregator
