// The options of a client program: one table that the command line, the environment (TRIBUTARY_ + upper-case name), the
// configuration file (YAML, keys with _ for -) and --print-config are made from. Precedence: flag > environment > file > built-in.
// Single-threaded, at start only.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "client/rpc/client_runtime.h"
#include "common/status.h"

namespace tributary::client {

class ClientFlags {
 public:
  ClientFlags();
  ClientFlags(const ClientFlags&) = delete;  // the table points into it
  ClientFlags& operator=(const ClientFlags&) = delete;

  // Before parsing: takes the values of the --config FILE named in argv, if any. Unknown keys are errors naming the nearest known.
  absl::Status ReadConfigFile(int argc, const char* const* argv);
  void AddTo(CLI::App& app);

  // After parsing. `--evaluator` and `--role` are resolved; the state folder defaults to the user's data folder.
  absl::StatusOr<ClientOptions> Options() const;
  absl::Status InitLog(std::string_view program) const;
  // One line per option: name, value, origin.
  std::string Describe(const CLI::App& app) const;

  bool check_config = false;
  bool print_config = false;
  const std::string& device() const { return device_; }
  int threads() const { return static_cast<int>(threads_); }

 private:
  struct Option {
    std::string name;  // "outbox-limit-mb"
    std::variant<std::string*, int64_t*, bool*> value;
    std::string help;
    std::string key() const;
    std::string variable() const;
  };
  std::vector<Option> options_;
  std::map<std::string, bool> from_file_;  // key: set by the file

  std::string config_, server_, name_, state_, role_ = "trainer", device_ = "auto", data_dir_, log_format_ = "text", log_level_ = "info";
  int64_t identities_ = 1, shards_ = 0, first_shard_ = 0, train_threads_ = 1, upload_threads_ = 0, threads_ = 0, outbox_limit_mb_ = 4096;
  bool evaluator_ = false, allow_torchscript_ = false;
};

// Installs SIGTERM and SIGINT handling on a thread and runs the client until one comes; a second one ends the process at once.
// Returns main's exit code: 0, or 1 with a message on stderr.
int RunClientProgram(const ClientOptions& options, const LearnerFactory& make_learner, const DatasetProvider& provide_data);

}  // namespace tributary::client
