// Settings of tributary-aggregator: flag over environment (TRIBUTARY_<KEY>) over file over built-in value (ux.md §3). One table
// names them all; every value remembers where it came from.
// Thread-compatible. Errors: INVALID_ARGUMENT naming the setting, its origin, what was expected and what came.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "aggregator/state/retention.h"
#include "common/log.h"
#include "common/status.h"

namespace tributary::aggregator {

enum class SettingKind { kText, kInteger, kNumber };

struct Setting {
  std::string key;      // "pool_mb": YAML key; flag --pool-mb; environment TRIBUTARY_POOL_MB
  SettingKind kind = SettingKind::kText;
  std::string help;
  std::string value;    // effective, as text
  std::string origin = "built-in";
};

struct DaemonConfig {
  std::string host;
  int port = 0;
  std::string store;
  std::string port_file;
  std::string metrics_host;  // empty: no metrics
  int metrics_port = 0;
  uint32_t workers = 0;
  absl::Duration scale_period;
  std::string capacity;    // file or folder (capacity_file.h); empty: none
  std::string transport;   // as ChooseTransport takes it (aggregator/transport/probe.h)
  std::string pin_folder;  // empty: nothing is pinned
  size_t pool_bytes = 0;
  size_t grpc_quota_bytes = 0;
  bool local_transfer = true;
  absl::Duration heartbeat;
  absl::Duration upload_lease;
  absl::Duration journal_every;
  std::string upstream;                 // HOST:PORT of the node above; empty: this is the top
  std::string node;                     // this node's name there
  std::vector<std::string> relay_nodes;  // names of nodes that may attach below this one
  double node_capacity = 0;             // updates
  absl::Duration worker_hang;
  uint64_t min_free_bytes = 0;
  RetentionOptions retention;
  uint64_t record_bytes = 0;   // of one job
  LogFormat log_format = LogFormat::kText;
  std::string log_level;
};

// All settings with their built-in values.
std::vector<Setting> BuiltInSettings();
std::string FlagOf(const Setting& setting);
// Overlays. `environment`: names and values; unknown names with the prefix TRIBUTARY_ go to `unknown`.
absl::Status ApplyFile(const std::string& path, std::vector<Setting>* settings);
void ApplyEnvironment(const std::map<std::string, std::string>& environment, std::vector<Setting>* settings, std::vector<std::string>* unknown);
// Checks every value.
absl::StatusOr<DaemonConfig> MakeConfig(const std::vector<Setting>& settings);
// "pool_mb: 512  # built-in", one line each: a valid file.
std::string PrintSettings(const std::vector<Setting>& settings);

}  // namespace tributary::aggregator
