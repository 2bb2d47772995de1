// The allow-list, the choice of a transport, and a probe that is lied to.
#include "aggregator/transport/probe.h"

#include <array>

#include "aggregator/transport/kernel_allow.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/transport/fake_program.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using tributary::testing::StatusIs;

TEST(KernelAllowTest, EachFixedLineFromItsFixAndEverythingNew) {
  for (const char* version : {"6.1.142", "6.1.200", "6.6.94", "6.12.34", "6.15.3", "6.15.10", "6.16.0", "6.16", "6.18.4-custom", "7.0", "6.18.44-fc-v669"}) {
    EXPECT_TRUE(KernelAllowed(version)) << version;
  }
  for (const char* version : {"6.1.141", "6.1.0-38-amd64", "6.1", "6.6.93", "6.12.33", "6.15.2", "6.15", "6.14.99", "6.8.0-60-generic", "6.13.5", "5.15.200",
                              "4.19.1", "", "6", "6.", "x.y.z", "six", "-6.18.1", "99999999999.1.1"}) {
    EXPECT_FALSE(KernelAllowed(version)) << version;
  }
}

TEST(KernelAllowTest, DebiansReleaseIsNoVersionItsVersionIs) {
  EXPECT_EQ(StableVersion("6.1.0-38-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1 (2025-08-02)"), "6.1.147");
  EXPECT_EQ(StableVersion("6.1.0-10-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.38-1 (2023-07-14)"), "6.1.38");
  EXPECT_EQ(StableVersion("6.18.4", "#1 SMP PREEMPT_DYNAMIC @0"), "6.18.4");
}

TEST(TransportChoiceTest, AutoTakesSkmsgWhereTheProbePassesAndRingElsewhereAndSaysWhy) {
  TRIB_ASSERT_OK_AND_ASSIGN(TransportChoice choice, ChooseTransport("auto", [] { return absl::OkStatus(); }));
  EXPECT_EQ(choice.kind, TransportKind::kSkMsg);
  EXPECT_THAT(choice.reason, AllOf(HasSubstr("transport skmsg"), HasSubstr("probe passed")));
  TRIB_ASSERT_OK_AND_ASSIGN(choice, ChooseTransport("auto", [] { return FailedPrecondition("probe: load: no right"); }));
  EXPECT_EQ(choice.kind, TransportKind::kRing);
  EXPECT_THAT(choice.reason, AllOf(HasSubstr("transport ring"), HasSubstr("probe: load: no right")));
  EXPECT_EQ(choice.reason.find('\n'), std::string::npos);
}

TEST(TransportChoiceTest, ANamedTransportIsTakenOrTheStartFailsWithTheProbesReason) {
  EXPECT_EQ(ChooseTransport("skmsg-inline", [] { return absl::OkStatus(); })->kind, TransportKind::kSkMsgInline);
  EXPECT_EQ(ChooseTransport("skmsg", [] { return absl::OkStatus(); })->kind, TransportKind::kSkMsg);
  for (const char* name : {"skmsg", "skmsg-inline"}) {
    EXPECT_THAT(ChooseTransport(name, [] { return FailedPrecondition("probe: kernel: too old"); }),
                StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr(name), HasSubstr("probe: kernel: too old"))));
  }
  EXPECT_EQ(ChooseTransport("ring", [] { return Internal("must not be asked"); })->kind, TransportKind::kRing);
  EXPECT_THAT(ChooseTransport("rng", [] { return absl::OkStatus(); }), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected auto")));
}

ProbeSeams With(std::unique_ptr<FakeProgram> program) {
  // std::function wants something copyable.
  auto shared = std::make_shared<std::unique_ptr<FakeProgram>>(std::move(program));
  return {.kernel = "6.18.1", .load = [shared]() -> absl::StatusOr<std::unique_ptr<ebpf::VerdictProgram>> { return std::move(*shared); }};
}

TEST(ProbeTest, AnOldKernelIsNotEvenTried) {
  ProbeSeams seams{.kernel = "6.1.100", .load = []() -> absl::StatusOr<std::unique_ptr<ebpf::VerdictProgram>> { return Internal("was tried"); }};
  EXPECT_THAT(ProbeSkMsg(seams), StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr("kernel"), HasSubstr("6.1.100"))));
}

TEST(ProbeTest, ALoadThatFailsIsTheReason) {
  ProbeSeams seams{.kernel = "6.18.1", .load = []() -> absl::StatusOr<std::unique_ptr<ebpf::VerdictProgram>> { return PermissionDenied("load: maps"); }};
  EXPECT_THAT(ProbeSkMsg(seams), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("load: maps")));
}

// Sockets are inserted, all calls succeed, and nothing is redirected: as with UDP or Unix sockets.
TEST(ProbeTest, AProgramThatIsSilentlyBypassedIsFoundOut) {
  EXPECT_THAT(ProbeSkMsg(With(std::make_unique<FakeProgram>())),
              StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr("redirect"), HasSubstr("nothing arrived"))));
}

TEST(ProbeTest, AFailingPairIsTheReason) {
  auto program = std::make_unique<FakeProgram>();
  program->fail_on = "socket 2";
  EXPECT_THAT(ProbeSkMsg(With(std::move(program))), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("pairs")));
}

}  // namespace
}  // namespace tributary::aggregator
