// The control stream: Hello first and once, limits, closing, slow readers.
#include <thread>

#include "tests/integration/ingress/fake_backend.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Code = absl::StatusCode;

class AttachTest : public IngressTest {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::ClientMessage, v1::ServerMessage>;
  static v1::ClientMessage Hello() {
    v1::ClientMessage message;
    message.mutable_hello()->set_device("cpu");
    message.mutable_hello()->set_trains(true);
    return message;
  }
  static v1::ClientMessage Heartbeat(float progress = 0.5f) {
    v1::ClientMessage message;
    message.mutable_heartbeat()->set_progress(progress);
    return message;
  }
  // Sends the messages and returns how the server ends the stream.
  absl::Status Run(const std::vector<v1::ClientMessage>& messages) {
    grpc::ClientContext context;
    Identify(&context, "site-a");
    const auto stream = stub->Attach(&context);
    for (const auto& message : messages) {
      if (!stream->Write(message)) break;
    }
    v1::ServerMessage answer;
    while (stream->Read(&answer)) {
    }
    return FromGrpc(stream->Finish());
  }
  int detached() {
    absl::MutexLock lock(&federation->mutex);
    return federation->detached;
  }
  std::shared_ptr<ControlStream> Sending(const std::string& client) {
    absl::MutexLock lock(&federation->mutex);
    return federation->streams[client];
  }
};

TEST_F(AttachTest, WelcomesPassesMessagesOnAndDetaches) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::ServerMessage answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_TRUE(answer.has_welcome());
  ASSERT_TRUE(stream->Write(Heartbeat()));
  EXPECT_TRUE(Eventually([&] {
    absl::MutexLock lock(&federation->mutex);
    return federation->messages.size() == 1;
  }));
  for (int i = 0; i < 100; ++i) {
    v1::ServerMessage message;
    message.mutable_cancel()->set_task(i);
    Sending("site-a")->Send(message);
  }
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(stream->Read(&answer));
    EXPECT_EQ(answer.cancel().task(), static_cast<uint64_t>(i));
  }
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_THAT(FromGrpc(stream->Finish()), IsOk());
  EXPECT_TRUE(Eventually([&] { return detached() == 1; }));
  Sending("site-a")->Send(answer);  // after the end: nothing happens
  Sending("site-a")->Close(absl::OkStatus());
}

TEST_F(AttachTest, RefusesWrongBeginningsAndMessagesByName) {
  StartServer();
  EXPECT_THAT(Run({Heartbeat()}), StatusIs(Code::kFailedPrecondition, HasSubstr("hello")));
  EXPECT_THAT(Run({Hello(), Hello()}), StatusIs(Code::kFailedPrecondition, HasSubstr("second hello")));
  EXPECT_THAT(Run({v1::ClientMessage()}), StatusIs(Code::kFailedPrecondition));
  EXPECT_THAT(Run({Hello(), v1::ClientMessage()}), StatusIs(Code::kInvalidArgument));
  EXPECT_THAT(Run({Hello(), Heartbeat(7)}), StatusIs(Code::kInvalidArgument, HasSubstr("progress")));
  v1::ClientMessage big = Hello();
  for (int i = 0; i < 10'001; ++i) *big.mutable_hello()->add_outbox() = KeyToProto(kJob, 1 + i, {1, 2});
  EXPECT_THAT(Run({big}), StatusIs(Code::kInvalidArgument, HasSubstr("10001")));
  v1::ClientMessage key = Hello();
  *key.mutable_hello()->add_outbox() = KeyToProto(kJob, 1, {1, 2});
  key.mutable_hello()->mutable_outbox(0)->set_update_id("short");
  EXPECT_THAT(Run({key}), StatusIs(Code::kInvalidArgument, HasSubstr("update_id")));
  v1::ClientMessage device = Hello();
  device.mutable_hello()->set_device(std::string(300, 'x'));
  EXPECT_THAT(Run({device}), StatusIs(Code::kInvalidArgument, HasSubstr("device")));
  v1::ClientMessage reason;
  reason.mutable_declined()->set_job(kJob);
  reason.mutable_declined()->set_reason(std::string(100'000, 'x'));
  EXPECT_THAT(Run({Hello(), reason}), StatusIs(Code::kResourceExhausted, HasSubstr("control message")));
  v1::ClientMessage huge = Hello();
  huge.mutable_hello()->set_software(std::string(5 << 20, 'x'));
  const absl::Status over = Run({huge});
  EXPECT_FALSE(over.ok());
  absl::MutexLock lock(&federation->mutex);
  EXPECT_TRUE(federation->messages.empty());
  EXPECT_EQ(federation->hellos, 4);
}

TEST_F(AttachTest, EndsAStreamWithoutHello) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  stream->WaitForInitialMetadata();
  clock.Advance(absl::Seconds(11));
  v1::ServerMessage answer;
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(Code::kDeadlineExceeded, HasSubstr("Hello")));
}

TEST_F(AttachTest, AnIdleStreamWithHelloIsLeftAlone) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::ServerMessage answer;
  ASSERT_TRUE(stream->Read(&answer));
  ASSERT_TRUE(Eventually([&] { return Sending("site-a") != nullptr; }));
  clock.Advance(absl::Hours(1));
  absl::SleepFor(absl::Milliseconds(50));  // ten sweeps
  Sending("site-a")->Send(answer);
  EXPECT_TRUE(stream->Read(&answer));
  EXPECT_EQ(detached(), 0);
}

TEST_F(AttachTest, TheBackendsCloseFlushesWhatIsQueued) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  ASSERT_TRUE(Eventually([&] { return Sending("site-a") != nullptr; }));
  v1::ServerMessage message;
  for (int i = 0; i < 50; ++i) {
    message.mutable_cancel()->set_task(i);
    Sending("site-a")->Send(message);
  }
  message.mutable_draining()->set_reason("going");
  Sending("site-a")->Send(message);
  Sending("site-a")->Close(Unavailable("attached elsewhere"));
  int messages = 0;
  v1::ServerMessage answer;
  while (stream->Read(&answer)) ++messages;
  EXPECT_EQ(messages, 52);  // Welcome, 50, Draining
  EXPECT_TRUE(answer.has_draining());
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(Code::kUnavailable, HasSubstr("elsewhere")));
}

TEST_F(AttachTest, ClosesAClientThatDoesNotRead) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  ASSERT_TRUE(Eventually([&] { return Sending("site-a") != nullptr; }));
  v1::ServerMessage message;
  message.mutable_job()->set_spec_yaml(std::string(200'000, 'x'));
  for (int i = 0; i < 1000; ++i) Sending("site-a")->Send(message);  // 200 MB: the queue ends it long before
  EXPECT_TRUE(Eventually([&] { return detached() == 1; }));
  v1::ServerMessage answer;
  while (stream->Read(&answer)) {
  }
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(AttachTest, ShutdownEndsControlStreamsAtOnce) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::ServerMessage answer;
  ASSERT_TRUE(stream->Read(&answer));
  std::jthread reader([&] {
    while (stream->Read(&answer)) {
    }
    EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(Code::kUnavailable));
  });
  const absl::Time start = absl::Now();
  server->Shutdown(absl::Seconds(30));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_EQ(detached(), 1);
}

}  // namespace
}  // namespace tributary::aggregator
