// The one place that validates messages from outside and turns them into our types, and back.
//
// Everything here takes a parsed protobuf message that nobody has looked at yet. Limits: strings 256 bytes unless said otherwise,
// ids as in common/ids.h, lists bounded, numbers finite. What only a job can know (its layout, its size, its tasks) is the
// coordinator's business.
// Errors: INVALID_ARGUMENT naming the field, what was expected and what came. Threads: all functions are pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "common/ids.h"
#include "common/moe_stats.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "tributary/v1/federation.pb.h"
#include "tributary/v1/types.pb.h"

namespace tributary {

inline constexpr size_t kMaxOutboxKeys = 10'000;       // of a Hello, and keys of a QueryUpdate
inline constexpr size_t kMaxTextBytes = 256;           // device, software, phase, …
inline constexpr size_t kMaxReasonBytes = 1024;        // free text of a client
inline constexpr size_t kMaxMetrics = 64;
inline constexpr size_t kMaxScalars = 16;
inline constexpr size_t kMaxDeviceIdBytes = 96;        // what NVML calls a GPU by
inline constexpr size_t kMaxNameBytes = 64;            // metric, codec
inline constexpr size_t kMaxJobBytes = 128;
inline constexpr uint64_t kMaxExamples = uint64_t{1} << 53;  // exact in a double
// Weights are example counts or of their order. Outside this range a weighted mean would lose its other terms or overflow.
inline constexpr double kMinWeight = 1e-9;
inline constexpr double kMaxWeight = 1e12;

v1::TensorLayout LayoutToProto(const TensorLayout& layout);
absl::StatusOr<TensorLayout> LayoutFromProto(const v1::TensorLayout& message);

// An UpdateKey without the client: that comes from the caller's identity.
struct CheckedKey {
  std::string job;
  uint64_t task = 0;
  UpdateId update;
};
absl::StatusOr<CheckedKey> KeyFromProto(const v1::UpdateKey& message);
v1::UpdateKey KeyToProto(const std::string& job, uint64_t task, const UpdateId& update);

// A BeginUploadRequest all of whose fields are in range.
struct CheckedUpload {
  CheckedKey key;
  uint64_t version = 0;
  std::string layout;    // 64 lower-case hex digits
  std::string codec;
  uint64_t bytes = 0;    // 1 to TensorLayout::kMaxBytes
  std::string xxh3_128;  // 16 bytes; or empty: comes with the bytes
  double weight = 0;     // kMinWeight to kMaxWeight
  uint64_t examples = 0;
  std::map<std::string, double> metrics;
  std::map<std::string, double> scalars;  // finite; which there must be is the strategy's say
  MoeStats moe;          // which layers there must be is the job's say
};
absl::StatusOr<CheckedUpload> UploadFromProto(const v1::BeginUploadRequest& message);
// Of an upload, wherever it is announced: 16 bytes or empty.
absl::Status CheckUploadDigest(std::string_view xxh3_128);

absl::Status CheckHello(const v1::Hello& message);
// Any message of the control stream, Hello included. INVALID_ARGUMENT also when it is none.
absl::Status CheckClientMessage(const v1::ClientMessage& message);
absl::Status CheckFetch(const v1::FetchModelRequest& message);
absl::Status CheckQuery(const v1::QueryUpdateRequest& message);

// A job id, or a prefix of one or of a name: 1 to kMaxJobBytes characters of [A-Za-z0-9._-].
absl::Status CheckJobRef(std::string_view job);
// 32 to 128 lower-case hex digits.
absl::Status CheckSecret(std::string_view secret);

}  // namespace tributary
