// The daemon's table of anchors, on a fake program and Unix socket pairs in place of TCP.
#include "aggregator/transport/anchors.h"

#include <sys/socket.h>

#include <limits>
#include <set>

#include "tests/support/status_matchers.h"
#include "tests/unit/transport/fake_program.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

absl::StatusOr<AnchorPair> UnixPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) return ErrnoStatus(errno, "socketpair");
  return AnchorPair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

class AnchorsTest : public ::testing::Test {
 protected:
  void Send(const Anchors::Anchor& from, const void* bytes, size_t size) {
    ASSERT_EQ(::send(from.worker_end.get(), bytes, size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
  }
  void Send(const Anchors::Anchor& from, uint32_t src, uint32_t dst) {
    const tb_desc record{.dst = dst, .src = src, .key_hi = 0, .key_lo = 0, .round = 0, .kind = TB_KIND_UPDATE, .lane = 0};
    Send(from, &record, sizeof(record));
  }
  FakeProgram program;
  std::unique_ptr<Anchors> anchors = Anchors::Create(&program, UnixPair).value();
};

TEST_F(AnchorsTest, ASocketEntersTheSockhashAfterItsIdentityAndItsRoute) {
  ASSERT_THAT(anchors->Add(5, 2), IsOk());
  EXPECT_THAT(program.calls, ElementsAre("identity 5 2", "route 5", "socket 5"));
  EXPECT_EQ(program.routes[5].domain, 2u);
  EXPECT_EQ(program.routes[5].sock, 5u);
  EXPECT_EQ(program.routes[5].epoch, 1u);
}

TEST_F(AnchorsTest, AFailedStepLeavesTheIdAsItWas) {
  program.fail_on = "socket 5";
  EXPECT_THAT(anchors->Add(5, 2), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(program.routes, IsEmpty());
  EXPECT_EQ(anchors->size(), 0u);
  program.fail_on = "";
  const Anchors::Anchor anchor = anchors->Add(5, 2).value();
  program.fail_on = "socket 5";
  EXPECT_THAT(anchors->Recycle(5), StatusIs(absl::StatusCode::kInternal));
  EXPECT_EQ(program.routes[5].epoch, anchor.epoch) << "the old anchor goes on";
  Send(anchor, 5, 9);
  EXPECT_EQ(anchors->Read(kStart).letters.size(), 1u);
}

TEST_F(AnchorsTest, NumbersMustBeGivenAndDomainsStay) {
  EXPECT_THAT(anchors->Add(0, 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(anchors->Add(1, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(anchors->Declare(1, 1), IsOk());
  EXPECT_THAT(anchors->Add(1, 2), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("expected domain 1")));
  ASSERT_THAT(anchors->Add(1, 1), IsOk());
  EXPECT_THAT(anchors->Add(1, 1), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(anchors->DeclareRemote(1, 1), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(anchors->Withdraw(1), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(anchors->Recycle(7), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(AnchorsTest, TheLateNewsOfAnOldOwnersDeathCannotTakeDownItsSuccessor) {
  const uint32_t old_epoch = anchors->Add(5, 1)->epoch;
  const uint32_t new_epoch = anchors->Recycle(5)->epoch;
  EXPECT_GT(new_epoch, old_epoch);
  EXPECT_THAT(anchors->Forget(5, old_epoch), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("epoch")));
  EXPECT_TRUE(program.sockets.contains(5));
  ASSERT_THAT(anchors->Forget(5, new_epoch), IsOk());
  EXPECT_FALSE(program.sockets.contains(5));
  EXPECT_TRUE(program.routes.contains(5)) << "cold, not unknown: its dead letters start it again";
  EXPECT_GT(anchors->Add(5, 1)->epoch, new_epoch);
}

TEST_F(AnchorsTest, RemovalWantsAPauseAndDeletesTheSocketFirst) {
  const uint32_t epoch = anchors->Add(5, 1)->epoch;
  EXPECT_THAT(anchors->Remove(5, epoch), StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_THAT(anchors->Pause(5), IsOk());
  EXPECT_EQ(program.routes[5].flags, static_cast<uint32_t>(TB_ROUTE_PAUSED));
  EXPECT_THAT(anchors->Remove(5, epoch + 1), StatusIs(absl::StatusCode::kFailedPrecondition));
  program.calls.clear();
  ASSERT_THAT(anchors->Remove(5, epoch), IsOk());
  EXPECT_THAT(program.calls, ElementsAre("-socket 5", "-route 5"));
}

TEST_F(AnchorsTest, ARemoteIdIsARouteWithoutASocket) {
  ASSERT_THAT(anchors->DeclareRemote(8, 3), IsOk());
  EXPECT_EQ(program.routes[8].flags, static_cast<uint32_t>(TB_ROUTE_REMOTE));
  EXPECT_THAT(program.sockets, IsEmpty());
  ASSERT_THAT(anchors->Withdraw(8), IsOk());
  EXPECT_THAT(program.routes, IsEmpty());
}

TEST_F(AnchorsTest, ADeadLetterNamesItsSourceByTheConnectionItCameThrough) {
  const Anchors::Anchor a = anchors->Add(1, 1).value(), b = anchors->Add(2, 1).value();
  Send(a, 1, 7);
  Send(b, 2, 8);
  Send(b, 1, 9);  // in a's name
  Anchors::Incoming incoming = anchors->Read(kStart);
  ASSERT_EQ(incoming.letters.size(), 2u);
  for (const auto& letter : incoming.letters) EXPECT_EQ(letter.desc.dst, letter.source == 1 ? 7u : 8u);
  EXPECT_EQ(anchors->forged_letters(), 1u);
}

TEST_F(AnchorsTest, APieceOfARecordThatIsCompletedInTimeIsNoOffence) {
  const Anchors::Anchor a = anchors->Add(1, 1).value();
  const tb_desc record{.dst = 7, .src = 1, .key_hi = 0, .key_lo = 0, .round = 0, .kind = TB_KIND_UPDATE, .lane = 0};
  Send(a, &record, 11);
  EXPECT_THAT(anchors->Read(kStart).letters, IsEmpty());
  EXPECT_EQ(anchors->NextCheck(kStart), absl::Milliseconds(100));
  Send(a, reinterpret_cast<const char*>(&record) + 11, sizeof(record) - 11);
  const Anchors::Incoming incoming = anchors->Read(kStart + absl::Milliseconds(99));
  EXPECT_EQ(incoming.letters.size(), 1u);
  EXPECT_THAT(incoming.offenders, IsEmpty());
  EXPECT_EQ(anchors->NextCheck(kStart), absl::InfiniteDuration());
  EXPECT_THAT(anchors->Read(kStart + absl::Seconds(9)).offenders, IsEmpty());
}

TEST_F(AnchorsTest, APieceThatStaysAPieceIsAnOffenceReportedOnceAndNothingMoreIsDelivered) {
  const Anchors::Anchor a = anchors->Add(1, 1).value(), b = anchors->Add(2, 1).value();
  Send(a, "0123456789", 10);
  EXPECT_THAT(anchors->Read(kStart).offenders, IsEmpty());
  const Anchors::Incoming incoming = anchors->Read(kStart + absl::Milliseconds(100));
  ASSERT_EQ(incoming.offenders.size(), 1u);
  EXPECT_EQ(incoming.offenders[0].id, 1u);
  EXPECT_EQ(incoming.offenders[0].epoch, a.epoch);
  Send(a, 1, 7);
  Send(b, 2, 8);
  Anchors::Incoming later = anchors->Read(kStart + absl::Seconds(1));
  EXPECT_THAT(later.offenders, IsEmpty());
  ASSERT_EQ(later.letters.size(), 1u);
  EXPECT_EQ(later.letters[0].source, 2u);
  const Anchors::Anchor fresh = anchors->Recycle(1).value();
  Send(fresh, 1, 7);
  EXPECT_EQ(anchors->Read(kStart + absl::Seconds(2)).letters.size(), 1u);
}

TEST_F(AnchorsTest, AClosedWorkerEndIsReportedOnceAndItsLastLettersBefore) {
  Anchors::Anchor a = anchors->Add(1, 1).value();
  Send(a, 1, 7);
  a.worker_end.Reset();
  EXPECT_EQ(anchors->Read(kStart).letters.size(), 1u);
  EXPECT_EQ(anchors->Read(kStart).closed.size(), 1u);
  EXPECT_THAT(anchors->Read(kStart).closed, IsEmpty());
}

TEST_F(AnchorsTest, IdsGoOnBehindEverythingAnAdoptedMapKnows) {
  program.routes[41] = {.domain = 1, .sock = 41, .flags = 0, .epoch = 6};
  auto next_daemon = Anchors::Create(&program, UnixPair).value();
  EXPECT_EQ(next_daemon->IssueId().value(), 42u);
  EXPECT_EQ(next_daemon->Recycle(41)->epoch, 7u);
  ASSERT_THAT(next_daemon->Declare(std::numeric_limits<uint32_t>::max(), 1), IsOk());
  EXPECT_THAT(next_daemon->IssueId(), StatusIs(absl::StatusCode::kResourceExhausted));
}

// F5: ids are whole 32-bit numbers, each its own.
TEST_F(AnchorsTest, AHundredThousandRegistrationsHaveAHundredThousandIds) {
  constexpr size_t kCount = 100'000;
  std::set<uint32_t> ids;
  for (size_t i = 0; i < kCount; ++i) {
    const uint32_t id = anchors->IssueId().value();
    ASSERT_THAT(anchors->Add(id, 1), IsOk());
    ASSERT_TRUE(ids.insert(id).second);
    ASSERT_THAT(anchors->Forget(id, 1), IsOk());
  }
  EXPECT_EQ(program.routes.size(), kCount);
  EXPECT_EQ(anchors->size(), 0u);
}

}  // namespace
}  // namespace tributary::aggregator
