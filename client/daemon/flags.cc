#include "client/daemon/flags.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <climits>
#include <cstdlib>
#include <thread>

#include "common/file.h"
#include "common/log.h"
#include "common/yaml_reader.h"

namespace tributary::client {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

// The host's name with what an id may not hold replaced.
std::string HostName() {
  char buffer[HOST_NAME_MAX + 1] = {};
  if (::gethostname(buffer, sizeof(buffer) - 1) != 0) return "client";
  std::string name(buffer);
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0 && c != '.' && c != '_' && c != '-'; }, '-');
  name = name.substr(0, 48);  // room for "-<identity>"
  return ValidateClientId(name).ok() ? name : "client";
}

}  // namespace

std::string ClientFlags::Option::key() const {
  std::string key = name;
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

std::string ClientFlags::Option::variable() const {
  std::string variable = "TRIBUTARY_" + key();
  std::transform(variable.begin(), variable.end(), variable.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return variable;
}

ClientFlags::ClientFlags() : server_("127.0.0.1:7070"), name_(HostName()), state_((UserDataDir() / "client").string()) {
  options_ = {
      {"server", &server_, "Aggregator, HOST:PORT"},
      {"name", &name_, "Id of this client; with several identities, the ids are NAME-0, NAME-1, …"},
      {"identities", &identities_, "Virtual clients hosted by this process, each with its own shard, outbox and identity"},
      {"shards", &shards_, "Number of shards the job's data are divided into (0: as many as identities)"},
      {"first-shard", &first_shard_, "Shard of the first identity; the others follow"},
      {"state", &state_, "Folder of outboxes, secrets and artifacts"},
      {"role", &role_, "trainer, evaluator or both"},
      {"evaluator", &evaluator_, "Short for --role evaluator"},
      {"device", &device_, "auto, cpu, cuda or cuda:N"},
      {"threads", &threads_, "Threads of one tensor operation (0: all cores)"},
      {"train-threads", &train_threads_, "Identities that train at the same time"},
      {"upload-threads", &upload_threads_, "Updates sent at the same time (0: one per identity, at most 8)"},
      {"data-dir", &data_dir_, "Replaces the job's data path on this machine"},
      {"outbox-limit-mb", &outbox_limit_mb_, "MiB of updates one identity keeps at most; when full, tasks are declined"},
      {"allow-torchscript", &allow_torchscript_, "Run TorchScript models, which are programs that the job's author wrote"},
      {"log-format", &log_format_, "text or json"},
      {"log-level", &log_level_, "trace, debug, info, warn or error"},
  };
}

absl::Status ClientFlags::ReadConfigFile(int argc, const char* const* argv) {
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--config" && i + 1 < argc) path = argv[i + 1];
    if (argument.starts_with("--config=")) path = argument.substr(9);
  }
  if (path.empty()) return absl::OkStatus();
  TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  TRIB_ASSIGN_OR_RETURN(YamlReader reader, YamlReader::Parse(text, path));
  for (const Option& option : options_) {
    const std::string key = option.key();
    from_file_[key] = reader.Has(key);
    if (std::string* const* text_value = std::get_if<std::string*>(&option.value)) {
      reader.String(key, *text_value);
    } else if (int64_t* const* number = std::get_if<int64_t*>(&option.value)) {
      reader.Int(key, *number);
    } else {
      reader.Bool(key, std::get<bool*>(option.value));
    }
  }
  return reader.Finish();
}

void ClientFlags::AddTo(CLI::App& app) {
  app.add_option("--config", config_, "Configuration file (YAML): the options below, with _ for -");
  app.add_flag("--check-config", check_config, "Check options and configuration file, then exit");
  app.add_flag("--print-config", print_config, "Print the effective options and where each comes from, then exit");
  for (Option& option : options_) {
    CLI::Option* added = nullptr;
    const std::string flag = "--" + option.name;
    if (std::string** text = std::get_if<std::string*>(&option.value)) {
      added = app.add_option(flag, **text, option.help)->capture_default_str();
    } else if (int64_t** number = std::get_if<int64_t*>(&option.value)) {
      added = app.add_option(flag, **number, option.help)->capture_default_str();
    } else {
      added = app.add_flag(flag, *std::get<bool*>(option.value), option.help);
    }
    added->envname(option.variable());
  }
}

absl::StatusOr<ClientOptions> ClientFlags::Options() const {
  ClientOptions options;
  const std::string role = evaluator_ ? "evaluator" : role_;
  if (role != "trainer" && role != "evaluator" && role != "both") {
    return InvalidArgument("--role: trainer, evaluator or both expected, got '{}'", role_);
  }
  const auto in_range = [](const char* flag, int64_t value, int64_t low, int64_t high) -> absl::Status {
    if (value >= low && value <= high) return absl::OkStatus();
    return InvalidArgument("--{}: {} to {} expected, got {}", flag, low, high, value);
  };
  TRIB_RETURN_IF_ERROR(in_range("identities", identities_, 1, 100'000));
  TRIB_RETURN_IF_ERROR(in_range("train-threads", train_threads_, 1, 256));
  TRIB_RETURN_IF_ERROR(in_range("upload-threads", upload_threads_, 0, 256));
  TRIB_RETURN_IF_ERROR(in_range("threads", threads_, 0, 1024));
  TRIB_RETURN_IF_ERROR(in_range("outbox-limit-mb", outbox_limit_mb_, 1, int64_t{1} << 30));
  TRIB_RETURN_IF_ERROR(in_range("shards", shards_, 0, 10'000'000));
  TRIB_RETURN_IF_ERROR(in_range("first-shard", first_shard_, 0, 10'000'000));
  if (device_ != "auto" && device_ != "cpu" && device_ != "cuda" && !device_.starts_with("cuda:")) {
    return InvalidArgument("--device: auto, cpu, cuda or cuda:N expected, got '{}'", device_);
  }
  options.server = server_;
  options.name = name_;
  options.identities = static_cast<int>(identities_);
  for (const std::string& name : IdentityNames(name_, options.identities)) {
    if (const absl::Status valid = ValidateClientId(name); !valid.ok()) return Annotate(valid, "--name");
  }
  options.shards = shards_;
  options.first_shard = first_shard_;
  const int64_t shards = shards_ > 0 ? shards_ : identities_;
  if (first_shard_ + identities_ > shards) {
    return InvalidArgument("--first-shard: {} identities from shard {} do not fit into {} shards", identities_, first_shard_, shards);
  }
  options.state = state_;
  options.trains = role != "evaluator";
  options.evaluates = role != "trainer";
  options.allow_torchscript = allow_torchscript_;
  options.data_path = data_dir_;
  options.train_threads = static_cast<int>(train_threads_);
  options.upload_threads = static_cast<int>(upload_threads_);
  options.outbox_limit_bytes = static_cast<uint64_t>(outbox_limit_mb_) << 20;
  return options;
}

absl::Status ClientFlags::InitLog(std::string_view program) const {
  TRIB_ASSIGN_OR_RETURN(const LogFormat format, ParseLogFormat(log_format_));
  return InitLogging(program, format, log_level_);
}

std::string ClientFlags::Describe(const CLI::App& app) const {
  std::string text;
  for (const Option& option : options_) {
    std::string value;
    if (std::string* const* string = std::get_if<std::string*>(&option.value)) {
      value = **string;
    } else if (int64_t* const* number = std::get_if<int64_t*>(&option.value)) {
      value = std::to_string(**number);
    } else {
      value = *std::get<bool*>(option.value) ? "true" : "false";
    }
    // CLI11 counts a value from the environment like one from the command line.
    std::string origin = "built-in";
    const bool given = app.get_option("--" + option.name)->count() > 0;
    const auto in_file = from_file_.find(option.key());
    if (given) {
      origin = std::getenv(option.variable().c_str()) != nullptr ? "flag or $" + option.variable() : "flag";
    } else if (in_file != from_file_.end() && in_file->second) {
      origin = "file " + config_;
    }
    text += fmt::format("{}: {}  # {}\n", option.key(), value.empty() ? "''" : value, origin);
  }
  return text;
}

int RunClientProgram(const ClientOptions& options, const LearnerFactory& make_learner, const DatasetProvider& provide_data) {
  // Blocked here, before any thread exists, so that only the waiting thread sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::stop_source stop;
  std::jthread waiter([&stop, signals](std::stop_token ended) {
    const timespec tick{0, 200'000'000};
    while (!ended.stop_requested()) {
      const int signal = ::sigtimedwait(&signals, nullptr, &tick);
      if (signal < 0) continue;
      if (stop.stop_requested()) ::_exit(1);
      TRIB_LOG(info, "{}: abandoning training, keeping the outbox", signal == SIGTERM ? "SIGTERM" : "SIGINT");
      stop.request_stop();
    }
  });
  const absl::Status status = RunClient(options, make_learner, provide_data, stop.get_token());
  if (status.ok()) return 0;
  fmt::print(stderr, "error: {}\n", MessageOf(status));
  return 1;
}

}  // namespace tributary::client
