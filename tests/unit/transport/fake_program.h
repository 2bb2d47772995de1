// A verdict program in memory: keeps what it is told, in order, and fails where a test says so. Redirects nothing.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ebpf/verdict_program.h"

namespace tributary::aggregator {

class FakeProgram : public ebpf::VerdictProgram {
 public:
  std::vector<std::string> calls;        // "identity 1 1", "route 1", "socket 1", "-route 1", "-socket 1"
  std::map<uint32_t, tb_route> routes;
  std::map<uint32_t, int> sockets;
  std::string fail_on;                   // a call with this text fails
  ebpf::VerdictCounts counts{};

  absl::Status SetIdentity(int, const tb_identity& identity) override {
    return Note(fmt::format("identity {} {}", identity.id, identity.domain));
  }
  absl::Status SetRoute(uint32_t destination, const tb_route& route) override {
    TRIB_RETURN_IF_ERROR(Note(fmt::format("route {}", destination)));
    routes[destination] = route;
    return absl::OkStatus();
  }
  absl::StatusOr<tb_route> GetRoute(uint32_t destination) override {
    const auto found = routes.find(destination);
    if (found == routes.end()) return NotFound("route {}", destination);
    return found->second;
  }
  absl::Status DeleteRoute(uint32_t destination) override {
    TRIB_RETURN_IF_ERROR(Note(fmt::format("-route {}", destination)));
    return routes.erase(destination) == 1 ? absl::OkStatus() : NotFound("route {}", destination);
  }
  absl::StatusOr<std::vector<std::pair<uint32_t, tb_route>>> Routes() override {
    return std::vector<std::pair<uint32_t, tb_route>>(routes.begin(), routes.end());
  }
  absl::Status InsertSocket(uint32_t key, int socket_fd) override {
    TRIB_RETURN_IF_ERROR(Note(fmt::format("socket {}", key)));
    sockets[key] = socket_fd;
    return absl::OkStatus();
  }
  absl::Status DeleteSocket(uint32_t key) override {
    TRIB_RETURN_IF_ERROR(Note(fmt::format("-socket {}", key)));
    return sockets.erase(key) == 1 ? absl::OkStatus() : NotFound("socket {}", key);
  }
  absl::StatusOr<bool> HasSocket(uint32_t key) override { return sockets.contains(key); }
  absl::StatusOr<ebpf::VerdictCounts> Counts() override { return counts; }
  absl::StatusOr<ebpf::ProgramFacts> Facts() override { return ebpf::ProgramFacts{}; }
  absl::Status Unpin() override { return absl::OkStatus(); }

 private:
  absl::Status Note(std::string call) {
    calls.push_back(call);
    return call == fail_on ? Internal("told to fail: {}", call) : absl::OkStatus();
  }
};

}  // namespace tributary::aggregator
