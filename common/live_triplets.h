// What of an update of triplets (common/adapter_layout.h) travels where adalora has `regrow: false`: the elements of those that the mask of the version it
// starts from has in, in the order of the layout. Triplets that are out are trained no more, so that of them there is nothing to say: an update is as large
// as the budget. Both sides have that version, and need no index.
// Borrows nothing. Threads: immutable once made. Errors: as noted.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "common/adapter_layout.h"
#include "common/job_spec.h"
#include "common/large_bytes.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary {

class LiveTriplets {
 public:
  // Null: updates of the job are of all that it trains. INVALID_ARGUMENT: `model` is none of its adapters.
  static absl::StatusOr<std::unique_ptr<const LiveTriplets>> Of(const JobSpec& spec, const TensorLayout& model);

  // `version`: the values of the model that an update starts from, flat; float_bytes of it suffice.
  size_t UpdateBytes(std::span<const std::byte> version) const;
  // From an update of all triplets (AdapterUpdateLayout): what it says of those that are out is dropped.
  LargeBytes Pack(std::span<const std::byte> version, std::span<const std::byte> update) const;
  // The other way: of triplets that are out nothing has changed. INVALID_ARGUMENT: `packed` is not of UpdateBytes.
  absl::StatusOr<LargeBytes> Unpack(std::span<const std::byte> version, std::span<const std::byte> packed) const;

 private:
  // Elements that lie side by side.
  struct Run {
    size_t first = 0, count = 0;
  };
  LiveTriplets(const TensorLayout& model, std::vector<AdapterPair> pairs);
  bool In(std::span<const std::byte> version, const AdapterPair& pair, size_t triplet) const;
  std::vector<Run> RunsOf(std::span<const std::byte> version) const;

  const size_t elements_;  // of an update of all
  const DType dtype_;
  const std::vector<AdapterPair> pairs_;
};

}  // namespace tributary
