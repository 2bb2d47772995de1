// Wrong uploads, one row each: the exact status code, and nothing reaches the backend.
#include <cmath>
#include <functional>
#include <limits>

#include "tests/integration/ingress/fake_backend.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Code = absl::StatusCode;

const double kNaN = std::numeric_limits<double>::quiet_NaN();
const double kInf = std::numeric_limits<double>::infinity();

class UploadRowsTest : public IngressTest {
 protected:
  void SetUp() override { StartServer(); }
  // An honest upload still works, so the daemon lives and the rows left nothing behind that blocks it.
  void ExpectHonestUploadWorks() {
    EXPECT_EQ(accepted(), 0u);
    const std::string payload = FloatBytes(kUpdate);
    TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload, 77, {7, 7}), "honest"));
    TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(begun.upload_id(), payload), "honest"));
    EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED);
    EXPECT_EQ(accepted(), 1u);
  }
};

TEST_F(UploadRowsTest, RefusesWrongHeadersBeforeAnyByte) {
  using Change = std::function<void(v1::BeginUploadRequest*)>;
  struct Row { const char* name; Code code; Change change; };
  const std::vector<Row> rows = {
      {"no key", Code::kInvalidArgument, [](auto* r) { r->clear_key(); }},
      {"task 0", Code::kInvalidArgument, [](auto* r) { r->mutable_key()->set_task(0); }},
      {"short update id", Code::kInvalidArgument, [](auto* r) { r->mutable_key()->set_update_id("short"); }},
      {"long update id", Code::kInvalidArgument, [](auto* r) { r->mutable_key()->set_update_id(std::string(64, 'x')); }},
      {"job with a slash", Code::kInvalidArgument, [](auto* r) { r->mutable_key()->set_job("../etc"); }},
      {"huge job", Code::kInvalidArgument, [](auto* r) { r->mutable_key()->set_job(std::string(100'000, 'j')); }},
      {"unknown job", Code::kNotFound, [](auto* r) { r->mutable_key()->set_job("other-0a1b2c"); }},
      {"unknown task", Code::kNotFound, [](auto* r) { r->mutable_key()->set_task(1'000'000); }},
      {"stale version", Code::kFailedPrecondition, [](auto* r) { r->set_version(2); }},
      {"future version", Code::kFailedPrecondition, [](auto* r) { r->set_version(~0ull); }},
      {"layout of another model", Code::kInvalidArgument, [](auto* r) { r->set_layout(std::string(64, 'b')); }},
      {"layout no fingerprint", Code::kInvalidArgument, [](auto* r) { r->set_layout("x"); }},
      {"unknown codec", Code::kInvalidArgument, [](auto* r) { r->set_codec("int9"); }},
      {"empty codec", Code::kInvalidArgument, [](auto* r) { r->clear_codec(); }},
      {"size 0", Code::kInvalidArgument, [](auto* r) { r->set_bytes(0); }},
      {"size 2^63", Code::kInvalidArgument, [](auto* r) { r->set_bytes(1ull << 63); }},
      {"size 2^64 - 1", Code::kInvalidArgument, [](auto* r) { r->set_bytes(~0ull); }},
      {"one element short", Code::kInvalidArgument, [](auto* r) { r->set_bytes(r->bytes() - 4); }},
      {"one element long", Code::kInvalidArgument, [](auto* r) { r->set_bytes(r->bytes() + 4); }},
      {"short digest", Code::kInvalidArgument, [](auto* r) { r->set_xxh3_128("abc"); }},
      {"long digest", Code::kInvalidArgument, [](auto* r) { r->set_xxh3_128(std::string(17, 'x')); }},
      {"weight 0", Code::kInvalidArgument, [](auto* r) { r->set_weight(0); }},
      {"weight -1", Code::kInvalidArgument, [](auto* r) { r->set_weight(-1); }},
      {"weight NaN", Code::kInvalidArgument, [](auto* r) { r->set_weight(kNaN); }},
      {"weight Inf", Code::kInvalidArgument, [](auto* r) { r->set_weight(kInf); }},
      {"weight 1e300", Code::kInvalidArgument, [](auto* r) { r->set_weight(1e300); }},
      {"weight 5e-324", Code::kInvalidArgument, [](auto* r) { r->set_weight(5e-324); }},
      {"examples 2^64 - 1", Code::kInvalidArgument, [](auto* r) { r->set_examples(~0ull); }},
      {"65 metrics", Code::kInvalidArgument, [](auto* r) { for (int i = 0; i < 65; ++i) (*r->mutable_metrics())[std::to_string(i)] = 1; }},
      {"NaN metric", Code::kInvalidArgument, [](auto* r) { (*r->mutable_metrics())["loss"] = kNaN; }},
      {"metric with a newline", Code::kInvalidArgument, [](auto* r) { (*r->mutable_metrics())["a\nb"] = 1; }},
  };
  const std::string payload = FloatBytes(kUpdate);
  for (const Row& row : rows) {
    auto request = Header(payload);
    row.change(&request);
    EXPECT_THAT(Begin(request), StatusIs(row.code)) << row.name;
    EXPECT_EQ(federation->used_slots(), 0u) << row.name;
  }
  EXPECT_EQ(rejected(), 0u);
  ExpectHonestUploadWorks();
}

TEST_F(UploadRowsTest, RefusesWrongIdentities) {
  const auto begin_with = [&](const std::vector<std::pair<std::string, std::string>>& metadata) {
    grpc::ClientContext context;
    for (const auto& entry : metadata) context.AddMetadata(entry.first, entry.second);
    v1::UpdateStatus response;
    return FromGrpc(stub->BeginUpload(&context, Header(FloatBytes(kUpdate)), &response));
  };
  const std::string secret(64, 'a');
  EXPECT_THAT(begin_with({}), StatusIs(Code::kUnauthenticated, HasSubstr("tributary-client")));
  EXPECT_THAT(begin_with({{"tributary-client", "a"}}), StatusIs(Code::kUnauthenticated, HasSubstr("tributary-secret")));
  EXPECT_THAT(begin_with({{"tributary-client", "a"}, {"tributary-client", "b"}, {"tributary-secret", secret}}),
              StatusIs(Code::kUnauthenticated, HasSubstr("more than once")));
  EXPECT_THAT(begin_with({{"tributary-client", "../a"}, {"tributary-secret", secret}}), StatusIs(Code::kUnauthenticated));
  EXPECT_THAT(begin_with({{"tributary-client", "a"}, {"tributary-secret", "short"}}), StatusIs(Code::kUnauthenticated));
  EXPECT_THAT(begin_with({{"tributary-client", "a"}, {"tributary-secret", std::string(64, 'Z')}}), StatusIs(Code::kUnauthenticated));
  EXPECT_THAT(Begin(Header(FloatBytes(kUpdate), 1, {9, 9}), "owner"), IsOk());
  EXPECT_THAT(begin_with({{"tributary-client", "owner"}, {"tributary-secret", std::string(64, '9')}}), StatusIs(Code::kPermissionDenied));
  // Every other method asks, too.
  {
    grpc::ClientContext context;
    v1::UpdateStatus response;
    const auto writer = stub->PushUpdate(&context, &response);
    EXPECT_THAT(FromGrpc(writer->Finish()), StatusIs(Code::kUnauthenticated));
  }
  {
    grpc::ClientContext context;
    v1::FetchModelRequest request;
    request.set_job(kJob);
    v1::DataChunk chunk;
    const auto reader = stub->FetchModel(&context, request);
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_THAT(FromGrpc(reader->Finish()), StatusIs(Code::kUnauthenticated));
  }
  {
    grpc::ClientContext context;
    v1::QueryUpdateResponse response;
    EXPECT_THAT(FromGrpc(stub->QueryUpdate(&context, {}, &response)), StatusIs(Code::kUnauthenticated));
  }
  {
    grpc::ClientContext context;
    const auto stream = stub->Attach(&context);
    EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(Code::kUnauthenticated));
  }
  ExpectHonestUploadWorks();
}

TEST_F(UploadRowsTest, RefusesWrongChunksAndKeepsTheGoodPrefix) {
  using Change = std::function<void(std::vector<v1::DataChunk>*)>;
  struct Row { const char* name; Code code; Change change; };
  // Three chunks; the first is good.
  const std::vector<Row> rows = {
      {"wrong CRC", Code::kDataLoss, [](auto* c) { c->at(1).set_crc32c(c->at(1).crc32c() ^ 1); }},
      {"no CRC", Code::kDataLoss, [](auto* c) { c->at(1).clear_crc32c(); }},
      {"flipped bit", Code::kDataLoss, [](auto* c) { c->at(1).mutable_bytes()->at(100) ^= 4; }},
      {"gap", Code::kAborted, [](auto* c) { c->erase(c->begin() + 1); }},
      {"gap of one byte", Code::kAborted, [](auto* c) { c->at(1).set_offset(c->at(1).offset() + 1); }},
      {"overlap", Code::kAborted, [](auto* c) { c->at(1).set_offset(c->at(1).offset() - 4); }},
      {"repeated offset", Code::kAborted, [](auto* c) { c->at(1) = c->at(0); }},
      {"offset 2^63", Code::kAborted, [](auto* c) { c->at(1).set_offset(1ull << 63); }},
      {"offset 2^64 - 1", Code::kAborted, [](auto* c) { c->at(1).set_offset(~0ull); }},
      {"empty chunk", Code::kInvalidArgument, [](auto* c) { c->at(1).clear_bytes(); }},
      {"chunk over the limit", Code::kInvalidArgument, [](auto* c) { c->at(1).mutable_bytes()->append("x"); }},
      {"another upload's id", Code::kInvalidArgument, [](auto* c) { c->at(1).set_upload_id(c->at(1).upload_id() + 2); }},
      {"message over 4 MiB", Code::kResourceExhausted, [](auto* c) { c->at(1).set_bytes(std::string(5 << 20, 'x')); }},
  };
  const std::string payload = FloatBytes(kUpdate);
  uint64_t task = 1;
  for (const Row& row : rows) {
    ++task;
    TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload, task, {task, 1})));
    auto chunks = Chunks(begun.upload_id(), payload);
    row.change(&chunks);
    EXPECT_THAT(Push(chunks), StatusIs(row.code)) << row.name;
    TRIB_ASSERT_OK_AND_ASSIGN(const auto now, Query(task, {task, 1}));
    EXPECT_EQ(now.state(), v1::UPDATE_STATE_PARTIAL) << row.name;
    EXPECT_EQ(now.next_offset(), kChunk) << row.name;
    EXPECT_EQ(accepted(), task - 2) << row.name;
    // And the upload can be completed from there: the wrong bytes are not in it.
    TRIB_ASSERT_OK_AND_ASSIGN(const auto done, Push(Chunks(begun.upload_id(), payload, now.next_offset())));
    EXPECT_EQ(done.state(), v1::UPDATE_STATE_ACCEPTED) << row.name;
    absl::MutexLock lock(&federation->mutex);
    EXPECT_EQ(federation->accepted.back().payload, payload) << row.name;
  }
  EXPECT_EQ(rejected(), 0u);
}

TEST_F(UploadRowsTest, RefusesBytesPastTheEnd) {
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  auto chunks = Chunks(begun.upload_id(), payload);
  chunks.back() = Chunk(begun.upload_id(), payload + "more", chunks.back().offset(), kChunk);
  EXPECT_THAT(Push(chunks), StatusIs(Code::kInvalidArgument, HasSubstr("passes the end")));
  ExpectHonestUploadWorks();
}

TEST_F(UploadRowsTest, RejectsPayloadsThatCanNeverBecomeRight) {
  struct Row { const char* name; const char* reason; std::function<void(std::string*, v1::BeginUploadRequest*)> change; };
  const auto put = [](float value, size_t element) {
    return [=](std::string* payload, v1::BeginUploadRequest*) { std::memcpy(payload->data() + element * 4, &value, 4); };
  };
  const std::vector<Row> rows = {
      {"NaN first", "non_finite", put(std::nanf(""), 0)},
      {"NaN in the middle", "non_finite", put(std::nanf(""), kUpdate / 8)},
      {"NaN last", "non_finite", put(std::nanf(""), kUpdate / 4 - 1)},
      {"+Inf", "non_finite", put(std::numeric_limits<float>::infinity(), 1025)},
      {"-Inf", "non_finite", put(-std::numeric_limits<float>::infinity(), 2000)},
      {"out of range", "range", put(1001.f, 5000)},
      {"out of range, negative", "range", put(-3e38f, 5000)},
      {"digest of other bytes", "digest", [](std::string*, v1::BeginUploadRequest* r) { r->set_xxh3_128(std::string(16, '?')); }},
  };
  uint64_t task = 1;
  for (const Row& row : rows) {
    ++task;
    std::string payload = FloatBytes(kUpdate);
    v1::BeginUploadRequest scratch;
    row.change(&payload, &scratch);
    auto header = Header(payload, task, {task, 1});
    row.change(&payload, &header);
    TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(header));
    // An odd chunk size: elements lie across chunk borders.
    EXPECT_THAT(Push(Chunks(begun.upload_id(), payload, 0, 1021)), StatusIs(Code::kInvalidArgument)) << row.name;
    absl::MutexLock lock(&federation->mutex);
    ASSERT_EQ(federation->rejected.size(), task - 1) << row.name;
    EXPECT_EQ(federation->rejected.back().second, row.reason) << row.name;
    EXPECT_TRUE(Eventually([&] { return federation->used_slots() == 0; })) << row.name;
  }
  ExpectHonestUploadWorks();
}

TEST_F(UploadRowsTest, LetsNobodyElseTouchAnUpload) {
  const std::string payload = FloatBytes(kUpdate);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Header(payload)));
  EXPECT_THAT(Push(Chunks(begun.upload_id(), payload), "thief"), StatusIs(Code::kPermissionDenied));
  EXPECT_THAT(Push(Chunks(begun.upload_id() + 2, payload)), StatusIs(Code::kAborted, HasSubstr("not known")));
  EXPECT_THAT(Push(Chunks(0, payload)), StatusIs(Code::kAborted));
  EXPECT_THAT(Push({}), StatusIs(Code::kInvalidArgument, HasSubstr("no chunk")));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto others, Query(1, {1, 2}, "thief"));
  EXPECT_EQ(others.state(), v1::UPDATE_STATE_UNKNOWN);
  // The same key under another name is another update.
  TRIB_ASSERT_OK_AND_ASSIGN(const auto other, Begin(Header(payload), "other"));
  EXPECT_NE(other.upload_id(), begun.upload_id());
  TRIB_ASSERT_OK_AND_ASSIGN(const auto mine, Query(1, {1, 2}));
  EXPECT_EQ(mine.next_offset(), 0u);
  ExpectHonestUploadWorks();
}

TEST_F(UploadRowsTest, RefusesBytesThatAreNoMessage) {
  grpc::internal::RpcMethod method("/tributary.v1.Federation/BeginUpload", grpc::internal::RpcMethod::NORMAL_RPC);
  for (const std::string& garbage : {std::string("\xff\xff\xff"), std::string("\x0a\x7f"), std::string(1000, '\x07')}) {
    grpc::ClientContext context;
    Identify(&context, "site-a");
    const grpc::Slice slice(garbage);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    const grpc::Status status = grpc::internal::BlockingUnaryCall(channel.get(), method, &context, request, &response);
    EXPECT_THAT(FromGrpc(status), StatusIs(Code::kInvalidArgument, HasSubstr("malformed"))) << garbage.size();
  }
  ExpectHonestUploadWorks();
}

TEST_F(UploadRowsTest, RefusesCompressedMessages) {
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    grpc::ClientContext context;
    Identify(&context, "site-a");
    context.set_compression_algorithm(algorithm);
    auto request = Header(FloatBytes(kUpdate));
    request.set_layout(std::string(1'000'000, 'a'));  // compresses well
    v1::UpdateStatus response;
    EXPECT_EQ(stub->BeginUpload(&context, request, &response).error_code(), grpc::UNIMPLEMENTED);
  }
  ExpectHonestUploadWorks();
}

}  // namespace
}  // namespace tributary::aggregator
