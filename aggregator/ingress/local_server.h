// Bulk bytes without a network for clients on the same host: a model goes out as the sealed memfd it lies in, an update comes in as the
// file in which the client keeps it and is read straight into its slot: one copy, where gRPC needs five. A job may be submitted with its
// files likewise. Everything else (tasks,
// BeginUpload, states) stays on gRPC, and so does everything for a client that cannot reach the socket.
//
// An abstract AF_UNIX socket with a random name that only attached clients learn. One LocalRequest, one LocalAnswer, then the connection
// ends. Both ends must run as the same user (SO_PEERCRED): a file may lie on a file system that its owner can make hang, and such a
// file can then only be one's own.
// Lifetime: both backends and `uploads` must outlive it. The destructor waits for requests under way.
// Threads: a few of its own, each serving one request at a time; what is beyond them waits in the socket's backlog.
// Errors: Start gives errno's. A request's error travels in the answer.
// Source: dataplane.md §15 (6).
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "aggregator/ingress/admin_service.h"
#include "aggregator/ingress/backend.h"
#include "aggregator/ingress/upload_table.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

class LocalServer {
 public:
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const std::string& address, FederationBackend* backend, AdminBackend* admin,
                                                            const SubmitLimits& limits, UploadTable* uploads);
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;
  LocalServer& operator=(const LocalServer&) = delete;

 private:
  LocalServer(UniqueFd listener, UniqueFd stop, FederationBackend* backend, AdminBackend* admin, const SubmitLimits& limits,
              UploadTable* uploads);
  void Run();
  void Serve(int connection);
  // `out_fd`: to be sent along, if set.
  v1::LocalAnswer Answer(const v1::LocalRequest& request, std::vector<UniqueFd> fds, UniqueFd* out_fd);
  absl::StatusOr<v1::SubmitJobResponse> Submit(const v1::SubmitHeader& header, std::vector<UniqueFd> fds);

  const UniqueFd listener_;
  const UniqueFd stop_;  // eventfd, never drained: readable means end
  FederationBackend* const backend_;
  AdminBackend* const admin_;
  const SubmitLimits limits_;
  UploadTable* const uploads_;
  std::vector<std::jthread> threads_;  // last: joined first
};

}  // namespace tributary::aggregator
