// `tributary doctor`: what works here. One line each: found, needed, remedy. Ends within 5 s, changes nothing.
#include <fmt/format.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "aggregator/transport/probe.h"
#include "cli/client.h"
#include "cli/command.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/process.h"
#include "common/unique_fd.h"
#include "ebpf/verdict_program.h"

namespace tributary::cli {
namespace {

namespace fs = std::filesystem;

struct Finding {
  std::string name;
  bool ok = false;
  bool required = false;   // a false one makes doctor exit 1
  std::string found;
  std::string needed;
  std::string remedy;
};

Finding SharedMemory() {
  Finding f{"shared memory", false, true, "", "memfd with F_SEAL_FUTURE_WRITE (Linux 5.1 or newer)", "use a newer kernel"};
  const UniqueFd fd(::memfd_create("tributary-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) {
    f.found = MessageOf(ErrnoStatus(errno, "memfd_create"));
    return f;
  }
  constexpr int kSealFutureWrite = 0x0010;
  f.ok = ::ftruncate(fd.get(), 4096) == 0 && ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | kSealFutureWrite | F_SEAL_SEAL) == 0;
  f.found = f.ok ? "sealed memfd works" : MessageOf(ErrnoStatus(errno, "sealing a memfd"));
  return f;
}

Finding FreeSpace(const std::string& name, bool required, const fs::path& path, double need_gib, const std::string& remedy) {
  Finding f{name, false, required, "", fmt::format("{:.1f} GiB free", need_gib), remedy};
  fs::path existing = path;
  while (!fs::exists(existing) && existing.has_parent_path() && existing != existing.parent_path()) existing = existing.parent_path();
  struct statvfs info {};
  if (::statvfs(existing.c_str(), &info) != 0) {
    f.found = MessageOf(ErrnoStatus(errno, existing.string()));
    return f;
  }
  const double free_gib = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize) / (1ull << 30);
  f.ok = free_gib >= need_gib;
  f.found = fmt::format("{:.1f} GiB free in {}", free_gib, existing.string());
  return f;
}

Finding Memory() {
  Finding f{"memory", false, true, "unknown", "0.5 GiB available", "free memory, or lower the aggregator's pool"};
  const std::string info = ReadFile("/proc/meminfo", 1 << 20).value_or("");
  const size_t at = info.find("MemAvailable:");
  if (at == std::string::npos) return f;
  const double gib = std::strtod(info.c_str() + at + sizeof("MemAvailable:") - 1, nullptr) / (1 << 20);
  f.ok = gib >= 0.5;
  f.found = fmt::format("{:.1f} GiB available", gib);
  return f;
}

Finding Writable(const fs::path& dir) {
  Finding f{"state folder", false, true, "", "a folder this user may write", "name another with --store or --state, or set XDG_DATA_HOME"};
  fs::path existing = dir;
  while (!fs::exists(existing) && existing != existing.parent_path()) existing = existing.parent_path();
  f.ok = ::access(existing.c_str(), W_OK) == 0;
  f.found = fmt::format("{} {}", existing.string(), f.ok ? "is writable" : "is not writable");
  return f;
}

Finding Sibling(const std::string& program, bool required, const std::string& remedy) {
  const fs::path path = ExecutableDir() / program;
  const bool there = fs::exists(path);
  return {program, there, required, there ? path.string() : "not beside this program", "the program", remedy};
}

// Lets the client initialise a small model: that it is built with LibTorch and that LibTorch loads here is then seen, not guessed.
Finding LibTorch() {
  Finding f{"LibTorch", false, false, "", "tributary-client built with LibTorch (to train and to initialise zoo models)",
            "scripts/deps.sh, then cmake --preset release && cmake --build --preset release"};
  const fs::path program = ExecutableDir() / "tributary-client";
  if (!fs::exists(program)) {
    f.found = "no tributary-client to ask";
    return f;
  }
  const fs::path folder = fs::temp_directory_path() / ("tributary-doctor-" + RandomHex(8));
  SpawnOptions options;
  options.program = program;
  options.args = {"init-model", "--job", (folder / "job.yaml").string(), "--out", (folder / "model.safetensors").string()};
  options.stdout_file = options.stderr_file = folder / "log";
  absl::Status made = MakeDirectories(folder);
  if (made.ok()) made = WriteFileAtomically(folder / "job.yaml", std::string_view("name: doctor\nmodel: {zoo: linear}\ncohort: {size: 1}\n"), false);
  if (made.ok()) {
    auto child = ChildProcess::Spawn(options);
    const auto status = child.ok() ? child->Wait(absl::Seconds(3)) : absl::StatusOr<int>(child.status());
    if (!status.ok()) {
      f.found = MessageOf(status.status());
    } else if (*status == 0) {
      f.ok = true;
      f.found = "initialises models";
    } else {
      std::string log = ReadFile(folder / "log").value_or("");
      while (!log.empty() && log.back() == '\n') log.pop_back();
      f.found = log.substr(log.rfind('\n') + 1);  // npos + 1 == 0
      if (f.found.starts_with("error: ")) f.found.erase(0, sizeof("error: ") - 1);
    }
  } else {
    f.found = MessageOf(made);
  }
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return f;
}

Finding Gpu() {
  const bool there = fs::exists("/dev/nvidia0");
  return {"GPU", there, false, there ? "/dev/nvidia0" : "no NVIDIA device", "an NVIDIA GPU with its driver (optional: clients train on the CPU without)",
          "install the driver; then run scripts/deps.sh again for the CUDA libraries"};
}

// The aggregator's own start-up probe: loads a program, sends four records, leaves nothing behind. A few milliseconds.
Finding Ebpf() {
  Finding f{"eBPF", false, false, "", "SK_MSG redirection for the transports skmsg and skmsg-inline (optional: ring needs none)",
            "run the aggregator with CAP_BPF and CAP_NET_ADMIN on one of these kernels: 6.1.142+, 6.6.94+, 6.12.34+, 6.15.3+"};
  const absl::Status probed = aggregator::ProbeSkMsg();
  f.ok = probed.ok();
  f.found = f.ok ? "SK_MSG works: a record redirected, a dead letter, a foreign domain and a forged sender told apart" : MessageOf(probed);
  if (!ebpf::BuiltWithBpf()) f.remedy = "scripts/deps.sh, then configure again (TRIBUTARY_BPF=AUTO)";
  return f;
}

// Whether a program could listen on this port of this machine.
bool PortIsFree(uint16_t port) {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));  // connections in TIME_WAIT do not count
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return fd.valid() && ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

Finding Server(const std::string& address) {
  Finding f{"aggregator", Client::Connect(address, absl::Seconds(1)).ok(), false, "",
            "a running aggregator (not needed for 'tributary run')", "tributary-aggregator --store DIR"};
  if (f.ok) {
    f.found = fmt::format("answers at {}", address);
    return f;
  }
  f.found = fmt::format("nothing answers at {}", address);
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon);
  const int port = colon == std::string::npos ? 0 : std::atoi(address.c_str() + colon + 1);
  if ((host == "127.0.0.1" || host == "localhost") && port > 0 && port < 65536) {
    if (PortIsFree(static_cast<uint16_t>(port))) {
      f.found += fmt::format("; port {} is free", port);
    } else {
      f.found = fmt::format("port {} is taken by a program that is no aggregator", port);
      f.remedy = "tributary-aggregator --store DIR --listen 127.0.0.1:PORT with another port, and --server for this program";
    }
  }
  return f;
}

int Examine(const Context& context) {
  const std::vector<Finding> findings = {
      SharedMemory(),
      Memory(),
      FreeSpace("/dev/shm", false, "/dev/shm", 0.25, "optional: shared memory is taken with memfd; in a container, --shm-size=1g"),
      Writable(UserDataDir()),
      FreeSpace("disk", true, UserDataDir(), 1.0, "free space, or name another disk with --store"),
      Sibling("tributary-aggregator", true, "cmake --build --preset release"),
      Sibling("tributary-worker", true, "cmake --build --preset release"),
      Sibling("tributary-client", false, "cmake --build --preset release"),
      LibTorch(),
      Gpu(),
      Ebpf(),
      Server(context.server),
  };
  bool sound = true;
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& f : findings) {
    sound = sound && (f.ok || !f.required);
    if (context.json) {
      list.push_back({{"name", f.name}, {"ok", f.ok}, {"required", f.required}, {"found", f.found}, {"needed", f.needed}, {"remedy", f.ok ? "" : f.remedy}});
    } else {
      fmt::print("{:<5} {:<22} {}\n", f.ok ? "ok" : f.required ? "FAIL" : "note", f.name, f.found);
      if (!f.ok) fmt::print("      {:<22} needed: {}; remedy: {}\n", "", f.needed, f.remedy);
    }
  }
  if (context.json) PrintJson({{"ok", sound}, {"findings", list}});
  return sound ? kDone : kFailed;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Context& context) {
  CLI::App* doctor = app.add_subcommand("doctor", "What works on this machine, and the remedy where something does not");
  doctor->footer("Example:\n  tributary doctor");
  doctor->callback([&context] { context.action = [&context] { return Examine(context); }; });
}

}  // namespace tributary::cli
