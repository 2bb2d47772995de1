// The pool's side of the SK_MSG transports over the real program: whose records reach whom, what becomes of the others, what is left.
#include "aggregator/coordinator/seat_wiring.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>

#include "aggregator/store/object_pool.h"
#include "aggregator/transport/probe.h"
#include "aggregator/transport/skmsg_endpoint.h"
#include "common/ids.h"
#include "tests/support/require.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::IsEmpty;
using tributary::testing::IsOk;
using News = SeatWiring::News;

auto NewsOf(News::Kind kind, uint32_t id) { return AllOf(Field(&News::kind, kind), Field(&News::id, id)); }

class SeatWiringTest : public ::testing::TestWithParam<TransportKind> {
 protected:
  void SetUp() override {
    const absl::Status probed = ProbeSkMsg();
    TRIB_REQUIRE_OR_SKIP("bpf", probed.ok() ? std::string() : MessageOf(probed));
    wiring_ = Make({});
  }
  std::unique_ptr<SeatWiring> Make(const std::filesystem::path& pins) { return SeatWiring::Create(GetParam(), progress_.get(), pins).value(); }
  std::vector<News> NextNews() {
    for (const absl::Time end = absl::Now() + absl::Seconds(5); absl::Now() < end;) {
      if (std::vector<News> news = wiring_->Take(absl::Now()); !news.empty()) return news;
      pollfd entry{wiring_->wait_fd(), POLLIN, 0};
      ::poll(&entry, 1, static_cast<int>(std::min<int64_t>(1000, absl::ToInt64Milliseconds(wiring_->NextCheck(absl::Now())) + 1)));
    }
    return {};
  }
  static tb_desc Desc(uint32_t from, uint32_t to, uint16_t kind, uint64_t key_lo = 0, uint16_t lane = 0) {
    return {.dst = to, .src = from, .key_hi = 0, .key_lo = key_lo, .round = 1, .kind = kind, .lane = lane};
  }
  static tb_desc Doorbell(uint32_t from, uint32_t to) { return Desc(from, to, TB_KIND_DOORBELL); }
  static void Send(const UniqueFd& anchor, const tb_desc& desc) {
    ASSERT_EQ(::send(anchor.get(), &desc, sizeof(desc), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(desc)));
  }
  static bool Arrived(const UniqueFd& anchor, const tb_desc& want) {
    pollfd entry{anchor.get(), POLLIN, 0};
    tb_desc got{};
    return ::poll(&entry, 1, 5000) == 1 && ::recv(anchor.get(), &got, sizeof(got), MSG_DONTWAIT) == static_cast<ssize_t>(sizeof(got)) &&
           std::memcmp(&got, &want, sizeof(got)) == 0;
  }
  const UniqueFd progress_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::unique_ptr<SeatWiring> wiring_;
};

TEST_P(SeatWiringTest, SeatsOfOneJobReachEachOtherAndNobodyInAnotherJob) {
  const auto job = JobWiring::Open(wiring_.get()).value(), other = JobWiring::Open(wiring_.get()).value();
  const SeatId a = job->AddSeat(0).value(), b = job->AddSeat(0).value(), stranger = other->AddSeat(0).value();
  const UniqueFd anchor_a = job->NewAnchor(a).value(), anchor_b = job->NewAnchor(b).value(), anchor_stranger = other->NewAnchor(stranger).value();
  Send(anchor_a, Doorbell(a.value(), b.value()));
  EXPECT_TRUE(Arrived(anchor_b, Doorbell(a.value(), b.value())));
  Send(anchor_a, Doorbell(a.value(), stranger.value()));
  EXPECT_THAT(NextNews(), ElementsAre(NewsOf(News::Kind::kDeadLetter, stranger.value())));
  pollfd entry{anchor_stranger.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0);
}

TEST_P(SeatWiringTest, WhatIsPushedForASeatWithoutAProcessIsNewsAndReachesTheNextProcess) {
  const auto job = JobWiring::Open(wiring_.get()).value();
  const SeatId seat = job->AddSeat(0).value();
  const SharedRegion region = SharedRegion::Create("tributary-lane", LaneBytes(8)).value();
  ASSERT_THAT(FormatLane(region.bytes, 8), IsOk());
  ASSERT_THAT(ArmForAbsentConsumer(region.bytes).status(), IsOk());
  const auto lane = job->OpenUpdates(region.bytes, seat, 3, -1).value();
  ASSERT_THAT(job->Push(*lane, Desc(job->daemon_id(), seat.value(), TB_KIND_UPDATE, 17, 3)), IsOk());
  EXPECT_THAT(NextNews(), ElementsAre(NewsOf(News::Kind::kDeadLetter, seat.value())));

  const auto process = SkMsgEndpoint::Create(job->NewAnchor(seat).value(), seat.value(), GetParam()).value();
  const auto consumer = process->OpenConsumer(region.bytes, {.peer = job->daemon_id(), .lane = 3}).value();
  tb_desc got{};
  ASSERT_EQ(consumer->Poll({&got, 1}).value(), 1u);
  EXPECT_EQ(got.key_lo, 17u);
  ASSERT_FALSE(lane->ArmProgress());
  consumer->Release(1);
  pollfd entry{wiring_->wait_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 5000), 1) << "the daemon is not woken by the seat's progress";
  EXPECT_THAT(wiring_->Take(absl::Now()), IsEmpty());
  EXPECT_EQ(::poll(&entry, 1, 0), 0) << "what woke the daemon is still there";
  EXPECT_EQ(lane->Done().value(), 1u);
}

// More dead letters than the sockets hold: nobody but the one who pushes could read them.
TEST_P(SeatWiringTest, APushMakesRoomForItsOwnDeadLetters) {
  const auto job = JobWiring::Open(wiring_.get()).value();
  const SharedRegion region = SharedRegion::Create("tributary-lane", LaneBytes(64)).value();
  for (int i = 0; i < 6000; ++i) {
    const SeatId seat = job->AddSeat(0).value();
    ASSERT_THAT(FormatLane(region.bytes, 64), IsOk());
    const auto lane = job->OpenUpdates(region.bytes, seat, 0, -1).value();
    for (int k = 0; k < 64; ++k) {
      ASSERT_THAT(job->Push(*lane, Desc(job->daemon_id(), seat.value(), TB_KIND_UPDATE)), IsOk()) << i << " " << k;
    }
  }
  // Inline sends 12 MB of records, which no socket holds: some were read, and the pool's thread is told of news.
  pollfd entry{progress_.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), GetParam() == TransportKind::kSkMsgInline ? 1 : 0);
}

TEST_P(SeatWiringTest, AProcessThatBreaksTheFramingIsToGetANewAnchor) {
  const auto job = JobWiring::Open(wiring_.get()).value();
  const SeatId seat = job->AddSeat(0).value(), other = job->AddSeat(1).value();
  const UniqueFd broken = job->NewAnchor(seat).value(), anchor = job->NewAnchor(other).value();
  ASSERT_EQ(::send(broken.get(), "ten bytes.", 10, MSG_NOSIGNAL), 10);
  ASSERT_THAT(NextNews(), ElementsAre(NewsOf(News::Kind::kOffender, seat.value())));
  const UniqueFd fresh = job->NewAnchor(seat).value();
  Send(fresh, Doorbell(seat.value(), other.value()));
  EXPECT_TRUE(Arrived(anchor, Doorbell(seat.value(), other.value())));
}

TEST_P(SeatWiringTest, PinsOfAnEarlierStartAreAdoptedWithoutItsIdsAndNothingOfAJobStays) {
  const std::filesystem::path pins = ::testing::TempDir() + "pins_" + RandomHex(8);
  {
    auto program = ebpf::LoadVerdictProgram({.pin_folder = pins}).value();
    const ebpf::ProgramFacts facts = program->Facts().value();
    TRIB_REQUIRE_OR_SKIP("bpf", facts.pinned ? std::string() : facts.pin_note);
    ASSERT_THAT(program->SetRoute(7, {.domain = 5, .sock = 7, .flags = 0, .epoch = 1}), IsOk());
  }
  wiring_ = Make(pins);
  {
    const auto job = JobWiring::Open(wiring_.get()).value();
    EXPECT_GT(job->daemon_id(), 7u);
    const SeatId cold = job->AddSeat(0).value(), seat = job->AddSeat(1).value();
    const UniqueFd anchor = job->NewAnchor(seat).value();
  }
  wiring_.reset();
  auto program = ebpf::LoadVerdictProgram({.pin_folder = pins}).value();
  EXPECT_TRUE(program->Facts().value().adopted);
  EXPECT_THAT(program->Routes().value(), IsEmpty());
  EXPECT_THAT(program->Unpin(), IsOk());
  program.reset();
  std::filesystem::remove_all(pins);
}

INSTANTIATE_TEST_SUITE_P(Transports, SeatWiringTest, ::testing::Values(TransportKind::kSkMsg, TransportKind::kSkMsgInline),
                         [](const auto& param) { return param.param == TransportKind::kSkMsg ? "skmsg" : "skmsg_inline"; });

}  // namespace
}  // namespace tributary::aggregator
