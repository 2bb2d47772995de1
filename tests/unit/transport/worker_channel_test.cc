#include "aggregator/transport/worker_channel.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cstring>
#include <random>
#include <string>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

struct Pair {
  Pair() {
    auto pair = WorkerChannel::CreatePair().value();
    daemon = std::make_unique<WorkerChannel>(std::move(pair.first));
    worker = std::make_unique<WorkerChannel>(std::move(pair.second));
  }
  std::unique_ptr<WorkerChannel> daemon, worker;
};

UniqueFd EventFd() { return UniqueFd(::eventfd(0, EFD_CLOEXEC)); }

TEST(WorkerChannelTest, CarriesEveryFieldAndTheFileDescriptors) {
  Pair pair;
  WorkerMessage message;
  message.kind = WorkerMessageKind::kOpenJob;
  message.job = 5;
  message.first_element = uint64_t{1} << 40;
  std::strcpy(message.reducer, "fedavg");
  const UniqueFd a = EventFd(), b = EventFd();
  ASSERT_THAT(pair.daemon->Send(message, {a.get(), b.get()}), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(auto received, pair.worker->Receive(absl::Seconds(5)));
  EXPECT_EQ(received.message.job, 5u);
  EXPECT_EQ(received.message.first_element, uint64_t{1} << 40);
  EXPECT_STREQ(received.message.reducer, "fedavg");
  ASSERT_EQ(received.fds.size(), 2u);
  EXPECT_NE(::fcntl(received.fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(WorkerChannelTest, SaysWhetherNothingCameOrThePeerIsGone) {
  Pair pair;
  EXPECT_THAT(pair.worker->Receive(absl::Milliseconds(1)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  pair.daemon.reset();
  EXPECT_THAT(pair.worker->Receive(absl::Seconds(5)), StatusIs(absl::StatusCode::kUnavailable));
  WorkerMessage message;
  message.kind = WorkerMessageKind::kReady;
  EXPECT_THAT(pair.worker->Send(message), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(WorkerChannelTest, RefusesToSendAKindWithTheWrongNumberOfFileDescriptors) {
  Pair pair;
  WorkerMessage message;
  message.kind = WorkerMessageKind::kSegment;
  EXPECT_THAT(pair.daemon->Send(message), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 1 file descriptors, got 0")));
}

TEST(WorkerChannelTest, APeerThatDoesNotReadIsReportedNotWaitedForForEver) {
  Pair pair;
  WorkerMessage message;
  message.kind = WorkerMessageKind::kStop;
  absl::Status status;
  for (int i = 0; i < 100'000 && status.ok(); ++i) status = pair.daemon->Send(message);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

// Whatever bytes and however many descriptors a peer sends: an error, no crash, no descriptor left behind.
TEST(WorkerChannelTest, RefusesMalformedRecordsAndClosesTheirFileDescriptors) {
  const int lowest_free = EventFd().get();
  {
    int fds[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    WorkerChannel channel{UniqueFd(fds[0])};
    const UniqueFd raw(fds[1]);
    const UniqueFd passed = EventFd();
    std::mt19937 random(7);
    for (int i = 0; i < 500; ++i) {
      std::string bytes(random() % 1024 + 1, '\0');
      for (char& c : bytes) c = static_cast<char>(random());
      iovec part{bytes.data(), bytes.size()};
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)] = {};
      msghdr header{};
      header.msg_iov = &part;
      header.msg_iovlen = 1;
      const size_t count = random() % 5;
      if (count > 0) {
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        cmsghdr* rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * count);
        for (size_t k = 0; k < count; ++k) {
          const int fd = passed.get();
          std::memcpy(CMSG_DATA(rights) + k * sizeof(int), &fd, sizeof(fd));
        }
      }
      ASSERT_EQ(::sendmsg(raw.get(), &header, 0), static_cast<ssize_t>(bytes.size()));
      EXPECT_THAT(channel.Receive(absl::Seconds(5)), StatusIs(absl::StatusCode::kInvalidArgument));
    }
  }
  EXPECT_EQ(EventFd().get(), lowest_free);
}

}  // namespace
}  // namespace tributary::aggregator
