#include "proto/codec.h"

#include <cmath>
#include <utility>
#include <vector>

#include "proto/moe_codec.h"
#include "proto/text_checks.h"

namespace tributary {
namespace {

absl::Status CheckExamples(std::string_view what, uint64_t examples) {
  if (examples > kMaxExamples) return InvalidArgument("{}: expected at most 2^53, got {}", what, examples);
  return absl::OkStatus();
}

absl::Status CheckHeartbeat(const v1::Heartbeat& message) {
  if (!v1::ClientPhase_IsValid(message.phase()))
    return InvalidArgument("heartbeat.phase: unknown value {}", static_cast<int>(message.phase()));
  if (!message.job().empty()) TRIB_RETURN_IF_ERROR(CheckJobRef(message.job()));
  if (!(message.progress() >= 0 && message.progress() <= 1))
    return InvalidArgument("heartbeat.progress: expected [0, 1], got {}", message.progress());
  if (!message.has_device()) return absl::OkStatus();
  const v1::DeviceUsage& device = message.device();
  TRIB_RETURN_IF_ERROR(CheckName("heartbeat.device.id", device.id(), kMaxDeviceIdBytes));
  if (device.memory_used_bytes() > device.memory_total_bytes()) {
    return InvalidArgument("heartbeat.device: {} bytes used of {}", device.memory_used_bytes(), device.memory_total_bytes());
  }
  if (!(device.utilisation() >= 0 && device.utilisation() <= 1)) {
    return InvalidArgument("heartbeat.device.utilisation: expected [0, 1], got {}", device.utilisation());
  }
  return absl::OkStatus();
}

// A diverged model may well have a loss of NaN or Inf: that is a finding, not an attack. An accuracy is NaN where there is none.
absl::Status CheckEvaluation(const v1::EvaluationReport& message) {
  TRIB_RETURN_IF_ERROR(CheckJobRef(message.job()));
  if (!std::isnan(message.accuracy()) && !(message.accuracy() >= 0 && message.accuracy() <= 1))
    return InvalidArgument("evaluation.accuracy: expected [0, 1] or NaN, got {}", message.accuracy());
  return CheckExamples("evaluation.examples", message.examples());
}

}  // namespace

v1::TensorLayout LayoutToProto(const TensorLayout& layout) {
  v1::TensorLayout out;
  for (const PlacedTensor& tensor : layout.tensors()) {
    v1::TensorSpec* spec = out.add_tensors();
    spec->set_name(tensor.spec.name);
    spec->set_dtype(static_cast<v1::DType>(tensor.spec.dtype));       // same numbers, see the static_asserts
    spec->set_kind(static_cast<v1::TensorKind>(tensor.spec.kind));
    for (const int64_t extent : tensor.spec.shape) spec->add_shape(extent);
  }
  return out;
}

static_assert(static_cast<int>(DType::kF32) == v1::DTYPE_F32 && static_cast<int>(DType::kF64) == v1::DTYPE_F64 &&
              static_cast<int>(DType::kI64) == v1::DTYPE_I64);
static_assert(static_cast<int>(TensorKind::kTrainable) == v1::TENSOR_KIND_TRAINABLE &&
              static_cast<int>(TensorKind::kBuffer) == v1::TENSOR_KIND_BUFFER &&
              static_cast<int>(TensorKind::kCounter) == v1::TENSOR_KIND_COUNTER &&
              static_cast<int>(TensorKind::kServerOwned) == v1::TENSOR_KIND_SERVER_OWNED);

absl::StatusOr<TensorLayout> LayoutFromProto(const v1::TensorLayout& message) {
  if (static_cast<size_t>(message.tensors_size()) > TensorLayout::kMaxTensors)
    return InvalidArgument("layout: expected at most {} tensors, got {}", TensorLayout::kMaxTensors, message.tensors_size());
  std::vector<TensorSpec> specs;
  specs.reserve(message.tensors_size());
  for (const v1::TensorSpec& tensor : message.tensors()) {
    if (tensor.dtype() < v1::DTYPE_F32 || tensor.dtype() > v1::DTYPE_I64)
      return InvalidArgument("tensor '{}': unknown dtype {}", Show(tensor.name()), static_cast<int>(tensor.dtype()));
    if (tensor.kind() < v1::TENSOR_KIND_TRAINABLE || tensor.kind() > v1::TENSOR_KIND_SERVER_OWNED)
      return InvalidArgument("tensor '{}': unknown kind {}", Show(tensor.name()), static_cast<int>(tensor.kind()));
    if (tensor.shape_size() > 64)
      return InvalidArgument("tensor '{}': expected at most 64 dimensions, got {}", Show(tensor.name()), tensor.shape_size());
    TensorSpec spec;
    spec.name = tensor.name();
    spec.dtype = static_cast<DType>(tensor.dtype());
    spec.kind = static_cast<TensorKind>(tensor.kind());
    spec.shape.assign(tensor.shape().begin(), tensor.shape().end());
    specs.push_back(std::move(spec));
  }
  return TensorLayout::Create(std::move(specs));
}

absl::Status CheckJobRef(std::string_view job) { return CheckName("job", job, kMaxJobBytes); }

absl::Status CheckSecret(std::string_view secret) {
  // The value itself never goes into a message.
  if (secret.size() < 32 || secret.size() > 128 || !IsLowerHex(secret))
    return InvalidArgument("secret: expected 32 to 128 lower-case hex digits, got {} bytes", secret.size());
  return absl::OkStatus();
}

absl::StatusOr<CheckedKey> KeyFromProto(const v1::UpdateKey& message) {
  TRIB_RETURN_IF_ERROR(CheckJobRef(message.job()));
  if (message.task() == 0) return InvalidArgument("task: expected a task id, got 0");
  if (message.update_id().size() != 16)
    return InvalidArgument("update_id: expected 16 bytes, got {}", message.update_id().size());
  TRIB_ASSIGN_OR_RETURN(const UpdateId update, UpdateIdFromBytes(message.update_id()));
  return CheckedKey{message.job(), message.task(), update};
}

v1::UpdateKey KeyToProto(const std::string& job, uint64_t task, const UpdateId& update) {
  v1::UpdateKey out;
  out.set_job(job);
  out.set_task(task);
  out.set_update_id(ToBytes(update));
  return out;
}

absl::Status CheckUploadDigest(std::string_view xxh3_128) {
  if (xxh3_128.empty() || xxh3_128.size() == 16) return absl::OkStatus();
  return InvalidArgument("xxh3_128: expected 16 bytes, or none as long as it is not known, got {}", xxh3_128.size());
}

absl::StatusOr<CheckedUpload> UploadFromProto(const v1::BeginUploadRequest& message) {
  CheckedUpload out;
  TRIB_ASSIGN_OR_RETURN(out.key, KeyFromProto(message.key()));
  out.version = message.version();
  if (message.layout().size() != 64 || !IsLowerHex(message.layout()))
    return InvalidArgument("layout: expected a fingerprint of 64 lower-case hex digits, got '{}'", Show(message.layout()));
  out.layout = message.layout();
  TRIB_RETURN_IF_ERROR(CheckName("codec", message.codec(), kMaxNameBytes));
  out.codec = message.codec();
  if (message.bytes() == 0 || message.bytes() > TensorLayout::kMaxBytes)
    return InvalidArgument("bytes: expected 1 to {}, got {}", TensorLayout::kMaxBytes, message.bytes());
  out.bytes = message.bytes();
  TRIB_RETURN_IF_ERROR(CheckUploadDigest(message.xxh3_128()));
  out.xxh3_128 = message.xxh3_128();
  if (!(message.weight() >= kMinWeight && message.weight() <= kMaxWeight))  // written so that NaN fails too
    return InvalidArgument("weight: expected {} to {}, got {}", kMinWeight, kMaxWeight, message.weight());
  out.weight = message.weight();
  TRIB_RETURN_IF_ERROR(CheckExamples("examples", message.examples()));
  out.examples = message.examples();
  if (static_cast<size_t>(message.metrics_size()) > kMaxMetrics)
    return InvalidArgument("metrics: expected at most {}, got {}", kMaxMetrics, message.metrics_size());
  for (const auto& metric : message.metrics()) {
    TRIB_RETURN_IF_ERROR(CheckName("metric", metric.first, kMaxNameBytes, "/"));
    if (!std::isfinite(metric.second))
      return InvalidArgument("metric '{}': expected a finite number, got {}", metric.first, metric.second);
    out.metrics.emplace(metric.first, metric.second);
  }
  if (static_cast<size_t>(message.scalars_size()) > kMaxScalars)
    return InvalidArgument("scalars: expected at most {}, got {}", kMaxScalars, message.scalars_size());
  for (const auto& scalar : message.scalars()) {
    TRIB_RETURN_IF_ERROR(CheckName("scalar", scalar.first, kMaxNameBytes));
    if (!std::isfinite(scalar.second))
      return InvalidArgument("scalar '{}': expected a finite number, got {}", scalar.first, scalar.second);
    out.scalars.emplace(scalar.first, scalar.second);
  }
  TRIB_ASSIGN_OR_RETURN(out.moe, MoeStatsFromProto(message.moe()));
  return out;
}

absl::Status CheckHello(const v1::Hello& message) {
  TRIB_RETURN_IF_ERROR(CheckText("hello.device", message.device(), kMaxTextBytes));
  TRIB_RETURN_IF_ERROR(CheckText("hello.software", message.software(), kMaxTextBytes));
  TRIB_RETURN_IF_ERROR(CheckExamples("hello.examples", message.examples()));
  if (static_cast<size_t>(message.outbox_size()) > kMaxOutboxKeys)
    return InvalidArgument("hello.outbox: expected at most {} keys, got {}", kMaxOutboxKeys, message.outbox_size());
  for (int i = 0; i < message.outbox_size(); ++i) {
    if (const auto key = KeyFromProto(message.outbox(i)); !key.ok())
      return Annotate(key.status(), fmt::format("hello.outbox[{}]", i));
  }
  return absl::OkStatus();
}

absl::Status CheckClientMessage(const v1::ClientMessage& message) {
  switch (message.message_case()) {
    case v1::ClientMessage::kHello:
      return CheckHello(message.hello());
    case v1::ClientMessage::kHeartbeat:
      return CheckHeartbeat(message.heartbeat());
    case v1::ClientMessage::kDeclined:
      TRIB_RETURN_IF_ERROR(CheckJobRef(message.declined().job()));
      return CheckText("declined.reason", message.declined().reason(), kMaxReasonBytes);
    case v1::ClientMessage::kEvaluation:
      return CheckEvaluation(message.evaluation());
    case v1::ClientMessage::MESSAGE_NOT_SET:
      break;
  }
  return InvalidArgument("control message: expected hello, heartbeat, declined or evaluation, got none of them");
}

absl::Status CheckFetch(const v1::FetchModelRequest& message) { return CheckJobRef(message.job()); }

absl::Status CheckQuery(const v1::QueryUpdateRequest& message) {
  if (static_cast<size_t>(message.keys_size()) > kMaxOutboxKeys)
    return InvalidArgument("keys: expected at most {}, got {}", kMaxOutboxKeys, message.keys_size());
  for (int i = 0; i < message.keys_size(); ++i) {
    if (const auto key = KeyFromProto(message.keys(i)); !key.ok()) return Annotate(key.status(), fmt::format("keys[{}]", i));
  }
  return absl::OkStatus();
}

}  // namespace tributary
