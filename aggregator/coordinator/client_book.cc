#include "aggregator/coordinator/client_book.h"

#include <span>

#include "common/clock.h"
#include "common/digest.h"
#include "common/ids.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMinSecret = 16;
constexpr size_t kMaxSecret = 256;

bool EqualInConstantTime(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  return difference == 0;
}

}  // namespace

std::string PhaseText(v1::ClientPhase phase) {
  switch (phase) {
    case v1::CLIENT_PHASE_IDLE: return "idle";
    case v1::CLIENT_PHASE_FETCHING: return "fetching";
    case v1::CLIENT_PHASE_TRAINING: return "training";
    case v1::CLIENT_PHASE_UPLOADING: return "uploading";
    case v1::CLIENT_PHASE_EVALUATING: return "evaluating";
    default: return "unknown";
  }
}

v1::Client ToProto(const ClientRecord& client) {
  v1::Client out;
  out.set_id(client.id);
  out.set_connected(client.attached());
  out.set_device(client.hello.device());
  out.set_phase(client.attached() ? PhaseText(client.doing.phase()) : "away");
  if (client.attached()) {
    out.set_job(client.doing.job());
    out.set_progress(client.doing.progress());
    if (client.doing.has_device()) *out.mutable_device_usage() = client.doing.device();
  }
  out.set_connected_us(client.connected_us);
  out.set_last_seen_us(client.last_seen_us);
  out.set_examples(client.hello.examples());
  out.set_updates_committed(client.updates_committed);
  out.set_trains(client.hello.trains());
  out.set_evaluates(client.hello.evaluates());
  out.set_software(client.hello.software());
  out.set_last_decline(client.last_decline);
  return out;
}

void ClientBook::Load(const std::vector<v1::ClientRow>& rows) {
  absl::MutexLock lock(&mutex_);
  for (const v1::ClientRow& row : rows) {
    if (!row.secret_sha256().empty()) secrets_[row.id()] = row.secret_sha256();
  }
}

absl::Status ClientBook::Authenticate(const std::string& client, const std::string& secret) {
  if (secret.size() < kMinSecret || secret.size() > kMaxSecret) {
    return Unauthenticated("client '{}': expected a secret of {} to {} characters, got {}", client, kMinSecret, kMaxSecret, secret.size());
  }
  const std::string hash = Sha256Hex(std::as_bytes(std::span(secret)));
  {
    absl::MutexLock lock(&mutex_);
    const auto found = secrets_.find(client);
    if (found != secrets_.end()) {
      if (EqualInConstantTime(found->second, hash)) return absl::OkStatus();
      return PermissionDenied("client '{}' is bound to another secret; use the state folder of its first contact, or another name", client);
    }
    TRIB_RETURN_IF_ERROR(ValidateClientId(client));
    if (secrets_.size() >= max_clients_) return ResourceExhausted("client '{}': this server knows {} clients already, its limit", client, secrets_.size());
    // Bound in memory before the store knows, so that two first contacts cannot both win.
    secrets_[client] = hash;
  }
  v1::ClientRow row;
  row.set_format_version(1);
  row.set_id(client);
  row.set_secret_sha256(hash);
  row.set_first_seen_us(WallMicros());
  row.set_last_seen_us(row.first_seen_us());
  const absl::Status stored = store_->PutClient(row, /*synced=*/true);
  if (!stored.ok()) {
    absl::MutexLock lock(&mutex_);
    secrets_.erase(client);
    return Annotate(stored, fmt::format("client '{}' could not be recorded", client));
  }
  return absl::OkStatus();
}

std::string ClientBook::SecretHash(const std::string& client) const {
  absl::MutexLock lock(&mutex_);
  const auto found = secrets_.find(client);
  return found == secrets_.end() ? "" : found->second;
}

}  // namespace tributary::aggregator
