// What the gRPC services need from the rest of the aggregator. ingress/ parses and checks untrusted bytes and owns partial uploads;
// behind these two interfaces stands the coordinator (rank 3 as well: they meet only in daemon/, which adapts one to the other).
//
// `client` is always the authenticated id. Threads: every method may be called from any gRPC thread, concurrently; none blocks on
// the network. Errors become gRPC statuses with the same code and message; a retry delay travels in `retry`.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/kernels.h"
#include "aggregator/core/round.h"
#include "aggregator/store/object_pool.h"
#include "common/byte_source.h"
#include "common/large_bytes.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "common/update_codec.h"
#include "proto/relay_codec.h"
#include "tributary/v1/admin.pb.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::aggregator {

// Immutable bytes with what a fetcher must know about them. Shared: a version stays readable while somebody fetches it.
struct Blob {
  std::span<const std::byte> bytes;
  std::string sha256;
  std::string xxh3_128;                // 16 bytes; of a model only
  int memfd = -1;                      // sealed, holds exactly `bytes`; borrowed from `owner`; -1: the bytes lie elsewhere
  std::shared_ptr<const void> owner;   // keeps `bytes` alive
};

// The sending half of one client's control stream.
class ControlStream {
 public:
  virtual ~ControlStream() = default;
  // Queues a message (bounded; a client that does not read is closed). Never blocks.
  virtual void Send(v1::ServerMessage message) = 0;
  // Ends the stream with this status.
  virtual void Close(const absl::Status& status) = 0;
};

// A checked upload header (proto/codec makes it from BeginUploadRequest).
struct UploadHeader {
  UpdateKeyRef key;
  std::string job;
  uint64_t version = 0;
  std::string layout;        // fingerprint
  std::string codec;
  uint64_t bytes = 0;
  std::string xxh3_128;      // 16 bytes; empty in AdmitUpload: comes with the bytes
  double weight = 0;         // finite, > 0
  uint64_t examples = 0;
  std::map<std::string, double> metrics;
  std::map<std::string, double> scalars{};
  MoeStats moe{};            // of a mixture of experts
};

// Permission to upload: a reserved object and what the bytes must satisfy.
struct UploadGrant {
  std::shared_ptr<const void> owner;  // keeps the object's pool alive: a job may end while its last upload is being admitted
  WritableObject object;
  UpdateEncoding encoding{};    // not plain: the whole must pass CheckEncoded, float_bytes is 0
  size_t float_bytes = 0;       // the first float_bytes are floats of `dtype`: must be finite
  DType dtype = DType::kF32;
  double max_abs = 0;           // > 0: largest |x| allowed (fixed-point range of this update's weight)
};

class FederationBackend {
 public:
  virtual ~FederationBackend() = default;
  // First contact binds `secret` to `client`; later a different secret is PERMISSION_DENIED.
  virtual absl::Status Authenticate(const std::string& client, const std::string& secret) = 0;

  // A new Attach of a client ends its older stream. Sends Welcome itself. Returns the session.
  virtual absl::StatusOr<uint64_t> Attach(const std::string& client, const v1::Hello& hello, std::shared_ptr<ControlStream> stream) = 0;
  virtual void OnMessage(uint64_t session, const v1::ClientMessage& message) = 0;   // everything but Hello
  virtual void Detach(uint64_t session) = 0;

  virtual absl::StatusOr<Blob> Model(const std::string& client, const std::string& job, uint64_t version) = 0;
  // What makes a version of an older one, `after` (FetchModelRequest.fitness_after). NOT_FOUND: nothing short does.
  virtual absl::StatusOr<Blob> Fitness(const std::string&, const std::string& job, uint64_t /*after*/, uint64_t /*version*/) {
    return NotFound("job {} has no fitness logs", job);
  }
  // The vectors that go down with a version, one after the other. NOT_FOUND: there are none.
  virtual absl::StatusOr<Blob> Vectors(const std::string&, const std::string& job, uint64_t) { return NotFound("job {} has no vectors", job); }
  // What the server keeps a copy of, of this client's state. NOT_FOUND: nothing.
  virtual absl::StatusOr<Blob> ClientRow(const std::string& client, const std::string& job) { return NotFound("job {} has no row of client '{}'", job, client); }
  virtual absl::StatusOr<Blob> Artifact(const std::string& client, const std::string& job) = 0;
  virtual void CountDownload(const std::string& job, uint64_t bytes) = 0;

  // Settles everything a header can show. Either `grant` is filled and the state is PARTIAL with next_offset 0, or the status is
  // final for now (ACCEPTED, COMMITTED, …). Errors: those of Round::CheckUpload; INVALID_ARGUMENT for layout, size, codec, weight;
  // ALREADY_EXISTS for the same id with another digest; RESOURCE_EXHAUSTED with *retry when there is no room.
  struct Admission {
    v1::UpdateState state{};
    uint64_t version = 0;
    std::string reason;
    UploadGrant grant;
  };
  virtual absl::StatusOr<Admission> AdmitUpload(const UploadHeader& header, absl::Duration* retry) = 0;
  // All bytes are in, checksum, digest, finiteness and range are good, the object header's job-independent fields (crc32c,
  // sum_squares, payload_bytes, update id) are set. The backend publishes and folds it. ACCEPTED, or an error (round closed
  // meanwhile: FAILED_PRECONDITION).
  virtual absl::Status AcceptUpdate(const UploadHeader& header, WritableObject object, const ScanResult& scan) = 0;
  // Ingress refused the payload: counted by reason ("non_finite", "crc", "digest", "range"), remembered as REJECTED.
  virtual void RejectUpdate(const UploadHeader& header, const std::string& reason_code, const std::string& message) = 0;
  // State of an update apart from partial uploads (ingress knows those): UNKNOWN, ACCEPTED, JOURNALED, COMMITTED, REJECTED, EXPIRED.
  virtual v1::UpdateStatus Query(const std::string& client, const v1::UpdateKey& key) = 0;
};

// The sending half of one node's control stream; as ControlStream.
class NodeStream {
 public:
  virtual ~NodeStream() = default;
  virtual void Send(v1::TopMessage message) = 0;
  virtual void Close(const absl::Status& status) = 0;
};

// `node` is always the authenticated name.
class RelayBackend {
 public:
  virtual ~RelayBackend() = default;
  virtual absl::StatusOr<uint64_t> AttachNode(const std::string& node, const v1::NodeHello& hello, std::shared_ptr<NodeStream> stream) = 0;
  virtual void OnNodeReport(uint64_t session, const v1::NodeReport& report) = 0;
  virtual void DetachNode(uint64_t session) = 0;
  // Settles everything a header can show. SEND: `sums` has room for the partial's bytes, of which the first float_bytes are sums to be
  // looked at by CheckSums with `limit`.
  struct PartialRoom {
    v1::PartialAnswer answer;
    LargeBytes sums;
    size_t float_bytes = 0;
    double limit = 0;
  };
  virtual PartialRoom BeginPartial(const std::string& node, const CheckedPartial& partial) = 0;
  // All bytes are in and good.
  virtual v1::PartialAnswer FinishPartial(const std::string& node, const CheckedPartial& partial, std::span<const std::byte> sums) = 0;
  virtual void RefusePartial(const std::string& node, const CheckedPartial& partial, const std::string& reason) = 0;
  virtual absl::StatusOr<v1::RelayVersion> RelayGetVersion(const std::string& node, const std::string& job, uint64_t version) = 0;
};

class AdminBackend {
 public:
  virtual ~AdminBackend() = default;
  // `tensors`: a safetensors file of the size in the header, unchecked otherwise. The response means that the job is on disk.
  virtual absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::SubmitHeader& header, std::unique_ptr<ByteSource> tensors,
                                                          std::string artifact) = 0;
  virtual std::vector<v1::Job> ListJobs() = 0;
  virtual absl::StatusOr<v1::Job> GetJob(const std::string& job) = 0;
  virtual absl::StatusOr<v1::Job> CancelJob(const std::string& job, const std::string& reason) = 0;
  virtual absl::StatusOr<v1::Job> ResumeJob(const std::string& job) = 0;
  // `changed` is called (any thread, short) whenever the job changes, until the token is destroyed.
  virtual absl::StatusOr<std::shared_ptr<void>> Watch(const std::string& job, std::function<void()> changed) = 0;
  virtual std::vector<v1::Client> ListClients(bool connected_only) = 0;
  virtual v1::Node GetNode() = 0;
  virtual absl::StatusOr<std::vector<v1::VersionInfo>> ListVersions(const std::string& job) = 0;
  virtual absl::StatusOr<v1::VersionInfo> GetVersion(const v1::GetVersionRequest& request) = 0;
  // A safetensors file: the model, or the strategy state (vectors as F64 tensors) when request.strategy_state().
  virtual absl::StatusOr<std::string> ExportVersion(const v1::GetVersionRequest& request) = 0;
};

// What a FetchModelRequest asks for.
absl::StatusOr<Blob> FindBlob(FederationBackend& backend, const std::string& client, const v1::FetchModelRequest& request);

}  // namespace tributary::aggregator
