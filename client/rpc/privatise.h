// From what a learner gave to what the outbox keeps: client/core's private_update.h with a key of the operating system for real noise, new
// for every update, and with the client state that the codec keeps.
// Errors: those of MakeUpdate, and of the state's files. Threads: one call at a time for a client and job.
#pragma once

#include <string>

#include "client/core/device_update.h"
#include "client/data/client_state.h"
#include "client/data/outbox.h"
#include "client/rpc/work.h"
#include "common/large_bytes.h"
#include "common/status.h"

namespace tributary::client {

// `header`: of the update, its id and version set; gets the numbers that the job's privacy wants. `clip`: C of that version; 0: the job's.
// State that the update changes is staged under its id.
absl::StatusOr<LargeBytes> Privatise(const Job& job, const std::string& client, double clip, const StateFiles& state, LargeBytes flat, OutboxHeader* header);
// The same of an update on a device, whose codecs keep no state, into the outbox's writer.
absl::Status PrivatiseOnDevice(const Job& job, const std::string& client, double clip, DeviceUpdate& update, const Outbox::PartWriter& writer, OutboxHeader* header);

}  // namespace tributary::client
