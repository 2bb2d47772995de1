// What the coordinator offers to whoever speaks to clients and people. The shapes mirror aggregator/ingress/backend.h, which has
// the same rank and therefore cannot be included here; daemon/backend_adapter.h forwards one to the other.
// Threads: values.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "aggregator/core/round.h"
#include "aggregator/store/object_pool.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "common/update_codec.h"
#include "tributary/v1/admin.pb.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::aggregator {

// The sending half of one client's control stream. The coordinator calls both methods from its loop thread only, without locks.
class ClientSink {
 public:
  virtual ~ClientSink() = default;
  // Queues a message; never blocks.
  virtual void Send(v1::ServerMessage message) = 0;
  // Ends the stream with this status.
  virtual void Close(const absl::Status& status) = 0;
};

// Immutable bytes; `owner` keeps them alive.
struct SharedBytes {
  std::span<const std::byte> bytes;
  std::string sha256;
  std::string xxh3_128;  // 16 bytes; of a model only
  int memfd = -1;        // sealed, holds exactly `bytes`; borrowed from `owner`; -1: the bytes lie elsewhere
  std::shared_ptr<const void> owner;
};

// A checked upload header. `client` in the key is the authenticated id.
struct UpdateHeader {
  UpdateKeyRef key;
  std::string job;
  uint64_t version = 0;
  std::string layout;    // fingerprint
  std::string codec;
  uint64_t bytes = 0;
  std::string xxh3_128;  // 16 bytes; empty in AdmitUpload: comes with the bytes
  double weight = 0;
  uint64_t examples = 0;
  std::map<std::string, double> metrics;
  std::map<std::string, double> scalars{};
  MoeStats moe{};
};

// Room for one update and what its bytes must satisfy.
struct UpdateGrant {
  std::shared_ptr<const void> owner;  // keeps the object's pool alive: a job may end during an upload
  WritableObject object;
  UpdateEncoding encoding{};
  size_t float_bytes = 0;  // 0 for an encoded update, which is checked as a whole
  DType dtype = DType::kF32;
  double max_abs = 0;  // > 0: largest |x| allowed
};

struct UpdateAdmission {
  v1::UpdateState state = v1::UPDATE_STATE_UNSPECIFIED;  // PARTIAL: `grant` is filled
  uint64_t version = 0;
  std::string reason;
  UpdateGrant grant;
};

}  // namespace tributary::aggregator
