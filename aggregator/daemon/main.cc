// tributary-aggregator: configuration, wiring, signals. Exit codes: 0 drained after a signal, 1 failed, 2 wrong usage or settings.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <absl/strings/strip.h>

#include <CLI/CLI.hpp>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include "aggregator/coordinator/coordinator.h"
#include "aggregator/daemon/backend_adapter.h"
#include "aggregator/daemon/capacity_file.h"
#include "aggregator/daemon/config.h"
#include "aggregator/daemon/metrics.h"
#include "aggregator/ingress/server.h"
#include "aggregator/transport/probe.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/unique_fd.h"

extern char** environ;

namespace tributary::aggregator {
namespace {

constexpr const char* kSystemConfig = "/etc/tributary/aggregator.yaml";
constexpr absl::Duration kDrain = absl::Seconds(10);   // for a commit under way
constexpr absl::Duration kGrace = absl::Seconds(2);    // for calls under way
constexpr int kFailed = 1;
constexpr int kUsage = 2;

std::atomic<int> signal_pipe{-1};
std::atomic<int> signals_seen{0};

// The first signal drains, the second ends at once.
void OnSignal(int signal) {
  if (signals_seen.fetch_add(1) > 0) ::_exit(128 + signal);
  const char byte = 1;
  const ssize_t written = ::write(signal_pipe.load(), &byte, 1);
  static_cast<void>(written);
}

int Report(const absl::Status& status, const std::string& hint, int code) {
  std::fprintf(stderr, "tributary-aggregator: %s%s%s\n", MessageOf(status).c_str(), hint.empty() ? "" : "; ", hint.c_str());
  return code;
}

std::map<std::string, std::string> Environment() {
  std::map<std::string, std::string> out;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) out[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return out;
}

// Segments, sockets and pidfds: the soft limit of many systems, 1024, is a few hundred clients.
void RaiseFileLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// By which the node above knows this one; made at the first start.
absl::StatusOr<std::string> NodeSecret(const std::filesystem::path& store) {
  const std::filesystem::path path = store / "node-secret";
  absl::StatusOr<std::string> secret = ReadFile(path, 256);
  if (secret.ok() || secret.status().code() != absl::StatusCode::kNotFound) return secret;
  const std::string made = RandomHex(32);
  TRIB_RETURN_IF_ERROR(WriteFileAtomically(path, std::string_view(made)));  // in a folder of mode 0700
  return made;
}

int Serve(const DaemonConfig& config) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return Report(ErrnoStatus(errno, "pipe"), "", kFailed);
  const UniqueFd read_end(fds[0]);
  const UniqueFd write_end(fds[1]);
  signal_pipe = write_end.get();
  std::signal(SIGTERM, OnSignal);
  std::signal(SIGINT, OnSignal);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGIO, SIG_IGN);  // SoleUser in aggregator/store/memfd.h
  RaiseFileLimit();

  if (absl::Status made = MakeDirectories(config.store); !made.ok()) return Report(made, "choose another folder with --store", kFailed);
  const BootClock clock;
  CoordinatorOptions options;
  options.store.dir = config.store;
  options.store.min_free_bytes = config.min_free_bytes;
  options.workers.worker_program = (ExecutableDir() / "tributary-worker").string();
  options.workers.workers = config.workers;
  options.workers.scale_period = config.scale_period;
  if (!config.capacity.empty()) {
    absl::StatusOr<std::vector<MeasuredCapacity>> measured = ReadCapacities(config.capacity);
    if (!measured.ok()) return Report(measured.status(), "write one with `tributary nodes calibrate --out FILE`", kUsage);
    TRIB_LOG(info, "{} calibrated capacities from {}", measured->size(), config.capacity);
    options.capacities = CapacityBook(*std::move(measured));
  }
  const absl::StatusOr<TransportChoice> transport = ChooseTransport(config.transport);
  if (!transport.ok()) return Report(transport.status(), "choose another with --transport, or auto", kFailed);
  TRIB_LOG(info, "{}", transport->reason);
  if (transport->kind != TransportKind::kRing) {
    TRIB_LOG(info, "workers run as this process's user: between jobs the security domains of {} contain accidents, not attacks", NameOf(transport->kind));
  }
  options.workers.transport = transport->kind;
  options.workers.pin_folder = config.pin_folder;
  options.workers.hang_patience = config.worker_hang;
  options.transport_reason = std::string(absl::StripPrefix(transport->reason, fmt::format("transport {}: ", NameOf(transport->kind))));
  options.pool_bytes = config.pool_bytes;
  options.heartbeat = config.heartbeat;
  options.journal_every = config.journal_every;
  options.retention = config.retention;
  options.record_bytes = config.record_bytes;
  options.software = "tributary-aggregator " TRIBUTARY_VERSION;
  options.node_capacity = config.node_capacity;
  options.relay_nodes = config.relay_nodes;
  options.upstream = config.upstream;
  std::unique_ptr<RelayClient> relay_client;
  std::unique_ptr<UpstreamAdapter> upstream;  // both outlive the coordinator
  if (!config.upstream.empty()) {
    const absl::StatusOr<std::string> secret = NodeSecret(config.store);
    if (!secret.ok()) return Report(secret.status(), "it is in the store's folder", kFailed);
    relay_client = std::make_unique<RelayClient>(RelayClient::Options{config.upstream, config.node, *secret});
    upstream = std::make_unique<UpstreamAdapter>(relay_client.get());
  }
  absl::StatusOr<std::unique_ptr<Coordinator>> started = Coordinator::Start(options, &clock);
  if (!started.ok()) return Report(started.status(), "", kFailed);  // a locked store's message has its remedy
  const std::unique_ptr<Coordinator> coordinator = *std::move(started);
  BackendAdapter adapter(coordinator.get());
  GrpcServer::Options server_options;
  server_options.address = fmt::format("{}:{}", config.host, config.port);
  server_options.quota_bytes = config.grpc_quota_bytes;
  server_options.upload_lease = config.upload_lease;
  server_options.local_transfer = config.local_transfer;
  absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(server_options, &adapter, &adapter, config.relay_nodes.empty() ? nullptr : &adapter);
  if (!server.ok()) return Report(server.status(), "if the port is taken, choose another with --listen HOST:PORT (port 0: any)", kFailed);
  GrpcServer* const grpc = server->get();
  coordinator->SetJobEnded([grpc](const std::string& job) { grpc->ForgetJob(job); });
  const std::string address = fmt::format("{}:{}", config.host, grpc->port());
  std::unique_ptr<MetricsServer> metrics;
  if (!config.metrics_host.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsServer>> serving = MetricsServer::Start(config.metrics_host, config.metrics_port, coordinator.get());
    if (!serving.ok()) return Report(serving.status(), "if the port is taken, choose another with --metrics HOST:PORT (port 0: any)", kFailed);
    metrics = *std::move(serving);
    TRIB_LOG(info, "metrics on http://{}/metrics", metrics->address());
  }
  coordinator->SetAddress(address, metrics == nullptr ? "" : metrics->address());
  grpc->SetServing(true);
  if (!config.port_file.empty()) {
    if (absl::Status written = WriteFileAtomically(config.port_file, std::string_view(address + "\n"), /*durable=*/false); !written.ok()) {
      return Report(written, "choose another file with --port-file", kFailed);
    }
  }
  if (relay_client != nullptr) {
    coordinator->SetUpstream(upstream.get());
    Coordinator* const raw = coordinator.get();
    relay_client->Start({[raw] { return raw->HelloToTop(); }, [raw](const v1::TopMessage& message) { raw->OnTop(message); }});
  }
  TRIB_LOG(info, "serving on {}, state in {}, {} workers, pool {} MiB", address, config.store, config.workers, config.pool_bytes >> 20);

  char byte = 0;
  while (::read(read_end.get(), &byte, 1) < 0 && errno == EINTR) {
  }
  TRIB_LOG(info, "shutting down: a commit under way is finished; another signal ends at once");
  grpc->SetServing(false);
  metrics.reset();
  coordinator->Drain(kDrain);
  if (relay_client != nullptr) relay_client->Stop();
  grpc->Shutdown(kGrace);
  coordinator->SetJobEnded({});
  if (!config.port_file.empty()) {
    std::error_code ignored;
    std::filesystem::remove(config.port_file, ignored);
  }
  server->reset();
  TRIB_LOG(info, "stopped");
  return 0;
}

int Main(int argc, char** argv) {
  ::setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // gRPC's own lines on stderr; what matters comes back as a status
  CLI::App app{"Aggregates model updates of a federation's clients.", "tributary-aggregator"};
  app.set_version_flag("--version", "tributary-aggregator " TRIBUTARY_VERSION);
  app.footer("Settings come from flags, then TRIBUTARY_<SETTING> in the environment, then the file, then built-in values.\n"
             "Example: tributary-aggregator --listen 127.0.0.1:7070 --store /var/lib/tributary --pool-mb 1024");
  std::vector<Setting> settings = BuiltInSettings();
  std::map<std::string, std::string> flags;
  for (const Setting& setting : settings) {
    app.add_option(FlagOf(setting), flags[setting.key], setting.help + (setting.value.empty() ? "" : " [" + setting.value + "]"));
  }
  std::string config_file;
  bool check = false;
  bool print = false;
  app.add_option("--config", config_file, fmt::format("YAML file with these settings [{} if it exists]", kSystemConfig));
  app.add_flag("--check-config", check, "check the settings and exit");
  app.add_flag("--print-config", print, "print every effective setting with its origin and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;
  }
  const std::map<std::string, std::string> environment = Environment();
  if (config_file.empty()) {
    const auto named = environment.find("TRIBUTARY_CONFIG");
    if (named != environment.end()) {
      config_file = named->second;
    } else if (std::error_code ignored; std::filesystem::exists(kSystemConfig, ignored)) {
      config_file = kSystemConfig;
    }
  }
  if (!config_file.empty()) {
    if (absl::Status read = ApplyFile(config_file, &settings); !read.ok()) return Report(read, "", kUsage);
  }
  std::vector<std::string> unknown;
  ApplyEnvironment(environment, &settings, &unknown);
  for (Setting& setting : settings) {
    if (app.count(FlagOf(setting)) == 0) continue;
    setting.value = flags[setting.key];
    setting.origin = FlagOf(setting);
  }
  const absl::StatusOr<DaemonConfig> config = MakeConfig(settings);
  if (!config.ok()) return Report(config.status(), "", kUsage);
  if (print) {
    std::cout << PrintSettings(settings);
    return 0;
  }
  if (check) return 0;
  if (absl::Status logging = InitLogging("tributary-aggregator", config->log_format, config->log_level); !logging.ok()) return Report(logging, "", kUsage);
  for (const std::string& name : unknown) TRIB_LOG(warn, "environment: {} is no setting of this program", name);
  return Serve(*config);
}

}  // namespace
}  // namespace tributary::aggregator

int main(int argc, char** argv) { return tributary::aggregator::Main(argc, argv); }
