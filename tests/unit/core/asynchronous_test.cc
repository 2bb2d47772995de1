// The asynchronous strategies through the engine: the golden events of algorithms.md §8, and what each policy promises.
#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/core/memory_federation.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Contributed = MemoryFederation::Contributed;

std::vector<std::pair<std::string, uint64_t>> ClientsOf(const MemoryFederation::Committed& commit) {
  std::vector<std::pair<std::string, uint64_t>> out;
  for (const Contributed& c : commit.by) out.emplace_back(c.client, c.staleness);
  return out;
}

// "D0": the client comes and is given the current model; "U0": it leaves with its update, so that the trace says when it comes again.
void Play(MemoryFederation* federation, const std::string& events) {
  for (size_t i = 0; i + 1 < events.size(); i += 3) {
    const std::string client(1, events[i + 1]);
    if (events[i] == 'D') {
      federation->Idle(client);
      ASSERT_TRUE(federation->HasTask(client)) << "event " << i / 3;
    } else {
      federation->Gone(client);
      federation->Upload(client);
    }
  }
}

TEST(FedBuffTest, PlaysTheGoldenEvents) {
  MemoryFederation federation({.name = "fedbuff", .params = {{"buffer", "2"}}}, 4);
  Play(&federation, "D0 D1 D2 D3 U0 D0 U1 D1 U0 D0 U1 D1 U0 U2 D0 D2 U1 U3 D1 D3 U2 U0");
  using Pairs = std::vector<std::pair<std::string, uint64_t>>;
  ASSERT_EQ(federation.commits().size(), 5u);
  EXPECT_EQ(ClientsOf(federation.commits()[0]), (Pairs{{"0", 0}, {"1", 0}}));
  EXPECT_EQ(ClientsOf(federation.commits()[1]), (Pairs{{"0", 1}, {"1", 0}}));
  EXPECT_EQ(ClientsOf(federation.commits()[2]), (Pairs{{"0", 1}, {"2", 2}}));
  EXPECT_EQ(ClientsOf(federation.commits()[3]), (Pairs{{"1", 1}, {"3", 3}}));
  EXPECT_EQ(ClientsOf(federation.commits()[4]), (Pairs{{"0", 1}, {"2", 1}}));
  EXPECT_NEAR(federation.x()[0], 1.617261206746, 1e-9);
  EXPECT_NEAR(federation.x()[1], -0.151282065492, 1e-9);
  EXPECT_THAT(federation.refused(), ElementsAre());
}

TEST(FedBuffTest, ImmediateRestartsTheContributorAndCommitLetsItWait) {
  for (const bool immediate : {true, false}) {
    MemoryFederation federation({.name = "fedbuff", .params = {{"buffer", "2"}, {"restart", immediate ? "immediate" : "commit"}}}, 4);
    for (const char* client : {"0", "1"}) federation.Idle(client);
    federation.Upload("0");
    EXPECT_EQ(federation.HasTask("0"), immediate);
    federation.Upload("1");
    EXPECT_TRUE(federation.HasTask("0"));
    EXPECT_TRUE(federation.HasTask("1"));
    ASSERT_EQ(federation.commits().size(), 1u);
  }
}

TEST(FedBuffTest, OncePerBufferKeepsTheSecondUpdateForTheNext) {
  MemoryFederation federation({.name = "fedbuff", .params = {{"buffer", "2"}, {"once_per_buffer", "true"}}}, 4);
  for (const char* client : {"0", "1"}) federation.Idle(client);
  federation.Upload("0");
  federation.Upload("0");
  EXPECT_EQ(federation.commits().size(), 0u);
  federation.Upload("1");
  ASSERT_EQ(federation.commits().size(), 1u);
  EXPECT_EQ(federation.round().updates_in(), 1u);  // the second of client 0, one commit old now
  federation.Upload("1");
  ASSERT_EQ(federation.commits().size(), 2u);
  EXPECT_THAT(ClientsOf(federation.commits()[1]), ElementsAre(std::pair<std::string, uint64_t>("0", 1), std::pair<std::string, uint64_t>("1", 0)));
}

TEST(FedBuffTest, StalenessKindsWeighAsTheyAreWritten) {
  const auto factor = [](ParamMap params, uint64_t staleness) {
    const auto strategy = MakeStrategy({.name = "fedbuff", .params = std::move(params)});
    CohortSpec cohort;
    cohort.size = 1;
    return (*strategy)->MakePolicies(cohort).staleness->Factor(staleness);
  };
  EXPECT_NEAR(*factor({}, 3), 0.5, 1e-15);
  EXPECT_EQ(*factor({{"staleness.kind", "constant"}}, 9), 1.0);
  EXPECT_EQ(*factor({{"staleness.kind", "hinge"}}, 4), 1.0);
  EXPECT_EQ(*factor({{"staleness.kind", "hinge"}}, 6), 0.5);
  EXPECT_EQ(factor({{"max_staleness", "2"}}, 3), std::nullopt);
  EXPECT_TRUE(factor({{"max_staleness", "2"}}, 2).has_value());
}

TEST(FedBuffTest, TooStaleUpdatesAreRefusedByName) {
  MemoryFederation federation({.name = "fedbuff", .params = {{"buffer", "1"}, {"max_staleness", "1"}}}, 4);
  for (const char* client : {"0", "1"}) federation.Idle(client);
  federation.Upload("0");
  EXPECT_TRUE(federation.HasTask("1"));
  federation.Upload("0");
  // Its task is of version 0 and two commits old: cancelled, and given anew from the current one.
  federation.Upload("1");
  ASSERT_EQ(federation.commits().size(), 3u);
  EXPECT_THAT(ClientsOf(federation.commits()[2]), ElementsAre(std::pair<std::string, uint64_t>("1", 0)));
}

TEST(AsyncFedAvgTest, EveryArrivalIsACommitOfOneUpdate) {
  MemoryFederation federation({.name = "async_fedavg", .params = {{"weight", "none"}}}, 4);
  for (const char* client : {"0", "1", "2", "3"}) federation.Idle(client);
  Point expected = {0, 0};
  for (const int client : {0, 1, 2, 3}) {  // all started from version 0
    federation.Upload(std::to_string(client));
    const Point delta = kQ4[static_cast<size_t>(client)].Delta({0, 0}, 5, 0.1);
    expected = {expected[0] + delta[0], expected[1] + delta[1]};
  }
  ASSERT_EQ(federation.commits().size(), 4u);
  EXPECT_THAT(ClientsOf(federation.commits()[3]), ElementsAre(std::pair<std::string, uint64_t>("3", 3)));
  EXPECT_NEAR(federation.x()[0], expected[0], 1e-12);
  EXPECT_NEAR(federation.x()[1], expected[1], 1e-12);
}

TEST(AsyncFedAvgTest, OnlineWeightsAreImportanceTimesTheMeanInterval) {
  MemoryFederation federation({.name = "async_fedavg", .params = {}}, 4);
  for (const char* client : {"0", "1", "2", "3"}) federation.Idle(client);
  for (const char* client : {"0", "0", "1", "0", "1"}) federation.Upload(client);
  std::vector<double> weights;
  for (const auto& commit : federation.commits()) weights.push_back(commit.by[0].weight);
  // Client 0 in commits 1, 2, 4: intervals 1, 1 before the last; client 1 in 3 and 5: interval 3 before the last.
  EXPECT_THAT(weights, ElementsAre(0.25, 0.25, 0.25, 0.25, 0.75));
}

TEST(AsyncFedAvgTest, KnownFrequenciesDivideTheImportance) {
  MemoryFederation federation({.name = "async_fedavg", .params = {{"weight", "known"}, {"frequency", "0.5, 0.25, 0.125, 0.125"}}}, 4);
  federation.Register({"0", "1", "2", "3"});
  for (const char* client : {"0", "2"}) federation.Idle(client);
  for (const char* client : {"0", "2"}) federation.Upload(client);
  EXPECT_EQ(federation.commits()[0].by[0].weight, 0.5);
  EXPECT_EQ(federation.commits()[1].by[0].weight, 2.0);
}

TEST(FedAsyncTest, MixesTheModelsOfTheVersionThatTheClientStartedFrom) {
  MemoryFederation federation({.name = "fedasync", .params = {{"alpha", "0.6"}}}, 4);
  for (const char* client : {"0", "1"}) federation.Idle(client);
  federation.Upload("0");
  federation.Upload("1");
  const Point first = kQ4[0].Delta({0, 0}, 5, 0.1), second = kQ4[1].Delta({0, 0}, 5, 0.1);
  const Point one = {0.6 * first[0], 0.6 * first[1]};
  const double alpha = 0.6 / std::sqrt(2.0);
  EXPECT_NEAR(federation.models()[1][0], one[0], 1e-12);
  EXPECT_NEAR(federation.models()[2][0], one[0] + alpha * (second[0] - one[0]), 1e-12);
  EXPECT_NEAR(federation.models()[2][1], one[1] + alpha * (second[1] - one[1]), 1e-12);
}

TEST(FedFixTest, AClientOfTheTicksLengthMissesNoTick) {
  const absl::Duration interval = absl::Nanoseconds(300'000'000);
  MemoryFederation federation({.name = "fedfix", .params = {{"interval_s", "0.3"}, {"weight", "none"}}}, 4);
  for (const char* client : {"0", "1", "2", "3"}) federation.Idle(client);
  for (int tick = 1; tick <= 20; ++tick) {
    ASSERT_EQ(federation.wake(), absl::UnixEpoch() + tick * interval);
    federation.Advance(interval);
    federation.Upload("0");  // arrives at the very moment of the tick, before it
    federation.Upload("1");
    federation.Tick(absl::ZeroDuration());
    ASSERT_EQ(federation.commits().size(), static_cast<size_t>(tick));
    EXPECT_EQ(federation.commits().back().by.size(), 2u);
    EXPECT_TRUE(federation.HasTask("0"));
  }
}

TEST(FedFixTest, AnEmptyTickCommitsNothingAndIsCounted) {
  MemoryFederation federation({.name = "fedfix", .params = {{"interval_s", "1"}}}, 4);
  for (const char* client : {"0", "1"}) federation.Idle(client);
  federation.Tick(absl::Seconds(1));
  federation.Tick(absl::Seconds(1));
  EXPECT_EQ(federation.commits().size(), 0u);
  federation.Upload("0");
  federation.Tick(absl::Milliseconds(500));  // no tick of the grid
  EXPECT_EQ(federation.commits().size(), 0u);
  federation.Tick(absl::Milliseconds(500));
  ASSERT_EQ(federation.commits().size(), 1u);
  EXPECT_EQ(federation.commits()[0].by[0].weight, 0.5);  // p = 1/2 until an interval is closed
  EXPECT_EQ(MeanInterval(federation.round().clients().Find("0")), 3);
  federation.Upload("0");
  federation.Tick(absl::Seconds(1));
  EXPECT_EQ(federation.commits()[1].by[0].weight, 1.5);
}

TEST(FedFixTest, OnlyTheTicksContributorsGetTheNewModel) {
  MemoryFederation federation({.name = "fedfix", .params = {{"interval_s", "1"}, {"weight", "none"}}}, 4);
  for (const char* client : {"0", "1"}) federation.Idle(client);
  federation.Upload("0");
  EXPECT_FALSE(federation.HasTask("0"));
  federation.Tick(absl::Seconds(1));
  EXPECT_TRUE(federation.HasTask("0"));
  federation.Upload("1");
  federation.Upload("0");
  federation.Tick(absl::Seconds(1));
  EXPECT_THAT(ClientsOf(federation.commits()[1]), ElementsAre(std::pair<std::string, uint64_t>("0", 0), std::pair<std::string, uint64_t>("1", 1)));
}

TEST(FedFixTest, AJobMustStateTheInterval) {
  JobSpec spec;
  spec.strategy = {.name = "fedfix", .params = {}};
  spec.cohort.size = 2;
  const auto strategy = MakeStrategy(spec.strategy);
  EXPECT_THAT((*strategy)->CheckJob(spec), tributary::testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("interval_s")));
}

TEST(AsynchronousTest, ARestartBetweenCommitsChangesNoBit) {
  // A restart gives attached clients tasks anew, from the version that is current. So the uploads are of those who would have it anyway.
  const std::vector<std::pair<StrategySpec, std::vector<std::string>>> cases = {
      {{.name = "fedbuff", .params = {{"buffer", "2"}, {"weight", "online"}, {"restart", "commit"}}}, {"0", "1"}},
      {{.name = "async_fedavg", .params = {}}, {"2"}},
      {{.name = "fedasync", .params = {}}, {"1"}},
      {{.name = "fedfix", .params = {{"interval_s", "2"}}}, {"0", "3"}}};
  for (const auto& [strategy, uploaders] : cases) {
    MemoryFederation straight(strategy, 4), restarted(strategy, 4);
    for (MemoryFederation* federation : {&straight, &restarted}) {
      for (const char* client : {"0", "1", "2", "3"}) federation->Idle(client);
      for (int round = 0; round < 8; ++round) {
        const size_t before = federation->commits().size();
        if (round % 3 != 1 || strategy.name != "fedfix") {
          for (const std::string& client : uploaders) federation->Upload(client);
        }
        federation->Tick(absl::Seconds(2));
        // Of empty ticks since the last commit nothing is stored: a restart after one would count it as downtime.
        if (federation == &restarted && federation->commits().size() > before) federation->Restart();
      }
    }
    EXPECT_EQ(straight.models(), restarted.models()) << strategy.name;
    EXPECT_GT(straight.models().size(), 4u);
  }
}

}  // namespace
}  // namespace tributary::aggregator
