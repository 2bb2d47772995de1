// Registration over the real socket, with the real credentials of real processes; anchors on a fake program, so that it needs no BPF.
#include "aggregator/transport/registration.h"

#include <absl/synchronization/mutex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <filesystem>
#include <thread>

#include "common/file.h"
#include "common/ids.h"
#include "common/process.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/transport/fake_program.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

class RegistrationTest : public ::testing::Test {
 protected:
  RegistrationTest() {
    registrar = Registrar::Create(folder / "run", anchors.get()).value();
    server = std::jthread([this](std::stop_token stop) {
      while (!stop.stop_requested()) {
        pollfd entry{registrar->wait_fd(), POLLIN, 0};
        ::poll(&entry, 1, 20);
        absl::MutexLock lock(&mutex);
        registrar->Serve(absl::Now());
      }
    });
  }
  ~RegistrationTest() override {
    server = {};
    registrar.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  // A Registrar is for one thread at a time.
  void Expect(pid_t pid, uid_t uid, uint32_t id, uint32_t domain) {
    absl::MutexLock lock(&mutex);
    registrar->Expect(pid, uid, id, domain);
  }
  // A connection that says exactly `bytes` and returns the answer.
  absl::StatusOr<tb_register_reply> Say(const void* bytes, size_t size) {
    const UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof(address.sun_path), "%s", registrar->path().c_str());
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return ErrnoStatus(errno, "connect");
    if (::send(socket.get(), bytes, size, MSG_NOSIGNAL) != static_cast<ssize_t>(size)) return ErrnoStatus(errno, "send");
    tb_register_reply reply{};
    if (::recv(socket.get(), &reply, sizeof(reply), 0) != static_cast<ssize_t>(sizeof(reply))) return Unavailable("no answer");
    return reply;
  }
  std::string RegisterFromAnotherProcess(uint32_t id) {
    SpawnOptions spawn;
    spawn.program = TRANSPORT_HELPER;
    spawn.args = {"register", registrar->path().string(), fmt::format("{}", id)};
    spawn.stdout_file = folder / "out";
    spawn.stderr_file = folder / "err";
    ChildProcess child = ChildProcess::Spawn(spawn).value();
    EXPECT_TRUE(child.Wait(absl::Seconds(20)).ok());
    return ReadFile(folder / "out").value_or("");
  }
  std::filesystem::path folder = std::filesystem::temp_directory_path() / ("tributary-test-" + RandomHex(8));
  FakeProgram program;
  std::unique_ptr<Anchors> anchors = Anchors::Create(&program).value();
  absl::Mutex mutex;
  std::unique_ptr<Registrar> registrar;
  std::jthread server;
};

TEST_F(RegistrationTest, AnExpectedProcessGetsItsAnchorAndOnASecondCallAFreshOne) {
  Expect(::getpid(), ::getuid(), 5, 3);
  TRIB_ASSERT_OK_AND_ASSIGN(const Anchors::Anchor first, RegisterAnchor(registrar->path(), 5, absl::Seconds(10)));
  EXPECT_EQ(first.id, 5u);
  EXPECT_EQ(first.domain, 3u);
  EXPECT_EQ(first.epoch, 1u);
  int type = 0;
  socklen_t length = sizeof(type);
  ASSERT_EQ(::getsockopt(first.worker_end.get(), SOL_SOCKET, SO_PROTOCOL, &type, &length), 0);
  EXPECT_EQ(type, IPPROTO_TCP);
  TRIB_ASSERT_OK_AND_ASSIGN(const Anchors::Anchor second, RegisterAnchor(registrar->path(), 5, absl::Seconds(10)));
  EXPECT_EQ(second.epoch, 2u);
}

TEST_F(RegistrationTest, AProcessTheDaemonDidNotStartIsRefusedWithAReason) {
  EXPECT_THAT(RegisterFromAnotherProcess(5), HasSubstr("no process of this daemon"));
  Expect(::getpid(), ::getuid(), 5, 3);
  EXPECT_THAT(RegisterFromAnotherProcess(5), HasSubstr("no process of this daemon")) << "another pid, though the id is expected";
  EXPECT_EQ(anchors->size(), 0u);
}

TEST_F(RegistrationTest, EveryFailingRegistrationGetsAnAnswerThatSaysWhy) {
  Expect(::getpid(), ::getuid(), 5, 3);
  EXPECT_THAT(RegisterAnchor(registrar->path(), 6, absl::Seconds(10)), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("expected id 5, got 6")));
  const tb_register_request good{kRegisterMagic, TB_ABI_VERSION, 5, 0};
  for (size_t size = 1; size < sizeof(good); ++size) {  // F5: a short message is refused, not completed from memory
    TRIB_ASSERT_OK_AND_ASSIGN(const tb_register_reply reply, Say(&good, size));
    EXPECT_EQ(reply.status, static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(reply.reason, HasSubstr(fmt::format("expected 16 bytes, got {}", size)));
  }
  std::array<char, 200> longer{};
  std::memcpy(longer.data(), &good, sizeof(good));
  EXPECT_EQ(Say(longer.data(), longer.size())->status, static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
  tb_register_request bad = good;
  bad.magic ^= 1;
  EXPECT_THAT(Say(&bad, sizeof(bad))->reason, HasSubstr("magic"));
  bad = good;
  bad.abi_version += 1;
  EXPECT_THAT(Say(&bad, sizeof(bad))->reason, HasSubstr("version"));
  Expect(::getpid(), ::getuid() + 1, 5, 3);
  EXPECT_THAT(Say(&good, sizeof(good))->reason, HasSubstr("expected uid"));
  Expect(::getpid(), ::getuid(), 5, 3);
  program.fail_on = "socket 5";
  EXPECT_THAT(Say(&good, sizeof(good))->reason, HasSubstr("told to fail"));
  {
    absl::MutexLock lock(&mutex);
    registrar->NoLonger(::getpid());
  }
  EXPECT_THAT(Say(&good, sizeof(good))->reason, HasSubstr("no process of this daemon"));
  EXPECT_EQ(anchors->size(), 0u);
  absl::MutexLock lock(&mutex);
  EXPECT_GT(registrar->refused(), 20u);
}

TEST_F(RegistrationTest, SilentConnectionsAreDroppedAndKeepNobodyOut) {
  std::vector<UniqueFd> silent;
  for (size_t i = 0; i < Registrar::kMaxConnections + 10; ++i) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof(address.sun_path), "%s", registrar->path().c_str());
    ASSERT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    silent.push_back(std::move(socket));
  }
  Expect(::getpid(), ::getuid(), 5, 3);
  EXPECT_THAT(RegisterAnchor(registrar->path(), 5, absl::Seconds(20)), IsOk());
}

TEST_F(RegistrationTest, TheFolderIsClosedToOthersAndHeldByOneDaemon) {
  struct stat info {};
  ASSERT_EQ(::stat((folder / "run").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_THAT(Registrar::Create(folder / "run", anchors.get()), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another daemon")));
  std::filesystem::create_directory(folder / "open");
  ASSERT_EQ(::chmod((folder / "open").c_str(), 0755), 0);
  EXPECT_THAT(Registrar::Create(folder / "open", anchors.get()), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("0700")));
}

TEST_F(RegistrationTest, NothingListensOnTheNetwork) {
  // Inodes of this process's sockets, looked up among the listening ones of its network.
  for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    const std::string text = ReadFile(table, 64 << 20).value_or("");
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      if (error || !target.starts_with("socket:[")) continue;
      const std::string inode = " " + target.substr(8, target.size() - 9) + " ";
      for (size_t at = 0, end = 0; at < text.size(); at = end + 1) {
        end = std::min(text.find('\n', at), text.size());
        const std::string line = text.substr(at, end - at);
        EXPECT_FALSE(line.find(inode) != std::string::npos && line.find(" 0A ") != std::string::npos) << line;
      }
    }
  }
}

}  // namespace

TEST(AnchorPairTest, AStrangerWhoConnectsFirstIsNotTakenForOurEnd) {
  UniqueFd stranger(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto pair = MakeAnchorPair([&stranger](uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    ASSERT_EQ(::connect(stranger.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  });
  ASSERT_THAT(pair, tributary::testing::IsOk());
  ASSERT_EQ(::send(pair->worker_end.get(), "x", 1, MSG_NOSIGNAL), 1);
  pollfd entry{pair->daemon_end.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 5000), 1);
  char byte = 0;
  EXPECT_EQ(::recv(pair->daemon_end.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'x');
}

}  // namespace tributary::aggregator
