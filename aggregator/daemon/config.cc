#include "aggregator/daemon/config.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "common/file.h"
#include "common/ids.h"
#include "common/yaml_reader.h"

namespace tributary::aggregator {
namespace {

const Setting& Find(const std::vector<Setting>& settings, const std::string& key) {
  return *std::find_if(settings.begin(), settings.end(), [&](const Setting& setting) { return setting.key == key; });
}

absl::Status Bad(const Setting& setting, const std::string& expected) {
  return InvalidArgument("{} ({}): expected {}, got '{}'", setting.key, setting.origin, expected, setting.value);
}

absl::StatusOr<int64_t> Integer(const Setting& setting, int64_t least, int64_t most) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(setting.value, &value) || value < least || value > most) {
    return Bad(setting, fmt::format("an integer in [{}, {}]", least, most));
  }
  return value;
}

absl::StatusOr<double> Number(const Setting& setting, double least, double most) {
  double value = 0;
  if (!absl::SimpleAtod(setting.value, &value) || !(value >= least && value <= most)) {
    return Bad(setting, fmt::format("a number in [{}, {}]", least, most));
  }
  return value;
}

bool IsLoopback(const std::string& host) { return host == "localhost" || host == "::1" || host == "[::1]" || host.starts_with("127."); }

absl::Status Address(const Setting& setting, std::string* host, int* port) {
  const size_t colon = setting.value.rfind(':');
  *port = -1;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(setting.value.substr(colon + 1), port) || *port < 0 || *port > 65535) {
    return Bad(setting, "HOST:PORT");
  }
  *host = setting.value.substr(0, colon);
  if (!IsLoopback(*host)) return Bad(setting, "a loopback address such as 127.0.0.1 (connections are not encrypted yet)");
  return absl::OkStatus();
}

std::string EnvironmentName(const std::string& key) {
  std::string name = "TRIBUTARY_" + key;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return name;
}

bool Plain(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '_' || c == '/' || c == '-'; });
}

std::string Quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "''" : std::string(1, c);
  return out + "'";
}

// MiB of memory this process may use: the machine's, or what its control group leaves it where that is less (containers).
int64_t MemoryMib() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  if (const absl::StatusOr<std::string> limit = ReadFile("/sys/fs/cgroup/memory.max", 64); limit.ok()) {
    int64_t most = 0;  // "max" is no number: no limit
    if (absl::SimpleAtoi(absl::StripAsciiWhitespace(*limit), &most) && most > 0) bytes = std::min(bytes, most);
  }
  return bytes >> 20;
}

}  // namespace

std::vector<Setting> BuiltInSettings() {
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  return {
      {"listen", SettingKind::kText, "HOST:PORT to serve gRPC on; port 0: the system chooses", "127.0.0.1:7070"},
      {"store", SettingKind::kText, "folder of the state store", (UserDataDir() / "aggregator").string()},
      {"metrics", SettingKind::kText, "HOST:PORT to serve Prometheus metrics on, at /metrics; port 0: the system chooses; empty: none", ""},
      {"port_file", SettingKind::kText, "written with HOST:PORT once the aggregator serves", ""},
      {"workers", SettingKind::kInteger, "worker processes that add updates up", fmt::format("{}", std::min(2u, cores))},
      {"scale_period_s", SettingKind::kNumber, "seconds between decisions on parked worker processes: what the plans of five periods could do without ends", "30"},
      {"capacity", SettingKind::kText, "file, or folder of *.json files, with results of `tributary nodes calibrate --out`; empty: capacity is not known", ""},
      {"transport", SettingKind::kText, "how workers are told of updates: auto, skmsg-inline, skmsg or ring; auto: skmsg where a probe finds that it works", "auto"},
      {"pin_folder", SettingKind::kText, "folder in a bpffs (or one to be mounted) that keeps the program of skmsg from start to start; empty: not kept", ""},
      {"pool_mb", SettingKind::kInteger, "MiB of shared memory for updates and their sums, all jobs together; built in: a sixteenth of the memory, 512 to 4096",
       fmt::format("{}", std::clamp<int64_t>(MemoryMib() / 16, 512, 4096))},
      {"grpc_quota_mb", SettingKind::kInteger, "MiB of gRPC's own buffers, all connections together", "128"},
      {"local_transfer", SettingKind::kText, "on or off: clients of this host and user pass models and updates as file descriptors", "on"},
      {"upstream", SettingKind::kText, "HOST:PORT of the node above, which this node's clients' updates go to as one partial a round; empty: none", ""},
      {"node", SettingKind::kText, "name of this node towards the node above", ""},
      {"relay_nodes", SettingKind::kText, "names of the nodes that may attach below this one, with commas between; empty: none may", ""},
      {"node_capacity", SettingKind::kNumber, "updates that this node takes at a time, for placement among nodes (see tributary nodes calibrate)", "20"},
      {"heartbeat_s", SettingKind::kNumber, "seconds between heartbeats of a client; it is gone after three missed ones", "5"},
      {"upload_lease_s", SettingKind::kNumber, "seconds that a partial upload is kept without a new byte", "300"},
      {"journal_s", SettingKind::kNumber, "seconds between two journals of an open version of a durable job, at least", "2"},
      {"worker_hang_s", SettingKind::kNumber, "seconds after which a worker that has work, gets nothing done and does not answer is replaced", "10"},
      {"min_free_mb", SettingKind::kInteger, "MiB that must stay free on the store's disk; below, updates and jobs are refused until there is room", "256"},
      {"record_mb", SettingKind::kInteger, "MiB that the recorded updates of one job (record: true) may take in the store; a job that may need more is refused", "4096"},
      {"keep_versions", SettingKind::kInteger, "newest versions of a job whose tensors stay in the store, besides its first; 0: all", "0"},
      {"keep_every", SettingKind::kInteger, "besides those of keep_versions, the tensors of every N-th version stay; 0: no others", "0"},
      {"dedupe_days", SettingKind::kNumber, "days that a client can still ask what became of an update that was counted", "7"},
      {"log_format", SettingKind::kText, "text or json", "text"},
      {"log_level", SettingKind::kText, "trace, debug, info, warn or error", "info"},
  };
}

std::string FlagOf(const Setting& setting) {
  std::string flag = "--" + setting.key;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

absl::Status ApplyFile(const std::string& path, std::vector<Setting>* settings) {
  TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, size_t{1} << 20));
  TRIB_ASSIGN_OR_RETURN(YamlReader reader, YamlReader::Parse(text, path));
  for (Setting& setting : *settings) {
    if (!reader.Has(setting.key)) continue;
    int64_t integer = 0;
    double number = 0;
    switch (setting.kind) {
      case SettingKind::kText: reader.String(setting.key, &setting.value); break;
      case SettingKind::kInteger:
        reader.Int(setting.key, &integer);
        setting.value = fmt::format("{}", integer);
        break;
      case SettingKind::kNumber:
        reader.Double(setting.key, &number);
        setting.value = fmt::format("{}", number);
        break;
    }
    setting.origin = path;
  }
  return reader.Finish();
}

void ApplyEnvironment(const std::map<std::string, std::string>& environment, std::vector<Setting>* settings, std::vector<std::string>* unknown) {
  // Read by other programs, or by tests (ux.md §3 reserves the first four).
  static const std::vector<std::string> kOthers = {"TRIBUTARY_SERVER", "TRIBUTARY_CONTEXT", "TRIBUTARY_CRASH", "TRIBUTARY_REQUIRE",
                                                   "TRIBUTARY_CONFIG", "TRIBUTARY_BUILD", "TRIBUTARY_CACHE"};
  for (const auto& [name, value] : environment) {
    if (!name.starts_with("TRIBUTARY_") || std::find(kOthers.begin(), kOthers.end(), name) != kOthers.end()) continue;
    const std::string& looked_for = name;
    const auto setting = std::find_if(settings->begin(), settings->end(), [&](const Setting& s) { return EnvironmentName(s.key) == looked_for; });
    if (setting == settings->end()) {
      unknown->push_back(name);
      continue;
    }
    setting->value = value;
    setting->origin = "$" + name;
  }
}

absl::StatusOr<DaemonConfig> MakeConfig(const std::vector<Setting>& settings) {
  DaemonConfig config;
  TRIB_RETURN_IF_ERROR(Address(Find(settings, "listen"), &config.host, &config.port));
  if (const Setting& metrics = Find(settings, "metrics"); !metrics.value.empty()) {
    TRIB_RETURN_IF_ERROR(Address(metrics, &config.metrics_host, &config.metrics_port));
  }
  config.store = Find(settings, "store").value;
  if (config.store.empty()) return Bad(Find(settings, "store"), "a folder");
  config.port_file = Find(settings, "port_file").value;
  TRIB_ASSIGN_OR_RETURN(const int64_t workers, Integer(Find(settings, "workers"), 1, 64));
  config.workers = static_cast<uint32_t>(workers);
  TRIB_ASSIGN_OR_RETURN(const double scale_period_s, Number(Find(settings, "scale_period_s"), 0.01, 86400));
  config.scale_period = absl::Seconds(scale_period_s);
  config.capacity = Find(settings, "capacity").value;
  const Setting& transport = Find(settings, "transport");
  const std::vector<std::string> transports = {"auto", "skmsg-inline", "skmsg", "ring"};
  if (std::find(transports.begin(), transports.end(), transport.value) == transports.end()) return Bad(transport, "auto, skmsg-inline, skmsg or ring");
  config.transport = transport.value;
  config.pin_folder = Find(settings, "pin_folder").value;
  TRIB_ASSIGN_OR_RETURN(const int64_t pool_mb, Integer(Find(settings, "pool_mb"), 1, int64_t{1} << 24));
  config.pool_bytes = static_cast<size_t>(pool_mb) << 20;
  TRIB_ASSIGN_OR_RETURN(const int64_t quota_mb, Integer(Find(settings, "grpc_quota_mb"), 16, int64_t{1} << 16));
  config.grpc_quota_bytes = static_cast<size_t>(quota_mb) << 20;
  const Setting& local_transfer = Find(settings, "local_transfer");
  if (local_transfer.value != "on" && local_transfer.value != "off") return Bad(local_transfer, "on or off");
  config.local_transfer = local_transfer.value == "on";
  if (const Setting& upstream = Find(settings, "upstream"); !upstream.value.empty()) {
    std::string host;
    int port = 0;
    TRIB_RETURN_IF_ERROR(Address(upstream, &host, &port));
    if (port == 0) return Bad(upstream, "HOST:PORT with the port of the node above");
    config.upstream = upstream.value;
  }
  const Setting& node = Find(settings, "node");
  config.node = node.value;
  if (!node.value.empty() && !ValidateClientId(node.value).ok()) return Bad(node, "1 to 64 characters of [A-Za-z0-9._-]");
  if (node.value.empty() != config.upstream.empty()) return Bad(node, "a name if there is an upstream, and none otherwise");
  for (const absl::string_view name : absl::StrSplit(Find(settings, "relay_nodes").value, ',', absl::SkipWhitespace())) {
    const std::string text(absl::StripAsciiWhitespace(name));
    if (!ValidateClientId(text).ok()) return Bad(Find(settings, "relay_nodes"), "names of [A-Za-z0-9._-] with commas between");
    config.relay_nodes.push_back(text);
  }
  if (!config.relay_nodes.empty() && !config.upstream.empty()) {
    return Bad(Find(settings, "relay_nodes"), "none, because this node has one above it (two levels of nodes at most)");
  }
  TRIB_ASSIGN_OR_RETURN(config.node_capacity, Number(Find(settings, "node_capacity"), 0.001, 1e9));
  TRIB_ASSIGN_OR_RETURN(const double heartbeat_s, Number(Find(settings, "heartbeat_s"), 0.1, 3600));
  config.heartbeat = absl::Seconds(heartbeat_s);
  TRIB_ASSIGN_OR_RETURN(const double lease_s, Number(Find(settings, "upload_lease_s"), 1, 86400));
  config.upload_lease = absl::Seconds(lease_s);
  TRIB_ASSIGN_OR_RETURN(const double journal_s, Number(Find(settings, "journal_s"), 0.01, 3600));
  config.journal_every = absl::Seconds(journal_s);
  TRIB_ASSIGN_OR_RETURN(const double worker_hang_s, Number(Find(settings, "worker_hang_s"), 1, 86400));
  config.worker_hang = absl::Seconds(worker_hang_s);
  TRIB_ASSIGN_OR_RETURN(const int64_t min_free_mb, Integer(Find(settings, "min_free_mb"), 0, int64_t{1} << 30));
  config.min_free_bytes = static_cast<uint64_t>(min_free_mb) << 20;
  TRIB_ASSIGN_OR_RETURN(const int64_t keep_versions, Integer(Find(settings, "keep_versions"), 0, int64_t{1} << 40));
  if (keep_versions != 0 && keep_versions < static_cast<int64_t>(kLeastNewest)) {
    return Bad(Find(settings, "keep_versions"), fmt::format("0 (all) or at least {}", kLeastNewest));
  }
  TRIB_ASSIGN_OR_RETURN(const int64_t keep_every, Integer(Find(settings, "keep_every"), 0, int64_t{1} << 40));
  TRIB_ASSIGN_OR_RETURN(const double dedupe_days, Number(Find(settings, "dedupe_days"), 0, 36500));
  TRIB_ASSIGN_OR_RETURN(const int64_t record_mb, Integer(Find(settings, "record_mb"), 0, int64_t{1} << 30));
  config.record_bytes = static_cast<uint64_t>(record_mb) << 20;
  config.retention = {.newest = static_cast<uint64_t>(keep_versions), .every = static_cast<uint64_t>(keep_every),
                      .dedupe_rows = absl::Hours(24 * dedupe_days)};
  const absl::StatusOr<LogFormat> format = ParseLogFormat(Find(settings, "log_format").value);
  if (!format.ok()) return Bad(Find(settings, "log_format"), "text or json");
  config.log_format = *format;
  config.log_level = Find(settings, "log_level").value;
  const std::vector<std::string> levels = {"trace", "debug", "info", "warn", "error"};
  if (std::find(levels.begin(), levels.end(), config.log_level) == levels.end()) {
    return Bad(Find(settings, "log_level"), "trace, debug, info, warn or error");
  }
  return config;
}

std::string PrintSettings(const std::vector<Setting>& settings) {
  std::string out;
  for (const Setting& setting : settings) {
    const bool bare = setting.kind != SettingKind::kText || Plain(setting.value);
    out += fmt::format("{}: {}  # {}\n", setting.key, bare ? setting.value : Quoted(setting.value), setting.origin);
  }
  return out;
}

}  // namespace tributary::aggregator
