// Keys of the state store: KEYS.md has the table, this file its code. Numbers are big-endian, so that byte order is number order;
// a job id ends with a 0 byte, which no id contains. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/ids.h"
#include "common/status.h"

namespace tributary::aggregator::keys {

// Row kinds: the first byte of a key in the families jobs, versions and rounds.
inline constexpr char kJob = 'j';
inline constexpr char kArtifact = 'a';
inline constexpr char kVersion = 'v';
inline constexpr char kPartial = 'p';
inline constexpr char kMetric = 'm';
inline constexpr char kRecord = 'u';
// In the family strategy_state.
inline constexpr char kClientState = 'c';
inline constexpr char kClientVector = 'r';

// What a payload belongs to; upper case, the same bytes in the bulk family and beside the rows.
enum class Owner : char { kArtifact = 'A', kPartial = 'P', kRecord = 'U', kVersion = 'V' };

// INVALID_ARGUMENT: empty, over 256 bytes, or with a 0 byte.
absl::Status ValidateJobId(const std::string& job);

std::string Row(char kind, const std::string& job);
std::string Version(const std::string& job, uint64_t version);
std::string Metric(const std::string& job, uint64_t version, const std::string& evaluator);
// "<kind><job>\0<client>".
std::string OfClient(char kind, const std::string& job, const std::string& client);
std::string Event(const std::string& job, uint64_t sequence);
std::string Record(const std::string& job, uint64_t number);
std::string Update(const std::string& job, const UpdateId& update);
// All keys of a job within one kind (or within a family without kinds): "<kind><job>\0".
std::string JobPrefix(std::optional<char> kind, const std::string& job);
// The first key after all that begin with `prefix`.
std::string PrefixEnd(std::string prefix);

// One payload (a version's tensors and vectors, a partial's sums, an artifact, a recorded update) and one shard of it.
std::string Payload(Owner owner, const std::string& job, uint64_t number);
std::string Shard(const std::string& payload, uint16_t piece, uint32_t shard);

struct ParsedPayload {
  Owner owner;
  std::string job;
  uint64_t number;
};
// Of a shard's key; nullopt for bytes that Shard() did not write.
std::optional<ParsedPayload> ParseShard(std::string_view key);
// {job, version} of a key by Version(); {job, sequence} of one by Event().
std::optional<std::pair<std::string, uint64_t>> ParseVersion(std::string_view key);
std::optional<std::pair<std::string, uint64_t>> ParseEvent(std::string_view key);
std::optional<std::pair<std::string, UpdateId>> ParseUpdate(std::string_view key);

}  // namespace tributary::aggregator::keys
