#include "aggregator/core/round.h"

#include <gmock/gmock.h>

#include <optional>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

UpdateId Id(uint64_t n) { return {.hi = 7, .lo = n}; }

// A strategy that is not synchronous: every arrival up to two commits old counts, two to a commit, idle clients start at once.
class BufferedStrategy final : public Strategy {
 public:
  std::unique_ptr<Reducer> MakeReducer(DType dtype, Arithmetic arithmetic) const override { return MakeMeanReducer(dtype, arithmetic); }
  const ServerStep& server_step() const override { return step_; }
  const WeightRule& weights() const override { return *weights_; }
  RoundPolicies MakePolicies(const CohortSpec&) const override {
    struct Everybody final : AdmissionPolicy {
      std::vector<std::string> Admit(const RoundView& view, Moment) override { return {view.idle->begin(), view.idle->end()}; }
    };
    struct Two final : CommitTrigger {
      std::optional<std::string> ShouldClose(const RoundView& view) const override {
        if (view.contributions->size() >= 2) return "buffer full";
        return std::nullopt;
      }
      absl::Time NextCheck(const RoundView&) const override { return absl::InfiniteFuture(); }
      int64_t target() const override { return 2; }
    };
    struct Halving final : StalenessPolicy {
      std::optional<double> Factor(uint64_t staleness) const override {
        if (staleness > 2) return std::nullopt;
        return std::ldexp(1.0, -static_cast<int>(staleness));
      }
    };
    return {.admission = std::make_unique<Everybody>(), .trigger = std::make_unique<Two>(), .staleness = std::make_unique<Halving>()};
  }

 private:
  struct Nothing final : ServerStep {
    void ApplyBlock(const StepBlock&, StrategyState&) const override {}
  };
  Nothing step_;
  std::unique_ptr<WeightRule> weights_ = MakeClaimedWeight(false);
};

class RoundTest : public ::testing::Test {
 protected:
  RoundTest() {
    spec_.cohort.size = 2;
    spec_.cohort.deadline = absl::Seconds(60);
    spec_.stop.versions = 3;
    spec_.evaluate.every = 2;
    auto strategy = MakeStrategy({.name = "fedavg", .params = {}});
    strategy_ = *std::move(strategy);
  }
  void Open(RoundOptions options = {}) { round_.emplace(spec_, *strategy_, std::move(options), now_); }
  // Sends an event and keeps what came of it.
  void Send(const RoundEvent& event) { actions_ = round_->OnEvent(event, now_); }
  void Idle(const std::string& client, std::vector<UpdateKeyRef> offers = {}) { Send(ClientIdle{.client = client, .offers = std::move(offers)}); }
  // Makes the client idle and returns its new task (0: none).
  uint64_t TaskOf(const std::string& client) {
    Idle(client);
    const auto issued = All<IssueTask>();
    return issued.empty() ? 0 : issued[0].task;
  }
  UpdateKeyRef Arrive(const std::string& client, uint64_t task, uint64_t id, std::optional<uint64_t> version = {}, double weight = 1) {
    const UpdateKeyRef key{.client = client, .task = task, .update = Id(id)};
    Send(UpdateArrived{.key = key, .version = version.value_or(round_->version()), .weight = weight, .examples = 10});
    return key;
  }
  void Fold(uint64_t id) { Send(UpdateFolded{.update = Id(id)}); }
  // Two clients contribute with updates `id` and id + 1 and are folded: the Commit is in actions_.
  void RunToCommit(uint64_t id) {
    const uint64_t a = TaskOf("a"), b = TaskOf("b");
    Arrive("a", a, id);
    Arrive("b", b, id + 1);
    Fold(id);
    Fold(id + 1);
  }
  template <typename T>
  std::vector<T> All() const {
    std::vector<T> all;
    for (const RoundAction& action : actions_) {
      if (const T* match = std::get_if<T>(&action)) all.push_back(*match);
    }
    return all;
  }
  std::string Waiting() const { return round_->WaitingFor(now_); }

  JobSpec spec_;
  std::unique_ptr<Strategy> strategy_;
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(5);
  std::optional<Round> round_;
  std::vector<RoundAction> actions_;
};

// ---- tasks ----

TEST_F(RoundTest, OfClientsThatArriveTogetherAllCanBeDrawn) {
  std::set<std::string> first;
  for (spec_.seed = 0; spec_.seed < 60; ++spec_.seed) {
    Open();
    Send(ClientsArrived{.clients = {"a", "b", "c", "d"}});
    const auto issued = All<IssueTask>();
    ASSERT_THAT(issued, SizeIs(2));
    for (const IssueTask& task : issued) first.insert(task.client);
  }
  EXPECT_THAT(first, SizeIs(4));
}

TEST_F(RoundTest, AnIdleClientGetsATaskForTheOpenVersion) {
  Open({.version = 1, .epoch = 9, .restored = {}});
  Idle("a");
  const auto issued = All<IssueTask>();
  ASSERT_THAT(issued, SizeIs(1));
  EXPECT_EQ(issued[0].client, "a");
  EXPECT_EQ(issued[0].version, 1u);
  EXPECT_EQ(issued[0].task, (uint64_t{9} << 32) + 1);
  EXPECT_EQ(issued[0].deadline, now_ + absl::Seconds(60));
}

TEST_F(RoundTest, TheFirstEventSetsTheAlarmForTheDeadline) {
  Open();
  Send(Tick{});
  ASSERT_THAT(All<WakeAt>(), SizeIs(1));
  EXPECT_EQ(All<WakeAt>()[0].when, now_ + absl::Seconds(60));
  Idle("a");
  EXPECT_THAT(All<WakeAt>(), IsEmpty());  // nothing new to say
}

TEST_F(RoundTest, NoMoreClientsAreAskedThanTheCohortWants) {
  spec_.cohort.over_select = 1.5;
  Open();
  EXPECT_NE(TaskOf("a"), 0u);
  EXPECT_NE(TaskOf("b"), 0u);
  EXPECT_NE(TaskOf("c"), 0u);
  EXPECT_EQ(TaskOf("d"), 0u);
}

TEST_F(RoundTest, AClientThatLeavesIsReplaced) {
  Open();
  TaskOf("a");
  TaskOf("b");
  EXPECT_EQ(TaskOf("c"), 0u);
  Send(ClientGone{.client = "a"});
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(All<IssueTask>()[0].client, "c");
}

TEST_F(RoundTest, AContributorIsNotAskedAgainForTheSameVersion) {
  Open();
  Arrive("a", TaskOf("a"), 1);
  EXPECT_EQ(TaskOf("a"), 0u);
}

TEST_F(RoundTest, ADeclineGoesToAnotherClient) {
  Open();
  const uint64_t task = TaskOf("a");
  TaskOf("b");
  TaskOf("c");
  Send(TaskDeclined{.client = "a", .task = task, .reason = "disk full"});
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(All<IssueTask>()[0].client, "c");
}

TEST_F(RoundTest, AClientThatDeclinedIsAskedAgainOnlyWhenNobodyElseIsLeftAndNotAtOnce) {
  Open();
  TaskOf("b");
  Send(TaskDeclined{.client = "a", .task = TaskOf("a"), .reason = "busy"});
  EXPECT_THAT(All<IssueTask>(), IsEmpty());
  ASSERT_THAT(All<WakeAt>(), SizeIs(1));
  now_ = All<WakeAt>()[0].when;
  Send(Tick{});
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(All<IssueTask>()[0].client, "a");
}

TEST_F(RoundTest, AClientThatDeclinedIsLeftAloneWhileOthersCanMakeTheQuorum) {
  Open();
  Send(TaskDeclined{.client = "a", .task = TaskOf("a"), .reason = "busy"});
  TaskOf("b");
  TaskOf("c");
  now_ += absl::Seconds(30);
  Send(Tick{});
  EXPECT_THAT(All<IssueTask>(), IsEmpty());
}

TEST_F(RoundTest, ADeclineOfAnotherTaskIsIgnored) {
  Open();
  const uint64_t task = TaskOf("a");
  Send(TaskDeclined{.client = "a", .task = task + 5, .reason = "busy"});
  Send(TaskDeclined{.client = "nobody", .task = task, .reason = "busy"});
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = task, .update = Id(1)}, 0), IsOk());
}

// ---- uploads ----

TEST_F(RoundTest, AnArrivedUpdateIsFoldedWithItsWeight) {
  Open();
  const UpdateKeyRef key = Arrive("a", TaskOf("a"), 1, 0, 250);
  ASSERT_THAT(All<aggregator::Fold>(), SizeIs(1));
  EXPECT_EQ(All<aggregator::Fold>()[0].key, key);
  EXPECT_EQ(All<aggregator::Fold>()[0].weight, 250);
  EXPECT_EQ(round_->updates_in(), 1u);
  EXPECT_EQ(round_->updates_expected(), 2);
}

TEST_F(RoundTest, AnUpdateSaidTwiceIsFoldedOnce) {
  Open();
  const uint64_t task = TaskOf("a");
  Arrive("a", task, 1);
  Arrive("a", task, 1);
  EXPECT_THAT(actions_, IsEmpty());
  EXPECT_EQ(round_->updates_in(), 1u);
}

TEST_F(RoundTest, ATaskAdmitsOneUpdate) {
  Open();
  const uint64_t task = TaskOf("a");
  Arrive("a", task, 1);
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = task, .update = Id(2)}, 0), StatusIs(absl::StatusCode::kAlreadyExists));
  Arrive("a", task, 2);
  ASSERT_THAT(All<Refuse>(), SizeIs(1));
  EXPECT_FALSE(All<Refuse>()[0].expired);
  EXPECT_EQ(round_->updates_in(), 1u);
}

TEST_F(RoundTest, AnotherClientsTaskIsDenied) {
  Open();
  const uint64_t task = TaskOf("a");
  EXPECT_THAT(round_->CheckUpload({.client = "mallory", .task = task, .update = Id(1)}, 0), StatusIs(absl::StatusCode::kPermissionDenied));
  Arrive("mallory", task, 1);
  ASSERT_THAT(All<Refuse>(), SizeIs(1));
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = task, .update = Id(2)}, 0), IsOk());  // unharmed
}

TEST_F(RoundTest, AnUpdateIdCountsForOneKeyOnly) {
  Open();
  Arrive("a", TaskOf("a"), 1);
  const uint64_t task = TaskOf("b");
  EXPECT_THAT(round_->CheckUpload({.client = "b", .task = task, .update = Id(1)}, 0), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(RoundTest, ATaskOfThisEpochThatWasNeverIssuedIsNotFound) {
  Open({.version = 0, .epoch = 4, .restored = {}});
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = (uint64_t{4} << 32) + 77, .update = Id(1)}, 0), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = ~uint64_t{0}, .update = Id(1)}, 0), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(RoundTest, StaleAndFutureVersionsAreFailedPreconditions) {
  Open();
  const uint64_t task = TaskOf("a");
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = task, .update = Id(1)}, 7), StatusIs(absl::StatusCode::kFailedPrecondition));
  RunToCommit(10);
  Send(VersionCommitted{.version = 1});
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = task, .update = Id(1)}, 0),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("too stale")));
}

TEST_F(RoundTest, WeightsThatAreNotPositiveFiniteAndBelowTheCapAreRefused) {
  spec_.max_weight = 1000;
  Open();
  uint64_t id = 1;
  for (const double weight : {0.0, -3.0, std::nan(""), HUGE_VAL, 1000.5}) {
    const std::string client = fmt::format("c{}", id);
    Arrive(client, TaskOf(client), id++, 0, weight);
    ASSERT_THAT(All<Refuse>(), SizeIs(1)) << weight;
    EXPECT_THAT(All<Refuse>()[0].reason, HasSubstr("weight"));
    EXPECT_FALSE(All<Refuse>()[0].expired);
  }
  EXPECT_EQ(round_->updates_in(), 0u);
}

TEST_F(RoundTest, AWorkersRefusalTakesTheUpdateOut) {
  Open();
  const UpdateKeyRef key = Arrive("a", TaskOf("a"), 1);
  Send(UpdateRefusedByWorker{.update = Id(1), .reason = "not finite"});
  ASSERT_THAT(All<Refuse>(), SizeIs(1));
  EXPECT_EQ(All<Refuse>()[0].key, key);
  EXPECT_FALSE(All<Refuse>()[0].expired);
  EXPECT_EQ(round_->updates_in(), 0u);
  EXPECT_THAT(round_->CheckUpload(key, 0), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(RoundTest, AWorkersRefusalReopensAClosingVersion) {
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b");
  TaskOf("c");
  Arrive("a", a, 1);
  Arrive("b", b, 2);
  Fold(1);
  Send(UpdateRefusedByWorker{.update = Id(2), .reason = "not finite"});
  EXPECT_THAT(All<Commit>(), IsEmpty());
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(All<IssueTask>()[0].client, "c");
}

TEST_F(RoundTest, AWorkersRefusalOfWhatIsInTheSumsIsIgnored) {
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b");
  Arrive("a", a, 1);
  Fold(1);
  Send(UpdateRefusedByWorker{.update = Id(1), .reason = "too late"});
  EXPECT_THAT(actions_, IsEmpty());
  Arrive("b", b, 2);
  Fold(2);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_THAT(All<Commit>()[0].contributors, SizeIs(2));
}

// ---- closing and committing ----

TEST_F(RoundTest, CommitsWhenTheCohortIsInAndFolded) {
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b");
  Arrive("b", b, 2, 0, 3);
  Fold(2);
  EXPECT_THAT(All<Commit>(), IsEmpty());
  Arrive("a", a, 1, 0, 0.5);
  EXPECT_THAT(All<Commit>(), IsEmpty());
  Fold(1);
  const auto commits = All<Commit>();
  ASSERT_THAT(commits, SizeIs(1));
  EXPECT_EQ(commits[0].version, 1u);
  EXPECT_EQ(commits[0].sum_weight, 3.5);
  EXPECT_EQ(commits[0].trigger, "cohort complete");
  ASSERT_THAT(commits[0].contributors, SizeIs(2));
  EXPECT_EQ(commits[0].contributors[0].key.client, "a");  // by client, whatever the order of arrival
  EXPECT_EQ(commits[0].contributors[0].examples, 10u);
  EXPECT_EQ(round_->version(), 0u);                       // until it is durable
}

TEST_F(RoundTest, ClosesWhenQuorumAndDeadlineAreBothMet) {
  spec_.cohort.size = 3;
  spec_.cohort.quorum = 2;
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b");
  TaskOf("c");
  Arrive("a", a, 1);
  Arrive("b", b, 2);
  Fold(1);
  Fold(2);
  EXPECT_THAT(All<Commit>(), IsEmpty());
  now_ += absl::Seconds(60);
  Send(Tick{});
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_EQ(All<Commit>()[0].trigger, "deadline with 2 of 3 updates");
}

TEST_F(RoundTest, BelowTheQuorumTheDeadlineOnlyBringsInOtherClients) {
  Open();
  const uint64_t a = TaskOf("a");
  TaskOf("b");
  EXPECT_EQ(TaskOf("c"), 0u);
  Arrive("a", a, 1);
  Fold(1);
  now_ += absl::Seconds(61);
  Send(Tick{});
  EXPECT_THAT(All<Commit>(), IsEmpty());
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(All<IssueTask>()[0].client, "c");
  EXPECT_EQ(All<IssueTask>()[0].deadline, now_ + absl::Seconds(60));
  EXPECT_THAT(Waiting(), HasSubstr("the deadline passed 1 s ago with 1 of the quorum of 2"));
}

TEST_F(RoundTest, AVersionWithoutContributionsIsNeverCommitted) {
  Open();
  TaskOf("a");
  for (int i = 0; i < 100; ++i) {
    now_ += absl::Seconds(61);
    Send(Tick{});
    EXPECT_THAT(All<Commit>(), IsEmpty());
  }
}

TEST_F(RoundTest, OverSelectedUpdatesExpire) {
  spec_.cohort.over_select = 1.5;
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b"), c = TaskOf("c");
  Arrive("a", a, 1);
  Arrive("b", b, 2);
  EXPECT_THAT(round_->CheckUpload({.client = "c", .task = c, .update = Id(3)}, 0),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("closed: cohort complete")));
  Arrive("c", c, 3);
  ASSERT_THAT(All<Refuse>(), SizeIs(1));
  EXPECT_TRUE(All<Refuse>()[0].expired);
  Fold(1);
  Fold(2);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_THAT(All<Commit>()[0].contributors, SizeIs(2));
}

TEST_F(RoundTest, ACommittedVersionOpensTheNextAndCancelsLaggards) {
  spec_.cohort.over_select = 1.5;
  Open();
  const uint64_t c = TaskOf("c");
  RunToCommit(1);
  Send(VersionCommitted{.version = 1});
  EXPECT_EQ(round_->version(), 1u);
  ASSERT_THAT(All<CancelTask>(), SizeIs(1));
  EXPECT_EQ(All<CancelTask>()[0].task, c);
  const auto issued = All<IssueTask>();
  ASSERT_THAT(issued, SizeIs(3));
  for (const IssueTask& task : issued) EXPECT_EQ(task.version, 1u);
}

TEST_F(RoundTest, VersionsThatDoNotFollowAreIgnored) {
  Open();
  Send(VersionCommitted{.version = 1});  // nobody asked
  EXPECT_EQ(round_->version(), 0u);
  RunToCommit(1);
  Send(VersionCommitted{.version = 2});
  EXPECT_EQ(round_->version(), 0u);
  Send(VersionCommitted{.version = 1});
  EXPECT_EQ(round_->version(), 1u);
  Send(VersionCommitted{.version = 1});
  EXPECT_EQ(round_->version(), 1u);
}

// ---- losing the aggregate ----

TEST_F(RoundTest, AfterALossTheSameUpdatesAreFoldedAgain) {
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b");
  const UpdateKeyRef key = Arrive("a", a, 1);
  Fold(1);
  Send(AggregateLost{.reason = "worker died"});
  EXPECT_EQ(round_->updates_in(), 0u);
  EXPECT_THAT(All<IssueTask>(), IsEmpty());  // "a" still owes task a
  EXPECT_THAT(round_->CheckUpload(key, 0), IsOk());
  Arrive("a", a, 9);
  EXPECT_THAT(All<Refuse>(), SizeIs(1));     // still one update a task
  Arrive("a", a, 1);
  Arrive("b", b, 2);
  Fold(1);
  Fold(2);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_THAT(All<Commit>()[0].contributors, SizeIs(2));
}

TEST_F(RoundTest, ALossDuringTheCommitTakesTheCommitBack) {
  Open();
  RunToCommit(1);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  Send(AggregateLost{.reason = "worker died"});
  Send(VersionCommitted{.version = 1});
  EXPECT_EQ(round_->version(), 0u);
}

TEST_F(RoundTest, AfterALossAClientWithNothingLeftGetsANewTask) {
  Open();
  Arrive("a", TaskOf("a"), 1);
  Send(AggregateLost{.reason = "worker died"});
  EXPECT_NE(TaskOf("a"), 0u);
}

// ---- restarts ----

TEST_F(RoundTest, AnOfferOfAnEarlierEpochIsAdoptedInsteadOfANewTask) {
  Open({.version = 1, .epoch = 2, .restored = {}});
  const UpdateKeyRef offer{.client = "a", .task = (uint64_t{1} << 32) + 5, .update = Id(1)};
  Idle("a", {offer});
  EXPECT_THAT(All<IssueTask>(), IsEmpty());
  Idle("a", {offer});  // said twice
  EXPECT_THAT(actions_, IsEmpty());
  EXPECT_THAT(round_->CheckUpload(offer, 1), IsOk());
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = offer.task, .update = Id(2)}, 1), StatusIs(absl::StatusCode::kAlreadyExists));
  Arrive("a", offer.task, 1);
  EXPECT_THAT(All<aggregator::Fold>(), SizeIs(1));
}

TEST_F(RoundTest, AnOfferReplacesATaskThatWasJustIssued) {
  Open({.version = 1, .epoch = 2, .restored = {}});
  const uint64_t fresh = TaskOf("a");
  Idle("a", {{.client = "a", .task = 5, .update = Id(1)}});
  ASSERT_THAT(All<CancelTask>(), SizeIs(1));
  EXPECT_EQ(All<CancelTask>()[0].task, fresh);
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = fresh, .update = Id(2)}, 1), Not(IsOk()));
}

TEST_F(RoundTest, AnUploadOfAnEarlierEpochReplacesATaskThatWasJustIssued) {
  Open({.version = 1, .epoch = 2, .restored = {}});
  const uint64_t fresh = TaskOf("a");
  Arrive("a", 5, 1);
  ASSERT_THAT(All<CancelTask>(), SizeIs(1));
  EXPECT_EQ(All<CancelTask>()[0].task, fresh);
  ASSERT_THAT(All<aggregator::Fold>(), SizeIs(1));
  Arrive("a", fresh, 2);
  EXPECT_THAT(All<aggregator::Fold>(), IsEmpty());
  EXPECT_THAT(All<Refuse>(), SizeIs(1));
}

TEST_F(RoundTest, AnEarlierTaskIsRefusedOnceItsClientContributes) {
  Open({.version = 1, .epoch = 2, .restored = {}});
  Arrive("a", TaskOf("a"), 1);
  EXPECT_THAT(round_->CheckUpload({.client = "a", .task = 5, .update = Id(2)}, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("contributes")));
}

TEST_F(RoundTest, RestoredContributorsCountAndTheirOffersAreIgnored) {
  const UpdateKeyRef key{.client = "a", .task = 5, .update = Id(1)};
  Open({.version = 1, .epoch = 2, .restored = {{.key = key, .weight = 4, .examples = 4, .staleness = 0}}});
  EXPECT_EQ(round_->updates_in(), 1u);
  Idle("a", {key});
  EXPECT_THAT(All<IssueTask>(), IsEmpty());
  Arrive("b", TaskOf("b"), 2, 1, 3);
  Fold(2);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_EQ(All<Commit>()[0].sum_weight, 7);
}

TEST_F(RoundTest, ACompleteRestoredAggregateCommitsAtTheFirstEvent) {
  Open({.version = 1,
        .epoch = 2,
        .restored = {{.key = {.client = "a", .task = 5, .update = Id(1)}, .weight = 4, .examples = 4, .staleness = 0},
                     {.key = {.client = "b", .task = 6, .update = Id(2)}, .weight = 4, .examples = 4, .staleness = 0}}});
  Send(Tick{});
  EXPECT_THAT(All<Commit>(), SizeIs(1));
}

TEST_F(RoundTest, AContributorRestoredTwiceCountsOnce) {
  const RoundContributor contributor{.key = {.client = "a", .task = 5, .update = Id(1)}, .weight = 4, .examples = 4, .staleness = 0};
  Open({.version = 1, .epoch = 2, .restored = {contributor, contributor}});
  Send(Tick{});
  EXPECT_THAT(All<Commit>(), IsEmpty());
  EXPECT_EQ(round_->updates_in(), 1u);
}

TEST_F(RoundTest, ForeignOffersAreIgnored) {
  Open({.version = 1, .epoch = 2, .restored = {}});
  Idle("a", {{.client = "b", .task = 5, .update = Id(1)}, {.client = "a", .task = (uint64_t{2} << 32) + 8, .update = Id(2)}});
  EXPECT_THAT(All<IssueTask>(), SizeIs(1));
}

TEST_F(RoundTest, AnUpdateOfATaskWhoseClientReconnectedIsStillTaken) {
  Open();
  const uint64_t task = TaskOf("a");
  Send(ClientGone{.client = "a"});
  Arrive("a", task, 1);
  EXPECT_THAT(All<aggregator::Fold>(), SizeIs(1));
}

// ---- the end ----

TEST_F(RoundTest, EvaluatesEveryNthVersionAndTheLastThenIsDone) {
  Open();
  std::vector<uint64_t> evaluated;
  for (uint64_t version = 1; version <= 3; ++version) {
    for (const IssueTask& task : All<IssueTask>()) Arrive(task.client, task.task, 100 * version + task.task);
    RunToCommit(1000 * version);
    if (All<Commit>().empty()) {  // contributors of the open version came from the actions above
      for (uint64_t id = 1; id <= 10; ++id) Fold(100 * version + (uint64_t{1} << 32) + id);
    }
    Send(VersionCommitted{.version = version});
    for (const Evaluate& evaluate : All<Evaluate>()) evaluated.push_back(evaluate.version);
  }
  EXPECT_THAT(evaluated, ElementsAre(2, 3));
  ASSERT_THAT(All<Finish>(), SizeIs(1));
  EXPECT_EQ(All<Finish>()[0].outcome, Outcome::kDone);
  EXPECT_TRUE(round_->finished());
  EXPECT_EQ(Waiting(), "");
  Idle("z");
  EXPECT_THAT(actions_, IsEmpty());
  EXPECT_THAT(round_->CheckUpload({.client = "z", .task = 1, .update = Id(1)}, 3), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(RoundTest, ARoundReopenedAtItsLastVersionFinishes) {
  Open({.version = 3, .epoch = 2, .restored = {}});
  Send(Tick{});
  EXPECT_THAT(All<Evaluate>(), SizeIs(1));
  EXPECT_THAT(All<Finish>(), SizeIs(1));
}

TEST_F(RoundTest, ReachingTheAccuracyFinishesAfterTheCommitUnderWay) {
  spec_.stop.accuracy = 0.9;
  Open();
  Send(MetricReported{.version = 0, .accuracy = 0.89});
  EXPECT_THAT(All<Finish>(), IsEmpty());
  Send(MetricReported{.version = 0, .accuracy = std::nan("")});
  EXPECT_THAT(All<Finish>(), IsEmpty());
  RunToCommit(1);
  Send(MetricReported{.version = 0, .accuracy = 0.9});
  EXPECT_THAT(All<Finish>(), IsEmpty());
  Send(VersionCommitted{.version = 1});
  EXPECT_THAT(All<Evaluate>(), SizeIs(1));
  ASSERT_THAT(All<Finish>(), SizeIs(1));
  EXPECT_EQ(All<Finish>()[0].outcome, Outcome::kDone);
  EXPECT_THAT(All<Finish>()[0].reason, HasSubstr("0.9"));
  EXPECT_EQ(round_->version(), 1u);
}

TEST_F(RoundTest, CancellingReleasesEverything) {
  Open();
  Arrive("a", TaskOf("a"), 1);
  TaskOf("b");
  Send(CancelRequested{.reason = "by the operator"});
  EXPECT_THAT(All<CancelTask>(), SizeIs(1));
  ASSERT_THAT(All<Refuse>(), SizeIs(1));
  EXPECT_TRUE(All<Refuse>()[0].expired);
  ASSERT_THAT(All<Finish>(), SizeIs(1));
  EXPECT_EQ(All<Finish>()[0].outcome, Outcome::kCancelled);
  EXPECT_EQ(All<Finish>()[0].reason, "by the operator");
}

TEST_F(RoundTest, CancellingDuringACommitWaitsForIt) {
  Open();
  RunToCommit(1);
  Send(CancelRequested{.reason = "by the operator"});
  EXPECT_THAT(All<Finish>(), IsEmpty());
  Send(VersionCommitted{.version = 1});
  ASSERT_THAT(All<Finish>(), SizeIs(1));
  EXPECT_EQ(All<Finish>()[0].outcome, Outcome::kCancelled);
  EXPECT_EQ(round_->version(), 1u);
}

TEST_F(RoundTest, AfterTheEndNoEventProducesAnything) {
  spec_.stop.accuracy = 0.9;
  Open();
  const uint64_t task = TaskOf("a");
  Send(CancelRequested{.reason = "by the operator"});
  for (const RoundEvent& event : std::vector<RoundEvent>{
           Tick{}, CancelRequested{.reason = "again"}, MetricReported{.version = 0, .accuracy = 1}, ClientIdle{.client = "b", .offers = {}},
           UpdateArrived{.key = {.client = "a", .task = task, .update = Id(1)}, .version = 0, .weight = 1, .examples = 1},
           VersionCommitted{.version = 1}, AggregateLost{.reason = "x"}, TaskDeclined{.client = "a", .task = task, .reason = "x"},
           ClientGone{.client = "a"}}) {
    Send(event);
    EXPECT_THAT(actions_, IsEmpty()) << event.index();
  }
}

// ---- other policies on the same engine ----

TEST_F(RoundTest, AStaleUpdateCountsAsMuchAsItsPolicySays) {
  strategy_ = std::make_unique<BufferedStrategy>();
  spec_.stop.versions = 100;
  Open();
  const uint64_t slow = TaskOf("slow");
  RunToCommit(1);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  Send(VersionCommitted{.version = 1});
  EXPECT_THAT(All<CancelTask>(), IsEmpty());
  Arrive("slow", slow, 50, 0, 8);
  ASSERT_THAT(All<aggregator::Fold>(), SizeIs(1));
  EXPECT_EQ(All<aggregator::Fold>()[0].weight, 4);
}

TEST_F(RoundTest, AnUpdateThatArrivesDuringACommitGoesIntoTheNextOne) {
  strategy_ = std::make_unique<BufferedStrategy>();
  spec_.stop.versions = 100;
  Open();
  const uint64_t slow = TaskOf("slow");
  RunToCommit(1);
  Arrive("slow", slow, 50, 0, 8);
  EXPECT_THAT(All<aggregator::Fold>(), IsEmpty());
  EXPECT_THAT(All<Refuse>(), IsEmpty());
  Send(VersionCommitted{.version = 1});
  ASSERT_THAT(All<aggregator::Fold>(), SizeIs(1));
  EXPECT_EQ(All<aggregator::Fold>()[0].weight, 4);
  EXPECT_EQ(round_->updates_in(), 1u);
}

// ---- other nodes ----

TEST_F(RoundTest, WhatNodesBringIsNotAskedOfClientsHere) {
  spec_.cohort.size = 3;
  Open();
  Send(NodesExpected{.updates = 2});
  EXPECT_NE(TaskOf("a"), 0u);
  EXPECT_EQ(TaskOf("b"), 0u);
  EXPECT_THAT(Waiting(), HasSubstr("waiting for 3 more of 3 updates: 1 client training (oldest 0 s), 2 from other nodes; deadline"));
  Send(NodesExpected{.updates = 1});  // the node gives one back
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(All<IssueTask>()[0].client, "b");
}

TEST_F(RoundTest, APartialsContributorsCountLikeUpdatesThatCameHere) {
  spec_.cohort.size = 3;
  Open();
  Send(NodesExpected{.updates = 2});
  const uint64_t a = TaskOf("a");
  Arrive("a", a, 1, {}, 4);
  Fold(1);
  // Task ids of another engine: one of them is the number of ours.
  const std::vector<RoundContributor> brought = {{{"x", a, Id(8)}, 2, 10, 0}, {{"y", 77, Id(9)}, 0.5, 10, 0}};
  std::vector<UpdateId> overlap;
  ASSERT_THAT(round_->CheckPartial(0, brought, &overlap), IsOk());
  Send(PartialArrived{.contributors = brought});
  EXPECT_THAT(All<aggregator::Fold>(), IsEmpty()) << "there is nothing for the workers to do";
  EXPECT_THAT(All<Commit>(), IsEmpty()) << "its sums are not in yet";
  Fold(8);
  Fold(9);
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_THAT(All<Commit>()[0].contributors, SizeIs(3));
  EXPECT_EQ(All<Commit>()[0].sum_weight, 6.5);
  Send(VersionCommitted{.version = 1});
  EXPECT_EQ(round_->version(), 1u);
}

TEST_F(RoundTest, APartialIsRefusedWhereItsUpdatesOrTheirClientsCountAlready) {
  spec_.cohort.size = 3;
  Open();
  Arrive("a", TaskOf("a"), 1);
  std::vector<UpdateId> overlap;
  const auto check = [&](uint64_t version, RoundContributor contributor) {
    return round_->CheckPartial(version, {{{"z", 5, Id(99)}, 1, 10, 0}, std::move(contributor)}, &overlap);
  };
  EXPECT_THAT(check(0, {{"x", 5, Id(8)}, 1, 10, 0}), IsOk());
  EXPECT_THAT(check(0, {{"x", 5, Id(1)}, 1, 10, 0}), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(overlap, ElementsAre(Id(1)));
  EXPECT_THAT(check(0, {{"a", 5, Id(8)}, 1, 10, 0}), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(overlap, ElementsAre(Id(8)));
  EXPECT_THAT(check(1, {{"x", 5, Id(8)}, 1, 10, 0}), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 1")));
  EXPECT_THAT(check(0, {{"x", 5, Id(8)}, 1, 10, 3}), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("3 versions old")));
  EXPECT_THAT(check(0, {{"x", 5, Id(8)}, 1e30, 10, 0}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight")));
  EXPECT_EQ(round_->updates_in(), 1u);
}

TEST_F(RoundTest, ALostAggregateTakesPartialsWithItAndAsksNobodyHereForThem) {
  Open();
  Send(NodesExpected{.updates = 2});
  Idle("x");  // of the same name as a client there, and idle here
  Send(PartialArrived{.contributors = {{{"x", 5, Id(8)}, 1, 10, 0}}});
  Send(NodesExpected{.updates = 2});
  Send(AggregateLost{.reason = "gone"});
  EXPECT_EQ(round_->updates_in(), 0u);
  EXPECT_THAT(All<IssueTask>(), IsEmpty());
  Fold(8);  // comes too late, for nothing
  EXPECT_THAT(All<Commit>(), IsEmpty());
}

TEST_F(RoundTest, UnderAnotherEngineItAsksForAsManyAsThatOneWants) {
  spec_.cohort.size = 0;
  Open();
  EXPECT_EQ(TaskOf("a"), 0u);
  EXPECT_EQ(TaskOf("b"), 0u);
  CohortSpec one = spec_.cohort;
  one.size = 1;
  Send(CohortChanged{.cohort = one});
  ASSERT_THAT(All<IssueTask>(), SizeIs(1));
  one.size = 2;
  Send(CohortChanged{.cohort = one});
  EXPECT_THAT(All<IssueTask>(), SizeIs(1));
  EXPECT_EQ(round_->updates_expected(), 2);
}

TEST_F(RoundTest, AnAdoptedVersionExpiresWhatItDoesNotHold) {
  spec_.cohort.size = 3;
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b"), c = TaskOf("c");
  Arrive("a", a, 1);
  const UpdateKeyRef late = Arrive("b", b, 2);
  Send(VersionAdopted{.version = 1, .counted = {Id(1)}});
  ASSERT_THAT(All<Refuse>(), SizeIs(1));
  EXPECT_EQ(All<Refuse>()[0].key, late);
  EXPECT_TRUE(All<Refuse>()[0].expired);
  ASSERT_THAT(All<CancelTask>(), SizeIs(1)) << "c trains from a version that is past";
  EXPECT_EQ(All<CancelTask>()[0].task, c);
  EXPECT_EQ(round_->version(), 1u);
  EXPECT_EQ(round_->updates_in(), 0u);
  EXPECT_THAT(All<IssueTask>(), SizeIs(3));
  Send(VersionAdopted{.version = 1, .counted = {}});
  EXPECT_THAT(actions_, IsEmpty());
}

// ---- what people see ----

TEST_F(RoundTest, SaysThatItWaitsForClients) {
  Open();
  Send(Tick{});
  EXPECT_THAT(Waiting(), HasSubstr("waiting for clients: none of 2 connected; deadline in 60 s"));
}

TEST_F(RoundTest, SaysWhoTrainsSinceWhenAndHowManyAreMissing) {
  spec_.cohort.size = 3;
  Open();
  const uint64_t a = TaskOf("a");
  now_ += absl::Seconds(20);
  TaskOf("b");
  now_ += absl::Seconds(21);
  EXPECT_EQ(Waiting(), "waiting for 3 more of 3 updates: 2 clients training (oldest 41 s), 2 of 3 clients connected; deadline in 19 s");
  Arrive("a", a, 1);
  EXPECT_THAT(Waiting(), HasSubstr("waiting for 2 more of 3 updates: 1 client training (oldest 21 s)"));
}

TEST_F(RoundTest, SaysWhoDeclinedAndWhy) {
  Open();
  Send(TaskDeclined{.client = "a", .task = TaskOf("a"), .reason = "battery low"});
  EXPECT_THAT(Waiting(), AllOf(HasSubstr("waiting for clients: 1 of 2 connected"), HasSubstr("declined: a (battery low)")));
}

TEST_F(RoundTest, SaysNothingWhileItFoldsOrCommits) {
  Open();
  const uint64_t a = TaskOf("a"), b = TaskOf("b");
  Arrive("a", a, 1);
  Arrive("b", b, 2);
  EXPECT_EQ(Waiting(), "");
  Fold(1);
  Fold(2);
  EXPECT_EQ(Waiting(), "");
}

// Poisson sampling may take nobody: the version counts, and so does what it costs.
TEST_F(RoundTest, CommitsWithoutUpdatesWhenNobodyIsDrawn) {
  spec_.cohort = {.size = 1, .poisson = true, .rate = 1e-9, .population = 2};
  Open();
  Idle("a");
  EXPECT_THAT(All<Commit>(), IsEmpty()) << "nobody is drawn among fewer than the population";
  Idle("b");
  ASSERT_THAT(All<Commit>(), SizeIs(1));
  EXPECT_THAT(All<Commit>()[0].contributors, IsEmpty());
  EXPECT_EQ(All<Commit>()[0].trigger, "nobody was drawn");
  EXPECT_THAT(All<IssueTask>(), IsEmpty());
  for (uint64_t version = 1; version <= 2; ++version) {
    Send(VersionCommitted{version});
    ASSERT_THAT(All<Commit>(), SizeIs(1)) << version;
  }
  Send(VersionCommitted{3});
  EXPECT_THAT(All<Finish>(), SizeIs(1));
}

}  // namespace
}  // namespace tributary::aggregator
