#include "client/rpc/local_transfer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/fd_socket.h"
#include "common/log.h"

namespace tributary::client {
namespace {

// Linux 5.1; glibc's header is older than the flag on some systems.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

constexpr size_t kMaxAnswerBytes = 64 * 1024;
constexpr absl::Duration kSendTimeout = absl::Seconds(5);
constexpr absl::Duration kSlice = absl::Milliseconds(100);  // how often a wait looks whether it is cancelled
constexpr const char* kWhat = "local transfer";

struct Answer {
  v1::LocalAnswer message;
  std::vector<UniqueFd> fds;
};

absl::StatusOr<Answer> Ask(Connection& connection, const Identity& identity, v1::LocalRequest request, std::span<const int> fds,
                           absl::Duration timeout) {
  TRIB_ASSIGN_OR_RETURN(const UniqueFd socket, ConnectAbstract(connection.local_address()));
  TRIB_ASSIGN_OR_RETURN(const uid_t user, PeerUser(socket.get()));
  if (user != ::geteuid()) return PermissionDenied("{}: expected an aggregator of user {}, got one of user {}", kWhat, ::geteuid(), user);
  request.set_client(identity.client);
  request.set_secret(identity.secret);
  const std::string bytes = request.SerializeAsString();
  TRIB_RETURN_IF_ERROR(SendRecord(socket.get(), std::as_bytes(std::span(bytes)), fds, kSendTimeout, kWhat));
  const BootClock clock;
  const absl::Time deadline = clock.Now() + timeout;
  while (true) {
    absl::StatusOr<ReceivedRecord> record = ReceiveRecord(socket.get(), kMaxAnswerBytes, kSlice, kWhat);
    if (absl::IsDeadlineExceeded(record.status()) && clock.Now() < deadline) {
      if (connection.cancelled()) return Cancelled("{}: cancelled", kWhat);
      continue;
    }
    if (!record.ok()) return record.status();
    Answer answer;
    answer.fds = std::move(record->fds);
    if (!answer.message.ParseFromArray(record->bytes.data(), static_cast<int>(record->bytes.size()))) {
      return Internal("{}: malformed answer", kWhat);
    }
    if (answer.message.code() != 0) {
      return absl::Status(static_cast<absl::StatusCode>(answer.message.code()), answer.message.message());
    }
    return answer;
  }
}

// A slow disk or machine, not a slow network.
absl::Duration TimeoutFor(uint64_t bytes) { return absl::Seconds(30) + absl::Seconds(static_cast<double>(bytes) / (10 << 20)); }

}  // namespace

bool IsLocalAddress(const std::string& address) {
  constexpr std::string_view kPrefix = "tributary-";
  return address.size() == kPrefix.size() + 32 && address.starts_with(kPrefix) &&
         address.find_first_not_of("0123456789abcdef", kPrefix.size()) == std::string::npos;
}

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

absl::StatusOr<std::unique_ptr<MappedModel>> FetchLocally(Connection& connection, const Identity& identity, const std::string& job,
                                                          uint64_t version, uint64_t bytes) {
  v1::LocalRequest request;
  request.mutable_fetch()->set_job(job);
  request.mutable_fetch()->set_version(version);
  TRIB_ASSIGN_OR_RETURN(const Answer answer, Ask(connection, identity, std::move(request), {}, TimeoutFor(bytes)));
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

absl::StatusOr<v1::UpdateStatus> PushLocally(Connection& connection, const Identity& identity, uint64_t upload_id, int file, uint64_t bytes) {
  v1::LocalRequest request;
  request.mutable_push()->set_upload_id(upload_id);
  const int fds[] = {file};
  TRIB_ASSIGN_OR_RETURN(Answer answer, Ask(connection, identity, std::move(request), fds, TimeoutFor(bytes)));
  return std::move(*answer.message.mutable_update());
}

}  // namespace tributary::client
