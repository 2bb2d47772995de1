#include "client/rpc/local_transfer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "common/log.h"
#include "proto/local_call.h"

namespace tributary::client {
namespace {

// Linux 5.1; glibc's header is older than the flag on some systems.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

constexpr const char* kWhat = "local transfer";

absl::StatusOr<LocalReply> Ask(Connection& connection, const Identity& identity, v1::LocalRequest request, std::span<const int> fds,
                               uint64_t bytes) {
  TRIB_ASSIGN_OR_RETURN(const UniqueFd socket, ConnectLocally(connection.local_address()));
  request.set_client(identity.client);
  request.set_secret(identity.secret);
  return AskLocally(socket.get(), request, fds, LocalTimeout(bytes), [&connection] { return connection.cancelled(); });
}

}  // namespace

bool ForgetLocalAddress(Connection& connection, const absl::Status& failure) {
  switch (failure.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kDeadlineExceeded:
      TRIB_LOG(info, "models and updates travel over gRPC: {}", MessageOf(failure));
      connection.set_local_address("");
      return true;
    default:
      return false;
  }
}

MappedModel::~MappedModel() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

absl::StatusOr<std::unique_ptr<MappedModel>> FetchLocally(Connection& connection, const Identity& identity, v1::FetchModelRequest fetch,
                                                          uint64_t bytes) {
  const std::string job = fetch.job();
  const uint64_t version = fetch.version();
  v1::LocalRequest request;
  *request.mutable_fetch() = std::move(fetch);
  TRIB_ASSIGN_OR_RETURN(const LocalReply answer, Ask(connection, identity, std::move(request), {}, bytes));
  if (answer.fds.size() != 1) return Internal("{}: expected one descriptor, got {}", kWhat, answer.fds.size());
  // Without these seals a peer could cut the file under the mapping (SIGBUS) or change it while it is read.
  const int seals = ::fcntl(answer.fds[0].get(), F_GET_SEALS);
  constexpr int kSize = F_SEAL_SHRINK | F_SEAL_GROW;
  if (seals < 0 || (seals & kSize) != kSize || (seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE)) == 0) {
    return DataLoss("{}: version {} of job '{}': expected a sealed memfd", kWhat, version, job);
  }
  struct stat info {};
  if (::fstat(answer.fds[0].get(), &info) != 0) return ErrnoStatus(errno, "local transfer: fstat");
  if (bytes == 0 || static_cast<uint64_t>(info.st_size) != bytes) {
    return DataLoss("{}: version {} of job '{}': expected {} bytes, got {}", kWhat, version, job, bytes, info.st_size);
  }
  void* const data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, answer.fds[0].get(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, fmt::format("{}: map {} bytes", kWhat, bytes));
  return std::make_unique<MappedModel>(static_cast<const std::byte*>(data), bytes);
}

absl::StatusOr<v1::UpdateStatus> PushLocally(Connection& connection, const Identity& identity, uint64_t upload_id, const OutboxEntry& entry, uint64_t end,
                                             const std::string& xxh3_128) {
  v1::LocalRequest request;
  request.mutable_push()->set_upload_id(upload_id);
  request.mutable_push()->set_end(end);
  request.mutable_push()->set_xxh3_128(xxh3_128);
  const int fds[] = {entry.file.get()};
  TRIB_ASSIGN_OR_RETURN(LocalReply answer, Ask(connection, identity, std::move(request), fds, end));
  return std::move(*answer.message.mutable_update());
}

}  // namespace tributary::client
