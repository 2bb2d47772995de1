// One attempt to bring one update of the outbox to the server, and the wire forms of keys and verdicts.
// An attempt asks first where the server stands (QueryUpdate, when it is not the first), begins the upload where there is no trace,
// and sends from the server's offset straight out of the mapped file. Which attempt comes when is the session's business.
// Threads: functions are safe.
#pragma once

#include <memory>
#include <variant>

#include "client/core/session.h"
#include "client/data/outbox.h"
#include "client/rpc/connection.h"
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

}  // namespace tributary::client
