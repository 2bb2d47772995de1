// The kernel, not convention, keeps published objects unchanged (dataplane.md §3).
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "aggregator/store/memfd.h"
#include "aggregator/store/object_pool.h"
#include "common/process.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

struct PublishedPool {
  std::unique_ptr<ObjectPool> pool = ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = 10'000, .pool_bytes = 1 << 20}).value();
  ObjectKey key;
  int fd = -1;
  size_t bytes = 0;
  PublishedPool() {
    WritableObject object = pool->Reserve(10'000).value();
    std::memset(object.payload().data(), 7, 10'000);
    object.header().weight = 2;
    key = pool->Publish(std::move(object));
    pool->SetSegmentListener([this](uint16_t, int segment_fd, size_t segment_bytes) {
      fd = segment_fd;
      bytes = segment_bytes;
    });
  }
  UniqueFd Duplicate() const { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }
};

TEST(SealsTest, AnotherProcessWithTheFdCannotChangeAnObjectInAnyWay) {
  PublishedPool pool;
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess attacker, ChildProcess::Spawn({.program = HELPER_PROGRAM,
                                                                        .args = {"attack", "9", fmt::format("{}", pool.bytes)},
                                                                        .env = {},
                                                                        .fds = {{pool.fd, 9}},
                                                                        .stdout_file = {},
                                                                        .stderr_file = {}}));
  TRIB_ASSERT_OK_AND_ASSIGN(const int status, attacker.Wait(absl::Seconds(20)));
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  const std::span<const std::byte> bytes = pool.pool->Read(pool.key).value();
  for (const std::byte b : bytes) ASSERT_EQ(b, std::byte{7});
}

TEST(SealsTest, TheWriterCannotTakeTheSealsBackOrPunchHoles) {
  PublishedPool pool;
  EXPECT_NE(::ftruncate(pool.fd, 0), 0);
  EXPECT_NE(::fallocate(pool.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_NE(::fcntl(pool.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_EQ(::fcntl(pool.fd, F_GET_SEALS), DataSegmentSeals());
}

TEST(SealsTest, AReaderFindsThePublishedObject) {
  PublishedPool pool;
  SegmentMap map;
  ASSERT_THAT(map.Add(1, 0, pool.Duplicate(), pool.bytes, pool.pool->slot_bytes()), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const SegmentMap::Object object, map.Find(pool.key));
  EXPECT_EQ(object.header.weight, 2.0);
  EXPECT_EQ(object.payload.size(), 10'000u);
  EXPECT_EQ(object.payload[9'999], std::byte{7});
  EXPECT_THAT(map.Find({pool.key.hi, pool.key.lo ^ 1}), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(map.Find({pool.key.hi + 1, pool.key.lo}), StatusIs(absl::StatusCode::kNotFound));           // free slot
  EXPECT_THAT(map.Find({pool.key.hi | 0xffffffff, pool.key.lo}), StatusIs(absl::StatusCode::kNotFound));  // no such slot
  EXPECT_THAT(map.Find({PackLocator({2, 0, 0}), pool.key.lo}), StatusIs(absl::StatusCode::kNotFound));    // no such pool
  pool.pool->Release(pool.key);
  EXPECT_THAT(map.Find(pool.key), StatusIs(absl::StatusCode::kNotFound));
}

TEST(SealsTest, AReaderBelievesNoHeaderThatLies) {
  // The writer may still change its own objects; a reader copies and checks.
  for (const auto& spoil : {+[](tb_object_header& h) { h.magic ^= 1; }, +[](tb_object_header& h) { h.abi_version = TB_ABI_VERSION + 1; },
                            +[](tb_object_header& h) { h.payload_bytes = ~uint64_t{0}; },
                            +[](tb_object_header& h) { h.payload_bytes = 16'384; }, +[](tb_object_header& h) { h.weight_runs = 200; },
                            +[](tb_object_header& h) { h.weight_runs = ~uint64_t{0}; }}) {
    auto pool = ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = 10'000, .pool_bytes = 1 << 20}).value();
    SegmentMap map;
    pool->SetSegmentListener([&](uint16_t segment, int fd, size_t bytes) {
      ASSERT_THAT(map.Add(1, segment, UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), bytes, pool->slot_bytes()), IsOk());
    });
    WritableObject object = pool->Reserve(10'000).value();
    tb_object_header& header = object.header();
    const ObjectKey key = pool->Publish(std::move(object));
    ASSERT_THAT(map.Find(key), IsOk());
    spoil(header);
    EXPECT_THAT(map.Find(key), StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST(SealsTest, WeightRunsAreReadBehindAPayloadOfAnyLength) {
  const std::vector<tb_weight_run> runs = {{3, 0.5}, {9, 0}, {2500, 7}};
  for (const size_t bytes : {size_t{1}, size_t{9'996}, size_t{10'000}}) {
    auto pool = ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = 10'000, .weight_runs = 3, .pool_bytes = 1 << 20}).value();
    SegmentMap map;
    pool->SetSegmentListener([&](uint16_t segment, int fd, size_t size) {
      ASSERT_THAT(map.Add(1, segment, UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), size, pool->slot_bytes()), IsOk());
    });
    WritableObject object = pool->Reserve(bytes).value();
    std::fill(object.payload().begin(), object.payload().end(), std::byte{0xEE});
    object.SetWeightRuns(runs);
    const ObjectKey key = pool->Publish(std::move(object));
    TRIB_ASSERT_OK_AND_ASSIGN(const SegmentMap::Object found, map.Find(key));
    ASSERT_EQ(found.runs.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(found.runs[i].end, runs[i].end);
      EXPECT_EQ(found.runs[i].factor, runs[i].factor);
    }
    EXPECT_EQ(found.payload.back(), std::byte{0xEE}) << bytes;
    pool->Release(key);
    EXPECT_EQ(pool->Reserve(bytes).value().header().weight_runs, 0u) << "nothing of the previous object stays";
  }
}

TEST(SealsTest, AReceiverRefusesUnsealedOversealedWrongSizedAndForeignFiles) {
  PublishedPool pool;
  const size_t slot = pool.pool->slot_bytes();
  SegmentMap map;
  EXPECT_THAT(map.Add(1, 0, pool.Duplicate(), pool.bytes + slot, slot), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes")));
  EXPECT_THAT(map.Add(1, 0, pool.Duplicate(), pool.bytes, slot * 2 + 4096), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(map.Add(1, 0, pool.Duplicate(), pool.bytes, 100), StatusIs(absl::StatusCode::kInvalidArgument));
  UniqueFd unsealed(::memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), static_cast<off_t>(slot)), 0);
  EXPECT_THAT(map.Add(1, 0, std::move(unsealed), slot, slot), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("seals")));
  UniqueFd other(::memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(other.get(), static_cast<off_t>(slot)), 0);
  ASSERT_EQ(::fcntl(other.get(), F_ADD_SEALS, DataSegmentSeals() | F_SEAL_WRITE), 0);
  EXPECT_THAT(map.Add(1, 0, std::move(other), slot, slot), StatusIs(absl::StatusCode::kPermissionDenied));
  UniqueFd pipe_end[2];
  int raw[2];
  ASSERT_EQ(::pipe2(raw, O_CLOEXEC), 0);
  pipe_end[0].Reset(raw[0]);
  pipe_end[1].Reset(raw[1]);
  EXPECT_THAT(map.Add(1, 0, std::move(pipe_end[0]), slot, slot), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sealed memfd")));
  // A data segment is no lane, and the other way round.
  EXPECT_THAT(SharedRegion::Receive(pool.Duplicate(), pool.bytes), StatusIs(absl::StatusCode::kPermissionDenied));
  SharedRegion region = SharedRegion::Create("test", slot).value();
  EXPECT_THAT(map.Add(1, 0, UniqueFd(::fcntl(region.fd.get(), F_DUPFD_CLOEXEC, 0)), slot, slot),
              StatusIs(absl::StatusCode::kPermissionDenied));
  ASSERT_THAT(map.Add(1, 0, pool.Duplicate(), pool.bytes, slot), IsOk());
  EXPECT_THAT(map.Add(1, 0, pool.Duplicate(), pool.bytes, slot), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST(SealsTest, ASharedRegionIsWritableAtBothEndsButKeepsItsSize) {
  SharedRegion mine = SharedRegion::Create("test", 8192).value();
  TRIB_ASSERT_OK_AND_ASSIGN(SharedRegion theirs,
                            SharedRegion::Receive(UniqueFd(::fcntl(mine.fd.get(), F_DUPFD_CLOEXEC, 0)), 8192));
  theirs.bytes[8191] = std::byte{5};
  EXPECT_EQ(mine.bytes[8191], std::byte{5});
  EXPECT_NE(::ftruncate(theirs.fd.get(), 0), 0);
  EXPECT_NE(::ftruncate(theirs.fd.get(), 1 << 20), 0);
}

// A parent sees its leaves' slabs this way.
TEST(SealsTest, AReadOnlyRegionShowsTheWritersBytesAndItsMapCannotBeMadeWritable) {
  SharedRegion mine = SharedRegion::Create("test", 8192).value();
  TRIB_ASSERT_OK_AND_ASSIGN(UniqueFd reader, mine.ReadOnlyFd());
  EXPECT_EQ(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, reader.get(), 0), MAP_FAILED);
  EXPECT_EQ(::pwrite(reader.get(), "x", 1, 0), -1);
  const int number = reader.get();
  TRIB_ASSERT_OK_AND_ASSIGN(const ReadOnlyRegion theirs, ReadOnlyRegion::Receive(std::move(reader), 8192));
  EXPECT_EQ(::fcntl(number, F_GETFD), -1) << "the descriptor is closed, it cannot be opened again through procfs";
  mine.bytes[8191] = std::byte{5};
  EXPECT_EQ(theirs.bytes[8191], std::byte{5});
  EXPECT_NE(::mprotect(const_cast<std::byte*>(theirs.bytes.data()), 8192, PROT_READ | PROT_WRITE), 0);
  EXPECT_THAT(ReadOnlyRegion::Receive(UniqueFd(::fcntl(mine.fd.get(), F_DUPFD_CLOEXEC, 0)), 8192),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("only be read")));
  EXPECT_THAT(ReadOnlyRegion::Receive(mine.ReadOnlyFd().value(), 4096), StatusIs(absl::StatusCode::kInvalidArgument));
}

// A forked child would inherit the writer's mapping; MADV_DONTFORK takes it away.
TEST(SealsTest, AForkedChildDoesNotInheritTheWritableMapping) {
  PublishedPool pool;
  const std::byte* address = pool.pool->Read(pool.key).value().data();
  const pid_t child = ::fork();
  if (child == 0) {
    // mincore fails with ENOMEM for addresses that are not mapped.
    unsigned char resident[1];
    void* page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) & ~uintptr_t{4095});
    ::_exit(::mincore(page, 1, resident) != 0 && errno == ENOMEM ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace tributary::aggregator
