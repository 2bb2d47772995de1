#include "proto/relay_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string_view>

#include "common/tensor_layout.h"
#include "proto/codec.h"
#include "proto/moe_codec.h"
#include "proto/text_checks.h"

namespace tributary {
namespace {

constexpr size_t kDigestBytes = 16;

absl::Status CheckDigestBytes(std::string_view what, const std::string& digest) {
  if (digest.size() != kDigestBytes) return InvalidArgument("{}: expected {} bytes, got {}", what, kDigestBytes, digest.size());
  return absl::OkStatus();
}

uint64_t BigEndian(std::string_view bytes) {
  uint64_t out = 0;
  for (const char c : bytes.substr(0, 8)) out = out << 8 | static_cast<unsigned char>(c);
  return out;
}

absl::StatusOr<CheckedContributor> ContributorFromProto(const v1::Contributor& message, const std::string& digest) {
  CheckedContributor out;
  TRIB_RETURN_IF_ERROR(ValidateClientId(message.client()));
  out.client = message.client();
  if (message.task() == 0) return InvalidArgument("task: expected a task id, got 0");
  out.task = message.task();
  TRIB_ASSIGN_OR_RETURN(out.update, UpdateIdFromBytes(message.update_id()));
  // Strategies may change a client's weight: any finite positive number.
  if (!(std::isfinite(message.weight()) && message.weight() > 0)) return InvalidArgument("weight: expected a finite number > 0, got {}", message.weight());
  out.weight = message.weight();
  if (message.examples() > kMaxExamples) return InvalidArgument("examples: expected at most 2^53, got {}", message.examples());
  out.examples = message.examples();
  out.staleness = message.staleness();
  TRIB_RETURN_IF_ERROR(CheckDigestBytes("update_digest", digest));
  out.digest = digest;
  TRIB_ASSIGN_OR_RETURN(out.moe, MoeStatsFromProto(message.moe()));
  return out;
}

absl::Status CheckCapacity(double capacity) {
  if (!(capacity >= 0 && capacity <= kMaxNodeCapacity)) return InvalidArgument("hello.capacity: expected 0 to {}, got {}", kMaxNodeCapacity, capacity);
  return absl::OkStatus();
}

}  // namespace

std::string ContributorsDigest(std::span<const CheckedContributor> contributors) {
  uint64_t hi = 0;
  uint64_t lo = 0;
  for (const CheckedContributor& contributor : contributors) {
    const std::string id = ToBytes(contributor.update);
    const std::string hash = Xxh3Digest(std::as_bytes(std::span(id.data(), id.size())));
    const uint64_t add = BigEndian(std::string_view(hash).substr(8));
    lo += add;
    hi += BigEndian(hash) + (lo < add ? 1 : 0);
  }
  return ToBytes(UpdateId{hi, lo});
}

double SumOfWeights(std::span<const CheckedContributor> contributors) {
  std::vector<double> weights;
  weights.reserve(contributors.size());
  for (const CheckedContributor& contributor : contributors) weights.push_back(contributor.weight);
  std::sort(weights.begin(), weights.end());
  double sum = 0;
  for (const double weight : weights) sum += weight;
  return sum;
}

absl::StatusOr<CheckedPartial> PartialFromProto(const v1::PartialHeader& message) {
  CheckedPartial out;
  TRIB_RETURN_IF_ERROR(CheckJobRef(message.job()));
  out.job = message.job();
  out.version = message.version();
  if (message.layout().size() != 64 || !IsLowerHex(message.layout()))
    return InvalidArgument("layout: expected a fingerprint of 64 lower-case hex digits, got '{}'", Show(message.layout()));
  out.layout = message.layout();
  if (message.fence() == 0) return InvalidArgument("fence: expected the epoch that the top said, got 0");
  out.fence = message.fence();
  if (message.node_epoch() == 0) return InvalidArgument("node_epoch: expected at least 1, got 0");
  out.node_epoch = message.node_epoch();
  if (message.type() != v1::SUMS_TYPE_F64 && message.type() != v1::SUMS_TYPE_FIXED40)
    return InvalidArgument("type: unknown type of sums {}", static_cast<int>(message.type()));
  out.type = message.type();
  // Accumulators have 8 bytes where values have 4.
  if (message.bytes() == 0 || message.bytes() > 2 * TensorLayout::kMaxBytes || message.bytes() % 8 != 0)
    return InvalidArgument("bytes: expected 8 to {} and a multiple of 8, got {}", 2 * TensorLayout::kMaxBytes, message.bytes());
  out.bytes = message.bytes();
  TRIB_RETURN_IF_ERROR(CheckDigestBytes("xxh3_128", message.xxh3_128()));
  out.xxh3_128 = message.xxh3_128();
  const auto listed = static_cast<size_t>(message.contributors_size());
  if (listed == 0 || listed > kMaxPartialContributors)
    return InvalidArgument("contributors: expected 1 to {}, got {}", kMaxPartialContributors, listed);
  if (message.count() != listed) return InvalidArgument("count: says {} contributors, {} are listed", message.count(), listed);
  if (message.update_digests_size() != message.contributors_size())
    return InvalidArgument("update_digests: expected one for each of {} contributors, got {}", listed, message.update_digests_size());
  std::set<UpdateId> ids;
  std::set<std::string> clients;
  out.contributors.reserve(listed);
  for (int i = 0; i < message.contributors_size(); ++i) {
    absl::StatusOr<CheckedContributor> contributor = ContributorFromProto(message.contributors(i), message.update_digests(i));
    if (!contributor.ok()) return Annotate(contributor.status(), fmt::format("contributors[{}]", i));
    if (!ids.insert(contributor->update).second) return InvalidArgument("contributors[{}]: update {} is listed twice", i, ToHex(contributor->update));
    if (!clients.insert(contributor->client).second) return InvalidArgument("contributors[{}]: client '{}' is listed twice", i, contributor->client);
    out.contributors.push_back(*std::move(contributor));
  }
  out.sum_weight = message.sum_weight();
  if (const double sum = SumOfWeights(out.contributors); !(out.sum_weight == sum))
    return InvalidArgument("sum_weight: the contributors' weights add up to {}, got {}", sum, out.sum_weight);
  TRIB_RETURN_IF_ERROR(CheckDigestBytes("contributors_digest", message.contributors_digest()));
  out.contributors_digest = message.contributors_digest();
  if (out.contributors_digest != ContributorsDigest(out.contributors))
    return InvalidArgument("contributors_digest: is not that of the {} contributors listed", listed);
  return out;
}

v1::PartialHeader PartialToProto(const CheckedPartial& partial) {
  v1::PartialHeader out;
  out.set_job(partial.job);
  out.set_version(partial.version);
  out.set_layout(partial.layout);
  out.set_fence(partial.fence);
  out.set_node_epoch(partial.node_epoch);
  out.set_type(partial.type);
  out.set_bytes(partial.bytes);
  out.set_xxh3_128(partial.xxh3_128);
  out.set_sum_weight(partial.sum_weight);
  out.set_count(partial.contributors.size());
  out.set_contributors_digest(partial.contributors_digest);
  for (const CheckedContributor& contributor : partial.contributors) {
    v1::Contributor& row = *out.add_contributors();
    row.set_client(contributor.client);
    row.set_task(contributor.task);
    row.set_update_id(ToBytes(contributor.update));
    row.set_weight(contributor.weight);
    row.set_examples(contributor.examples);
    row.set_staleness(contributor.staleness);
    if (!contributor.moe.empty()) *row.mutable_moe() = MoeStatsToProto(contributor.moe);
    out.add_update_digests(contributor.digest);
  }
  return out;
}

absl::Status CheckNodeMessage(const v1::NodeMessage& message) {
  switch (message.message_case()) {
    case v1::NodeMessage::kHello: {
      const v1::NodeHello& hello = message.hello();
      TRIB_RETURN_IF_ERROR(CheckText("hello.software", hello.software(), kMaxTextBytes));
      if (hello.epoch() == 0) return InvalidArgument("hello.epoch: expected at least 1, got 0");
      TRIB_RETURN_IF_ERROR(CheckCapacity(hello.capacity()));
      if (static_cast<size_t>(hello.jobs_size()) > kMaxNodeJobs)
        return InvalidArgument("hello.jobs: expected at most {}, got {}", kMaxNodeJobs, hello.jobs_size());
      for (const std::string& job : hello.jobs()) TRIB_RETURN_IF_ERROR(Annotate(CheckJobRef(job), "hello.jobs"));
      return absl::OkStatus();
    }
    case v1::NodeMessage::kReport: return absl::OkStatus();
    case v1::NodeMessage::MESSAGE_NOT_SET: break;
  }
  return InvalidArgument("node message: expected hello or report, got neither");
}

absl::Status CheckTopMessage(const v1::TopMessage& message) {
  switch (message.message_case()) {
    case v1::TopMessage::kWelcome:
      if (message.welcome().fence() == 0) return InvalidArgument("welcome.fence: expected at least 1, got 0");
      if (message.welcome().heartbeat_interval_ms() == 0) return InvalidArgument("welcome.heartbeat_interval_ms: expected at least 1, got 0");
      return absl::OkStatus();
    case v1::TopMessage::kJob:
      TRIB_RETURN_IF_ERROR(CheckJobRef(message.job().job()));
      return LayoutFromProto(message.job().layout()).status();
    case v1::TopMessage::kRound:
      TRIB_RETURN_IF_ERROR(CheckJobRef(message.round().job()));
      if (message.round().fence() == 0) return InvalidArgument("round.fence: expected at least 1, got 0");
      if (message.round().goal() > kMaxPartialContributors)
        return InvalidArgument("round.goal: expected at most {}, got {}", kMaxPartialContributors, message.round().goal());
      return absl::OkStatus();
    case v1::TopMessage::kEnded: {
      TRIB_RETURN_IF_ERROR(CheckJobRef(message.ended().job()));
      const v1::JobState state = message.ended().state();
      if (state != v1::JOB_STATE_DONE && state != v1::JOB_STATE_FAILED && state != v1::JOB_STATE_CANCELLED)
        return InvalidArgument("ended.state: expected done, failed or cancelled, got {}", static_cast<int>(state));
      return CheckText("ended.reason", message.ended().reason(), 4 * kMaxReasonBytes);
    }
    case v1::TopMessage::kDraining: return absl::OkStatus();
    case v1::TopMessage::MESSAGE_NOT_SET: break;
  }
  return InvalidArgument("top's message: expected welcome, job, round, ended or draining, got none of them");
}

absl::Status CheckPartialAnswer(const v1::PartialAnswer& message) {
  if (message.state() == v1::PARTIAL_STATE_UNSPECIFIED || !v1::PartialState_IsValid(message.state()))
    return InvalidArgument("answer.state: unknown value {}", static_cast<int>(message.state()));
  if (message.state() == v1::PARTIAL_STATE_SEND && (message.chunk_bytes() == 0 || message.chunk_bytes() > kPartialChunkBytes))
    return InvalidArgument("answer.chunk_bytes: expected 1 to {}, got {}", kPartialChunkBytes, message.chunk_bytes());
  for (const std::string& id : message.overlap()) TRIB_RETURN_IF_ERROR(Annotate(UpdateIdFromBytes(id).status(), "answer.overlap"));
  return absl::OkStatus();
}

absl::Status CheckVersionRequest(const v1::RelayVersionRequest& message) { return CheckJobRef(message.job()); }

absl::Status PartialReceiver::Take(const v1::PartialChunk& chunk) {
  const std::string& bytes = chunk.bytes();
  if (chunk.offset() != offset_) return InvalidArgument("chunk.offset: expected {}, got {}", offset_, chunk.offset());
  if (bytes.empty() || bytes.size() > kPartialChunkBytes)
    return InvalidArgument("chunk at {}: expected 1 to {} bytes, got {}", offset_, kPartialChunkBytes, bytes.size());
  if (bytes.size() > sums_.size() - offset_)
    return InvalidArgument("chunk at {}: its {} bytes pass the end at {}", offset_, bytes.size(), sums_.size());
  const auto view = std::as_bytes(std::span(bytes.data(), bytes.size()));
  if (const uint32_t crc = Crc32c(view); crc != chunk.crc32c())
    return DataLoss("chunk at {}: has CRC32C {:08x}, announced {:08x}", offset_, crc, chunk.crc32c());
  std::memcpy(sums_.data() + offset_, bytes.data(), bytes.size());
  digest_.Update(view);
  offset_ += bytes.size();
  return absl::OkStatus();
}

absl::Status PartialReceiver::CheckDigest(const std::string& xxh3_128) const {
  if (!complete()) return InvalidArgument("partial: expected {} bytes, got {}", sums_.size(), offset_);
  if (digest_.Digest() != xxh3_128) return InvalidArgument("partial: the {} bytes differ from the announced XXH3-128", sums_.size());
  return absl::OkStatus();
}

absl::Status CheckSums(std::span<const std::byte> sums, size_t float_bytes, v1::SumsType type, uint64_t updates, double limit) {
  const size_t count = std::min(float_bytes, sums.size()) / 8;
  for (size_t i = 0; i < count; ++i) {
    if (type == v1::SUMS_TYPE_FIXED40) {
      int64_t value = 0;
      std::memcpy(&value, sums.data() + i * 8, 8);
      if (std::abs(static_cast<double>(value)) > limit * static_cast<double>(updates))
        return InvalidArgument("sums: element {} is {} steps, {} updates can have at most {}", i, value, updates, limit * static_cast<double>(updates));
    } else {
      double value = 0;
      std::memcpy(&value, sums.data() + i * 8, 8);
      if (!(std::abs(value) <= kMaxPartialSum)) return InvalidArgument("sums: element {}: expected a finite number of at most {}, got {}", i, kMaxPartialSum, value);
    }
  }
  return absl::OkStatus();
}

}  // namespace tributary
