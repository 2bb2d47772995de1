// Payload through the whole ingress over loopback, beside what loopback TCP alone gives in the same run: 8 streams of 44 MiB up into
// the pool (copy, CRC32C, XXH3, float scan and all) and 8 of 44 MiB down. Run by hand: ingress_bench [CHUNK_KIB] [STREAMS] [MIB]
// [QUOTA_MIB].
// Prints one line of JSON; GB/s are 1e9 payload bytes a second of wall time, the median of five rounds.
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "aggregator/ingress/server.h"
#include "common/check.h"
#include "common/digest.h"
#include "proto/chunk_codec.h"
#include "proto/codec.h"
#include "tributary/v1/federation.grpc.pb.h"

namespace tributary::aggregator {
namespace {

constexpr char kJob[] = "bench-0a1b2c";

class BenchBackend final : public FederationBackend {
 public:
  BenchBackend(size_t bytes, size_t slots, std::shared_ptr<std::string> model) : model_(std::move(model)) {
    pool_ = ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = bytes, .pool_bytes = (slots + 1) * (bytes + 8192), .domain = 1}).value();
    sha256_ = Sha256Hex(std::as_bytes(std::span(model_->data(), model_->size())));
  }
  absl::Status Authenticate(const std::string&, const std::string&) override { return absl::OkStatus(); }
  absl::StatusOr<uint64_t> Attach(const std::string&, const v1::Hello&, std::shared_ptr<ControlStream>) override { return uint64_t{1}; }
  void OnMessage(uint64_t, const v1::ClientMessage&) override {}
  void Detach(uint64_t) override {}
  absl::StatusOr<Blob> Model(const std::string&, const std::string&, uint64_t) override {
    return Blob{.bytes = std::as_bytes(std::span(model_->data(), model_->size())), .sha256 = sha256_, .xxh3_128 = "", .owner = model_};
  }
  absl::StatusOr<Blob> Artifact(const std::string&, const std::string&) override { return NotFound("no artifact"); }
  void CountDownload(const std::string&, uint64_t) override {}
  absl::StatusOr<Admission> AdmitUpload(const UploadHeader& header, absl::Duration*) override {
    Admission admission;
    TRIB_ASSIGN_OR_RETURN(admission.grant.object, pool_->Reserve(header.bytes));
    admission.state = v1::UPDATE_STATE_PARTIAL;
    admission.grant.float_bytes = header.bytes;
    return admission;
  }
  absl::Status AcceptUpdate(const UploadHeader&, WritableObject, const ScanResult&) override { return absl::OkStatus(); }
  void RejectUpdate(const UploadHeader&, const std::string&, const std::string&) override {}
  v1::UpdateStatus Query(const std::string&, const v1::UpdateKey&) override { return {}; }

 private:
  std::shared_ptr<std::string> model_;
  std::string sha256_;
  std::unique_ptr<ObjectPool> pool_;
};

class NoAdmin final : public AdminBackend {
 public:
  absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::SubmitHeader&, std::unique_ptr<ByteSource>, std::string) override { return NotFound("no"); }
  std::vector<v1::Job> ListJobs() override { return {}; }
  absl::StatusOr<v1::Job> GetJob(const std::string&) override { return NotFound("no"); }
  absl::StatusOr<v1::Job> CancelJob(const std::string&, const std::string&) override { return NotFound("no"); }
  absl::StatusOr<v1::Job> ResumeJob(const std::string&) override { return NotFound("no"); }
  absl::StatusOr<std::shared_ptr<void>> Watch(const std::string&, std::function<void()>) override { return NotFound("no"); }
  std::vector<v1::Client> ListClients(bool) override { return {}; }
  v1::Node GetNode() override { return {}; }
  absl::StatusOr<std::vector<v1::VersionInfo>> ListVersions(const std::string&) override { return NotFound("no"); }
  absl::StatusOr<v1::VersionInfo> GetVersion(const v1::GetVersionRequest&) override { return NotFound("no"); }
  absl::StatusOr<std::string> ExportVersion(const v1::GetVersionRequest&) override { return NotFound("no"); }
};

// Runs `work(i)` in `streams` threads; wall seconds.
double Parallel(int streams, const std::function<void(int)>& work) {
  const absl::Time start = absl::Now();
  std::vector<std::jthread> threads;
  for (int i = 0; i < streams; ++i) threads.emplace_back([&work, i] { work(i); });
  threads.clear();
  return absl::ToDoubleSeconds(absl::Now() - start);
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + 1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

long PeakResidentMib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

void Identify(grpc::ClientContext* context, int i) {
  context->AddMetadata("tributary-client", "bench-" + std::to_string(i));
  context->AddMetadata("tributary-secret", std::string(64, 'a'));
}

std::atomic<int> g_resets{0};  // uploads that gRPC's quota ended under way; they resume at their offset

// One try: begins (or resumes) and pushes. False if the stream was reset.
bool TryUpload(const std::shared_ptr<grpc::Channel>& channel, int i, const v1::BeginUploadRequest& request,
               const std::shared_ptr<std::string>& payload, size_t chunk_bytes) {
  const auto stub = v1::Federation::NewStub(channel);
  v1::UpdateStatus begun;
  {
    grpc::ClientContext context;
    Identify(&context, i);
    if (!stub->BeginUpload(&context, request, &begun).ok()) return false;
  }
  grpc::ClientContext context;
  Identify(&context, i);
  v1::UpdateStatus done;
  const grpc::internal::RpcMethod method("/tributary.v1.Federation/PushUpdate", grpc::internal::RpcMethod::CLIENT_STREAMING);
  const std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> writer(
      grpc::internal::ClientWriterFactory<grpc::ByteBuffer>::Create(channel.get(), method, &context, &done));
  const auto bytes = std::as_bytes(std::span(payload->data(), payload->size()));
  for (size_t at = begun.next_offset(); at < bytes.size();) {
    const auto part = bytes.subspan(at, std::min(chunk_bytes, bytes.size() - at));
    ChunkFields fields;
    fields.upload_id = begun.upload_id();
    fields.offset = at;
    fields.crc32c = Crc32c(part);
    if (!writer->Write(EncodeChunk(fields, part, payload))) break;
    at += part.size();
  }
  writer->WritesDone();
  return writer->Finish().ok() && done.state() == v1::UPDATE_STATE_ACCEPTED;
}

void Upload(const std::shared_ptr<grpc::Channel>& channel, int i, uint64_t task, const std::shared_ptr<std::string>& payload,
            const std::string& digest, size_t chunk_bytes) {
  v1::BeginUploadRequest request;
  *request.mutable_key() = KeyToProto(kJob, task, RandomUpdateId());
  request.set_layout(std::string(64, 'a'));
  request.set_codec("f32");
  request.set_bytes(payload->size());
  request.set_xxh3_128(digest);
  request.set_weight(1);
  for (int tries = 1; !TryUpload(channel, i, request, payload, chunk_bytes); ++tries) {
    TRIB_CHECK(tries < 100, "upload {}: 100 tries", i);
    ++g_resets;
  }
}

void Download(const std::shared_ptr<grpc::Channel>& channel, int i, std::span<std::byte> out) {
  v1::FetchModelRequest request;
  request.set_job(kJob);
  grpc::ClientContext context;
  Identify(&context, i);
  const grpc::internal::RpcMethod method("/tributary.v1.Federation/FetchModel", grpc::internal::RpcMethod::SERVER_STREAMING);
  const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(channel.get(), method, &context, request));
  grpc::ByteBuffer buffer;
  size_t at = 0;
  while (reader->Read(&buffer)) {
    const auto chunk = ChunkReader::Parse(buffer);
    TRIB_CHECK(chunk.ok() && chunk->payload_bytes() <= out.size() - at, "FetchModel: bad chunk at {}", at);
    const uint32_t crc = chunk->CopyPayload(out.subspan(at, chunk->payload_bytes()));
    TRIB_CHECK(crc == chunk->fields().crc32c, "FetchModel: CRC at {}", at);
    at += chunk->payload_bytes();
  }
  const grpc::Status status = reader->Finish();
  TRIB_CHECK(status.ok() && at == out.size(), "FetchModel: {} after {} bytes", status.error_message(), at);
}

// The floor: the same bytes through loopback TCP, each received into its own buffer, nothing checked.
void TcpCopy(const std::string& payload, std::span<std::byte> out) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  TRIB_CHECK(bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0 && listen(listener, 1) == 0 &&
             getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  std::jthread sender([&] {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    TRIB_CHECK(connect(fd, reinterpret_cast<sockaddr*>(&address), length) == 0);
    for (size_t at = 0; at < payload.size();) {
      const ssize_t sent = send(fd, payload.data() + at, std::min<size_t>(256 * 1024, payload.size() - at), MSG_NOSIGNAL);
      TRIB_CHECK(sent > 0);
      at += static_cast<size_t>(sent);
    }
    close(fd);
  });
  const int fd = accept(listener, nullptr, nullptr);
  for (size_t at = 0; at < out.size();) {
    const ssize_t got = recv(fd, out.data() + at, std::min<size_t>(256 * 1024, out.size() - at), 0);
    TRIB_CHECK(got > 0);
    at += static_cast<size_t>(got);
  }
  close(fd);
  close(listener);
}

struct Measured {
  double gb_per_s = 0;
  double cpu_s_per_gb = 0;
};
Measured MedianOf(double gigabytes, const std::function<double()>& round) {
  std::vector<double> seconds;
  round();  // page faults, connections, window growth
  const double cpu = CpuSeconds();
  for (int i = 0; i < 5; ++i) seconds.push_back(round());
  const double used = CpuSeconds() - cpu;
  std::sort(seconds.begin(), seconds.end());
  return {gigabytes / seconds[2], used / (5 * gigabytes)};
}

int Main(int argc, char** argv) {
  const size_t chunk_bytes = (argc > 1 ? static_cast<size_t>(std::atoi(argv[1])) : 256) * 1024;
  const int streams = argc > 2 ? std::atoi(argv[2]) : 8;
  const size_t bytes = (argc > 3 ? static_cast<size_t>(std::atoi(argv[3])) : 44) << 20;
  TRIB_CHECK(chunk_bytes > 0 && streams > 0 && bytes > 0, "usage: ingress_bench [CHUNK_KIB] [STREAMS] [MIB] [QUOTA_MIB]");
  const auto payload = std::make_shared<std::string>(bytes, '\0');
  for (size_t i = 0; i < bytes / 4; ++i) {
    const float value = static_cast<float>(i % 1009) * 1e-3f;
    std::memcpy(payload->data() + 4 * i, &value, 4);
  }
  const std::string digest = Xxh3Digest(std::as_bytes(std::span(payload->data(), payload->size())));
  BenchBackend backend(bytes, static_cast<size_t>(streams), payload);
  NoAdmin admin;
  GrpcServerOptions options;
  options.chunk_bytes = chunk_bytes;
  if (argc > 4) options.quota_bytes = static_cast<size_t>(std::atoi(argv[4])) << 20;
  auto server = GrpcServer::Start(options, &backend, &admin);
  TRIB_CHECK(server.ok(), "{}", server.status().ToString());
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < streams; ++i) {
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channels.push_back(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string((*server)->port()), grpc::InsecureChannelCredentials(), args));
  }
  std::vector<std::vector<std::byte>> out(static_cast<size_t>(streams), std::vector<std::byte>(bytes));
  const double gigabytes = 1e-9 * static_cast<double>(bytes) * streams;
  uint64_t task = 0;
  const Measured tcp = MedianOf(gigabytes, [&] { return Parallel(streams, [&](int i) { TcpCopy(*payload, out[static_cast<size_t>(i)]); }); });
  const Measured up = MedianOf(gigabytes, [&] {
    ++task;
    return Parallel(streams, [&](int i) { Upload(channels[static_cast<size_t>(i)], i, task, payload, digest, chunk_bytes); });
  });
  const Measured down = MedianOf(gigabytes, [&] { return Parallel(streams, [&](int i) { Download(channels[static_cast<size_t>(i)], i, out[static_cast<size_t>(i)]); }); });
  std::printf("{\"chunk_kib\": %zu, \"streams\": %d, \"mib\": %zu, \"tcp_gb_s\": %.2f, \"up_gb_s\": %.2f, \"down_gb_s\": %.2f, "
              "\"tcp_cpu_s_per_gb\": %.2f, \"up_cpu_s_per_gb\": %.2f, \"down_cpu_s_per_gb\": %.2f, \"resets\": %d, "
              "\"peak_rss_mib\": %ld}\n",
              chunk_bytes / 1024, streams, bytes >> 20, tcp.gb_per_s, up.gb_per_s, down.gb_per_s, tcp.cpu_s_per_gb, up.cpu_s_per_gb,
              down.cpu_s_per_gb, g_resets.load(), PeakResidentMib());
  return 0;
}

}  // namespace
}  // namespace tributary::aggregator

int main(int argc, char** argv) { return tributary::aggregator::Main(argc, argv); }
