// Partial uploads: from the slot that BeginUpload was granted to the sealed object that the backend accepts.
//
//            Begin                 Push (in order, CRC good)     last byte and the announced digest: this, finiteness, range good
//   (none) ────────> open, offset 0 ────────> open, offset n ─────────────────────────> checking ──> gone (AcceptUpdate)
//                      │  lease over, job ended, replaced                                   │ payload refused
//                      └──────────────────────────> gone (slot back to the pool)            └──> gone (RejectUpdate)
//
// One pass over the bytes: each piece is copied into the slot and its CRC32C taken; if the chunk's CRC is right, XXH3 and the
// float scan follow while the chunk is still in cache, and the offset advances. A wrong chunk changes nothing.
// The digest comes with Begin, or with any later chunk where the client was still making the update: without it no upload is complete.
// At most one partial upload per (job, client, task): a newer one (the client lost the update and trained again) replaces it.
// At most one stream per upload: a newer one ends the older.
//
// Errors of Push: ABORTED when the client should ask QueryUpdate and go on from there (gap, overlap, unknown or finished upload,
// another stream took over), DATA_LOSS for a wrong CRC, INVALID_ARGUMENT for bytes that can never become right or a second digest,
// PERMISSION_DENIED for somebody else's upload.
// Threads: safe. Bytes are copied under the upload's own mutex; the backend is called without locks.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "aggregator/ingress/backend.h"
#include "aggregator/ingress/identity.h"
#include "aggregator/ingress/stream_watch.h"
#include "common/clock.h"
#include "proto/chunk_codec.h"
#include "proto/codec.h"

namespace tributary::aggregator {

class UploadTable {
 public:
  struct Options {
    size_t chunk_bytes = 256 * 1024;
    absl::Duration lease = absl::Minutes(5);
  };
  // `backend` and `clock` must outlive the table.
  UploadTable(const Options& options, FederationBackend* backend, const Clock* clock);
  ~UploadTable();

  absl::StatusOr<v1::UpdateStatus> Begin(const Caller& caller, const CheckedUpload& upload, absl::Duration* retry);

  // One chunk of a stream. `bound`: the upload this stream has pushed to before, 0 at first. PARTIAL: go on. ACCEPTED: done.
  absl::StatusOr<v1::UpdateStatus> Push(const Caller& caller, const std::shared_ptr<StreamEnd>& stream, uint64_t bound,
                                        const ChunkReader& chunk);

  // The rest of an upload, or what of it lies before push.end, out of a regular file of exactly its size that the client holds, read from the
  // upload's next offset on, in chunks like those of a stream: the file may change or be cut meanwhile, which costs the client its update,
  // nobody anything else. ACCEPTED when all is done, else PARTIAL. Errors as Push's; INVALID_ARGUMENT for another kind or size of file.
  absl::StatusOr<v1::UpdateStatus> PushFile(const Caller& caller, const v1::LocalPush& push, int fd);

  // PARTIAL with its offset, if there is such an upload.
  std::optional<v1::UpdateStatus> Find(const Caller& caller, const CheckedKey& key) const;

  void ForgetJob(const std::string& job);
  // The client will not go on with what it uploads for this task. False: there is nothing that is still open.
  bool ForgetTask(const Caller& caller, const std::string& job, uint64_t task);
  // Drops uploads whose lease is over.
  void Sweep();
  void Clear();
  size_t size() const;

 private:
  struct Upload;
  using Slot = std::tuple<std::string, std::string, uint64_t>;  // job, client, task
  // Takes the upload out of the table, gives its slot back, and ends its stream with `status`.
  void Drop(const std::shared_ptr<Upload>& upload, const absl::Status& status);
  void Erase(const Upload& upload);
  std::vector<std::shared_ptr<Upload>> All() const;
  v1::UpdateStatus Partial(const Upload& upload, uint64_t next_offset) const;
  absl::StatusOr<std::shared_ptr<Upload>> FindOwn(const Caller& caller, uint64_t id) const;
  // The next bytes of an open upload: `take` puts them into the object under the upload's mutex. Then refuses, finishes, or says how far
  // it is. Ends another stream if this one takes over; without that, ABORTED when another has.
  absl::StatusOr<v1::UpdateStatus> Take(const std::shared_ptr<Upload>& upload, const std::shared_ptr<StreamEnd>& stream, bool takes_over,
                                        const std::function<absl::Status(Upload&, std::string* refused)>& take);
  // `header`: with the digest.
  absl::StatusOr<v1::UpdateStatus> Finish(const std::shared_ptr<Upload>& upload, const UploadHeader& header);

  const Options options_;
  FederationBackend* const backend_;
  const Clock* const clock_;
  mutable absl::Mutex mutex_;
  // Shared: a stream works on its upload without the table's lock, while others may drop it.
  std::map<Slot, std::shared_ptr<Upload>> by_slot_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, std::shared_ptr<Upload>> by_id_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tributary::aggregator
