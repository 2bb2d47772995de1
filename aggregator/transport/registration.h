// How a worker gets its anchor from a daemon that did not hand it one at birth: after the daemon was restarted, or its anchor recycled.
// An AF_UNIX socket in a folder of mode 0700; there is no network listener. A request carries nothing but what is asked for: who asks
// is told by the kernel (SO_PEERCRED) and must be a process that the daemon itself started and expects under that id. No request can
// name another process's fd. Every failing request gets an answer that says why.
//
//   worker: connect, send one tb_register_request, receive one tb_register_reply with the anchor's fd (SCM_RIGHTS) if status is 0.
//
// Threads: thread-compatible. Errors: FAILED_PRECONDITION for a folder that others can enter, or one another daemon listens in.
#pragma once

#include <absl/time/time.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <vector>

#include "aggregator/transport/anchors.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

inline constexpr uint32_t kRegisterMagic = 0x31475254u;  // "TRG1"
struct tb_register_request {
  uint32_t magic, abi_version;
  uint32_t id;        // the id the daemon gave this process
  uint32_t reserved;  // 0
};
static_assert(sizeof(tb_register_request) == 16);
struct tb_register_reply {
  uint32_t magic, abi_version;
  uint32_t status;  // absl::StatusCode; 0: the record carries the anchor
  uint32_t id, domain, epoch;
  char reason[104];  // for people, NUL-terminated
};
static_assert(sizeof(tb_register_reply) == 128);

class Registrar {
 public:
  static constexpr size_t kMaxConnections = 64;
  static constexpr absl::Duration kRequestTimeout = absl::Seconds(1);
  static absl::StatusOr<std::unique_ptr<Registrar>> Create(const std::filesystem::path& folder, Anchors* anchors);
  ~Registrar();

  // Process `pid` of user `uid`, which the daemon started and has not reaped (so its pid is nobody else's), may register as `id`.
  void Expect(pid_t pid, uid_t uid, uint32_t id, uint32_t domain);
  void NoLonger(pid_t pid);

  // Readable when Serve has something to do.
  int wait_fd() const { return epoll_.get(); }
  // Accepts and answers what is there; never waits. Connections that say nothing are dropped after kRequestTimeout.
  struct Served {
    uint32_t id = 0, epoch = 0;
  };
  std::vector<Served> Serve(absl::Time now);
  uint64_t refused() const { return refused_; }

  const std::filesystem::path& path() const { return path_; }

 private:
  struct Expected {
    uid_t uid = 0;
    uint32_t id = 0, domain = 0;
  };
  struct Connection {
    UniqueFd fd;
    absl::Time since;
  };
  Registrar(std::filesystem::path path, Anchors* anchors) : path_(std::move(path)), anchors_(anchors) {}
  void Accept(absl::Time now);
  void Close(int connection);
  absl::StatusOr<Anchors::Anchor> Handle(int connection);

  const std::filesystem::path path_;
  Anchors* const anchors_;
  UniqueFd listener_, lock_, epoll_;
  std::map<pid_t, Expected> expected_;
  std::map<int, Connection> connections_;
  uint64_t refused_ = 0;
};

// The worker's side. `timeout` bounds the whole call. Errors: the daemon's refusal; UNAVAILABLE or NOT_FOUND while no daemon listens.
absl::StatusOr<Anchors::Anchor> RegisterAnchor(const std::filesystem::path& path, uint32_t id, absl::Duration timeout);

}  // namespace tributary::aggregator
