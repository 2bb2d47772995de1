// Validates what nodes say to each other (service Relay), before anybody acts on it. What only the top can know, the job's layout, its open
// version, what it has counted, is its coordinator's business.
// Errors: INVALID_ARGUMENT naming the field, what was expected and what came; DATA_LOSS for a chunk whose bytes have another CRC32C.
// Threads: all functions are pure; PartialReceiver is thread-compatible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/digest.h"
#include "common/ids.h"
#include "common/moe_stats.h"
#include "common/status.h"
#include "tributary/v1/relay.pb.h"

namespace tributary {

inline constexpr size_t kMaxPartialContributors = 100'000;
inline constexpr size_t kPartialChunkBytes = size_t{1} << 20;  // largest chunk of a partial
inline constexpr size_t kMaxNodeJobs = 10'000;
inline constexpr double kMaxNodeCapacity = 1e9;                // updates
// |Σ w·x| of one element in F64 sums: so many partials cannot overflow together.
inline constexpr double kMaxPartialSum = 1e300;

struct CheckedContributor {
  std::string client;
  uint64_t task = 0;
  UpdateId update;
  double weight = 0;    // effective, finite and > 0
  uint64_t examples = 0;
  uint64_t staleness = 0;
  std::string digest;   // XXH3-128 of the update's bytes, 16 bytes
  MoeStats moe{};       // which layers there must be is the job's say
  bool operator==(const CheckedContributor&) const = default;
};

struct CheckedPartial {
  std::string job;
  uint64_t version = 0;
  std::string layout;
  uint64_t fence = 0;
  uint64_t node_epoch = 0;
  v1::SumsType type = v1::SUMS_TYPE_F64;
  uint64_t bytes = 0;
  std::string xxh3_128;
  double sum_weight = 0;
  std::string contributors_digest;
  std::vector<CheckedContributor> contributors;  // distinct updates of distinct clients
  bool operator==(const CheckedPartial&) const = default;
};

// 16 bytes, big-endian: the wrapping sum of the XXH3-128 of each id's 16 bytes. The same for any order, and for a union of disjoint sets
// the wrapping sum of theirs.
std::string ContributorsDigest(std::span<const CheckedContributor> contributors);
// In ascending order, so that it does not depend on who summed.
double SumOfWeights(std::span<const CheckedContributor> contributors);

// Everything that a header alone can show: ranges, counts, digest and sum of weights against the list.
absl::StatusOr<CheckedPartial> PartialFromProto(const v1::PartialHeader& message);
v1::PartialHeader PartialToProto(const CheckedPartial& partial);

absl::Status CheckNodeMessage(const v1::NodeMessage& message);
absl::Status CheckTopMessage(const v1::TopMessage& message);
absl::Status CheckPartialAnswer(const v1::PartialAnswer& message);
absl::Status CheckVersionRequest(const v1::RelayVersionRequest& message);

// The sums of one partial, chunk by chunk: in order, bounded, each with its CRC. `sums` must be the header's bytes long and outlive it.
class PartialReceiver {
 public:
  explicit PartialReceiver(std::span<std::byte> sums) : sums_(sums) {}
  // An error leaves the offset where it was; the partial is to be begun again.
  absl::Status Take(const v1::PartialChunk& chunk);
  bool complete() const { return offset_ == sums_.size(); }
  // INVALID_ARGUMENT unless complete, of this digest.
  absl::Status CheckDigest(const std::string& xxh3_128) const;

 private:
  std::span<std::byte> sums_;
  size_t offset_ = 0;
  Xxh3 digest_;
};

// Whether `float_bytes` of sums can be of `updates` updates: F64 sums finite and within kMaxPartialSum; fixed-point sums within `limit`
// steps of one update times their number.
absl::Status CheckSums(std::span<const std::byte> sums, size_t float_bytes, v1::SumsType type, uint64_t updates, double limit);

}  // namespace tributary
