// One attempt to bring one update of the outbox to the server, its steps, and the wire forms of keys and verdicts.
// An attempt asks first where the server stands (QueryUpdate, when it is not the first), begins the upload where there is no trace,
// and sends from the server's offset straight out of the mapped file. Which attempt comes when is the session's business.
// Threads: functions are safe; a PushStream is thread-compatible but for Cancel.
#pragma once

#include <memory>
#include <variant>

#include "client/core/session.h"
#include "client/data/outbox.h"
#include "client/rpc/connection.h"
#include "client/rpc/raw_call.h"
#include "common/status.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::client {

v1::UpdateKey ToProto(const OutboxKey& key);
absl::StatusOr<OutboxKey> OutboxKeyFromProto(const v1::UpdateKey& key);
// UNSPECIFIED and states of a later release become kUnknown: the client keeps the bytes.
Verdict VerdictFromProto(const v1::UpdateStatus& status);

// The server's verdict (never kUnknown or kPartial), or why the attempt ended. A header that the server refuses for good
// (INVALID_ARGUMENT, ALREADY_EXISTS from BeginUpload) is kRejected, a job or task it does not know (NOT_FOUND) kExpired.
std::variant<Verdict, CallError> UploadUpdate(Connection& connection, const Identity& identity,
                                              const std::shared_ptr<const OutboxEntry>& entry, bool retry);

// A header without a digest begins an upload that gets it with its bytes.
CallError BeginUpload(Connection& connection, const Identity& identity, const OutboxHeader& header, v1::UpdateStatus* status);

// One PushUpdate, from where `from` says the server stands.
class PushStream {
 public:
  PushStream(Connection& connection, const Identity& identity, std::shared_ptr<const OutboxEntry> entry, const v1::UpdateStatus& from);
  // The payload's bytes up to `end` that have not been sent, and after them the digest of the whole, if it is given. False: the call is over,
  // ask Finish.
  bool Send(uint64_t end, const std::string& xxh3_128);
  // Once, last, unless the call is to be cancelled by the destructor.
  CallError Finish(v1::UpdateStatus* status);
  // From any thread: what is under way ends.
  void Cancel() { call_.context().TryCancel(); }

 private:
  const std::shared_ptr<const OutboxEntry> entry_;
  const uint64_t upload_id_;
  const uint64_t chunk_bytes_;
  uint64_t offset_;
  bool writing_ = true;
  Connection::Call call_;
  RawCall raw_;
};

}  // namespace tributary::client
