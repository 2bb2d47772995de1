#include "client/core/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kUpdateBytes = 1000;

OutboxKey Key(uint64_t task, uint64_t update = 7) { return {"job-1", task, UpdateId{0, update}}; }

template <typename T>
std::vector<T> Only(const std::vector<Action>& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* match = std::get_if<T>(&action)) found.push_back(*match);
  }
  return found;
}

// A session at a fake time, with the words tests are written in.
class SessionTest : public ::testing::Test {
 protected:
  std::vector<Action> On(const Event& event) { return session_->OnEvent(event, now_); }
  void Make(SessionOptions options = {}, const std::vector<std::pair<OutboxKey, uint64_t>>& kept = {}) {
    options.client = "c0";
    session_.emplace(options, kept);
  }
  std::vector<Action> Attach(const std::vector<std::pair<OutboxKey, Verdict>>& outbox = {}) {
    On(event::Start{});
    return On(event::Welcomed{absl::Seconds(5), outbox});
  }
  std::vector<Action> Reattach(const std::vector<std::pair<OutboxKey, Verdict>>& outbox = {}) {
    On(event::StreamEnded{Unavailable("gone"), {}});
    now_ += absl::Minutes(2);
    On(event::Tick{});
    return On(event::Welcomed{absl::Seconds(5), outbox});
  }
  void KnowJob(bool torchscript = false, const std::string& problem = "") {
    On(event::JobKnown{{"job-1", kUpdateBytes, torchscript, problem}});
  }
  static Task TrainTask(uint64_t id, absl::Time deadline = absl::InfiniteFuture()) {
    return {Task::Kind::kTrain, "job-1", id, 3, deadline};
  }
  std::vector<Action> Issue(const Task& task) { return On(event::TaskIssued{task}); }
  std::string DeclineReason(const std::vector<Action>& actions) {
    const auto declines = Only<action::SendDecline>(actions);
    return declines.size() == 1 ? declines[0].reason : "(not declined)";
  }

  std::optional<Session> session_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
};

TEST_F(SessionTest, HelloListsWhatTheOutboxKeeps) {
  Make({}, {{Key(1), 10}, {Key(2, 8), 20}});
  const auto connects = Only<action::Connect>(On(event::Start{}));
  ASSERT_EQ(connects.size(), 1u);
  EXPECT_THAT(connects[0].outbox, ::testing::ElementsAre(Key(1), Key(2, 8)));
  EXPECT_EQ(session_->outbox_bytes(), 30u);
}

TEST_F(SessionTest, NothingIsSentBeforeWelcome) {
  Make({}, {{Key(1), 10}});
  EXPECT_THAT(Only<action::StartUpload>(On(event::Start{})), IsEmpty());
  EXPECT_FALSE(session_->attached());
}

TEST_F(SessionTest, WelcomeWithoutTraceSendsFromTheOutbox) {
  Make({}, {{Key(1), 10}});
  const auto uploads = Only<action::StartUpload>(Attach());
  ASSERT_EQ(uploads.size(), 1u);
  EXPECT_EQ(uploads[0].key, Key(1));
  EXPECT_FALSE(uploads[0].retry);
}

TEST_F(SessionTest, WelcomeWithPartialResumes) {
  Make({}, {{Key(1), 10}});
  const auto uploads = Only<action::StartUpload>(Attach({{Key(1), {UpdateState::kPartial, 0, ""}}}));
  ASSERT_EQ(uploads.size(), 1u);
  EXPECT_TRUE(uploads[0].retry);
}

TEST_F(SessionTest, WelcomeWithAcceptedOrJournaledKeepsAndWaits) {
  Make({}, {{Key(1), 10}, {Key(2, 8), 10}});
  const auto actions = Attach({{Key(1), {UpdateState::kAccepted, 0, ""}}, {Key(2, 8), {UpdateState::kJournaled, 0, ""}}});
  EXPECT_THAT(Only<action::StartUpload>(actions), IsEmpty());
  EXPECT_EQ(session_->outbox_count(), 2u);
}

TEST_F(SessionTest, WelcomeWithFinalStatesDrops) {
  Make({}, {{Key(1), 10}, {Key(2, 8), 10}, {Key(3, 9), 10}});
  const auto drops = Only<action::DropUpdate>(Attach({{Key(1), {UpdateState::kCommitted, 4, ""}},
                                                      {Key(2, 8), {UpdateState::kRejected, 0, "norm"}},
                                                      {Key(3, 9), {UpdateState::kExpired, 0, "late"}}}));
  EXPECT_EQ(drops.size(), 3u);
  EXPECT_EQ(session_->outbox_bytes(), 0u);
}

TEST_F(SessionTest, VerdictForSomebodyElsesUpdateIsIgnored) {
  Make({}, {{Key(1), 10}});
  Attach();
  EXPECT_THAT(On(event::UpdateSettled{Key(1, 99), {UpdateState::kCommitted, 4, ""}}), IsEmpty());
  EXPECT_EQ(session_->outbox_count(), 1u);
}

TEST_F(SessionTest, TaskStartsWork) {
  Make();
  Attach();
  KnowJob();
  const auto work = Only<action::StartWork>(Issue(TrainTask(1)));
  ASSERT_EQ(work.size(), 1u);
  EXPECT_EQ(work[0].task.task, 1u);
  EXPECT_EQ(work[0].task.version, 3u);
}

TEST_F(SessionTest, SecondTaskWaitsForTheFirst) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  EXPECT_THAT(Only<action::StartWork>(Issue(TrainTask(2))), IsEmpty());
  EXPECT_EQ(Only<action::StartWork>(On(event::UpdateStored{Key(1), kUpdateBytes})).size(), 1u);
}

TEST_F(SessionTest, SameTaskAgainIsIgnoredWhileWorkedOnAndWhileItsUpdateIsKept) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  EXPECT_THAT(Issue(TrainTask(1)), IsEmpty());
  On(event::UpdateStored{Key(1), kUpdateBytes});
  EXPECT_THAT(Issue(TrainTask(1)), IsEmpty());
}

TEST_F(SessionTest, StoredUpdateIsUploaded) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  const auto uploads = Only<action::StartUpload>(On(event::UpdateStored{Key(1), kUpdateBytes}));
  ASSERT_EQ(uploads.size(), 1u);
  EXPECT_FALSE(session_->working());
  EXPECT_EQ(session_->outbox_bytes(), kUpdateBytes);
}

TEST_F(SessionTest, AcceptedIsKeptUntilCommitted) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  On(event::UpdateStored{Key(1), kUpdateBytes});
  EXPECT_THAT(On(event::UploadAnswered{Key(1), 1, {UpdateState::kAccepted, 0, ""}}), IsEmpty());
  EXPECT_EQ(session_->outbox_count(), 1u);
  const auto drops = Only<action::DropUpdate>(On(event::UpdateSettled{Key(1), {UpdateState::kCommitted, 4, ""}}));
  ASSERT_EQ(drops.size(), 1u);
  EXPECT_EQ(drops[0].verdict.version, 4u);
  EXPECT_EQ(session_->outbox_count(), 0u);
}

TEST_F(SessionTest, CommitThatOvertakesTheUploadsAnswerDropsOnce) {
  Make({}, {{Key(1), 10}});
  Attach();
  EXPECT_EQ(Only<action::DropUpdate>(On(event::UpdateSettled{Key(1), {UpdateState::kCommitted, 4, ""}})).size(), 1u);
  EXPECT_THAT(On(event::UploadAnswered{Key(1), 1, {UpdateState::kAccepted, 0, ""}}), IsEmpty());
}

TEST_F(SessionTest, AnswerOfAnEarlierAttachmentIsAskedAgain) {
  Make({}, {{Key(1), 10}});
  Attach();
  Reattach({{Key(1), {UpdateState::kUnknown, 0, ""}}});  // still sending: no second upload
  const auto uploads = Only<action::StartUpload>(On(event::UploadAnswered{Key(1), 1, {UpdateState::kAccepted, 0, ""}}));
  ASSERT_EQ(uploads.size(), 1u);
  EXPECT_EQ(uploads[0].attachment, 2u);
  EXPECT_TRUE(uploads[0].retry);
}

TEST_F(SessionTest, AcceptedButLostInARestartIsSentAgain) {
  Make({}, {{Key(1), 10}});
  Attach();
  On(event::UploadAnswered{Key(1), 1, {UpdateState::kAccepted, 0, ""}});
  EXPECT_EQ(Only<action::StartUpload>(Reattach({{Key(1), {UpdateState::kUnknown, 0, ""}}})).size(), 1u);
}

TEST_F(SessionTest, JournaledIsNotSentAgainAfterARestart) {
  Make({}, {{Key(1), 10}});
  Attach();
  On(event::UploadAnswered{Key(1), 1, {UpdateState::kAccepted, 0, ""}});
  EXPECT_THAT(Only<action::StartUpload>(Reattach({{Key(1), {UpdateState::kJournaled, 0, ""}}})), IsEmpty());
}

TEST_F(SessionTest, FailedUploadWaitsForItsBackoff) {
  Make({}, {{Key(1), 10}});
  Attach();
  EXPECT_THAT(Only<action::StartUpload>(On(event::UploadFailed{Key(1), Unavailable("x"), absl::Seconds(10)})), IsEmpty());
  now_ += absl::Seconds(2);
  EXPECT_THAT(Only<action::StartUpload>(On(event::Tick{})), IsEmpty());
  now_ += absl::Seconds(11);
  const auto uploads = Only<action::StartUpload>(On(event::Tick{}));
  ASSERT_EQ(uploads.size(), 1u);
  EXPECT_TRUE(uploads[0].retry);
}

TEST_F(SessionTest, FailedUploadWhileDetachedWaitsForWelcome) {
  Make({}, {{Key(1), 10}});
  Attach();
  On(event::StreamEnded{Unavailable("x"), {}});
  EXPECT_THAT(Only<action::StartUpload>(On(event::UploadFailed{Key(1), Unavailable("x"), {}})), IsEmpty());
  now_ += absl::Minutes(2);
  EXPECT_THAT(Only<action::StartUpload>(On(event::Tick{})), IsEmpty());
  EXPECT_EQ(Only<action::StartUpload>(On(event::Welcomed{absl::Seconds(5), {}})).size(), 1u);
}

TEST_F(SessionTest, AnswerThatSettlesNothingIsNotRepeatedAtOnce) {
  Make({}, {{Key(1), 10}});
  Attach();
  EXPECT_THAT(Only<action::StartUpload>(On(event::UploadAnswered{Key(1), 1, {UpdateState::kPartial, 0, ""}})), IsEmpty());
}

TEST_F(SessionTest, UnsettledUpdateIsAskedAboutAgainAfterAMinute) {
  Make({}, {{Key(1), 10}});
  Attach();
  On(event::UploadAnswered{Key(1), 1, {UpdateState::kAccepted, 0, ""}});
  now_ += absl::Seconds(59);
  EXPECT_THAT(Only<action::StartUpload>(On(event::Tick{})), IsEmpty());
  now_ += absl::Seconds(2);
  EXPECT_EQ(Only<action::StartUpload>(On(event::Tick{})).size(), 1u);
}

TEST_F(SessionTest, LostStreamReconnectsAfterBackoff) {
  Make();
  Attach();
  EXPECT_THAT(Only<action::Connect>(On(event::StreamEnded{Unavailable("x"), absl::Seconds(10)})), IsEmpty());
  EXPECT_GT(session_->NextWake(), now_ + absl::Seconds(7));
  now_ = session_->NextWake();
  EXPECT_EQ(Only<action::Connect>(On(event::Tick{})).size(), 1u);
}

TEST_F(SessionTest, StreamWithoutWelcomeIsGivenUp) {
  Make();
  On(event::Start{});
  now_ = session_->NextWake();
  EXPECT_EQ(now_, absl::FromUnixSeconds(1030));
  EXPECT_EQ(Only<action::Disconnect>(On(event::Tick{})).size(), 1u);
  EXPECT_THAT(On(event::Tick{}), IsEmpty());
}

TEST_F(SessionTest, WorkGoesOnWhileTheStreamIsDown) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  EXPECT_THAT(Only<action::CancelWork>(On(event::StreamEnded{Unavailable("x"), {}})), IsEmpty());
  EXPECT_THAT(Only<action::StartUpload>(On(event::UpdateStored{Key(1), kUpdateBytes})), IsEmpty());
  now_ += absl::Minutes(2);
  const auto connects = Only<action::Connect>(On(event::Tick{}));
  ASSERT_EQ(connects.size(), 1u);
  EXPECT_THAT(connects[0].outbox, ::testing::ElementsAre(Key(1)));
}

TEST_F(SessionTest, QueuedTasksOfALostStreamAreForgotten) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  Issue(TrainTask(2));
  On(event::StreamEnded{Unavailable("x"), {}});
  EXPECT_THAT(Only<action::StartWork>(On(event::UpdateStored{Key(1), kUpdateBytes})), IsEmpty());
}

TEST_F(SessionTest, CancelStopsWorkWithoutAnAnswer) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  EXPECT_EQ(Only<action::CancelWork>(On(event::TaskCancelled{"job-1", 1, "round closed"})).size(), 1u);
  EXPECT_THAT(Only<action::SendDecline>(On(event::WorkFailed{"job-1", 1, "cancelled"})), IsEmpty());
  EXPECT_FALSE(session_->working());
}

TEST_F(SessionTest, CancelOfAQueuedTaskForgetsIt) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  Issue(TrainTask(2));
  EXPECT_THAT(On(event::TaskCancelled{"job-1", 2, "x"}), IsEmpty());
  EXPECT_THAT(Only<action::StartWork>(On(event::UpdateStored{Key(1), kUpdateBytes})), IsEmpty());
}

TEST_F(SessionTest, FailedWorkIsDeclinedWithItsReason) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  EXPECT_EQ(DeclineReason(On(event::WorkFailed{"job-1", 1, "no such file"})), "no such file");
}

TEST_F(SessionTest, DeclineMadeWhileDetachedIsDeliveredAfterWelcome) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  On(event::StreamEnded{Unavailable("x"), {}});
  EXPECT_THAT(Only<action::SendDecline>(On(event::WorkFailed{"job-1", 1, "no such file"})), IsEmpty());
  now_ += absl::Minutes(2);
  On(event::Tick{});
  EXPECT_EQ(DeclineReason(On(event::Welcomed{absl::Seconds(5), {}})), "no such file");
}

TEST_F(SessionTest, UnknownJobIsDeclined) {
  Make();
  Attach();
  EXPECT_THAT(DeclineReason(Issue(TrainTask(1))), HasSubstr("not described"));
}

TEST_F(SessionTest, JobWithAProblemIsDeclinedWithIt) {
  Make();
  Attach();
  KnowJob(false, "codec 'zip' is not known here");
  EXPECT_EQ(DeclineReason(Issue(TrainTask(1))), "codec 'zip' is not known here");
}

TEST_F(SessionTest, TorchScriptIsDeclinedUnlessTheSiteAllowsIt) {
  Make();
  Attach();
  KnowJob(true);
  EXPECT_THAT(DeclineReason(Issue(TrainTask(1))), HasSubstr("TorchScript"));
  SessionOptions options;
  options.allow_torchscript = true;
  Make(options);
  Attach();
  KnowJob(true);
  EXPECT_EQ(Only<action::StartWork>(Issue(TrainTask(1))).size(), 1u);
}

TEST_F(SessionTest, FullOutboxDeclinesAndSaysSo) {
  SessionOptions options;
  options.outbox_limit_bytes = 2 * kUpdateBytes;
  Make(options, {{Key(9), kUpdateBytes}});
  Attach();
  KnowJob();
  EXPECT_EQ(Only<action::StartWork>(Issue(TrainTask(1))).size(), 1u);
  EXPECT_THAT(DeclineReason(Issue(TrainTask(2))), HasSubstr("outbox is full"));  // the first task's update is promised room
}

TEST_F(SessionTest, TrainerDeclinesEvaluationAndEvaluatorDeclinesTraining) {
  Make();
  Attach();
  KnowJob();
  EXPECT_THAT(DeclineReason(Issue({Task::Kind::kEvaluate, "job-1", 1, 3, absl::InfiniteFuture()})), HasSubstr("does not evaluate"));
  SessionOptions options;
  options.trains = false;
  options.evaluates = true;
  Make(options);
  Attach();
  KnowJob();
  EXPECT_THAT(DeclineReason(Issue(TrainTask(1))), HasSubstr("only evaluates"));
}

TEST_F(SessionTest, QueueOfTasksIsBounded) {
  SessionOptions options;
  options.max_queued_tasks = 2;
  Make(options);
  Attach();
  KnowJob();
  for (uint64_t task = 1; task <= 3; ++task) Issue(TrainTask(task));
  EXPECT_THAT(DeclineReason(Issue(TrainTask(4))), HasSubstr("wait here already"));
}

TEST_F(SessionTest, DeadlineDuringWorkCancelsAndDeclines) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1, now_ + absl::Seconds(3)));
  EXPECT_EQ(session_->NextWake(), now_ + absl::Seconds(3));
  now_ += absl::Seconds(3);
  const auto actions = On(event::Tick{});
  EXPECT_EQ(Only<action::CancelWork>(actions).size(), 1u);
  EXPECT_THAT(DeclineReason(actions), HasSubstr("deadline"));
  EXPECT_THAT(Only<action::SendDecline>(On(event::WorkFailed{"job-1", 1, "cancelled"})), IsEmpty());
}

TEST_F(SessionTest, HeartbeatCarriesPhaseAndProgress) {
  Make();
  Attach();
  KnowJob();
  Issue(TrainTask(1));
  On(event::PhaseChanged{1, Phase::kTraining});
  On(event::Progressed{1, 0.5f});
  now_ += absl::Seconds(5);
  const auto beats = Only<action::SendHeartbeat>(On(event::Tick{}));
  ASSERT_EQ(beats.size(), 1u);
  EXPECT_EQ(beats[0].phase, Phase::kTraining);
  EXPECT_EQ(beats[0].task, 1u);
  EXPECT_FLOAT_EQ(beats[0].progress, 0.5f);
}

TEST_F(SessionTest, EvaluationIsReported) {
  SessionOptions options;
  options.evaluates = true;
  Make(options);
  Attach();
  KnowJob();
  Issue({Task::Kind::kEvaluate, "job-1", 1, 3, absl::InfiniteFuture()});
  const auto reports = Only<action::SendEvaluation>(On(event::Evaluated{{"job-1", 1, 3, 0.5, 0.9, 100}}));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].evaluation.accuracy, 0.9);
}

TEST_F(SessionTest, EvaluationMadeWhileDetachedIsReportedAfterWelcome) {
  SessionOptions options;
  options.evaluates = true;
  Make(options);
  Attach();
  KnowJob();
  Issue({Task::Kind::kEvaluate, "job-1", 1, 3, absl::InfiniteFuture()});
  On(event::StreamEnded{Unavailable("x"), {}});
  EXPECT_THAT(Only<action::SendEvaluation>(On(event::Evaluated{{"job-1", 1, 3, 0.5, 0.9, 100}})), IsEmpty());
  now_ += absl::Minutes(2);
  On(event::Tick{});
  EXPECT_EQ(Only<action::SendEvaluation>(On(event::Welcomed{absl::Seconds(5), {}})).size(), 1u);
}

TEST_F(SessionTest, DamagedUpdateLeavesAndItsTaskIsDeclined) {
  Make({}, {{Key(1), 10}});
  Attach();
  EXPECT_EQ(DeclineReason(On(event::UpdateLost{Key(1), "damaged"})), "damaged");
  EXPECT_EQ(session_->outbox_bytes(), 0u);
}

TEST_F(SessionTest, StopCancelsWorkDisconnectsAndKeepsTheOutbox) {
  Make({}, {{Key(9), 10}});
  Attach({{Key(9), {UpdateState::kAccepted, 0, ""}}});
  KnowJob();
  Issue(TrainTask(1));
  const auto actions = On(event::Stop{});
  EXPECT_EQ(Only<action::CancelWork>(actions).size(), 1u);
  EXPECT_EQ(Only<action::Disconnect>(actions).size(), 1u);
  EXPECT_THAT(Only<action::DropUpdate>(actions), IsEmpty());
  EXPECT_EQ(session_->outbox_count(), 1u);
  EXPECT_THAT(On(event::StreamEnded{absl::OkStatus(), {}}), IsEmpty());
  EXPECT_EQ(session_->NextWake(), absl::InfiniteFuture());
}

}  // namespace
}  // namespace tributary::client
