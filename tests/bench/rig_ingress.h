// The product's ingress before a rig's node, and the product's client as the sender: what T3b, T17 and T20 call "ours over the wire".
#pragma once

#include <absl/synchronization/mutex.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "aggregator/ingress/backend.h"
#include "aggregator/ingress/server.h"
#include "client/data/outbox.h"
#include "client/rpc/connection.h"
#include "tests/bench/rig.h"

namespace tributary::bench {

// Grants every upload a slot of `pool` (RESOURCE_EXHAUSTED with a delay where there is none) and hands the finished object on.
// on_message: each control message of a client, on gRPC's threads.
class RigBackend final : public aggregator::FederationBackend {
 public:
  using Accept = std::function<void(aggregator::WritableObject)>;
  using OnControl = std::function<void(const v1::ClientMessage&)>;
  RigBackend(aggregator::ObjectPool* pool, Accept accept, OnControl on_control = {}, std::function<void()> on_detach = {})
      : pool_(pool), accept_(std::move(accept)), on_control_(std::move(on_control)), on_detach_(std::move(on_detach)) {}

  absl::Status Authenticate(const std::string&, const std::string&) override { return absl::OkStatus(); }
  absl::StatusOr<uint64_t> Attach(const std::string&, const v1::Hello&, std::shared_ptr<aggregator::ControlStream> stream) override;
  void OnMessage(uint64_t, const v1::ClientMessage& message) override;
  void Detach(uint64_t) override;
  absl::StatusOr<aggregator::Blob> Model(const std::string&, const std::string&, uint64_t) override;
  absl::StatusOr<aggregator::Blob> Artifact(const std::string&, const std::string&) override;
  void CountDownload(const std::string&, uint64_t) override {}
  absl::StatusOr<Admission> AdmitUpload(const aggregator::UploadHeader& header, absl::Duration* retry) override;
  absl::Status AcceptUpdate(const aggregator::UploadHeader&, aggregator::WritableObject object, const aggregator::ScanResult&) override;
  void RejectUpdate(const aggregator::UploadHeader&, const std::string&, const std::string& message) override;
  v1::UpdateStatus Query(const std::string&, const v1::UpdateKey& key) override;

 private:
  aggregator::ObjectPool* const pool_;
  const Accept accept_;
  const OnControl on_control_;
  const std::function<void()> on_detach_;
};

// A server on `address`, with nothing behind its Admin service.
class RigServer {
 public:
  RigServer(const std::string& address, RigBackend* backend);
  ~RigServer();
  int port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A file of an update's bytes, where a client's outbox would have it: in memory if there is /dev/shm, removed at the end.
class PayloadFile {
 public:
  explicit PayloadFile(std::span<const std::byte> payload);
  explicit PayloadFile(std::filesystem::path existing);
  ~PayloadFile();
  // An entry with an id of its own.
  std::shared_ptr<const client::OutboxEntry> NewEntry(uint64_t task) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::string digest_;
  bool remove_ = false;
};

client::Identity RigIdentity(int number);
// The product's upload, tried again with the server's delay as long as it has no room.
void Upload(client::Connection& connection, const client::Identity& identity, const std::shared_ptr<const client::OutboxEntry>& entry);

}  // namespace tributary::bench
