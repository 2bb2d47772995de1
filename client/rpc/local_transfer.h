// Models and updates by file descriptor from and to an aggregator on the same host, as the same user: no copy of a model, one copy of
// an update. The aggregator names its socket in the Welcome; where it cannot be reached the caller does the same by FetchModel and
// PushUpdate (ForgetLocalAddress).
// Threads: functions are safe. Errors: UNAVAILABLE: not reachable, or the aggregator is gone; CANCELLED when the connection is cancelled;
// else what the aggregator says.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "client/data/outbox.h"
#include "client/rpc/connection.h"
#include "common/status.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::client {

// A read-only mapping of a sealed memfd.
class MappedModel {
 public:
  MappedModel(const std::byte* data, size_t size) : bytes_(data, size) {}
  ~MappedModel();
  MappedModel(const MappedModel&) = delete;
  MappedModel& operator=(const MappedModel&) = delete;
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// DATA_LOSS when the memfd is not sealed against changes or not of `bytes` bytes.
absl::StatusOr<std::unique_ptr<MappedModel>> FetchLocally(Connection& connection, const Identity& identity, v1::FetchModelRequest fetch,
                                                          uint64_t bytes);

// The aggregator reads the entry's file from the upload's next offset to `end`. `xxh3_128`: of the whole; empty: it comes with a later part.
absl::StatusOr<v1::UpdateStatus> PushLocally(Connection& connection, const Identity& identity, uint64_t upload_id, const OutboxEntry& entry, uint64_t end,
                                             const std::string& xxh3_128);

// Whether this failure means that local transfer does not work here (then the connection forgets the address, until the next Welcome):
// do the same by RPC.
bool ForgetLocalAddress(Connection& connection, const absl::Status& failure);

}  // namespace tributary::client
