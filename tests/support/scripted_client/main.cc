// trib-scripted-client: the client runtime with a learner whose updates are known in advance. Not installed.
#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "client/daemon/flags.h"
#include "common/log.h"
#include "tests/support/scripted_client/scripted_learner.h"

namespace tributary::client {
namespace {

// One line per event, each by one write: whole also when the process is killed between two.
std::function<void(const UpdateEvent&)> LedgerTo(int fd) {
  return [fd](const UpdateEvent& event) {
    nlohmann::json line = {{"client", event.client},
                           {"job", event.header.job},
                           {"task", event.header.task},
                           {"update", ToHex(event.header.update)},
                           {"base_version", event.header.version},
                           {"state", event.kind == UpdateEvent::Kind::kStored ? "stored" : UpdateStateName(event.verdict.state)},
                           {"weight", event.header.weight},
                           {"metrics", event.header.metrics}};
    if (event.verdict.state == UpdateState::kCommitted) line["version"] = event.verdict.version;
    if (!event.verdict.reason.empty()) line["reason"] = event.verdict.reason;
    const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    if (::write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) TRIB_LOG(error, "the ledger cannot be written");
  };
}

int Main(int argc, char** argv) {
  CLI::App app("A client with scripted updates, for tests and benchmarks", "trib-scripted-client");
  ClientFlags flags;
  if (const absl::Status read = flags.ReadConfigFile(argc, argv); !read.ok()) {
    fmt::print(stderr, "error: {}\n", MessageOf(read));
    return 2;
  }
  flags.AddTo(app);
  ScriptedOptions scripted;
  std::string ledger, updates, onehot_by = "version";
  uint64_t early_upload_bytes = ClientOptions().early_upload_bytes;
  app.add_option("--learner", scripted.kind, "Kind of update")->check(CLI::IsMember({"onehot", "offset", "file"}));
  app.add_option("--onehot-by", onehot_by, "What chooses the coordinate")->check(CLI::IsMember({"version", "counter"}));
  app.add_option("--offset", scripted.offset, "offset: the value (default: client index + 1)");
  app.add_option("--updates", updates, "file: folder of <client>[.v<version>].safetensors");
  app.add_option("--weight", scripted.weight, "Weight of every update");
  app.add_option("--examples", scripted.examples, "Examples to report");
  app.add_option("--train-ms", scripted.train_ms, "Time that training takes");
  app.add_option("--early-upload-bytes", early_upload_bytes, "Updates of so many bytes leave while they are stored");
  app.add_option("--ledger", ledger, "File to append one JSON line per update event to");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  absl::Status ready = flags.InitLog("trib-scripted-client");
  absl::StatusOr<ClientOptions> options = flags.Options();
  if (ready.ok()) ready = options.status();
  if (ready.ok() && scripted.kind == "file" && updates.empty()) ready = InvalidArgument("--learner file needs --updates DIR");
  if (!ready.ok()) {
    fmt::print(stderr, "error: {}\n", MessageOf(ready));
    return 2;
  }
  scripted.by_counter = onehot_by == "counter";
  scripted.updates = updates;
  scripted.state = options->state;
  scripted.clients = options->shards > 0 ? options->shards : options->identities;
  const std::vector<std::string> names = IdentityNames(options->name, options->identities);
  for (size_t i = 0; i < names.size(); ++i) scripted.index_of[names[i]] = options->first_shard + static_cast<int64_t>(i);
  UniqueFd ledger_fd;
  if (!ledger.empty()) {
    ledger_fd.Reset(::open(ledger.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!ledger_fd.valid()) {
      fmt::print(stderr, "error: {}: cannot be opened\n", ledger);
      return 2;
    }
    options->on_update = LedgerTo(ledger_fd.get());
  }
  options->software = "trib-scripted-client 0.1.0";
  options->early_upload_bytes = early_upload_bytes;
  return RunClientProgram(
      *options, [scripted]() -> absl::StatusOr<std::unique_ptr<Learner>> { return std::make_unique<ScriptedLearner>(scripted); },
      [](const DataRequest&) -> absl::StatusOr<std::shared_ptr<const Dataset>> { return std::shared_ptr<const Dataset>(); });
}

}  // namespace
}  // namespace tributary::client

int main(int argc, char** argv) { return tributary::client::Main(argc, argv); }
