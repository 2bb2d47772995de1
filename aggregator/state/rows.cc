#include "aggregator/state/rows.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <cmath>
#include <limits>

#include "common/tensor_layout.h"

namespace tributary::aggregator {
namespace {

// `bytes` in `shards` shards of `shard_bytes`.
absl::Status CheckShards(uint64_t bytes, uint64_t shards, uint64_t shard_bytes) {
  if (bytes > TensorLayout::kMaxBytes) {
    return DataLoss("{} bytes are more than any model has ({})", bytes, TensorLayout::kMaxBytes);
  }
  if (bytes != 0 && (shard_bytes == 0 || shard_bytes > kMaxShardBytes)) {
    return DataLoss("shards of {} bytes: expected 1 to {}", shard_bytes, kMaxShardBytes);
  }
  if (ShardsOf(bytes, shard_bytes) != shards) {
    return DataLoss("{} bytes in shards of {} are {} shards, the row says {}", bytes, shard_bytes, ShardsOf(bytes, shard_bytes),
                    shards);
  }
  return absl::OkStatus();
}

absl::Status CheckDigest(const std::string& digest, const char* name) {
  if (digest.empty() || digest.size() == 16) return absl::OkStatus();
  return DataLoss("{}: expected 16 bytes, got {}", name, digest.size());
}

}  // namespace

absl::Status DecodeInto(google::protobuf::MessageLite& row, std::string_view bytes, std::string_view what) {
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max())) {
    return DataLoss("{}: {} bytes are too many for a row", what, bytes.size());
  }
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  google::protobuf::io::CodedInputStream coded(&stream);
  coded.SetRecursionLimit(32);
  if (!row.ParseFromCodedStream(&coded) || !coded.ConsumedEntireMessage()) {
    return DataLoss("{}: the stored {} bytes do not decode as {}", what, bytes.size(), std::string(row.GetTypeName()));
  }
  return absl::OkStatus();
}

absl::Status UnknownFormat(uint32_t format, std::string_view what) {
  return FailedPrecondition("{}: format version {} is not known here (known: {}); open it with the release that wrote it, or a later one",
                            what, format, kRowFormat);
}

absl::Status CheckRow(const v1::MetaRow&) { return absl::OkStatus(); }
absl::Status CheckRow(const v1::UpdateRow& row) { return CheckDigest(row.xxh3_128(), "update digest"); }
absl::Status CheckRow(const v1::MetricRow&) { return absl::OkStatus(); }
absl::Status CheckRow(const v1::EventRow&) { return absl::OkStatus(); }

absl::Status CheckRow(const v1::JobRow& row) {
  return row.id().empty() ? DataLoss("the row has no id") : absl::OkStatus();
}

absl::Status CheckRow(const v1::ClientRow& row) {
  return row.id().empty() ? DataLoss("the row has no id") : absl::OkStatus();
}

absl::Status CheckRow(const v1::ClientStateRow& row) {
  const v1::ClientParticipation& p = row.participation();
  if (p.client().empty()) return DataLoss("the row names no client");
  for (const double value : {p.interval_sum(), p.interval_count(), p.since(), p.claimed()}) {
    if (!std::isfinite(value) || value < 0) return DataLoss("client '{}': expected finite numbers >= 0, got {}", p.client(), value);
  }
  return absl::OkStatus();
}

absl::Status CheckRow(const v1::ClientVectorRow& row) { return CheckDigest(row.xxh3_128(), "digest of the values"); }

absl::Status CheckRow(const v1::VersionRow& row) {
  TRIB_RETURN_IF_ERROR(CheckShards(row.info().bytes(), row.shards(), row.shard_bytes()));
  TRIB_RETURN_IF_ERROR(CheckDigest(row.vectors_xxh3_128(), "strategy state digest"));
  if (row.vectors_size() > 1000) return DataLoss("{} strategy vectors: expected at most 1000", row.vectors_size());
  for (const v1::StrategyVector& vector : row.vectors()) {
    if (vector.elements() > TensorLayout::kMaxBytes / 8) {
      return DataLoss("strategy vector '{}': {} elements are more than any model has", vector.name(), vector.elements());
    }
    if (vector.elements() != 0 && (row.shard_bytes() == 0 || row.shard_bytes() > kMaxShardBytes)) {
      return DataLoss("shards of {} bytes: expected 1 to {}", row.shard_bytes(), kMaxShardBytes);
    }
  }
  for (const v1::Contributor& contributor : row.info().contributors()) {
    TRIB_RETURN_IF_ERROR(CheckDigest(contributor.update_id(), "contributor's update id"));
  }
  return absl::OkStatus();
}

absl::Status CheckRow(const v1::PartialRow& row) {
  TRIB_RETURN_IF_ERROR(CheckShards(row.sums_bytes(), row.shards(), row.shard_bytes()));
  TRIB_RETURN_IF_ERROR(CheckDigest(row.sums_xxh3_128(), "digest of the sums"));
  for (const v1::Contributor& contributor : row.contributors()) {
    TRIB_RETURN_IF_ERROR(CheckDigest(contributor.update_id(), "contributor's update id"));
  }
  for (const std::string& digest : row.digests()) TRIB_RETURN_IF_ERROR(CheckDigest(digest, "update digest"));
  return absl::OkStatus();
}

absl::Status CheckRow(const v1::ArtifactRow& row) { return CheckShards(row.bytes(), row.shards(), row.shard_bytes()); }

absl::Status CheckRow(const v1::RecordRow& row) {
  TRIB_RETURN_IF_ERROR(CheckShards(row.bytes(), static_cast<uint32_t>(ShardsOf(row.bytes(), row.shard_bytes())), row.shard_bytes()));
  TRIB_RETURN_IF_ERROR(CheckDigest(row.xxh3_128(), "digest of the update"));
  return CheckDigest(row.update_id(), "update id");
}

}  // namespace tributary::aggregator
