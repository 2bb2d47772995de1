// T20: how long heart-beats take while a large update travels over a thin link: client and server in network namespaces of their own, joined
// by a veth pair that `tc tbf` holds to 200 Mbit/s from client to server (queue: 50 ms). Three arms, each on a link of its own, at once:
//   stream   heart-beats and the update are messages of one TCP connection, the update one message (what F13 of dataplane.md §12 is about)
//   shared   the product's client with the control stream on the connection of PushUpdate
//   product  what tributary-client does: a connection for control streams and another for all else
// A heart-beat is stamped when it is due (every 50 ms, from the first byte of the update until the server has acknowledged the last) and again
// when the server has it; both read CLOCK_MONOTONIC, which namespaces share. A false death is a silence longer than the coordinator tolerates.
#include <absl/strings/numbers.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <filesystem>
#include <thread>

#include "client/rpc/attach_stream.h"
#include "common/file.h"
#include "common/process.h"
#include "tests/bench/rig.h"
#include "tests/bench/rig_ingress.h"

namespace tributary::bench {
namespace {

using namespace aggregator;

constexpr uint16_t kPort = 7000;
constexpr absl::Duration kBeat = absl::Milliseconds(50);
constexpr double kDeadAfterSeconds = 15;  // three of the coordinator's heart-beats (coordinator.h)
const std::array<std::string, 3> kArms = {"stream", "shared", "product"};

uint64_t Nanoseconds() { return static_cast<uint64_t>(MonotonicSeconds() * 1e9); }

// At the server: latencies and arrivals.
class Beats {
 public:
  void Arrived(uint64_t stamp) {
    const uint64_t now = Nanoseconds();
    absl::MutexLock lock(&mutex_);
    latencies_ms_.push_back(static_cast<double>(now - stamp) * 1e-6);
    if (last_ == 0) last_ = stamp;  // what comes before the first one is silence too
    longest_silence_s_ = std::max(longest_silence_s_, static_cast<double>(now - last_) * 1e-9);
    last_ = now;
  }
  void Print() {
    absl::MutexLock lock(&mutex_);
    std::printf("%s\n", nlohmann::json{{"latencies_ms", latencies_ms_}, {"longest_silence_s", longest_silence_s_}}.dump().c_str());
    std::fflush(stdout);
  }

 private:
  absl::Mutex mutex_;
  std::vector<double> latencies_ms_;  // these under mutex_
  uint64_t last_ = 0;
  double longest_silence_s_ = 0;
};

// At the client: how long the update took.
void PrintTransfer(double start) {
  std::printf("%.3f\n", MonotonicSeconds() - start);
  std::fflush(stdout);
}

void SayReady() {
  std::printf("ready\n");
  std::fflush(stdout);
}

// Calls `beat` with the time each heart-beat is due, from now until destroyed.
class Heart {
 public:
  explicit Heart(std::function<void(uint64_t)> beat) : thread_([beat = std::move(beat)](const std::stop_token& stop) {
    for (absl::Time due = absl::Now(); !stop.stop_requested(); due += kBeat) {
      absl::SleepFor(due - absl::Now());
      beat(Nanoseconds());
    }
  }) {}

 private:
  std::jthread thread_;
};

// ---- one stream ----

struct Frame {
  uint64_t kind;   // 1 heart-beat, 2 update
  uint64_t value;  // stamp, or bytes that follow
};

void StreamServer(const std::string& address) {
  const UniqueFd listener = Listen(address, kPort, nullptr);
  SayReady();
  const UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  Beats beats;
  std::vector<std::byte> update;
  for (Frame frame{}; ReceiveAll(fd.get(), std::as_writable_bytes(std::span(&frame, 1)));) {
    if (frame.kind == 1) {
      beats.Arrived(frame.value);
      continue;
    }
    update.resize(frame.value);
    TRIB_CHECK(ReceiveAll(fd.get(), update));
    const std::byte acknowledged{1};
    SendAll(fd.get(), {&acknowledged, 1});
  }
  beats.Print();
}

void StreamClient(const std::string& address, const std::string& file) {
  const MappedFile update = OrDie(MappedFile::Open(file));
  const UniqueFd fd = ConnectTo(address, kPort, absl::Seconds(10));
  absl::Mutex mutex;
  std::deque<Frame> queue = {{2, update.bytes().size()}};  // under mutex
  bool ended = false;                                      // under mutex
  std::jthread sender([&] {
    while (true) {
      Frame frame{};
      {
        absl::MutexLock lock(&mutex);
        const auto something = [&] { return ended || !queue.empty(); };
        mutex.Await(absl::Condition(&something));
        if (queue.empty()) break;
        frame = queue.front();
        queue.pop_front();
      }
      SendAll(fd.get(), std::as_bytes(std::span(&frame, 1)));
      if (frame.kind == 2) SendAll(fd.get(), update.bytes());
    }
    ::shutdown(fd.get(), SHUT_WR);
  });
  const double start = MonotonicSeconds();
  {
    const Heart heart([&](uint64_t stamp) {
      absl::MutexLock lock(&mutex);
      queue.push_back({1, stamp});
    });
    std::byte acknowledged{};
    TRIB_CHECK(ReceiveAll(fd.get(), {&acknowledged, 1}));
  }
  PrintTransfer(start);
  absl::MutexLock lock(&mutex);
  ended = true;
}

// ---- the product ----

void GrpcServerPart(const std::string& address, const std::string& file) {
  const size_t bytes = std::filesystem::file_size(file);
  const auto pool = OrDie(ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = bytes, .pool_bytes = SlotBytes(bytes), .domain = 1}));
  Beats beats;
  absl::Mutex mutex;
  bool gone = false;  // under mutex
  RigBackend backend(
      pool.get(), [](WritableObject) {},
      [&beats](const v1::ClientMessage& message) {
        if (message.has_heartbeat()) beats.Arrived(message.heartbeat().task());
      },
      [&] {
        absl::MutexLock lock(&mutex);
        gone = true;
      });
  const RigServer server(fmt::format("{}:{}", address, kPort), &backend);
  SayReady();
  {
    absl::MutexLock lock(&mutex);
    mutex.Await(absl::Condition(&gone));
  }
  beats.Print();
}

void GrpcClientPart(const std::string& address, const std::string& file, bool shared) {
  const std::string target = fmt::format("{}:{}", address, kPort);
  client::Connection connection(target);
  const PayloadFile payload{std::filesystem::path(file)};
  const auto entry = payload.NewEntry(1);
  absl::Mutex mutex;
  bool welcome = false, ended = false;  // under mutex
  v1::ClientMessage hello;
  hello.mutable_hello()->set_trains(true);
  const auto stream = client::AttachStream::Open(
      shared ? connection.data() : connection.control(), RigIdentity(0), hello,
      [&](v1::ServerMessage) {
        absl::MutexLock lock(&mutex);
        welcome = true;
        return true;
      },
      [&](const client::CallError&) {
        absl::MutexLock lock(&mutex);
        ended = true;
      });
  {
    absl::MutexLock lock(&mutex);
    const auto answered = [&] { return welcome || ended; };
    mutex.Await(absl::Condition(&answered));
    TRIB_CHECK(!ended, "no control stream to {}", target);
  }
  const double start = MonotonicSeconds();
  {
    const Heart heart([&stream](uint64_t stamp) {
      v1::ClientMessage message;
      message.mutable_heartbeat()->set_task(stamp);
      stream->Send(std::move(message));
    });
    Upload(connection, RigIdentity(0), entry);
  }
  PrintTransfer(start);
  stream->Close();
  absl::MutexLock lock(&mutex);
  mutex.Await(absl::Condition(&ended));
}

// ---- the links ----

bool Command(const std::vector<std::string>& args, std::string* why) {
  auto child = ChildProcess::Spawn({.program = "/usr/bin/env", .args = args, .env = {}, .fds = {}, .stdout_file = {}, .stderr_file = {}});
  const auto status = child.ok() ? child->Wait(absl::Seconds(20)) : child.status();
  if (status.ok() && *status == 0) return true;
  *why = fmt::format("`{}` failed", fmt::join(args, " "));
  return false;
}

struct Link {
  std::string client, server;  // namespaces
  std::string address;         // of the server
};

// The links of all arms; removed at the end.
class Links {
 public:
  ~Links() {
    std::string ignored;
    for (const std::string& name : names_) Command({"ip", "netns", "del", name}, &ignored);
  }
  bool Make(const std::string& rate, std::string* why) {
    for (size_t arm = 0; arm < kArms.size(); ++arm) {
      Link link{fmt::format("rig{}-{}c", ::getpid(), arm), fmt::format("rig{}-{}s", ::getpid(), arm), fmt::format("10.99.{}.1", arm)};
      for (const std::string& name : {link.client, link.server}) {
        if (!Command({"ip", "netns", "add", name}, why)) return false;
        names_.push_back(name);
      }
      const std::vector<std::vector<std::string>> commands = {
          {"ip", "-n", link.client, "link", "add", "rig0", "type", "veth", "peer", "name", "rig0", "netns", link.server},
          {"ip", "-n", link.client, "addr", "add", fmt::format("10.99.{}.2/24", arm), "dev", "rig0"},
          {"ip", "-n", link.server, "addr", "add", link.address + "/24", "dev", "rig0"},
          {"ip", "-n", link.client, "link", "set", "rig0", "up"},
          {"ip", "-n", link.server, "link", "set", "rig0", "up"},
          {"tc", "-n", link.client, "qdisc", "add", "dev", "rig0", "root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"}};
      for (const auto& command : commands) {
        if (!Command(command, why)) return false;
      }
      links_.push_back(link);
    }
    return true;
  }
  const Link& of(size_t arm) const { return links_[arm]; }

 private:
  std::vector<std::string> names_;
  std::vector<Link> links_;
};

struct Beaten {
  double p99_ms = 0, longest_silence_s = 0, seconds = 0;
  size_t beats = 0;
};

Beaten RunArm(const RigOptions& options, const std::string& arm, const Link& link, const std::filesystem::path& file) {
  std::string folder = (std::filesystem::temp_directory_path() / "head_of_line_rig.XXXXXX").string();
  TRIB_CHECK(::mkdtemp(folder.data()) != nullptr);
  const std::filesystem::path out = std::filesystem::path(folder) / "server", client_out = std::filesystem::path(folder) / "client";
  const auto part = [&](const std::string& where, const std::string& what, const std::filesystem::path& output) {
    // gRPC would ask a proxy for the way, if the environment names one.
    return OrDie(ChildProcess::Spawn({.program = "/usr/bin/env",
                                      .args = {"ip", "netns", "exec", where, options.self, "t20-part", what, arm, link.address, file.string()},
                                      .env = {{"no_grpc_proxy", link.address}},
                                      .fds = {},
                                      .stdout_file = output,
                                      .stderr_file = {}}));
  };
  ChildProcess server = part(link.server, "server", out);
  for (const absl::Time end = absl::Now() + absl::Seconds(20);; absl::SleepFor(absl::Milliseconds(10))) {
    if (const auto text = ReadFile(out); text.ok() && text->starts_with("ready")) break;
    TRIB_CHECK(absl::Now() < end && server.Running(), "{}: the server did not start", arm);
  }
  ChildProcess client = part(link.client, "client", client_out);
  const int client_status = OrDie(client.Wait(absl::Minutes(2)));
  Beaten beaten;
  const int server_status = OrDie(server.Wait(absl::Seconds(30)));
  TRIB_CHECK(client_status == 0 && server_status == 0, "{}: client ended with {}, server with {}", arm, client_status, server_status);
  const std::string text = OrDie(ReadFile(out));
  TRIB_CHECK(absl::SimpleAtod(OrDie(ReadFile(client_out)), &beaten.seconds));
  const nlohmann::json result = nlohmann::json::parse(text.substr(text.find('\n') + 1));
  std::filesystem::remove_all(folder);
  auto latencies = result["latencies_ms"].get<std::vector<double>>();
  TRIB_CHECK(latencies.size() >= 10, "{}: {} heart-beats only", arm, latencies.size());
  std::sort(latencies.begin(), latencies.end());
  beaten.beats = latencies.size();
  beaten.p99_ms = latencies[std::min(latencies.size() - 1, latencies.size() * 99 / 100)];
  beaten.longest_silence_s = result["longest_silence_s"].get<double>();
  return beaten;
}

}  // namespace

int RunT20Part(const std::vector<std::string>& args) {
  TRIB_CHECK(args.size() == 4, "t20-part server|client ARM ADDRESS FILE");
  const std::string &what = args[0], &arm = args[1], &address = args[2], &file = args[3];
  const bool server = what == "server";
  if (arm == "stream") {
    server ? StreamServer(address) : StreamClient(address, file);
  } else {
    server ? GrpcServerPart(address, file) : GrpcClientPart(address, file, arm == "shared");
  }
  return 0;
}

void RunT20(const RigOptions& options) {
  const PayloadFile file(MakePayload(options.quick ? kSmallModel : kLargeModel));
  Links links;
  if (std::string why; !links.Make("200mbit", &why)) return PrintSkipped("T20", why + ": network namespaces and tc need root");
  std::array<RunsOf, 3> p99 = {RunsOf{"one stream, the update one message"}, RunsOf{"tributary-client with control on the update's connection"},
                               RunsOf{"tributary-client: a connection for control, one for the update"}};
  std::array<double, 3> silence{};
  std::array<size_t, 3> beats{};
  std::array<double, 3> seconds{};
  for (int run = 0; run < options.runs; ++run) {
    std::array<Beaten, 3> beaten;
    {
      std::vector<std::jthread> arms;
      for (size_t arm = 0; arm < kArms.size(); ++arm) arms.emplace_back([&, arm] { beaten[arm] = RunArm(options, kArms[arm], links.of(arm), file.path()); });
    }
    for (size_t arm = 0; arm < kArms.size(); ++arm) {
      p99[arm].runs.push_back(beaten[arm].p99_ms);
      silence[arm] = std::max(silence[arm], beaten[arm].longest_silence_s);
      beats[arm] += beaten[arm].beats;
      seconds[arm] = std::max(seconds[arm], beaten[arm].seconds);
    }
  }
  for (const size_t arm : {size_t{1}, size_t{2}}) {
    const bool alive = silence[arm] <= kDeadAfterSeconds;
    nlohmann::json fact;
    fact["what"] = fmt::format("false death: {:.1f} s of silence, {} tolerated", silence[arm], kDeadAfterSeconds);
    fact["holds"] = alive;
    nlohmann::json more;
    more["fixed"] = nlohmann::json::array({fact});
    more["beats"] = beats[arm];
    more["longest_silence_s"] = silence[arm];
    more["baseline_longest_silence_s"] = silence[0];
    more["transfer_s"] = seconds[arm];
    PrintLine("T20", arm == 1 ? "heart-beat beside an update, one connection" : "heart-beat beside an update, tributary-client", "p99 ms", &p99[0], p99[arm],
              std::move(more));
  }
}

}  // namespace tributary::bench
