// Identifiers and their text forms.
//   UpdateId   128 random bits made by the client for one training result; the same on every retry; doubles as trace id.
//   job id     "<name>-<6 hex>", made by the aggregator at submission.
//   client id  1 to 64 characters of [A-Za-z0-9._-], not starting with '.' or '-'. Chosen by the machine's owner.
//   task id    u64 made by the aggregator, rising within a job, never reused; names one (client, version) assignment.
// Threads: everything here is safe from any thread.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "common/status.h"

namespace tributary {

struct UpdateId {
  uint64_t hi = 0;
  uint64_t lo = 0;
  auto operator<=>(const UpdateId&) const = default;
};

// From the operating system's generator.
UpdateId RandomUpdateId();
uint64_t RandomU64();
// Lower-case hex of `bytes` random bytes.
std::string RandomHex(size_t bytes);

// 32 lower-case hex digits, big-endian (hi first).
std::string ToHex(const UpdateId& id);
absl::StatusOr<UpdateId> UpdateIdFromHex(std::string_view hex);
// 16 bytes, big-endian: the form on the wire and in the store.
std::string ToBytes(const UpdateId& id);
absl::StatusOr<UpdateId> UpdateIdFromBytes(std::string_view bytes);

// INVALID_ARGUMENT naming the rule that `id` breaks.
absl::Status ValidateClientId(std::string_view id);
absl::Status ValidateJobName(std::string_view name);

}  // namespace tributary

template <>
struct std::hash<tributary::UpdateId> {
  size_t operator()(const tributary::UpdateId& id) const noexcept { return id.hi ^ (id.lo * 0x9E3779B97F4A7C15ull); }
};
