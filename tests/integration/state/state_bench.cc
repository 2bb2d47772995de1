// state_bench DIR MIB COMMITS: time of CommitVersion against a plain synced file of the same size, and the memory it adds.
// One JSON document on stdout. DIR must not exist; it is removed afterwards.
#include <absl/strings/numbers.h>
#include <absl/time/clock.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <thread>

#include "common/unique_fd.h"
#include "tests/integration/state/state_fixture.h"

namespace tributary::aggregator {
namespace {

double AnonymousMib() {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    double kib = 0;
    if (std::sscanf(line.c_str(), "RssAnon: %lf", &kib) == 1) return kib / 1024;
  }
  return 0;
}

absl::StatusOr<double> PlainFile(const std::string& path, std::span<const std::byte> bytes) {
  const absl::Time begin = absl::Now();
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(fd.get(), bytes.data() + done, std::min<size_t>(4 << 20, bytes.size() - done));
    if (n < 0) return ErrnoStatus(errno, path);
    done += static_cast<size_t>(n);
  }
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, path);
  return absl::ToDoubleMilliseconds(absl::Now() - begin);
}

absl::Status Run(const std::string& dir, size_t mib, int commits) {
  std::vector<double> plain, commit_ms, read_ms;
  auto tensors = TestTensors(1, mib << 20);
  const std::string sha256 = Sha256Hex(tensors);
  {
    TRIB_ASSIGN_OR_RETURN(const auto store, StateStore::Open({.dir = dir}));
    std::filesystem::create_directory(dir + "/plain");   // new blocks for both
    std::atomic<bool> done{false};
    std::atomic<double> peak{0};
    const double before = AnonymousMib();
    {
      std::jthread watcher([&] {
        while (!done) {
          peak = std::max(peak.load(), AnonymousMib());
          absl::SleepFor(absl::Milliseconds(2));
        }
      });
      for (int version = 0; version < commits; ++version) {
        VersionCommit commit;
        commit.job = TestJob("bench");
        commit.version.mutable_info()->set_version(static_cast<uint64_t>(version));
        commit.version.mutable_info()->set_sha256(sha256);   // the caller has hashed it
        commit.tensors = tensors;
        const absl::Time begin = absl::Now();
        const absl::Status status = store->CommitVersion(std::move(commit));
        commit_ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - begin));
        if (!status.ok()) return done = true, status;
        const auto file = PlainFile(fmt::format("{}/plain/{}", dir, version), tensors);
        if (!file.ok()) return done = true, file.status();
        plain.push_back(*file);
      }
      done = true;
    }
    const double added = peak - before;
    for (int version = 0; version < commits; ++version) {
      const absl::Time begin = absl::Now();
      TRIB_RETURN_IF_ERROR(store->ReadTensors("bench", static_cast<uint64_t>(version), tensors, false));
      read_ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - begin));
    }
    for (auto* list : {&plain, &commit_ms, &read_ms}) std::ranges::sort(*list);
    const size_t middle = commit_ms.size() / 2;
    fmt::print("{{\"mib\": {}, \"commits\": {}, \"commit_ms\": {{\"min\": {:.1f}, \"median\": {:.1f}, \"max\": {:.1f}}}, "
               "\"plain_file_fsync_ms\": {{\"min\": {:.1f}, \"median\": {:.1f}, \"max\": {:.1f}}}, \"read_ms_median\": {:.1f}, "
               "\"added_memory_mib\": {:.1f}}}\n",
               mib, commits, commit_ms.front(), commit_ms[middle], commit_ms.back(), plain.front(), plain[middle], plain.back(),
               read_ms[middle], added);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace tributary::aggregator

int main(int argc, char** argv) {
  size_t mib = 0;
  int commits = 0;
  if (argc != 4 || !absl::SimpleAtoi(argv[2], &mib) || !absl::SimpleAtoi(argv[3], &commits) || commits < 1) {
    std::fprintf(stderr, "usage: state_bench DIR MIB COMMITS\n");
    return 2;
  }
  if (std::filesystem::exists(argv[1])) {
    std::fprintf(stderr, "state_bench: '%s' exists\n", argv[1]);
    return 2;
  }
  const absl::Status status = tributary::aggregator::Run(argv[1], mib, commits);
  std::filesystem::remove_all(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "state_bench: %s\n", tributary::MessageOf(status).c_str());
  return status.ok() ? 0 : 1;
}
