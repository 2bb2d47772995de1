// Uploads begun before their client knows the digest: complete with it, never without.
#include <sys/mman.h>
#include <unistd.h>

#include "common/unique_fd.h"
#include "proto/local_call.h"
#include "tests/integration/ingress/fake_backend.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Code = absl::StatusCode;

class LateDigestTest : public IngressTest {
 protected:
  void SetUp() override {
    StartServer();
    digest = Xxh3Digest(BytesOf(payload));
  }
  static v1::BeginUploadRequest WithoutDigest(const std::string& payload, uint64_t task = 1, UpdateId id = {1, 2}) {
    v1::BeginUploadRequest header = Header(payload, task, id);
    header.clear_xxh3_128();
    return header;
  }
  // No bytes, at `offset`.
  static v1::DataChunk Announcement(uint64_t upload, uint64_t offset, const std::string& xxh3_128) {
    v1::DataChunk chunk;
    chunk.set_upload_id(upload);
    chunk.set_offset(offset);
    chunk.set_xxh3_128(xxh3_128);
    return chunk;
  }
  void ExpectAccepted() {
    absl::MutexLock lock(&federation->mutex);
    ASSERT_EQ(federation->accepted.size(), 1u);
    EXPECT_EQ(federation->accepted[0].payload, payload);
    EXPECT_EQ(federation->accepted[0].header.xxh3_128, digest);
    EXPECT_EQ(federation->accepted[0].object.crc32c, Crc32c(BytesOf(payload)));
  }

  const std::string payload = FloatBytes(kUpdate);
  std::string digest;
};

TEST_F(LateDigestTest, AllBytesAreNoUpdateUntilTheDigestComes) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto whole, Push(Chunks(begun.upload_id(), payload)));
  EXPECT_EQ(whole.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(whole.next_offset(), kUpdate);
  EXPECT_EQ(accepted(), 0u);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto asked, Query(1, {1, 2}));
  EXPECT_EQ(asked.state(), v1::UPDATE_STATE_PARTIAL);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push({Announcement(begun.upload_id(), kUpdate, digest)}));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  ExpectAccepted();
}

TEST_F(LateDigestTest, TheLastChunkMayBringIt) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  auto chunks = Chunks(begun.upload_id(), payload);
  chunks.back().set_xxh3_128(digest);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(chunks));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  ExpectAccepted();
}

TEST_F(LateDigestTest, AClientThatComesBackMayBringItInItsHeader) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  ASSERT_THAT(Push({Chunk(begun.upload_id(), payload, 0, kChunk)}), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const auto again, Begin(Header(payload)));
  EXPECT_EQ(again.upload_id(), begun.upload_id());
  EXPECT_EQ(again.next_offset(), kChunk);
  // Known now: no other, and none is fine.
  v1::BeginUploadRequest other = Header(payload);
  other.set_xxh3_128(std::string(16, '?'));
  EXPECT_THAT(Begin(other), StatusIs(Code::kAlreadyExists));
  EXPECT_THAT(Begin(WithoutDigest(payload)), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(begun.upload_id(), payload, kChunk)));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  ExpectAccepted();
}

TEST_F(LateDigestTest, AHeaderThatBringsItAfterAllBytesWaitsForOneMoreChunk) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  ASSERT_THAT(Push(Chunks(begun.upload_id(), payload)), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const auto again, Begin(Header(payload)));
  EXPECT_EQ(again.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(again.next_offset(), kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push({Announcement(begun.upload_id(), kUpdate, digest)}));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  ExpectAccepted();
}

TEST_F(LateDigestTest, WrongAnnouncementsChangeNothing) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  const uint64_t upload = begun.upload_id();
  v1::DataChunk first = Chunk(upload, payload, 0, kChunk);
  first.set_xxh3_128("short");
  EXPECT_THAT(Push({first}), StatusIs(Code::kInvalidArgument, HasSubstr("expected 16 bytes")));
  first.set_xxh3_128(digest);
  first.set_crc32c(first.crc32c() ^ 1);
  EXPECT_THAT(Push({first}), StatusIs(Code::kDataLoss));  // and its digest is not believed either
  EXPECT_THAT(Push({Announcement(upload, 0, "")}), StatusIs(Code::kInvalidArgument, HasSubstr("empty chunk")));
  EXPECT_THAT(Push({Announcement(upload, 4, digest)}), StatusIs(Code::kAborted, HasSubstr("expected 0")));
  EXPECT_THAT(Push({Announcement(upload, 0, digest)}), IsOk());  // early, but right
  EXPECT_THAT(Push({Announcement(upload, 0, std::string(16, '?'))}), StatusIs(Code::kInvalidArgument, HasSubstr("another XXH3-128")));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto still, Query(1, {1, 2}));
  EXPECT_EQ(still.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(still.next_offset(), 0u);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(upload, payload)));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  ExpectAccepted();
  absl::MutexLock lock(&federation->mutex);
  EXPECT_TRUE(federation->rejected.empty());
}

TEST_F(LateDigestTest, TheDigestOfOtherBytesIsRefused) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  auto chunks = Chunks(begun.upload_id(), payload);
  chunks.push_back(Announcement(begun.upload_id(), kUpdate, std::string(16, '?')));
  EXPECT_THAT(Push(chunks), StatusIs(Code::kInvalidArgument, HasSubstr("differ from the announced XXH3-128")));
  EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; }));
  absl::MutexLock lock(&federation->mutex);
  EXPECT_THAT(federation->rejected, ElementsAre(Pair("site-a", "digest")));
  EXPECT_TRUE(federation->accepted.empty());
}

TEST_F(LateDigestTest, BytesWhoseClientIsGoneAreDroppedWithTheirLease) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  ASSERT_THAT(Push(Chunks(begun.upload_id(), payload)), IsOk());
  EXPECT_EQ(federation->used_slots(), 1u);
  clock.Advance(absl::Minutes(5));
  EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; }));
  EXPECT_EQ(accepted(), 0u);
}

TEST_F(LateDigestTest, ADeclinedTaskGivesItsRoomBack) {
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  ASSERT_THAT(Push({Chunk(begun.upload_id(), payload, 0, kChunk)}), IsOk());
  const auto decline = [this](const std::string& client, uint64_t task) {
    grpc::ClientContext context;
    Identify(&context, client);
    const auto stream = stub->Attach(&context);
    v1::ClientMessage message;
    message.mutable_hello()->set_software("test");
    stream->Write(message);
    message.mutable_declined()->set_job(kJob);
    message.mutable_declined()->set_task(task);
    stream->Write(message);
    stream->WritesDone();
    v1::ServerMessage ignored;
    while (stream->Read(&ignored)) {
    }
    EXPECT_TRUE(stream->Finish().ok());
  };
  decline("site-bb", 1);
  decline("site-a", 2);
  EXPECT_EQ(federation->used_slots(), 1u);
  decline("site-a", 1);
  EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; }));
  EXPECT_THAT(Push({Chunk(begun.upload_id(), payload, kChunk, kChunk)}), StatusIs(Code::kAborted));
}

TEST_F(LateDigestTest, AnUpdateMadeAnewGetsTheRoomOfTheOneThatWasLost) {
  TearDown();
  StartServer(1);
  // A pool has some room beside its slots: fill it up.
  size_t granted = 0;
  for (uint64_t task = 1; Begin(WithoutDigest(payload, task, {task, 1})).ok(); ++task) granted = task;
  ASSERT_GE(granted, 1u);
  const size_t used = federation->used_slots();
  EXPECT_THAT(Begin(Header(payload, granted + 1, {9, 9})), StatusIs(Code::kResourceExhausted));
  EXPECT_THAT(Begin(Header(payload, 1, {9, 9}), "site-bb"), StatusIs(Code::kResourceExhausted));  // not another client's
  TRIB_ASSERT_OK_AND_ASSIGN(const auto anew, Begin(Header(payload, 1, {9, 9})));
  EXPECT_EQ(federation->used_slots(), used);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(anew.upload_id(), payload)));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
}

// The same out of a file that grows.
TEST_F(LateDigestTest, AFileIsReadAsFarAsItIsWritten) {
  grpc::ClientContext context;
  Identify(&context, "site-a");
  const auto stream = stub->Attach(&context);
  v1::ClientMessage hello;
  hello.mutable_hello()->set_software("test");
  v1::ServerMessage welcome;
  ASSERT_TRUE(stream->Write(hello) && stream->Read(&welcome));
  const UniqueFd file(::memfd_create("update", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), kUpdate), 0);
  const auto write = [&](size_t from, size_t to) { ASSERT_EQ(::pwrite(file.get(), payload.data() + from, to - from, static_cast<off_t>(from)), static_cast<ssize_t>(to - from)); };
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(WithoutDigest(payload)));
  const auto push = [&](uint64_t end, const std::string& xxh3_128) -> absl::StatusOr<v1::UpdateStatus> {
    v1::LocalRequest request;
    request.set_client("site-a");
    request.set_secret(std::string(64, 'a' + 6 % 6));
    request.mutable_push()->set_upload_id(begun.upload_id());
    request.mutable_push()->set_end(end);
    request.mutable_push()->set_xxh3_128(xxh3_128);
    TRIB_ASSIGN_OR_RETURN(const UniqueFd socket, ConnectLocally(welcome.welcome().local_address()));
    const int fds[] = {file.get()};
    TRIB_ASSIGN_OR_RETURN(LocalReply reply, AskLocally(socket.get(), request, fds, absl::Seconds(10)));
    return std::move(*reply.message.mutable_update());
  };
  const size_t half = 5 * kChunk + 123;
  write(0, half);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto first, push(half, ""));
  EXPECT_EQ(first.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(first.next_offset(), half);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto repeated, push(half, ""));
  EXPECT_EQ(repeated.next_offset(), half);
  EXPECT_THAT(push(kUpdate + 1, ""), StatusIs(Code::kInvalidArgument, HasSubstr("expected an end of at most")));
  EXPECT_THAT(push(half, "short"), StatusIs(Code::kInvalidArgument, HasSubstr("expected 16 bytes")));
  write(half, kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto whole, push(kUpdate, ""));
  EXPECT_EQ(whole.state(), v1::UPDATE_STATE_PARTIAL);
  EXPECT_EQ(accepted(), 0u);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto done, push(kUpdate, digest));
  EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
  ExpectAccepted();
  context.TryCancel();
}

}  // namespace
}  // namespace tributary::aggregator
