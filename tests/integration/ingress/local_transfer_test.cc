// Bulk bytes by file descriptor: what comes through, what is refused, and that a refused request costs nobody anything.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <limits>
#include <thread>

#include "aggregator/store/memfd.h"
#include "common/fd_socket.h"
#include "proto/local_call.h"
#include "tests/integration/ingress/fake_backend.h"
#include "tests/support/require.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Code = absl::StatusCode;

class LocalTransferTest : public IngressTest {
 protected:
  struct Answer {
    v1::LocalAnswer message;
    std::vector<UniqueFd> fds;
  };

  // What the Welcome says.
  std::string Address() {
    grpc::ClientContext context;
    Identify(&context, "site-a");
    const auto stream = stub->Attach(&context);
    v1::ClientMessage hello;
    hello.mutable_hello()->set_device("cpu");
    hello.mutable_hello()->set_trains(true);
    v1::ServerMessage answer;
    if (!stream->Write(hello) || !stream->Read(&answer)) return "no welcome";
    context.TryCancel();
    return answer.welcome().local_address();
  }

  static absl::StatusOr<Answer> AskBytes(const std::string& address, const std::string& bytes, const std::vector<int>& fds = {}) {
    TRIB_ASSIGN_OR_RETURN(const UniqueFd socket, ConnectAbstract(address));
    // The server may have answered and hung up before it is asked: then the answer is what counts.
    SendRecord(socket.get(), BytesOf(bytes), fds, absl::Seconds(5), "test").IgnoreError();
    TRIB_ASSIGN_OR_RETURN(ReceivedRecord record, ReceiveRecord(socket.get(), 65536, absl::Seconds(10), "test"));
    Answer answer;
    answer.fds = std::move(record.fds);
    if (!answer.message.ParseFromArray(record.bytes.data(), static_cast<int>(record.bytes.size()))) return Internal("malformed answer");
    if (answer.message.code() != 0) return absl::Status(static_cast<Code>(answer.message.code()), answer.message.message());
    return answer;
  }
  static v1::LocalRequest From(const std::string& client) {
    v1::LocalRequest request;
    request.set_client(client);
    request.set_secret(std::string(64, 'a' + client.size() % 6));
    return request;
  }
  absl::StatusOr<Answer> Fetch(uint64_t version, const std::string& client = "site-a") {
    v1::LocalRequest request = From(client);
    request.mutable_fetch()->set_job(kJob);
    request.mutable_fetch()->set_version(version);
    return AskBytes(Address(), request.SerializeAsString());
  }
  absl::StatusOr<v1::UpdateStatus> PushFile(uint64_t upload, const std::vector<int>& fds, const std::string& client = "site-a") {
    v1::LocalRequest request = From(client);
    request.mutable_push()->set_upload_id(upload);
    TRIB_ASSIGN_OR_RETURN(const Answer answer, AskBytes(Address(), request.SerializeAsString(), fds));
    return answer.message.update();
  }
  static UniqueFd FileOf(const std::string& content) {
    UniqueFd fd(::memfd_create("update", MFD_CLOEXEC));
    EXPECT_EQ(::write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
    return fd;
  }
  void GiveModel(const std::string& content) {
    MappedMemfd memory = CreateReusableMemfd("model", content.size()).value();
    std::memcpy(memory.bytes.data(), content.data(), content.size());
    absl::MutexLock lock(&federation->mutex);
    *federation->model = content;
    federation->model_memfd = std::move(memory);
  }
};

TEST_F(LocalTransferTest, TheWelcomeNamesTheSocketUnlessItIsOff) {
  StartServer();
  EXPECT_THAT(Address(), ::testing::MatchesRegex("tributary-[0-9a-f]{32}"));
  TearDown();
  StartServer(8, {.local_transfer = false});
  EXPECT_EQ(Address(), "");
}

TEST_F(LocalTransferTest, AModelComesAsMemoryThatCannotBeChanged) {
  StartServer();
  const std::string content = FloatBytes(100'000);
  GiveModel(content);
  TRIB_ASSERT_OK_AND_ASSIGN(const Answer answer, Fetch(3));
  ASSERT_EQ(answer.fds.size(), 1u);
  EXPECT_EQ(answer.message.bytes(), content.size());
  std::string copy(content.size(), '\0');
  ASSERT_EQ(::pread(answer.fds[0].get(), copy.data(), copy.size(), 0), static_cast<ssize_t>(copy.size()));
  EXPECT_EQ(copy, content);
  EXPECT_EQ(::mmap(nullptr, content.size(), PROT_READ | PROT_WRITE, MAP_SHARED, answer.fds[0].get(), 0), MAP_FAILED);
  EXPECT_NE(::ftruncate(answer.fds[0].get(), 1), 0);
  const UniqueFd anew(::open(fmt::format("/proc/self/fd/{}", answer.fds[0].get()).c_str(), O_RDWR));
  EXPECT_LT(::pwrite(anew.get(), "x", 1, 0), 0);  // whether or not it could be opened
  absl::MutexLock lock(&federation->mutex);
  EXPECT_EQ(federation->downloaded, content.size());
}

TEST_F(LocalTransferTest, TheServerSeesWhetherAClientStillHasTheMemory) {
  StartServer();
  GiveModel(FloatBytes(100'000));
  const auto sole = [&] {
    absl::MutexLock lock(&federation->mutex);
    return SoleUser(federation->model_memfd.fd.get());
  };
  EXPECT_TRUE(sole());
  TRIB_ASSERT_OK_AND_ASSIGN(Answer answer, Fetch(3));
  EXPECT_FALSE(sole());
  void* const mapped = ::mmap(nullptr, 100'000, PROT_READ, MAP_SHARED, answer.fds[0].get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  answer.fds.clear();
  EXPECT_FALSE(sole());
  ::munmap(mapped, 100'000);
  EXPECT_TRUE(Eventually(sole));  // the server's own copy of the descriptor goes when its thread is done
}

TEST_F(LocalTransferTest, AnUpdateComesOutOfAFile) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  const UniqueFd file = FileOf(payload);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, PushFile(begun.upload_id(), {file.get()}));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  absl::MutexLock lock(&federation->mutex);
  ASSERT_EQ(federation->accepted.size(), 1u);
  EXPECT_EQ(federation->accepted[0].payload, payload);
  EXPECT_EQ(federation->accepted[0].object.crc32c, Crc32c(BytesOf(payload)));
}

TEST_F(LocalTransferTest, TakesUpWhereAStreamEnded) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  std::vector<v1::DataChunk> first = Chunks(begun.upload_id(), payload);
  first.resize(3);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto part, Push(first));
  EXPECT_EQ(part.next_offset(), 3 * kChunk);
  // What was taken already is not read again.
  std::string rest = payload;
  std::fill_n(rest.begin(), 3 * kChunk, '\xff');
  const UniqueFd file = FileOf(rest);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, PushFile(begun.upload_id(), {file.get()}));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  absl::MutexLock lock(&federation->mutex);
  EXPECT_EQ(federation->accepted.at(0).payload, payload);
}

TEST_F(LocalTransferTest, WrongRequestsAreRefusedAndTheUploadGoesOn) {
  StartServer();
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  const uint64_t upload = begun.upload_id();
  const UniqueFd file = FileOf(payload);
  const UniqueFd shorter = FileOf(payload.substr(1));
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const UniqueFd read_end(pipe_ends[0]), write_end(pipe_ends[1]);
  EXPECT_THAT(PushFile(upload, {}), StatusIs(Code::kInvalidArgument, HasSubstr("expected one file")));
  EXPECT_THAT(PushFile(upload, {file.get(), file.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("got 2")));
  EXPECT_THAT(PushFile(upload, {shorter.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("expected a regular file of")));
  EXPECT_THAT(PushFile(upload, {read_end.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("another kind of file")));
  EXPECT_THAT(PushFile(upload + 2, {file.get()}), StatusIs(Code::kAborted, HasSubstr("not known")));
  EXPECT_THAT(PushFile(upload, {file.get()}, "site-bb"), StatusIs(Code::kPermissionDenied, HasSubstr("another client")));
  EXPECT_THAT(Fetch(4), StatusIs(Code::kNotFound, HasSubstr("no version 4")));
  EXPECT_THAT(Fetch(3), StatusIs(Code::kUnimplemented));  // the model does not lie in a memfd
  const std::string address = Address();
  EXPECT_THAT(AskBytes(address, "\xff\xff garbage"), StatusIs(Code::kInvalidArgument, HasSubstr("malformed")));
  EXPECT_THAT(AskBytes(address, std::string(kMaxLocalRequestBytes + 1, 'x')), StatusIs(Code::kInvalidArgument, HasSubstr("at most")));
  EXPECT_THAT(AskBytes(address, From("site-a").SerializeAsString()), StatusIs(Code::kUnimplemented, HasSubstr("unknown request")));
  v1::LocalRequest thief = From("site-a");
  thief.set_secret(std::string(64, '1'));
  thief.mutable_push()->set_upload_id(upload);
  EXPECT_THAT(AskBytes(address, thief.SerializeAsString(), {file.get()}), StatusIs(Code::kPermissionDenied));
  thief.set_secret("short");
  EXPECT_THAT(AskBytes(address, thief.SerializeAsString(), {file.get()}), StatusIs(Code::kUnauthenticated));
  EXPECT_EQ(accepted(), 0u);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, PushFile(upload, {file.get()}));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
}

TEST_F(LocalTransferTest, WrongBytesAreRejectedAsOnAStream) {
  StartServer();
  std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  payload[100] = static_cast<char>(payload[100] ^ 1);
  const UniqueFd changed = FileOf(payload);
  EXPECT_THAT(PushFile(begun.upload_id(), {changed.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("XXH3")));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(payload.data() + 5 * kChunk, &nan, sizeof(nan));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto again, Begin(Header(payload, 2, {3, 4})));
  const UniqueFd poisoned = FileOf(payload);
  EXPECT_THAT(PushFile(again.upload_id(), {poisoned.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("NaN or Inf")));
  absl::MutexLock lock(&federation->mutex);
  EXPECT_THAT(federation->rejected, ::testing::ElementsAre(::testing::Pair("site-a", "digest"), ::testing::Pair("site-a", "non_finite")));
  EXPECT_TRUE(federation->accepted.empty());
}

TEST_F(LocalTransferTest, AJobIsSubmittedWithItsFiles) {
  StartServer();
  v1::LocalRequest request;  // as the CLI sends it: no client speaks
  v1::SubmitHeader& header = *request.mutable_submit()->mutable_header();
  header.set_spec_yaml("name: x");
  const std::string tensors = FloatBytes(100'000), artifact = "module";
  header.set_tensors_bytes(tensors.size());
  const UniqueFd tensors_file = FileOf(tensors), artifact_file = FileOf(artifact);
  const auto submit = [&](const std::vector<int>& fds) { return AskBytes(Address(), request.SerializeAsString(), fds); };
  TRIB_ASSERT_OK_AND_ASSIGN(const Answer plain, submit({tensors_file.get()}));
  EXPECT_EQ(plain.message.submitted().job(), kJob);
  header.set_artifact_bytes(artifact.size());
  header.set_artifact_sha256(Sha256Hex(BytesOf(artifact)));
  EXPECT_THAT(submit({tensors_file.get(), artifact_file.get()}), IsOk());
  absl::MutexLock lock(&admin.mutex);
  EXPECT_EQ(admin.spec, "name: x");
  EXPECT_TRUE(admin.tensors == tensors);
  EXPECT_EQ(admin.artifact, artifact);
}

TEST_F(LocalTransferTest, ASubmissionWhoseFilesAreNotAsAnnouncedIsRefused) {
  StartServer();
  const std::string tensors = FloatBytes(1000), artifact = "module";
  const UniqueFd tensors_file = FileOf(tensors), artifact_file = FileOf(artifact), other_file = FileOf("mobule");
  const UniqueFd folder(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  v1::LocalRequest request;
  v1::SubmitHeader& header = *request.mutable_submit()->mutable_header();
  const auto submit = [&](const std::vector<int>& fds) { return AskBytes(Address(), request.SerializeAsString(), fds); };
  header.set_tensors_bytes(tensors.size());
  EXPECT_THAT(submit({tensors_file.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("spec_yaml")));
  header.set_spec_yaml("name: x");
  EXPECT_THAT(submit({}), StatusIs(Code::kInvalidArgument, HasSubstr("expected 1 files with the job, got 0")));
  EXPECT_THAT(submit({folder.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("a directory")));
  EXPECT_THAT(submit({artifact_file.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("expected the announced 1000 bytes, got 6")));
  header.set_artifact_bytes(artifact.size());
  header.set_artifact_sha256(Sha256Hex(BytesOf(artifact)));
  EXPECT_THAT(submit({tensors_file.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("expected 2 files")));
  EXPECT_THAT(submit({tensors_file.get(), tensors_file.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("artifact: expected the announced 6")));
  EXPECT_THAT(submit({tensors_file.get(), other_file.get()}), StatusIs(Code::kInvalidArgument, HasSubstr("SHA-256")));
  absl::MutexLock lock(&admin.mutex);
  EXPECT_TRUE(admin.spec.empty());
}

TEST_F(LocalTransferTest, AnotherUserIsTurnedAway) {
  TRIB_REQUIRE_OR_SKIP("root", ::geteuid() == 0 ? std::string() : std::string("only root can become another user"));
  StartServer();
  const std::string address = Address();
  absl::Status refused;
  // Of the calling thread only: glibc's wrapper would change all threads.
  std::thread([&] {
    ASSERT_EQ(::syscall(SYS_setresuid, -1, 65534, -1), 0);
    refused = AskBytes(address, From("site-a").SerializeAsString()).status();
  }).join();
  EXPECT_THAT(refused, StatusIs(Code::kPermissionDenied, HasSubstr("expected a client of user 0, got one of user 65534")));
}

TEST_F(LocalTransferTest, StopsWhileAPeerIsSilent) {
  StartServer();
  const std::string address = Address();
  TRIB_ASSERT_OK_AND_ASSIGN(const UniqueFd silent, ConnectAbstract(address));
  server->Shutdown(absl::ZeroDuration());  // within the peer's time to speak
  EXPECT_THAT(ConnectAbstract(address), StatusIs(Code::kUnavailable));
}

}  // namespace
}  // namespace tributary::aggregator
