// FetchModel, Admin, health and the server itself.
#include <algorithm>
#include <thread>

#include "aggregator/core/strategy.h"
#include "aggregator/ingress/chunk_crcs.h"
#include "cli/state_source.h"
#include "tests/integration/ingress/fake_backend.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Code = absl::StatusCode;

class FetchTest : public IngressTest {
 protected:
  struct Fetched {
    absl::Status status;
    std::string bytes;
    std::string sha256;
    uint64_t total = 0;
    size_t chunks = 0;
  };
  Fetched Fetch(uint64_t version, uint64_t offset = 0, bool artifact = false) {
    grpc::ClientContext context;
    Identify(&context, "site-a");
    v1::FetchModelRequest request;
    request.set_job(kJob);
    request.set_version(version);
    request.set_offset(offset);
    request.set_artifact(artifact);
    const auto reader = stub->FetchModel(&context, request);
    Fetched out;
    v1::DataChunk chunk;
    while (reader->Read(&chunk)) {
      if (out.chunks++ == 0) {
        out.sha256 = chunk.sha256();
        out.total = chunk.total_bytes();
      }
      EXPECT_EQ(chunk.offset(), offset + out.bytes.size());
      EXPECT_EQ(chunk.crc32c(), Crc32c(BytesOf(chunk.bytes())));
      out.bytes += chunk.bytes();
    }
    out.status = FromGrpc(reader->Finish());
    return out;
  }
};

TEST_F(FetchTest, SendsTheWholeObjectAndAnyTailOfIt) {
  StartServer();
  *federation->model = FloatBytes(10 * kChunk + 12);
  const std::string sha256 = Sha256Hex(BytesOf(*federation->model));
  uint64_t bytes = 0;
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{kChunk - 1}, uint64_t{kChunk}, uint64_t{10 * kChunk}, uint64_t{10 * kChunk + 12}}) {
    const Fetched got = Fetch(3, offset);
    ASSERT_THAT(got.status, IsOk()) << offset;
    EXPECT_EQ(got.bytes, federation->model->substr(offset)) << offset;
    EXPECT_EQ(got.sha256, sha256);
    EXPECT_EQ(got.total, federation->model->size());
    EXPECT_GE(got.chunks, 1u);
    bytes += got.bytes.size();
  }
  EXPECT_TRUE(Eventually([&] {
    absl::MutexLock lock(&federation->mutex);
    return federation->downloaded == bytes;
  }));
}

TEST_F(FetchTest, RefusesWhatIsNotThere) {
  StartServer();
  *federation->model = FloatBytes(1000);
  EXPECT_THAT(Fetch(4).status, StatusIs(Code::kNotFound));
  EXPECT_THAT(Fetch(3, 1001).status, StatusIs(Code::kOutOfRange, HasSubstr("1000")));
  EXPECT_THAT(Fetch(3, 1ull << 63).status, StatusIs(Code::kOutOfRange));
  EXPECT_THAT(Fetch(3, 0, true).status, StatusIs(Code::kNotFound, HasSubstr("artifact")));
}

TEST_F(FetchTest, KeepsTheVersionAliveWhileItIsFetchedAndCancelsAReaderThatStalls) {
  StartServer();
  *federation->model = FloatBytes(32 << 20);
  std::weak_ptr<std::string> alive = federation->model;
  grpc::ClientContext context;
  Identify(&context, "site-a");
  v1::FetchModelRequest request;
  request.set_job(kJob);
  request.set_version(3);
  const auto reader = stub->FetchModel(&context, request);
  v1::DataChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  {
    absl::MutexLock lock(&federation->mutex);
    federation->model = std::make_shared<std::string>();  // the job has a newer version
  }
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_FALSE(alive.expired());
  // Now the client stops reading: windows fill, and the write does not end.
  // On a busy machine that takes a while, and each write that still ends moves the deadline.
  bool expired = false;
  for (int i = 0; i < 20 && !expired; ++i) {
    absl::SleepFor(absl::Milliseconds(200));
    clock.Advance(absl::Seconds(31));
    expired = Eventually([&] { return alive.expired(); }, absl::Seconds(1));
  }
  EXPECT_TRUE(expired);
  while (reader->Read(&chunk)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(FetchTest, SixteenClientsAtOnce) {
  StartServer();
  *federation->model = FloatBytes(3 << 20);
  std::vector<std::jthread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      const Fetched got = Fetch(3);
      EXPECT_THAT(got.status, IsOk());
      EXPECT_TRUE(got.bytes == *federation->model);
    });
  }
}

TEST(ChunkCrcsTest, JoinsChecksumsAsIfTheBytesWereAdjacent) {
  const std::string bytes = FloatBytes(100'000);
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{4096}, size_t{65537}, bytes.size()}) {
    const auto whole = BytesOf(bytes);
    EXPECT_EQ(CombineCrc32c(Crc32c(whole.first(cut)), Crc32c(whole.subspan(cut)), bytes.size() - cut), Crc32c(whole)) << cut;
  }
}

TEST(ChunkCrcsTest, SharesAnObjectsChecksums) {
  ChunkCrcCache cache(4096);
  const std::string bytes = FloatBytes(10'000);
  const auto crcs = cache.Get("sha", bytes.size());
  EXPECT_EQ(cache.Get("sha", bytes.size()), crcs);
  EXPECT_NE(cache.Get("other", bytes.size()), crcs);
  EXPECT_EQ(crcs->Of(BytesOf(bytes), 4096, 4096), Crc32c(BytesOf(bytes).subspan(4096, 4096)));
  // Cached: other bytes at that place are not looked at.
  EXPECT_EQ(crcs->Of(BytesOf(std::string(10'000, 'x')), 4096, 4096), Crc32c(BytesOf(bytes).subspan(4096, 4096)));
  EXPECT_EQ(crcs->Of(BytesOf(bytes), 8192, 1808), Crc32c(BytesOf(bytes).subspan(8192)));
  EXPECT_EQ(crcs->Of(BytesOf(bytes), 100, 50), Crc32c(BytesOf(bytes).subspan(100, 50)));
}

class AdminTest : public IngressTest {
 protected:
  void SetUp() override {
    StartServer();
    stub_admin = v1::Admin::NewStub(channel);
  }
  absl::Status Submit(const v1::SubmitHeader& header, const std::vector<std::string>& tensors, const std::vector<std::string>& artifact = {}) {
    grpc::ClientContext context;
    v1::SubmitJobResponse response;
    const auto writer = stub_admin->SubmitJob(&context, &response);
    v1::SubmitJobRequest request;
    *request.mutable_header() = header;
    writer->Write(request);
    for (const auto& part : tensors) {
      request.set_tensors(part);
      if (!writer->Write(request)) break;
    }
    for (const auto& part : artifact) {
      request.set_artifact(part);
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    return FromGrpc(writer->Finish());
  }
  std::unique_ptr<v1::Admin::Stub> stub_admin;
};

TEST_F(AdminTest, AssemblesASubmission) {
  v1::SubmitHeader header;
  header.set_spec_yaml("name: x");
  header.set_tensors_bytes(6);
  header.set_artifact_bytes(4);
  header.set_artifact_sha256(Sha256Hex(BytesOf("code")));
  EXPECT_THAT(Submit(header, {"abc", "def"}, {"co", "de"}), IsOk());
  absl::MutexLock lock(&admin.mutex);
  EXPECT_EQ(admin.spec, "name: x");
  EXPECT_EQ(admin.tensors, "abcdef");
  EXPECT_EQ(admin.artifact, "code");
}

TEST_F(AdminTest, RefusesSubmissionsWhoseSizesLie) {
  v1::SubmitHeader header;
  header.set_spec_yaml("name: x");
  header.set_tensors_bytes(6);
  EXPECT_THAT(Submit(header, {"abc"}), StatusIs(Code::kInvalidArgument, HasSubstr("announced 6")));
  EXPECT_THAT(Submit(header, {"abcdefg"}), StatusIs(Code::kInvalidArgument, HasSubstr("more than")));
  EXPECT_THAT(Submit(header, {"abcdef"}, {"x"}), StatusIs(Code::kInvalidArgument, HasSubstr("artifact")));
  header.set_tensors_bytes((64ull << 30) + 1);
  EXPECT_THAT(Submit(header, {}), StatusIs(Code::kInvalidArgument, HasSubstr("tensors_bytes")));
  header.set_tensors_bytes(0);
  header.set_spec_yaml(std::string((1 << 20) + 1, 'x'));
  EXPECT_THAT(Submit(header, {}), StatusIs(Code::kInvalidArgument, HasSubstr("spec_yaml")));
  header.set_spec_yaml("");
  EXPECT_THAT(Submit(header, {}), StatusIs(Code::kInvalidArgument, HasSubstr("spec_yaml")));
  header.set_spec_yaml("name: x");
  header.set_artifact_bytes(4);
  header.set_artifact_sha256(std::string(64, '0'));
  EXPECT_THAT(Submit(header, {}, {"code"}), StatusIs(Code::kInvalidArgument, HasSubstr("SHA-256")));
  absl::MutexLock lock(&admin.mutex);
  EXPECT_TRUE(admin.spec.empty());
}

TEST_F(AdminTest, WatchesAJobUntilItEnds) {
  {
    absl::MutexLock lock(&admin.mutex);
    admin.job.set_id(kJob);
    admin.job.set_state(v1::JOB_STATE_RUNNING);
  }
  grpc::ClientContext context;
  v1::GetJobRequest request;
  request.set_job(kJob);
  const auto reader = stub_admin->WatchJob(&context, request);
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::JOB_STATE_RUNNING);
  int sent = 0;
  const absl::Time start = absl::Now();
  std::jthread changer([&] {
    for (int i = 1; i <= 300; ++i) {
      std::function<void()> listener;
      {
        absl::MutexLock lock(&admin.mutex);
        admin.job.set_version(i);
        if (i == 300) admin.job.set_state(v1::JOB_STATE_DONE);
        listener = admin.listener;
      }
      listener();
      absl::SleepFor(absl::Milliseconds(1));
    }
  });
  while (reader->Read(&job)) ++sent;
  EXPECT_THAT(FromGrpc(reader->Finish()), IsOk());
  EXPECT_EQ(job.version(), 300u);
  EXPECT_EQ(job.state(), v1::JOB_STATE_DONE);
  EXPECT_LE(sent, 2 + absl::ToInt64Milliseconds(absl::Now() - start) / 100);  // 300 changes, at most ten messages a second
}

TEST_F(AdminTest, AWatcherDoesNotHoldUpShutdown) {
  grpc::ClientContext context;
  v1::GetJobRequest request;
  request.set_job(kJob);
  const auto reader = stub_admin->WatchJob(&context, request);
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  const absl::Time start = absl::Now();
  server->Shutdown(absl::Seconds(30));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_FALSE(reader->Read(&job));
  EXPECT_THAT(FromGrpc(reader->Finish()), StatusIs(Code::kUnavailable));
}

TEST_F(AdminTest, ExportsInChunksAndPassesErrorsOn) {
  admin.exported = FloatBytes((2 << 20) + 100);
  grpc::ClientContext context;
  v1::GetVersionRequest request;
  request.set_job(kJob);
  const auto reader = stub_admin->ExportVersion(&context, request);
  std::string file;
  size_t chunks = 0;
  v1::ExportChunk chunk;
  while (reader->Read(&chunk)) {
    EXPECT_EQ(chunk.total_bytes(), admin.exported.size());
    file += chunk.safetensors();
    ++chunks;
  }
  EXPECT_THAT(FromGrpc(reader->Finish()), IsOk());
  EXPECT_EQ(chunks, 3u);
  EXPECT_TRUE(file == admin.exported);
  const auto get_job = [&](const std::string& id) {
    grpc::ClientContext get_context;
    v1::GetJobRequest get;
    get.set_job(id);
    v1::Job job;
    return FromGrpc(stub_admin->GetJob(&get_context, get, &job));
  };
  EXPECT_THAT(get_job("no-such-job"), StatusIs(Code::kNotFound));
  EXPECT_THAT(get_job("../x"), StatusIs(Code::kInvalidArgument));
  EXPECT_THAT(get_job(""), StatusIs(Code::kInvalidArgument));
}

TEST_F(AdminTest, ListsVersionsThatNoOneMessageHolds) {
  for (uint64_t v = 0; v < 3; ++v) {
    v1::VersionInfo& version = admin.versions.emplace_back();
    version.set_version(v);
    version.set_trigger(std::string(30 << 20, 't'));
  }
  TRIB_ASSERT_OK_AND_ASSIGN(const auto source, cli::ConnectSource("127.0.0.1:" + std::to_string(server->port())));
  TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<v1::VersionInfo> listed, source->List(kJob));
  ASSERT_EQ(listed.size(), 3U);
  for (uint64_t v = 0; v < 3; ++v) {
    EXPECT_EQ(listed[v].version(), v);
    EXPECT_EQ(listed[v].trigger().size(), size_t{30} << 20);
  }
  EXPECT_THAT(source->List("other"), StatusIs(Code::kNotFound, HasSubstr("other")));
}

TEST_F(AdminTest, ListsStrategiesAndFiltersClients) {
  {
    grpc::ClientContext context;
    v1::ListStrategiesResponse response;
    ASSERT_TRUE(stub_admin->ListStrategies(&context, {}, &response).ok());
    ASSERT_EQ(static_cast<size_t>(response.strategies_size()), Strategies().size());
    EXPECT_EQ(response.strategies(0).name(), std::string(Strategies()[0].name));
  }
  const auto list = [&](const std::string& client, int* found) {
    grpc::ClientContext context;
    v1::ListClientsRequest request;
    request.set_client(client);
    v1::ListClientsResponse response;
    const absl::Status status = FromGrpc(stub_admin->ListClients(&context, request, &response));
    *found = response.clients_size();
    return status;
  };
  int found = 0;
  EXPECT_THAT(list("", &found), IsOk());
  EXPECT_EQ(found, 1);
  EXPECT_THAT(list("site-a", &found), IsOk());
  EXPECT_EQ(found, 1);
  EXPECT_THAT(list("site-b", &found), StatusIs(Code::kNotFound, HasSubstr("site-b")));
}

TEST_F(AdminTest, HealthFollowsSetServing) {
  // grpc.health.v1: HealthCheckRequest{1: service}, HealthCheckResponse{1: status}, SERVING is 1, NOT_SERVING 2.
  const auto check = [&]() {
    grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check", grpc::internal::RpcMethod::NORMAL_RPC);
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    const grpc::Slice empty;
    const grpc::ByteBuffer body(&empty, 1);
    EXPECT_TRUE(grpc::internal::BlockingUnaryCall(channel.get(), method, &context, body, &response).ok());
    grpc::Slice slice;
    EXPECT_TRUE(response.DumpToSingleSlice(&slice).ok());
    return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
  };
  EXPECT_EQ(check(), "\x08\x01");
  server->SetServing(false);
  EXPECT_EQ(check(), "\x08\x02");
}

TEST_F(AdminTest, ASecondServerOnThePortIsRefused) {
  GrpcServerOptions options;
  options.address = "127.0.0.1:" + std::to_string(server->port());
  EXPECT_THAT(GrpcServer::Start(options, federation.get(), &admin), StatusIs(Code::kUnavailable, HasSubstr(options.address)));
  options.address = "127.0.0.1:0";
  options.chunk_bytes = 16 << 20;
  EXPECT_THAT(GrpcServer::Start(options, federation.get(), &admin), StatusIs(Code::kInvalidArgument, HasSubstr("chunk_bytes")));
}

}  // namespace
}  // namespace tributary::aggregator
