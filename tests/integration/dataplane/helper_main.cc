// The other process of the data-plane tests.
//   attack FD BYTES        tries everything a holder of a data segment's fd could do to change it; exit 0 if all of it failed
//   push FD BYTES COUNT    attaches to the lane in FD and pushes COUNT descriptors numbered from the lane's head
#include <absl/strings/numbers.h>
#include <absl/time/time.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "aggregator/store/object_pool.h"
#include "aggregator/store/memfd.h"
#include "aggregator/transport/transport.h"

#ifndef FALLOC_FL_PUNCH_HOLE
#include <linux/falloc.h>
#endif

namespace {

using namespace tributary;
using namespace tributary::aggregator;

int failures = 0;
void Expect(bool refused, const char* attack) {
  std::fprintf(stderr, "%s: %s\n", attack, refused ? "refused" : "SUCCEEDED");
  failures += refused ? 0 : 1;
}

int Attack(int fd, size_t bytes) {
  void* map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return 3;
  Expect(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, "a second writable mapping");
  Expect(::mprotect(map, bytes, PROT_READ | PROT_WRITE) != 0, "mprotect to writable");
  Expect(::madvise(map, bytes, MADV_REMOVE) != 0, "MADV_REMOVE");
  Expect(::pwrite(fd, "x", 1, 0) < 0, "write");
  Expect(::ftruncate(fd, 0) != 0, "shrink");
  Expect(::ftruncate(fd, static_cast<off_t>(bytes) * 2) != 0, "grow");
  Expect(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0, "hole punching");
  Expect(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0, "adding a seal");
  const int again = ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC);
  if (again >= 0) {  // opening itself is allowed; writing through it must not be
    Expect(::pwrite(again, "x", 1, 0) < 0, "write through a reopened fd");
    Expect(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED, "mapping a reopened fd writable");
  }
  return failures == 0 ? 0 : 1;
}

int Push(int fd, size_t bytes, int count) {
  auto region = SharedRegion::Receive(UniqueFd(fd), bytes);
  if (!region.ok()) return 3;
  auto lane = AttachRingProducer(region->bytes);
  if (!lane.ok()) return 4;
  for (int i = 0; i < count; ++i) {
    const uint32_t number = (*lane)->pushed();
    const tb_desc desc{.dst = number, .src = ~number, .key_hi = number, .key_lo = number, .round = number, .kind = TB_KIND_UPDATE, .lane = 0};
    while (!(*lane)->Push(desc).ok()) (*lane)->WaitForProgress(absl::Seconds(5));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  int fd = -1;
  uint64_t bytes = 0;
  int count = 0;
  if (argc < 4 || !absl::SimpleAtoi(argv[2], &fd) || !absl::SimpleAtoi(argv[3], &bytes)) return 2;
  const std::string mode = argv[1];
  if (mode == "attack") return Attack(fd, bytes);
  if (mode == "push" && argc == 5 && absl::SimpleAtoi(argv[4], &count)) return Push(fd, bytes, count);
  return 2;
}
