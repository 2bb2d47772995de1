// Stored bytes to rows and back. Stored bytes may be damaged or written by another release, so a row is checked before anyone
// sees it: it decodes, its format_version is known, and its shard arithmetic adds up (no later loop or allocation is driven by
// an unchecked number).
// Errors: DATA_LOSS (does not decode, or contradicts itself), FAILED_PRECONDITION (unknown format_version); each names `what`.
// Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "common/status.h"
#include "tributary/v1/store.pb.h"

namespace tributary::aggregator {

inline constexpr uint32_t kRowFormat = 1;    // every row type so far
inline constexpr uint64_t kShardBytes = 4ull << 20;
inline constexpr uint64_t kMaxShardBytes = 64ull << 20;   // of a row written elsewhere

// Shards of a piece of `bytes`.
constexpr uint64_t ShardsOf(uint64_t bytes, uint64_t shard_bytes) {
  return shard_bytes == 0 ? 0 : bytes / shard_bytes + (bytes % shard_bytes != 0);
}

absl::Status CheckRow(const v1::MetaRow& row);
absl::Status CheckRow(const v1::JobRow& row);
absl::Status CheckRow(const v1::VersionRow& row);
absl::Status CheckRow(const v1::UpdateRow& row);
absl::Status CheckRow(const v1::ClientRow& row);
absl::Status CheckRow(const v1::ClientStateRow& row);
absl::Status CheckRow(const v1::ClientVectorRow& row);
absl::Status CheckRow(const v1::MetricRow& row);
absl::Status CheckRow(const v1::EventRow& row);
absl::Status CheckRow(const v1::PartialRow& row);
absl::Status CheckRow(const v1::ArtifactRow& row);
absl::Status CheckRow(const v1::RecordRow& row);

absl::Status DecodeInto(google::protobuf::MessageLite& row, std::string_view bytes, std::string_view what);
absl::Status UnknownFormat(uint32_t format, std::string_view what);

template <typename Row>
absl::StatusOr<Row> DecodeRow(std::string_view bytes, std::string_view what) {
  Row row;
  TRIB_RETURN_IF_ERROR(DecodeInto(row, bytes, what));
  if (row.format_version() != kRowFormat) return UnknownFormat(row.format_version(), what);
  TRIB_RETURN_IF_ERROR(Annotate(CheckRow(row), what));
  return row;
}

// Sets format_version.
template <typename Row>
std::string EncodeRow(Row row) {
  row.set_format_version(kRowFormat);
  return row.SerializeAsString();
}

}  // namespace tributary::aggregator
