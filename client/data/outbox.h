// The updates a client keeps until the server has settled them, on disk. One folder per update:
//
//   STATE/<client>/outbox/<update hex>/header     one line: "<crc32c hex> <json>\n" of everything but the bytes
//                                      payload    the encoded update, exactly the bytes every retry sends
//   STATE/<client>/outbox/.tmp-<hex>, .drop-<hex> an entry on its way in or out; swept at Open
//   STATE/<client>/damaged/<hex>                  set aside: header or payload does not match its checksum; never sent
//
// Put writes payload and header, fsyncs both and their folder, renames the folder and fsyncs the outbox, so an entry is either
// whole or absent, and Put returns only when it will survive a power cut. There is no switch to leave the fsyncs out; tests put STATE on tmpfs.
// Threads: safe. One process at a time per client (a lock file; FAILED_PRECONDITION otherwise).
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/ids.h"
#include "common/moe_stats.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::client {

struct OutboxHeader {
  std::string job;
  uint64_t task = 0;
  UpdateId update;
  uint64_t version = 0;         // the model it starts from
  std::string layout;           // TensorLayout::Fingerprint()
  std::string codec;
  uint64_t bytes = 0;           // of the payload; set by Put
  std::string xxh3_128;         // 16 bytes; set by Put
  double weight = 0;
  uint64_t examples = 0;
  std::map<std::string, double> metrics;
  std::map<std::string, double> scalars{};
  MoeStats moe{};               // of a mixture of experts
  bool operator==(const OutboxHeader&) const = default;
};

// An entry ready to send; the mapping stays valid when the entry is dropped meanwhile.
struct OutboxEntry {
  OutboxHeader header;
  MappedFile payload;
  UniqueFd file;  // of the payload, read-only
};

class Outbox {
 public:
  // `folder` is STATE/<client>; made where missing. Sweeps half-made entries, sets damaged headers aside with a warning.
  static absl::StatusOr<std::unique_ptr<Outbox>> Open(const std::filesystem::path& folder, uint64_t limit_bytes);

  // Headers kept now, by update id. Payloads are checked by the first Load.
  std::vector<OutboxHeader> Headers() const;
  std::optional<OutboxHeader> Find(const UpdateId& update) const;
  uint64_t bytes() const;
  uint64_t limit_bytes() const { return limit_bytes_; }

  // Keeps a payload of `bytes` that comes in parts: `fill` gives each to the writer with its place, in any order, together all of it. It may
  // change what the header says of the update. `entry`: with the header as given and no digest; of its bytes those that the writer has taken are
  // there. They are not kept before Put returns.
  // RESOURCE_EXHAUSTED: over the limit or the disk is full; ALREADY_EXISTS: that update id. On error nothing is kept.
  // Returns the header as stored.
  using PartWriter = std::function<absl::Status(size_t at, std::span<const std::byte> part)>;
  using Fill = std::function<absl::Status(const PartWriter& write, const std::shared_ptr<const OutboxEntry>& entry, OutboxHeader* header)>;
  absl::StatusOr<OutboxHeader> Put(OutboxHeader header, uint64_t bytes, const Fill& fill);

  // NOT_FOUND; DATA_LOSS: the payload is not what was put: the entry is set aside and no longer listed.
  absl::StatusOr<OutboxEntry> Load(const UpdateId& update);

  // Removing what is not there is fine.
  absl::Status Drop(const UpdateId& update);

 private:
  Outbox(std::filesystem::path folder, uint64_t limit_bytes, UniqueFd lock);
  absl::Status Scan();
  // Its digest goes into the header.
  static absl::Status WritePayload(const std::filesystem::path& path, const Fill& fill, OutboxHeader* header);
  std::filesystem::path PathOf(const UpdateId& update) const { return outbox_ / ToHex(update); }
  void SetAside(const std::filesystem::path& entry, const std::string& why);

  const std::filesystem::path folder_;
  const std::filesystem::path outbox_;
  const uint64_t limit_bytes_;
  const UniqueFd lock_;
  mutable absl::Mutex mutex_;
  std::map<UpdateId, OutboxHeader> headers_ ABSL_GUARDED_BY(mutex_);
  std::set<UpdateId> verified_ ABSL_GUARDED_BY(mutex_);  // payload digest seen to match in this process
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;           // kept, and being put
};

// The client's secret: 64 hex digits in STATE/<client>/secret (mode 0600), made at first use.
absl::StatusOr<std::string> ClientSecret(const std::filesystem::path& folder);

}  // namespace tributary::client
