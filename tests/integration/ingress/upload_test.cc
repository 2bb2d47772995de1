// Uploads that are right, in pieces, over broken connections, stalled, and too many of them.
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "common/unique_fd.h"
#include "tests/integration/ingress/fake_backend.h"
#include "tests/support/sanitized.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Code = absl::StatusCode;

using UploadTest = IngressTest;

size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

TEST_F(UploadTest, FillsTheObjectAndItsHeader) {
  StartServer();
  federation->float_bytes = kUpdate - 8;  // one counter at the end: any bits
  std::string payload = FloatBytes(kUpdate);
  std::memset(payload.data() + payload.size() - 8, 0xff, 8);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  EXPECT_EQ(begun.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(begun.next_offset(), 0u);
  EXPECT_EQ(begun.chunk_bytes(), kChunk);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(begun.upload_id(), payload, 0, 1003)));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  absl::MutexLock lock(&federation->mutex);
  ASSERT_EQ(federation->accepted.size(), 1u);
  const Accepted& entry = federation->accepted[0];
  EXPECT_EQ(entry.payload, payload);
  EXPECT_EQ(entry.object.crc32c, Crc32c(BytesOf(payload)));
  EXPECT_EQ(entry.object.payload_bytes, kUpdate);
  EXPECT_EQ(entry.object.update_hi, 1u);
  EXPECT_EQ(entry.object.update_lo, 2u);
  const ScanResult whole = Scan(BytesOf(payload).first(kUpdate - 8), DType::kF32);
  EXPECT_TRUE(entry.scan.finite);
  EXPECT_NEAR(entry.scan.sum_squares, whole.sum_squares, 1e-9 * whole.sum_squares);
  EXPECT_EQ(entry.scan.max_abs, whole.max_abs);
  EXPECT_EQ(entry.object.sum_squares, entry.scan.sum_squares);
  EXPECT_EQ(server->partial_uploads(), 0u);
}

// An int8 update, all codes 3 under scales of 0.5, in chunks that cut scales and codes apart.
TEST_F(UploadTest, EncodedUpdatesAreCheckedByWhatTheyDecodeTo) {
  constexpr size_t kElements = 41'312, kBlocks = 162;
  static_assert(kBlocks * sizeof(float) + kElements == kUpdate);
  StartServer();
  federation->encoding = {.codec = Codec::kInt8, .dtype = DType::kF32, .trainable = kElements, .floats = kElements, .counters = 0, .kept = 0};
  const auto encoded = [](float scale, char code) {
    std::string payload(kUpdate, code);
    for (size_t block = 0; block < kBlocks; ++block) std::memcpy(payload.data() + block * sizeof(float), &scale, sizeof(float));
    return payload;
  };
  const auto send = [&](const std::string& payload, uint64_t task) -> absl::StatusOr<v1::UpdateStatus> {
    TRIB_ASSIGN_OR_RETURN(const auto begun, Begin(Header(payload, task, {task, 1})));
    return Push(Chunks(begun.upload_id(), payload, 0, 1003));
  };
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, send(encoded(0.5F, 3), 1));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  EXPECT_THAT(send(encoded(0.5F, '\x80'), 2), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("-128")));
  EXPECT_THAT(send(encoded(-0.5F, 3), 3), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("scale")));
  EXPECT_THAT(send(encoded(std::numeric_limits<float>::quiet_NaN(), 3), 4), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(send(encoded(400.0F, 3), 5), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("1200")));  // the limit is 1000
  absl::MutexLock lock(&federation->mutex);
  ASSERT_EQ(federation->accepted.size(), 1u);
  EXPECT_DOUBLE_EQ(federation->accepted[0].scan.sum_squares, kElements * 1.5 * 1.5);
  EXPECT_EQ(federation->accepted[0].scan.max_abs, 1.5);
  ASSERT_EQ(federation->rejected.size(), 4u);
  EXPECT_EQ(federation->rejected[0].second, "encoding");
  EXPECT_EQ(federation->rejected[3].second, "range");
}

TEST_F(UploadTest, ResumesAfterADisconnectAtEveryChunk) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  uint64_t task = 100;
  for (size_t cut = 1; cut <= kUpdate / kChunk; ++cut) {
    ++task;
    const UpdateId id{task, 1};
    TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload, task, id)));
    {
      grpc::ClientContext context;
      Identify(&context, "site-a");
      v1::UpdateStatus response;
      const auto writer = stub->PushUpdate(&context, &response);
      for (size_t i = 0; i < cut; ++i) ASSERT_TRUE(writer->Write(Chunks(begun.upload_id(), payload)[i]));
      ASSERT_TRUE(Eventually([&] { return Query(task, id)->next_offset() == cut * kChunk; })) << cut;
      context.TryCancel();
      EXPECT_EQ(writer->Finish().error_code(), grpc::CANCELLED);
    }
    TRIB_ASSERT_OK_AND_ASSIGN(const auto again, Begin(Header(payload, task, id)));  // idempotent
    EXPECT_EQ(again.upload_id(), begun.upload_id());
    EXPECT_EQ(again.next_offset(), cut * kChunk);
    TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(again.upload_id(), payload, again.next_offset())));
    EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
    absl::MutexLock lock(&federation->mutex);
    EXPECT_EQ(federation->accepted.back().payload, payload);
    EXPECT_EQ(federation->accepted.back().object.crc32c, Crc32c(BytesOf(payload)));
  }
}

TEST_F(UploadTest, AnswersAHalfClosedStreamWithWhatItHolds) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto half, Push({Chunk(begun.upload_id(), payload, 0, 100)}));
  EXPECT_EQ(half.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(half.next_offset(), 100u);
}

TEST_F(UploadTest, AnswersARepeatedBeginAfterTheEnd) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  ASSERT_THAT(Push(Chunks(begun.upload_id(), payload)), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const auto again, Begin(Header(payload)));
  EXPECT_EQ(again.state(), v1::UPDATE_STATE_ACCEPTED);
  EXPECT_EQ(again.upload_id(), 0u);
  EXPECT_THAT(Push(Chunks(begun.upload_id(), payload)), StatusIs(Code::kAborted));
  EXPECT_EQ(accepted(), 1u);
}

TEST_F(UploadTest, RefusesTheSameKeyWithOtherBytes) {
  StartServer();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(FloatBytes(kUpdate, 1))));
  EXPECT_THAT(Begin(Header(FloatBytes(kUpdate, 2))), StatusIs(Code::kAlreadyExists));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto still, Query(1, {1, 2}));
  EXPECT_EQ(still.upload_id(), begun.upload_id());
}

TEST_F(UploadTest, ANewerUpdateOfTheSameTaskReplacesThePartialOne) {
  StartServer();
  const std::string old_payload = FloatBytes(kUpdate, 1);
  const std::string new_payload = FloatBytes(kUpdate, 2);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto first, Begin(Header(old_payload, 1, {1, 1})));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto second, Begin(Header(new_payload, 1, {2, 2})));
  EXPECT_EQ(federation->used_slots(), 1u);
  EXPECT_THAT(Push(Chunks(first.upload_id(), old_payload)), StatusIs(Code::kAborted));
  ASSERT_THAT(Push(Chunks(second.upload_id(), new_payload)), IsOk());
  EXPECT_EQ(accepted(), 1u);
}

TEST_F(UploadTest, ASecondStreamEndsTheFirst) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  const auto chunks = Chunks(begun.upload_id(), payload);
  grpc::ClientContext context;
  Identify(&context, "site-a");
  v1::UpdateStatus response;
  const auto first = stub->PushUpdate(&context, &response);
  ASSERT_TRUE(first->Write(chunks[0]));
  ASSERT_TRUE(Eventually([&] { return Query(1, {1, 2})->next_offset() == kChunk; }));
  ASSERT_THAT(Push(Chunks(begun.upload_id(), payload, kChunk)), IsOk());
  EXPECT_THAT(FromGrpc(first->Finish()), StatusIs(Code::kAborted, HasSubstr("another stream")));
  EXPECT_EQ(accepted(), 1u);
}

TEST_F(UploadTest, ReapsAStalledStreamAndLaterItsUpload) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  grpc::ClientContext context;
  Identify(&context, "site-a");
  v1::UpdateStatus response;
  const auto writer = stub->PushUpdate(&context, &response);
  ASSERT_TRUE(writer->Write(Chunk(begun.upload_id(), payload, 0, 500)));
  ASSERT_TRUE(Eventually([&] { return Query(1, {1, 2})->next_offset() == 500; }));
  clock.Advance(absl::Seconds(31));
  EXPECT_THAT(FromGrpc(writer->Finish()), StatusIs(Code::kDeadlineExceeded));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto kept, Query(1, {1, 2}));
  EXPECT_EQ(kept.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(kept.next_offset(), 500u);
  clock.Advance(absl::Minutes(5));
  EXPECT_TRUE(Eventually([&] { return server->partial_uploads() == 0; }));
  EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; }));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto gone, Query(1, {1, 2}));
  EXPECT_EQ(gone.state(), v1::UPDATE_STATE_UNKNOWN);
}

TEST_F(UploadTest, ReapsAStreamThatNeverSends) {
  StartServer();
  grpc::ClientContext context;
  Identify(&context, "site-a");
  v1::UpdateStatus response;
  const auto writer = stub->PushUpdate(&context, &response);
  // The stream is known to the server once it is swept; so let time pass until that happens.
  std::jthread time([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      clock.Advance(absl::Seconds(31));
      absl::SleepFor(absl::Milliseconds(10));
    }
  });
  EXPECT_THAT(FromGrpc(writer->Finish()), StatusIs(Code::kDeadlineExceeded));
}

TEST_F(UploadTest, FreesTheUploadsOfAJobThatEnds) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  grpc::ClientContext context;
  Identify(&context, "site-a");
  v1::UpdateStatus response;
  const auto writer = stub->PushUpdate(&context, &response);
  ASSERT_TRUE(writer->Write(Chunk(begun.upload_id(), payload, 0, 500)));
  ASSERT_TRUE(Eventually([&] { return Query(1, {1, 2})->next_offset() == 500; }));
  server->ForgetJob("another-job");
  EXPECT_EQ(server->partial_uploads(), 1u);
  server->ForgetJob(kJob);
  EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; }));
  EXPECT_THAT(FromGrpc(writer->Finish()), StatusIs(Code::kFailedPrecondition, HasSubstr("has ended")));
}

TEST_F(UploadTest, SaysWhenToComeBackWhenThePoolIsFull) {
  StartServer(1);
  const std::string payload = FloatBytes(kUpdate);
  size_t granted = 0;
  absl::Duration retry;
  for (uint64_t task = 1; task < 1000; ++task) {
    const auto begun = Begin(Header(payload, task, {task, 1}), "site-a", &retry);
    if (begun.ok()) {
      ++granted;
      continue;
    }
    EXPECT_THAT(begun, StatusIs(Code::kResourceExhausted));
    break;
  }
  EXPECT_GE(granted, 1u);
  EXPECT_EQ(retry, absl::Milliseconds(700));
  EXPECT_EQ(pushback_ms, "700");
}

TEST_F(UploadTest, PassesOnWhatTheBackendSaysAtTheEnd) {
  StartServer();
  {
    absl::MutexLock lock(&federation->mutex);
    federation->accept_error = FailedPrecondition("the round has closed");
  }
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  EXPECT_THAT(Push(Chunks(begun.upload_id(), payload)), StatusIs(Code::kFailedPrecondition, HasSubstr("closed")));
  EXPECT_EQ(server->partial_uploads(), 0u);
  EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; }));
}

TEST_F(UploadTest, ManyThreadsUploadAtOnceAndEveryUpdateArrivesOnce) {
  StartServer(64);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([this, t] {
      const std::string client = "client-" + std::to_string(t);
      for (uint64_t task = 1; task <= 8; ++task) {
        const std::string payload = FloatBytes(kUpdate, static_cast<float>(t));
        const auto begun = Begin(Header(payload, task, {task, static_cast<uint64_t>(t)}), client);
        ASSERT_TRUE(begun.ok()) << begun.status();
        const auto done = Push(Chunks(begun->upload_id(), payload), client);
        ASSERT_TRUE(done.ok()) << done.status();
      }
    });
  }
  threads.clear();
  EXPECT_EQ(accepted(), 64u);
  absl::MutexLock lock(&federation->mutex);
  for (const Accepted& entry : federation->accepted)
    EXPECT_EQ(entry.payload, FloatBytes(kUpdate, static_cast<float>(entry.header.key.update.lo)));
}

// A hand-made HTTP/2 connection that sends all of one chunk but its last byte, as far as the server's windows let it, and stalls.
class StalledPush {
 public:
  StalledPush(int port, const std::string& client, size_t message_bytes) : left_(message_bytes + 4) {
    fd_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return;
    std::string headers;
    const auto add = [&](const std::string& name, const std::string& value) {
      headers += std::string("\0", 1) + static_cast<char>(name.size()) + name + static_cast<char>(value.size()) + value;
    };
    add(":method", "POST");
    add(":scheme", "http");
    add(":path", "/tributary.v1.Federation/PushUpdate");
    add(":authority", "localhost");
    add("te", "trailers");
    add("content-type", "application/grpc");
    add("tributary-client", client);
    add("tributary-secret", std::string(64, 'a'));
    Write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(4, 0, 0, "") + Frame(1, 4, 1, headers));
    head_ = std::string("\0", 1);
    for (int shift = 24; shift >= 0; shift -= 8) head_ += static_cast<char>(message_bytes >> shift & 0xff);
  }
  bool connected() const { return connected_; }
  size_t left() const { return left_; }

  // Sends what the windows allow; answers pings, so that the server's bandwidth probing opens them.
  void Step() {
    std::string data(65536, '\0');
    const ssize_t got = recv(fd_.get(), data.data(), data.size(), MSG_DONTWAIT);
    if (got > 0) in_.append(data, 0, static_cast<size_t>(got));
    while (in_.size() >= 9) {
      const auto byte = [&](size_t at) { return static_cast<uint32_t>(static_cast<unsigned char>(in_[at])); };
      const size_t length = byte(0) << 16 | byte(1) << 8 | byte(2);
      if (in_.size() < 9 + length) break;
      const auto number = [&](size_t at) { return byte(at) << 24 | byte(at + 1) << 16 | byte(at + 2) << 8 | byte(at + 3); };
      const uint32_t type = byte(3), flags = byte(4), stream = number(5);
      if (type == 8) (stream == 0 ? connection_window_ : stream_window_) += number(9);
      if (type == 6 && flags == 0) Write(Frame(6, 1, 0, in_.substr(9, length)));
      if (type == 4 && flags == 0) {
        for (size_t at = 9; at + 6 <= 9 + length; at += 6) {
          if ((byte(at) << 8 | byte(at + 1)) == 4) {
            stream_window_ += static_cast<int64_t>(number(at + 2)) - initial_window_;
            initial_window_ = number(at + 2);
          }
        }
        Write(Frame(4, 1, 0, ""));
      }
      in_.erase(0, 9 + length);
    }
    while (left_ > 0) {
      const int64_t size = std::min({static_cast<int64_t>(left_), int64_t{16384}, connection_window_, stream_window_});
      if (size < 16) break;
      std::string body = std::exchange(head_, "");
      body.resize(static_cast<size_t>(size), '\x22');
      Write(Frame(0, 0, 1, body));
      left_ -= static_cast<size_t>(size);
      connection_window_ -= size;
      stream_window_ -= size;
    }
  }

 private:
  static std::string Frame(int type, int flags, uint32_t stream, const std::string& body) {
    std::string out;
    for (int shift = 16; shift >= 0; shift -= 8) out += static_cast<char>(body.size() >> shift & 0xff);
    out += static_cast<char>(type);
    out += static_cast<char>(flags);
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(stream >> shift & 0xff);
    return out + body;
  }
  void Write(const std::string& bytes) {
    connected_ = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }

  UniqueFd fd_;
  bool connected_ = false;
  std::string head_;
  std::string in_;
  size_t left_;
  int64_t connection_window_ = 65535;
  int64_t stream_window_ = 65535;
  int64_t initial_window_ = 65535;
};

TEST_F(UploadTest, TwoHundredStalledUploadsLeaveMemoryBoundedAndOthersServed) {
  GrpcServerOptions options;
  options.chunk_bytes = 1 << 20;
  options.quota_bytes = 32 << 20;
  StartServer(8, options);
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto warm, Begin(Header(payload, 1, {1, 1})));
  ASSERT_THAT(Push(Chunks(warm.upload_id(), payload)), IsOk());
  const size_t before = ResidentBytes();
  std::vector<std::unique_ptr<StalledPush>> stalled;
  for (int i = 0; i < 200; ++i) {
    stalled.push_back(std::make_unique<StalledPush>(server->port(), "stalled-" + std::to_string(i), 1 << 20));
    ASSERT_TRUE(stalled.back()->connected()) << i;
  }
  size_t peak = 0;
  for (const absl::Time end = absl::Now() + absl::Seconds(2); absl::Now() < end;) {
    for (auto& one : stalled) one->Step();
    peak = std::max(peak, ResidentBytes());
  }
  size_t sent = 0;
  for (const auto& one : stalled) sent += (1 << 20) + 4 - one->left();
  EXPECT_GT(sent, size_t{200} * 60'000) << "the server took nearly nothing: this shows nothing";
  RecordProperty("sent_mib", static_cast<int>(sent >> 20));
  RecordProperty("grown_mib", static_cast<int>((peak - std::min(peak, before)) >> 20));
  // gRPC 1.51's quota is a pressure, not a wall: on a loaded machine all 200 messages were once buffered before it bit (usually it
  // holds below 96 MiB). What bounds memory hard is messages in flight × their size, next to the quota and HTTP/2 state.
  // A sanitizer's allocator keeps freed memory in quarantine (594 MiB seen with ASan), so resident bytes say nothing there; that the
  // others are served is checked all the same.
  if (!testing::kSanitized) {
    EXPECT_LT(peak - std::min(peak, before), (size_t{32} << 20) + 200 * ((size_t{1} << 20) + (64 << 10)))
        << "MiB sent: " << (sent >> 20);
  }
  // Under that pressure gRPC also asks idle connections to go (GOAWAY); a client comes again, as ours do.
  absl::Status served;
  for (const absl::Time end = absl::Now() + absl::Seconds(20); absl::Now() < end;) {
    const auto begun = Begin(Header(payload, 2, {2, 2}));
    served = begun.ok() ? Push(Chunks(begun->upload_id(), payload)).status() : begun.status();
    if (!absl::IsUnavailable(served)) break;
  }
  EXPECT_THAT(served, IsOk());
}

}  // namespace
}  // namespace tributary::aggregator
