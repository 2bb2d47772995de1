#include "aggregator/state/keys.h"

namespace tributary::aggregator::keys {
namespace {

template <typename T>
void AppendBigEndian(std::string& key, T value) {
  for (int shift = static_cast<int>(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
    key.push_back(static_cast<char>(static_cast<uint8_t>(value >> shift)));
  }
}

uint64_t ReadBigEndian64(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// "<job>\0<exactly `rest` bytes>".
std::optional<std::pair<std::string, std::string_view>> SplitJob(std::string_view key, size_t rest) {
  const size_t end = key.find('\0');
  if (end == std::string_view::npos || end == 0 || key.size() - end - 1 != rest) return std::nullopt;
  return std::pair(std::string(key.substr(0, end)), key.substr(end + 1));
}

std::optional<std::pair<std::string, uint64_t>> SplitNumber(std::string_view key) {
  auto split = SplitJob(key, 8);
  if (!split) return std::nullopt;
  return std::pair(std::move(split->first), ReadBigEndian64(split->second));
}

}  // namespace

absl::Status ValidateJobId(const std::string& job) {
  if (job.empty()) return InvalidArgument("job id: expected 1 to 256 bytes, got none");
  if (job.size() > 256) return InvalidArgument("job id: expected at most 256 bytes, got {}", job.size());
  if (job.find('\0') != std::string::npos) return InvalidArgument("job id: has a 0 byte");
  return absl::OkStatus();
}

std::string JobPrefix(std::optional<char> kind, const std::string& job) {
  std::string key;
  key.reserve(job.size() + 2);
  if (kind) key.push_back(*kind);
  key += job;
  key.push_back('\0');
  return key;
}

std::string Row(char kind, const std::string& job) { return JobPrefix(kind, job); }

std::string Version(const std::string& job, uint64_t version) {
  std::string key = JobPrefix(kVersion, job);
  AppendBigEndian(key, version);
  return key;
}

std::string OfClient(char kind, const std::string& job, const std::string& client) { return JobPrefix(kind, job) + client; }

std::string Metric(const std::string& job, uint64_t version, const std::string& evaluator) {
  std::string key = JobPrefix(kMetric, job);
  AppendBigEndian(key, version);
  return key + evaluator;
}

std::string Event(const std::string& job, uint64_t sequence) {
  std::string key = JobPrefix(std::nullopt, job);
  AppendBigEndian(key, sequence);
  return key;
}

std::string Update(const std::string& job, const UpdateId& update) {
  std::string key = JobPrefix(std::nullopt, job);
  AppendBigEndian(key, update.hi);
  AppendBigEndian(key, update.lo);
  return key;
}

std::string PrefixEnd(std::string prefix) {
  while (!prefix.empty() && static_cast<uint8_t>(prefix.back()) == 0xFF) prefix.pop_back();
  if (!prefix.empty()) prefix.back() = static_cast<char>(static_cast<uint8_t>(prefix.back()) + 1);
  return prefix;
}

std::string Payload(Owner owner, const std::string& job, uint64_t number) {
  std::string key = JobPrefix(static_cast<char>(owner), job);
  AppendBigEndian(key, number);
  return key;
}

std::string Shard(const std::string& payload, uint16_t piece, uint32_t shard) {
  std::string key = payload;
  AppendBigEndian(key, piece);
  AppendBigEndian(key, shard);
  return key;
}

std::optional<ParsedPayload> ParseShard(std::string_view key) {
  if (key.empty() || (key[0] != 'A' && key[0] != 'P' && key[0] != 'U' && key[0] != 'V')) return std::nullopt;
  auto split = SplitJob(key.substr(1), 8 + 2 + 4);
  if (!split) return std::nullopt;
  return ParsedPayload{static_cast<Owner>(key[0]), std::move(split->first), ReadBigEndian64(split->second)};
}

std::optional<std::pair<std::string, uint64_t>> ParseVersion(std::string_view key) {
  if (key.empty() || key[0] != kVersion) return std::nullopt;
  return SplitNumber(key.substr(1));
}

std::string Record(const std::string& job, uint64_t number) {
  std::string key = JobPrefix(kRecord, job);
  AppendBigEndian(key, number);
  return key;
}

std::optional<std::pair<std::string, uint64_t>> ParseEvent(std::string_view key) { return SplitNumber(key); }

std::optional<std::pair<std::string, UpdateId>> ParseUpdate(std::string_view key) {
  auto split = SplitJob(key, 16);
  if (!split) return std::nullopt;
  return std::pair(std::move(split->first),
                   UpdateId{ReadBigEndian64(split->second), ReadBigEndian64(split->second.substr(8))});
}

}  // namespace tributary::aggregator::keys
