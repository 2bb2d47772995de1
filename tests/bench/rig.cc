#include "tests/bench/rig.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "aggregator/core/kernels.h"
#include "common/digest.h"
#include "common/ids.h"
#include "proto/chunk_codec.h"

namespace tributary::bench {

using namespace aggregator;

void PrintLine(const std::string& id, const std::string& what, const std::string& metric, const RunsOf* baseline, const RunsOf& ours,
               nlohmann::json more) {
  more["id"] = id;
  more["case"] = what;
  more["metric"] = metric;
  if (baseline != nullptr) more["baseline"] = {{"arm", baseline->arm}, {"runs", baseline->runs}};
  more["ours"] = {{"arm", ours.arm}, {"runs", ours.runs}};
  std::printf("%s\n", more.dump().c_str());
  std::fflush(stdout);
}

void PrintSkipped(const std::string& id, const std::string& reason) {
  std::printf("%s\n", nlohmann::json{{"id", id}, {"skipped", id}, {"reason", reason}}.dump().c_str());
  std::fflush(stdout);
}

double MonotonicSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double CpuSeconds() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

double CpuSecondsOf(pid_t pid) {
  double ns = 0;
  std::ifstream(fmt::format("/proc/{}/schedstat", pid)) >> ns;
  return ns * 1e-9;
}

LocalSums::LocalSums(size_t elements) : acc_(elements), reducer_(MakeMeanReducer(DType::kF32, Arithmetic::kFloat64)) {}

void LocalSums::Fold(const std::byte* update) {
  const UpdateView view{update, 1.0};
  for (size_t first = 0; first < acc_.size(); first += kBlockElements) {
    const size_t count = std::min(kBlockElements, acc_.size() - first);
    TRIB_CHECK(reducer_->FoldBlock(reinterpret_cast<std::byte*>(acc_.data() + first), first, count, {&view, 1}, fresh_));
  }
  fresh_ = false;
}

// ---- sockets ----

namespace {

sockaddr_in AddressOf(const std::string& address, uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(port);
  TRIB_CHECK(::inet_pton(AF_INET, address.c_str(), &result.sin_addr) == 1, "address '{}': IPv4 expected", address);
  return result;
}

constexpr size_t kPiece = 256 * 1024;

}  // namespace

UniqueFd Listen(const std::string& address, uint16_t port, uint16_t* bound) {
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in name = AddressOf(address, port);
  socklen_t length = sizeof name;
  TRIB_CHECK(::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), length) == 0 && ::listen(listener.get(), 128) == 0 &&
                 ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name), &length) == 0,
             "listen on {}:{}: {}", address, port, std::strerror(errno));
  if (bound != nullptr) *bound = ntohs(name.sin_port);
  return listener;
}

UniqueFd ConnectTo(const std::string& address, uint16_t port, absl::Duration patience) {
  const sockaddr_in name = AddressOf(address, port);
  for (const absl::Time end = absl::Now() + patience;; absl::SleepFor(absl::Milliseconds(20))) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0) {
      const int on = 1;
      ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      return fd;
    }
    TRIB_CHECK(absl::Now() < end, "connect to {}:{}: {}", address, port, std::strerror(errno));
  }
}

TcpPair TcpPair::Make() {
  uint16_t port = 0;
  const UniqueFd listener = Listen("127.0.0.1", 0, &port);
  TcpPair pair;
  pair.client = ConnectTo("127.0.0.1", port, absl::Seconds(5));
  pair.server = UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  TRIB_CHECK(pair.server.valid());
  return pair;
}

void SendAll(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), std::min(kPiece, bytes.size()), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    TRIB_CHECK(sent > 0, "send: {}", std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
}

bool ReceiveAll(int fd, std::span<std::byte> out) {
  const size_t wanted = out.size();
  while (!out.empty()) {
    const ssize_t got = ::recv(fd, out.data(), std::min(kPiece, out.size()), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0 && out.size() == wanted) return false;
    TRIB_CHECK(got > 0, "recv: {}, {} of {} bytes are missing", got == 0 ? "closed" : std::strerror(errno), out.size(), wanted);
    out = out.subspan(static_cast<size_t>(got));
  }
  return true;
}

// ---- updates ----

std::vector<std::byte> MakePayload(size_t elements) {
  std::vector<std::byte> payload(elements * sizeof(float));
  for (size_t i = 0; i < elements; ++i) {
    const float value = static_cast<float>(i % 1009) * 1e-3f;
    std::memcpy(payload.data() + i * sizeof(float), &value, sizeof(float));
  }
  return payload;
}

std::vector<grpc::ByteBuffer> AsChunks(std::span<const std::byte> payload) {
  std::vector<grpc::ByteBuffer> chunks;
  for (size_t at = 0; at < payload.size(); at += kPiece) {
    const auto part = payload.subspan(at, std::min(kPiece, payload.size() - at));
    chunks.push_back(EncodeChunk({.upload_id = 1, .offset = at, .crc32c = Crc32c(part), .total_bytes = 0, .sha256 = "", .xxh3_128 = ""}, part, nullptr));
  }
  return chunks;
}

void CopyIn(std::span<const grpc::ByteBuffer> chunks, std::span<std::byte> destination, bool digest_and_scan) {
  size_t at = 0;
  Xxh3 digest;
  for (const grpc::ByteBuffer& buffer : chunks) {
    const ChunkReader chunk = OrDie(ChunkReader::Parse(buffer));
    const std::span<std::byte> place = destination.subspan(at, chunk.payload_bytes());
    TRIB_CHECK(chunk.CopyPayload(place) == chunk.fields().crc32c, "CRC32C of the chunk at {}", at);
    if (digest_and_scan) {
      digest.Update(place);
      TRIB_CHECK(Scan(place, DType::kF32).finite);
    }
    at += chunk.payload_bytes();
  }
  TRIB_CHECK(at == destination.size(), "{} of {} bytes came", at, destination.size());
  if (digest_and_scan) TRIB_CHECK(digest.Digest().size() == 16);
}

// ---- a node ----

RigNode::RigNode(const Options& options) : options_(options) {
  layout_ = OrDie(TensorLayout::Create({{"w", {static_cast<int64_t>(options.elements)}, DType::kF32, TensorKind::kTrainable}}));
  objects_ = OrDie(ObjectPool::Create({.pool_id = 1,
                                       .slot_payload_bytes = layout_.total_bytes(),
                                       .pool_bytes = options.slots * SlotBytes(layout_.total_bytes()),
                                       .domain = 0}));
  WorkerPool::Callbacks callbacks;
  callbacks.folded = [this](uint32_t, const UpdateId&) {
    absl::MutexLock lock(&mutex_);
    ++folded_;
  };
  callbacks.refused = [](uint32_t, const UpdateId&, const std::string& reason) { TRIB_CHECK(false, "refused: {}", reason); };
  callbacks.lost = [](uint32_t, const std::string& reason) { TRIB_CHECK(false, "lost: {}", reason); };
  pool_ = OrDie(WorkerPool::Start({.worker_program = options.worker_program, .workers = options.workers, .lane_capacity = 256}, callbacks));
  OrDie(pool_->OpenJob({.job = kJob, .strategy = "fedavg", .layout = layout_, .arithmetic = Arithmetic::kFloat64, .hierarchy = options.hierarchy},
                       objects_.get()));
}

RigNode::~RigNode() { pool_.reset(); }

WritableObject RigNode::Reserve() {
  while (true) {
    auto object = objects_->Reserve(layout_.total_bytes());
    if (object.ok()) return *std::move(object);
    // A slot comes free just before its `folded`.
    absl::MutexLock lock(&mutex_);
    const auto freed = [this] { return objects_->used_slots() < objects_->capacity_slots(); };
    mutex_.AwaitWithTimeout(absl::Condition(&freed), absl::Milliseconds(5));
  }
}

ObjectKey RigNode::Publish(WritableObject object) {
  object.header().weight = 1;
  return objects_->Publish(std::move(object));
}
void RigNode::Fold(const ObjectKey& key) { OrDie(pool_->Fold(kJob, RandomUpdateId(), key)); }
void RigNode::Fold(WritableObject object) { Fold(Publish(std::move(object))); }

void RigNode::BeginRound(int updates) {
  {
    absl::MutexLock lock(&mutex_);
    folded_ = 0;
  }
  OrDie(pool_->BeginRound(kJob, ++round_, {.updates = static_cast<uint64_t>(updates), .leaves = {}}));
}

void RigNode::WaitFolded(int updates) {
  absl::MutexLock lock(&mutex_);
  const auto all = [&] { return folded_ >= updates; };
  mutex_.Await(absl::Condition(&all));
}

int RigNode::folded() {
  absl::MutexLock lock(&mutex_);
  return folded_;
}

void RigNode::ReadSums() { OrDie(pool_->ReadSums(kJob).status()); }

std::vector<pid_t> RigNode::WorkerPids() const {
  std::vector<pid_t> pids;
  for (const WorkerStatus& worker : pool_->Status()) pids.push_back(worker.pid);
  return pids;
}

double RigNode::WorkerCpuSeconds() const {
  double sum = 0;
  for (const pid_t pid : WorkerPids()) sum += CpuSecondsOf(pid);
  return sum;
}

}  // namespace tributary::bench
