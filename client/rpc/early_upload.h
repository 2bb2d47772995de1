// The upload of an update that is still being made and stored: a large one's bytes leave as soon as they are written, so that encoding, the disk
// and the network work at the same time.
//
//   BeginUpload without a digest ──> bytes, as far as they are written ──> the digest, once the outbox has synced and renamed the entry ──> verdict
//
// So a server that says ACCEPTED has an update that its client keeps: what reliability.md §2 promises of an upload that begins later. A crash
// before leaves the server a part that it drops with its lease, or when the task is trained again. Which updates may leave early: MayLeaveEarly
// (private_update.h). Whatever goes wrong here is no verdict: the session's ordinary attempt asks where the server stands and goes on from there.
// Threads: safe; one thread of its own sends.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <variant>

#include "client/core/session.h"
#include "client/data/outbox.h"
#include "client/rpc/connection.h"
#include "client/rpc/upload.h"
#include "common/ids.h"

namespace tributary::client {

class EarlyUpload {
 public:
  // `entry`: as Outbox::Put gives it. `attachment`: of the session, when this begins.
  EarlyUpload(Connection& connection, Identity identity, std::shared_ptr<const OutboxEntry> entry, uint64_t attachment);
  // What has not ended is abandoned.
  ~EarlyUpload();
  EarlyUpload(const EarlyUpload&) = delete;
  EarlyUpload& operator=(const EarlyUpload&) = delete;

  uint64_t attachment() const { return attachment_; }
  // Bytes that have left so far.
  uint64_t sent() const { return sent_; }

  // These bytes of the entry can be read now; in any order.
  void Written(size_t at, size_t bytes);
  // All are written, and the outbox keeps them as this header says.
  void Stored(const OutboxHeader& header);
  // Waits for the end, which comes after Stored, or before if something went wrong. Once.
  std::variant<Verdict, CallError> Wait();

 private:
  struct Progress {
    uint64_t ready = 0;
    std::string xxh3_128;
    bool abandoned = false;
  };
  std::variant<Verdict, CallError> Run();
  CallError Send(const v1::UpdateStatus& begun, v1::UpdateStatus* answer);
  CallError SendLocally(const v1::UpdateStatus& begun, v1::UpdateStatus* answer);
  // Waits until there is more than has been sent, or the last word.
  Progress Await();

  Connection& connection_;
  const Identity identity_;
  const std::shared_ptr<const OutboxEntry> entry_;
  const uint64_t attachment_;
  std::atomic<uint64_t> sent_{0};                               // written by thread_
  absl::Mutex mutex_;
  Progress progress_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, uint64_t> apart_ ABSL_GUARDED_BY(mutex_);  // written beyond progress_.ready: begin -> end
  PushStream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;        // while there is one, to be cancelled
  std::variant<Verdict, CallError> result_;                     // written by thread_, read after it
  std::jthread thread_;                                         // last: begins when all else is there
};

// Those of a daemon, at most so many at a time.
class EarlyUploads {
 public:
  EarlyUploads(Connection& connection, int at_most) : connection_(connection), at_most_(at_most) {}

  // Null: not attached (attachment 0), or there are as many as may be. Must go before this does.
  std::shared_ptr<EarlyUpload> Start(const Identity& identity, const std::shared_ptr<const OutboxEntry>& entry, uint64_t attachment);
  // Its update is stored; the session's attempt finds it here.
  void Add(const UpdateId& update, std::shared_ptr<EarlyUpload> early);
  // Of this update, if there is one of this attachment; of another it is abandoned.
  std::shared_ptr<EarlyUpload> Take(const UpdateId& update, uint64_t attachment);

 private:
  Connection& connection_;
  const int at_most_;
  std::atomic<int> running_{0};
  absl::Mutex mutex_;
  // Shared by who stores the update and who waits for its upload.
  std::map<UpdateId, std::shared_ptr<EarlyUpload>> stored_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tributary::client
