#include "aggregator/ingress/local_server.h"

#include <absl/time/time.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "aggregator/ingress/identity.h"
#include "aggregator/store/memfd.h"
#include "common/check.h"
#include "common/fd_socket.h"
#include "common/byte_source.h"
#include "common/log.h"
#include "proto/local_call.h"

namespace tributary::aggregator {
namespace {

constexpr int kBacklog = 512;
constexpr absl::Duration kTimeout = absl::Seconds(2);  // for the peer to send its request, and to take the answer
constexpr const char* kWhat = "local transfer";

v1::LocalAnswer Failed(const absl::Status& status) {
  v1::LocalAnswer answer;
  answer.set_code(static_cast<int>(status.code()));
  answer.set_message(MessageOf(status));
  return answer;
}

}  // namespace

LocalServer::LocalServer(UniqueFd listener, UniqueFd stop, FederationBackend* backend, AdminBackend* admin, const SubmitLimits& limits,
                         UploadTable* uploads)
    : listener_(std::move(listener)), stop_(std::move(stop)), backend_(backend), admin_(admin), limits_(limits), uploads_(uploads) {}

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const std::string& address, FederationBackend* backend, AdminBackend* admin,
                                                                const SubmitLimits& limits, UploadTable* uploads) {
  TRIB_ASSIGN_OR_RETURN(UniqueFd listener, ListenAbstract(address, kBacklog));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.valid()) return ErrnoStatus(errno, "local transfer: eventfd");
  std::unique_ptr<LocalServer> server(new LocalServer(std::move(listener), std::move(stop), backend, admin, limits, uploads));
  const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 2u, 8u);
  for (unsigned i = 0; i < threads; ++i) server->threads_.emplace_back([raw = server.get()] { raw->Run(); });
  return server;
}

LocalServer::~LocalServer() {
  const uint64_t one = 1;
  TRIB_CHECK(::write(stop_.get(), &one, sizeof(one)) == sizeof(one), "eventfd");
  threads_.clear();
}

void LocalServer::Run() {
  while (true) {
    std::array<pollfd, 2> fds = {pollfd{listener_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
    if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    // The listener does not block: another thread may have been faster.
    const UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection.valid()) Serve(connection.get());
  }
}

void LocalServer::Serve(int connection) {
  // Read also what will be refused: closing with unread bytes would take the answer away from the client.
  absl::StatusOr<ReceivedRecord> record = ReceiveRecord(connection, kMaxLocalRequestBytes, kTimeout, kWhat);
  const absl::StatusOr<uid_t> user = PeerUser(connection);
  v1::LocalRequest request;
  v1::LocalAnswer answer;
  UniqueFd fd;
  if (!user.ok() || *user != ::geteuid()) {
    answer = Failed(PermissionDenied("{}: expected a client of user {}, got one of user {}", kWhat, ::geteuid(), user.ok() ? *user : -1));
  } else if (!record.ok()) {
    answer = Failed(record.status());
  } else if (!request.ParseFromArray(record->bytes.data(), static_cast<int>(record->bytes.size()))) {
    answer = Failed(InvalidArgument("{}: malformed request", kWhat));
  } else {
    answer = Answer(request, std::move(record->fds), &fd);
  }
  const std::string bytes = answer.SerializeAsString();
  const int fds[] = {fd.get()};
  // A client that is gone asks QueryUpdate when it is back.
  TRIB_LOG_IF_ERROR(SendRecord(connection, std::as_bytes(std::span(bytes)), std::span(fds, fd.valid() ? 1 : 0), kTimeout, kWhat));
}

v1::LocalAnswer LocalServer::Answer(const v1::LocalRequest& request, std::vector<UniqueFd> fds, UniqueFd* out_fd) {
  if (request.has_submit()) {
    absl::StatusOr<v1::SubmitJobResponse> submitted = Submit(request.submit().header(), std::move(fds));
    if (!submitted.ok()) return Failed(submitted.status());
    v1::LocalAnswer answer;
    *answer.mutable_submitted() = *std::move(submitted);
    return answer;
  }
  const absl::StatusOr<Caller> caller = Authenticate(request.client(), request.secret(), backend_);
  if (!caller.ok()) return Failed(caller.status());
  v1::LocalAnswer answer;
  switch (request.call_case()) {
    case v1::LocalRequest::kFetch: {
      const v1::FetchModelRequest& fetch = request.fetch();
      absl::StatusOr<Blob> blob = FindBlob(*backend_, caller->client(), fetch);
      if (!blob.ok()) return Failed(blob.status());
      if (blob->memfd < 0) return Failed(Unimplemented("{}: this object is fetched by FetchModel only", kWhat));
      absl::StatusOr<UniqueFd> opened = OpenReadOnly(blob->memfd);
      if (!opened.ok()) return Failed(opened.status());
      *out_fd = *std::move(opened);
      answer.set_bytes(blob->bytes.size());
      backend_->CountDownload(fetch.job(), blob->bytes.size());
      return answer;
    }
    case v1::LocalRequest::kPush: {
      if (fds.size() != 1) return Failed(InvalidArgument("{}: expected one file with an update, got {}", kWhat, fds.size()));
      absl::StatusOr<v1::UpdateStatus> status = uploads_->PushFile(*caller, request.push(), fds[0].get());
      if (!status.ok()) return Failed(status.status());
      *answer.mutable_update() = *std::move(status);
      return answer;
    }
    case v1::LocalRequest::kSubmit:
    case v1::LocalRequest::CALL_NOT_SET:
      break;
  }
  return Failed(Unimplemented("{}: unknown request", kWhat));
}

absl::StatusOr<v1::SubmitJobResponse> LocalServer::Submit(const v1::SubmitHeader& header, std::vector<UniqueFd> fds) {
  TRIB_RETURN_IF_ERROR(CheckSubmitHeader(header, limits_));
  const size_t expected = header.artifact_bytes() > 0 ? 2 : 1;
  if (fds.size() != expected) return InvalidArgument("{}: expected {} files with the job, got {}", kWhat, expected, fds.size());
  TRIB_ASSIGN_OR_RETURN(FileSource tensors, FileSource::Of(std::move(fds[0]), "tensors"));
  if (tensors.size() != header.tensors_bytes()) {
    return InvalidArgument("tensors: expected the announced {} bytes, got {}", header.tensors_bytes(), tensors.size());
  }
  std::string artifact;
  if (expected == 2) {
    TRIB_ASSIGN_OR_RETURN(const FileSource file, FileSource::Of(std::move(fds[1]), "artifact"));
    if (file.size() == header.artifact_bytes()) {
      artifact.resize(file.size());
      TRIB_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(artifact))));
    }
  }
  TRIB_RETURN_IF_ERROR(CheckArtifact(header, artifact));
  return admin_->SubmitJob(header, std::make_unique<FileSource>(std::move(tensors)), std::move(artifact));
}

}  // namespace tributary::aggregator
