// Gaussian noise on what travels (algorithms.md §13.6): r = v + N(0, σ²I), σ² given per link, or (‖v‖²/d)/10^(snr_db/10) of each message.
// Down it falls on the model, up on the update; only on trainable elements. Draws depend on (seed, client, version, repeat, direction).
// Borrows the layout. Threads: thread-compatible.
#pragma once

#include <cstdint>

#include "common/large_bytes.h"
#include "common/simulate_spec.h"
#include "common/tensor_layout.h"
#include "simulate/training.h"

namespace tributary::simulate {

class Channel {
 public:
  Channel() = default;
  Channel(const ChannelSpec& spec, const TensorLayout* layout, uint64_t seed) : spec_(spec), layout_(layout), seed_(seed) {}
  // What the client receives of the model (part 0) or of a vector that comes with it: the same object where the link is clean.
  ModelRef Down(const ModelRef& sent, uint32_t client, uint64_t version, uint64_t repeat, uint64_t part) const;
  bool noisy_up() const { return spec_.has_snr || spec_.uplink_var != 0; }
  // True: the link is not clean, and the update has changed.
  bool Up(LargeBytes& update, uint32_t client, uint64_t version, uint64_t repeat) const;

 private:
  void Add(std::span<std::byte> flat, double variance, uint64_t stream, uint32_t client, uint64_t version, uint64_t repeat) const;
  ChannelSpec spec_;
  const TensorLayout* layout_ = nullptr;
  uint64_t seed_ = 0;
};

}  // namespace tributary::simulate
