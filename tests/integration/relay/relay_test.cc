// Service Relay over gRPC: a real coordinator as the top, and a node that is a few lines of test code, honest or not.
#include <absl/synchronization/mutex.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "aggregator/daemon/backend_adapter.h"
#include "aggregator/ingress/relay_client.h"
#include "aggregator/ingress/server.h"
#include "proto/grpc_status.h"
#include "proto/relay_codec.h"
#include "tests/integration/coordinator/federation_fixture.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

const std::string kSecret(64, 'a');

class RelayTest : public FederationTest {
 protected:
  RelayTest() {
    options_.relay_nodes = {"edge"};
    options_.heartbeat = absl::Seconds(1);
  }
  void SetUp() override {
    FederationTest::SetUp();
    adapter_ = std::make_unique<BackendAdapter>(coordinator_.get());
    GrpcServer::Options options;
    options.local_transfer = false;
    TRIB_ASSERT_OK_AND_ASSIGN(server_, GrpcServer::Start(options, adapter_.get(), adapter_.get(), adapter_.get()));
    address_ = fmt::format("127.0.0.1:{}", server_->port());
  }
  void TearDown() override {
    node_.reset();
    server_.reset();
    FederationTest::TearDown();
  }

  // The node, attached, with so many clients.
  void StartNode(uint32_t clients, uint64_t epoch = 5) {
    node_ = std::make_unique<RelayClient>(RelayClient::Options{address_, "edge", kSecret});
    node_->Start({[=] {
                    v1::NodeHello hello;
                    hello.set_epoch(epoch);
                    hello.set_capacity(20);
                    hello.set_clients(clients);
                    return hello;
                  },
                  [this](const v1::TopMessage& message) {
                    absl::MutexLock lock(&mutex_);
                    messages_.push_back(message);
                  }});
    ASSERT_TRUE(Until([&] {
      const v1::Node shown = coordinator_->GetNode();
      return shown.nodes_size() == 1 && shown.nodes(0).attached();
    }));
  }

  v1::RelayRound AwaitRound(const std::string& job, const std::function<bool(const v1::RelayRound&)>& wanted) {
    v1::RelayRound found;
    EXPECT_TRUE(Until([&] {
      absl::MutexLock lock(&mutex_);
      for (const v1::TopMessage& message : messages_) {
        if (!message.has_round() || message.round().job() != job || !wanted(message.round())) continue;
        found = message.round();
        return true;
      }
      return false;
    }));
    return found;
  }

  struct Built {
    CheckedPartial partial;
    std::vector<std::byte> sums;
  };
  // Σ w·value over clients "n0", "n1", …, every element alike, the counter = `count`.
  Built Build(const v1::RelayRound& round, const std::vector<double>& weights, double value, int64_t count = 1) {
    Built built;
    built.partial.job = round.job();
    built.partial.version = round.version();
    built.partial.layout = layout_.Fingerprint();
    built.partial.fence = round.fence();
    built.partial.node_epoch = 5;
    for (size_t i = 0; i < weights.size(); ++i) {
      built.partial.contributors.push_back({fmt::format("n{}", i), i + 1, RandomUpdateId(), weights[i], 10, 0, std::string(16, 'd')});
    }
    double sum = 0;
    for (const double weight : weights) sum += weight * value;
    built.sums.resize(layout_.float_count() * 8 + 8);
    for (size_t i = 0; i < layout_.float_count(); ++i) std::memcpy(built.sums.data() + i * 8, &sum, 8);
    std::memcpy(built.sums.data() + layout_.float_count() * 8, &count, 8);
    Seal(&built);
    return built;
  }
  static void Seal(Built* built) {
    CheckedPartial& partial = built->partial;
    partial.bytes = built->sums.size();
    partial.xxh3_128 = Xxh3Digest(built->sums);
    partial.sum_weight = SumOfWeights(partial.contributors);
    partial.contributors_digest = ContributorsDigest(partial.contributors);
  }
  v1::PartialAnswer Push(const Built& built) {
    // In two pieces, as shards would be.
    const std::span<const std::byte> all(built.sums);
    const std::vector<std::span<const std::byte>> pieces = {all.first(all.size() / 3), all.subspan(all.size() / 3)};
    const absl::StatusOr<v1::PartialAnswer> answer = node_->Push(built.partial, pieces);
    EXPECT_THAT(answer, IsOk());
    return answer.ok() ? *answer : v1::PartialAnswer();
  }

  std::unique_ptr<BackendAdapter> adapter_;
  std::unique_ptr<GrpcServer> server_;
  std::string address_;
  absl::Mutex mutex_;
  std::vector<v1::TopMessage> messages_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RelayClient> node_;
};

TEST_F(RelayTest, APartialCountsLikeItsUpdatesOnceHoweverOftenItIsSent) {
  StartNode(/*clients=*/2);
  TestClient local = Attach("local");
  const std::string job = Submit("");
  const v1::RelayRound round = AwaitRound(job, [](const auto& r) { return r.goal() == 2; });
  const v1::TrainTask task = AwaitTask(local);
  const Built built = Build(round, {1.0, 3.0}, 0.5, /*count=*/9);
  EXPECT_EQ(Push(built).state(), v1::PARTIAL_STATE_TAKEN);
  EXPECT_EQ(Push(built).state(), v1::PARTIAL_STATE_DUPLICATE);
  Built other = Build(round, {1.0}, 0.5);
  const v1::PartialAnswer second = Push(other);
  EXPECT_EQ(second.state(), v1::PARTIAL_STATE_REFUSED);
  EXPECT_THAT(second.reason(), HasSubstr("another partial of this node, of 2 updates"));
  const float before = Value(job, "w", 7, 0);
  EXPECT_THAT(Send(MakeUpdate(local, task, 2.0f, /*weight=*/4, /*count=*/3)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_FLOAT_EQ(Value(job, "w", 7, 1), before + (1.0f * 0.5f + 3.0f * 0.5f + 4.0f * 2.0f) / 8.0f);
  const v1::PartialAnswer late = Push(built);
  EXPECT_EQ(late.state(), v1::PARTIAL_STATE_COMMITTED);
  EXPECT_EQ(late.version(), 1u);
  v1::GetVersionRequest request;
  request.set_job(job);
  request.set_version(1);
  EXPECT_EQ(coordinator_->GetVersion(request)->contributors_size(), 3);
  TRIB_ASSERT_OK_AND_ASSIGN(const v1::RelayVersion seen, node_->GetVersion(job, 1));
  EXPECT_EQ(seen.info().sha256(), coordinator_->GetJob(job)->model_sha256());
  EXPECT_EQ(seen.update_digests_size(), 3);
  std::vector<std::byte> model(layout_.total_bytes());
  ASSERT_THAT(node_->FetchModel(job, 1, model), IsOk());
  EXPECT_EQ(Sha256Hex(model), seen.info().sha256());
}

TEST_F(RelayTest, APartialOfAModelWithExpertsBringsItsClientsCountsAndTheRootDivides) {
  TRIB_ASSERT_OK_AND_ASSIGN(layout_, TensorLayout::Create({{"l.experts.0.w", {4}, DType::kF32, TensorKind::kTrainable},
                                                           {"l.experts.1.w", {4}, DType::kF32, TensorKind::kTrainable},
                                                           {"head", {2}, DType::kF32, TensorKind::kTrainable},
                                                           {"seen", {1}, DType::kI64, TensorKind::kCounter}}));
  StartNode(/*clients=*/2);
  TestClient local = Attach("local");
  const std::string job = Submit("strategy: {name: fedavg, expert_weights: tokens}");
  const v1::RelayRound round = AwaitRound(job, [](const auto& r) { return r.goal() == 2; });
  const v1::TrainTask task = AwaitTask(local);
  Built built = Build(round, {1.0, 3.0}, 0.5);
  const auto counts = [](int64_t zero, int64_t one) {
    return MoeStats{{.counts = {zero, one}, .prob_sum = {static_cast<double>(zero), static_cast<double>(one)}, .square_sum = 1, .tokens = zero + one}};
  };
  // r of the experts: 2 and 0 for the first, ½ and 3/2 for the second.
  built.partial.contributors[0].moe = counts(4, 0);
  built.partial.contributors[1].moe = counts(1, 3);
  const double sums[] = {(1 * 2 + 3 * .5) * .5, 3 * 1.5 * .5};
  for (size_t i = 0; i < 8; ++i) std::memcpy(built.sums.data() + i * 8, &sums[i / 4], 8);
  Seal(&built);
  EXPECT_EQ(Push(built).state(), v1::PARTIAL_STATE_TAKEN);
  Upload own = MakeUpdate(local, task, 2.0f, /*weight=*/4);
  own.header.moe = counts(2, 2);
  EXPECT_THAT(Send(own), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_FLOAT_EQ(Value(job, "l.experts.0.w", 3, 1), (1.75f + 4 * 2) / (3.5f + 4));
  EXPECT_FLOAT_EQ(Value(job, "l.experts.1.w", 0, 1), (2.25f + 4 * 2) / (4.5f + 4));
  EXPECT_FLOAT_EQ(Value(job, "head", 1, 1), (4 * .5f + 4 * 2) / 8);

  const std::string other = Submit("strategy: {name: fedavg, expert_weights: tokens}");
  const v1::PartialAnswer without = Push(Build(AwaitRound(other, [](const auto& r) { return r.goal() == 2; }), {1.0, 3.0}, 0.5));
  EXPECT_EQ(without.state(), v1::PARTIAL_STATE_REFUSED);
  EXPECT_THAT(without.reason(), HasSubstr("strategy.expert_weights: tokens needs the statistics of 1 layers, got none"));
}

TEST_F(RelayTest, ARoundOfPartialsAloneIsCommitted) {
  StartNode(/*clients=*/3);
  const std::string job = Submit("");
  const v1::RelayRound round = AwaitRound(job, [](const auto& r) { return r.goal() == 3; });
  const float before = Value(job, "w", 7, 0);
  EXPECT_EQ(Push(Build(round, {1, 1, 2}, 0.25)).state(), v1::PARTIAL_STATE_TAKEN);
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_FLOAT_EQ(Value(job, "w", 7, 1), before + 0.25f);
}

TEST_F(RelayTest, BadPartialsAreRefusedByNameAndChangeNothing) {
  StartNode(/*clients=*/2);
  TestClient local = Attach("local");
  const std::string job = Submit("");
  const v1::RelayRound round = AwaitRound(job, [](const auto& r) { return r.goal() == 2; });
  const v1::TrainTask task = AwaitTask(local);
  const Built good = Build(round, {1.0, 3.0}, 0.5);
  struct Case {
    const char* what;
    v1::PartialState state;
    const char* reason;
    std::function<void(Built*)> change;
  };
  const std::vector<Case> cases = {
      {"NaN in the sums", v1::PARTIAL_STATE_REFUSED, "element 17",
       [](Built* b) {
         const double nan = std::nan("");
         std::memcpy(b->sums.data() + 17 * 8, &nan, 8);
         Seal(b);
       }},
      {"another model's layout", v1::PARTIAL_STATE_REFUSED, "layout", [](Built* b) { b->partial.layout = std::string(64, '0'); }},
      {"too few bytes", v1::PARTIAL_STATE_REFUSED, "bytes", [](Built* b) { b->sums.resize(b->sums.size() - 8), Seal(b); }},
      {"fixed point in an fp64 job", v1::PARTIAL_STATE_REFUSED, "type of sums", [](Built* b) { b->partial.type = v1::SUMS_TYPE_FIXED40; }},
      {"more contributors than the job asks", v1::PARTIAL_STATE_REFUSED, "contributors", [this, &round](Built* b) { *b = Build(round, {1, 1, 1, 1}, 0.5); }},
      {"a weight that the job gives nobody", v1::PARTIAL_STATE_REFUSED, "weight", [this, &round](Built* b) { *b = Build(round, {1, 1e10}, 0.5); }},
      {"a sum of weights that is not the list's", v1::PARTIAL_STATE_REFUSED, "sum_weight", [](Built* b) { b->partial.sum_weight = 5; }},
      {"bytes that are not the announced ones", v1::PARTIAL_STATE_REFUSED, "XXH3", [](Built* b) { b->partial.xxh3_128 = std::string(16, 'x'); }},
      {"an earlier run of the top", v1::PARTIAL_STATE_FENCED, "fence", [](Built* b) { ++b->partial.fence; }},
      {"an earlier run of the node", v1::PARTIAL_STATE_FENCED, "node epoch 4", [](Built* b) { b->partial.node_epoch = 4; }},
      {"a version that is not there", v1::PARTIAL_STATE_RETRY, "version 9", [](Built* b) { b->partial.version = 9; }},
      {"an unknown job", v1::PARTIAL_STATE_REFUSED, "job", [](Built* b) { b->partial.job = "nothing-000000"; }},
  };
  for (const Case& c : cases) {
    Built bad = good;
    c.change(&bad);
    const v1::PartialAnswer answer = Push(bad);
    EXPECT_EQ(answer.state(), c.state) << c.what << ": " << answer.ShortDebugString();
    EXPECT_THAT(answer.reason(), HasSubstr(c.reason)) << c.what;
    EXPECT_EQ(coordinator_->GetJob(job)->clients_in(), 0u) << c.what;
  }
  EXPECT_GE(coordinator_->GetJob(job)->updates_rejected().at("partial"), 6u);
  EXPECT_EQ(Push(good).state(), v1::PARTIAL_STATE_TAKEN);
  const float before = Value(job, "w", 7, 0);
  EXPECT_THAT(Send(MakeUpdate(local, task, 2.0f, /*weight=*/4)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_FLOAT_EQ(Value(job, "w", 7, 1), before + (4.0f * 0.5f + 4.0f * 2.0f) / 8.0f) << "nothing of the refused ones is in the sums";
}

TEST_F(RelayTest, UpdatesCountedElsewhereAreNamedAndTheRestMayComeWithoutThem) {
  StartNode(/*clients=*/2);
  TestClient local = Attach("n1");  // the same client has been here as well
  const std::string job = Submit("");
  const v1::RelayRound round = AwaitRound(job, [](const auto& r) { return r.goal() == 2; });
  EXPECT_THAT(Send(MakeUpdate(local, AwaitTask(local), 2.0f)), IsOk());
  const Built both = Build(round, {1, 1}, 0.5);
  const v1::PartialAnswer answer = Push(both);
  EXPECT_EQ(answer.state(), v1::PARTIAL_STATE_OVERLAP);
  ASSERT_EQ(answer.overlap_size(), 1);
  EXPECT_EQ(answer.overlap(0), ToBytes(both.partial.contributors[1].update));
  Built rest = Build(round, {1}, 0.5);
  EXPECT_EQ(Push(rest).state(), v1::PARTIAL_STATE_TAKEN);
  EXPECT_EQ(coordinator_->GetJob(job)->clients_in(), 2u);
}

TEST_F(RelayTest, ACutStreamChangesNothingAndTheNextOneIsTaken) {
  StartNode(/*clients=*/3);
  const std::string job = Submit("");
  const v1::RelayRound round = AwaitRound(job, [](const auto& r) { return r.goal() == 3; });
  const Built built = Build(round, {1, 1, 2}, 0.25);
  const auto channel = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  const auto stub = v1::Relay::NewStub(channel);
  const auto send = [&](bool damaged) {
    grpc::ClientContext context;
    context.AddMetadata("tributary-client", "edge");
    context.AddMetadata("tributary-secret", kSecret);
    const auto stream = stub->PushPartial(&context);
    v1::PartialMessage message;
    *message.mutable_header() = PartialToProto(built.partial);
    v1::PartialAnswer answer;
    EXPECT_TRUE(stream->Write(message) && stream->Read(&answer));
    EXPECT_EQ(answer.state(), v1::PARTIAL_STATE_SEND) << answer.ShortDebugString();
    const std::span<const std::byte> half = std::span(built.sums).first(built.sums.size() / 2);
    message.mutable_chunk()->set_bytes(half.data(), half.size());
    message.mutable_chunk()->set_crc32c(Crc32c(half) ^ (damaged ? 1 : 0));
    stream->Write(message);
    if (damaged) {
      EXPECT_FALSE(stream->Read(&answer));
    } else {
      context.TryCancel();
    }
    return stream->Finish();
  };
  EXPECT_EQ(send(/*damaged=*/false).error_code(), grpc::StatusCode::CANCELLED);
  const grpc::Status damaged = send(/*damaged=*/true);
  EXPECT_EQ(damaged.error_code(), grpc::StatusCode::DATA_LOSS) << damaged.error_message();
  EXPECT_EQ(coordinator_->GetJob(job)->clients_in(), 0u);
  EXPECT_EQ(Push(built).state(), v1::PARTIAL_STATE_TAKEN);
  AwaitState(job, v1::JOB_STATE_DONE);
}

TEST_F(RelayTest, OnlyNamedNodesMayAttachAndAnEarlierStartIsFenced) {
  StartNode(/*clients=*/1);
  const auto attach = [&](const std::string& name, uint64_t epoch) {
    grpc::ClientContext context;
    context.AddMetadata("tributary-client", name);
    context.AddMetadata("tributary-secret", kSecret);
    const auto stub = v1::Relay::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    const auto stream = stub->Attach(&context);
    v1::NodeMessage hello;
    if (epoch > 0) {
      hello.mutable_hello()->set_epoch(epoch);
    } else {
      hello.mutable_report();
    }
    stream->Write(hello);
    v1::TopMessage answer;
    EXPECT_FALSE(stream->Read(&answer)) << answer.ShortDebugString();
    return FromGrpc(stream->Finish());
  };
  EXPECT_THAT(attach("stranger", 1), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("relay_nodes")));
  EXPECT_THAT(attach("edge", 4), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("fenced")));
  EXPECT_THAT(attach("edge", 0), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("hello")));
}

TEST_F(RelayTest, WhatALostNodeWasAskedForIsAskedOfOthers) {
  StartNode(/*clients=*/2);
  TestClient one = Attach("one");
  const std::string job = Submit("");
  AwaitRound(job, [](const auto& r) { return r.goal() == 2; });
  EXPECT_THAT(Send(MakeUpdate(one, AwaitTask(one), 1.0f)), IsOk());
  TestClient two = Attach("two");
  TestClient three = Attach("three");
  EXPECT_THAT(coordinator_->GetJob(job)->waiting_for(), HasSubstr("2 from other nodes"));
  node_->Stop();  // for good: three heartbeats of a second
  const auto has_task = [](const v1::ServerMessage& message) { return message.has_train(); };
  EXPECT_TRUE(Until([&] {
    v1::ClientMessage alive;  // those who wait are not away
    alive.mutable_heartbeat()->set_phase(v1::CLIENT_PHASE_IDLE);
    for (const TestClient* client : {&two, &three}) {
      if (client->sink->Count(has_task) == 0) coordinator_->OnMessage(client->session, alive);
    }
    return two.sink->Count(has_task) > 0 && three.sink->Count(has_task) > 0;
  }));
  EXPECT_THAT(Send(MakeUpdate(two, AwaitTask(two), 1.0f)), IsOk());
  EXPECT_THAT(Send(MakeUpdate(three, AwaitTask(three), 1.0f)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
}

}  // namespace
}  // namespace tributary::aggregator
