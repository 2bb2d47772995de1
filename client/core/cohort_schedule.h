// Who trains on what at which step when clients train side by side as one batched program: for each step a table [clients, batch] of example
// numbers, what each example weighs in its client's mean loss, and each client's learning rate. Every client's minibatches are those that it
// would see alone (BatchOrder of its seed); what a shorter batch lacks weighs 0, and so does a client whose steps are made.
//
// Clients stand in the order of their steps, most first, so that those who still train are always the first ones.
// Pure. Threads: thread-compatible; borrows what the clients name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/core/batch_order.h"
#include "common/job_spec.h"

namespace tributary::client {

struct CohortClient {
  std::span<const uint32_t> indices{};  // its examples' numbers; at least one
  LocalSpec local{};                    // its own: LocalSpec::Of
  uint64_t seed = 0;
};

class CohortSchedule {
 public:
  explicit CohortSchedule(std::span<const CohortClient> clients);

  size_t clients() const { return places_.size(); }
  size_t batch() const { return batch_; }   // the widest of any client
  uint64_t steps() const { return places_.empty() ? 0 : places_[0].steps; }
  // Which of `clients` stands at a place.
  size_t member(size_t place) const { return places_[place].member; }
  uint64_t steps_of(size_t place) const { return places_[place].steps; }
  // How many clients make step `step`: they are the first ones.
  size_t training(uint64_t step) const;
  // How many examples a client's batch of that step has; 0: it has none.
  size_t BatchSize(size_t place, uint64_t step) const;

  // The next `steps` steps of the first `width` places; steps and places there are not weigh nothing. Row-major [steps, width, batch] and
  // [steps, width].
  void Next(uint64_t steps, size_t width, std::span<int64_t> rows, std::span<double> shares, std::span<double> rates);

 private:
  struct Place {
    size_t member = 0;
    CohortClient client;
    uint64_t steps = 0;
    BatchOrder order;
  };
  std::vector<Place> places_;
  size_t batch_ = 0;
  uint64_t next_ = 0;
};

}  // namespace tributary::client
