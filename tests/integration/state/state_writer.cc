// The process that state_crash_test kills: state_writer DIR BYTES ACKNOWLEDGED.
// Goes on from the latest version of job "crash": journals a partial, journals it again, commits, and after each commit that was
// reported good appends the version number to the file ACKNOWLEDGED. Ends only by a signal (or with 1 on any error).
#include <absl/strings/numbers.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "common/log.h"
#include "common/unique_fd.h"
#include "tests/integration/state/state_fixture.h"

namespace tributary::aggregator {
namespace {

constexpr uint64_t kKept = 2;

absl::Status Run(const std::string& dir, size_t bytes, const std::string& acknowledged_path) {
  UniqueFd acknowledged(::open(acknowledged_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  TRIB_ASSIGN_OR_RETURN(const auto store, StateStore::Open({.dir = dir}));
  uint64_t version = 0;
  const auto latest = store->LatestVersion("crash");
  if (latest.ok()) {
    version = *latest + 1;
  } else if (!absl::IsNotFound(latest.status())) {
    return latest.status();
  }
  TRIB_RETURN_IF_ERROR(store->PutJob(TestJob("crash", version == 0 ? 0 : (version - 1) * 2)));
  for (;; ++version) {
    v1::PartialRow partial;
    partial.set_version(version);
    for (uint64_t half = 0; half < 2; ++half) {
      partial.set_sum_weight(static_cast<double>(half + 1));
      partial.add_contributors()->set_update_id(ToBytes(TestUpdate(version, half)));
      TRIB_RETURN_IF_ERROR(store->PutPartial("crash", partial, TestTensors(version * 2 + half + 1'000'000, bytes * 2)));
    }
    const auto tensors = TestTensors(version, bytes);
    TRIB_RETURN_IF_ERROR(store->CommitVersion(TestCommit("crash", version, tensors)));
    const std::string line = fmt::format("{}\n", version);
    // The past goes while the job goes on.
    if (version >= kKept) {
      TRIB_RETURN_IF_ERROR(store->DropTensors("crash", version - kKept, 1));
      TRIB_RETURN_IF_ERROR(store->ExpireUpdates("crash", version - kKept, 1));
    }
    if (::write(acknowledged.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) return Internal("write");
  }
}

}  // namespace
}  // namespace tributary::aggregator

int main(int argc, char** argv) {
  size_t bytes = 0;
  if (argc != 4 || !absl::SimpleAtoi(argv[2], &bytes)) return 2;
  const absl::Status status = tributary::aggregator::Run(argv[1], bytes, argv[3]);
  std::fprintf(stderr, "state_writer: %s\n", tributary::MessageOf(status).c_str());
  return 1;
}
