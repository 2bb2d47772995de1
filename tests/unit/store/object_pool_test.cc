#include "aggregator/store/object_pool.h"

#include <absl/synchronization/notification.h>

#include <atomic>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

std::unique_ptr<ObjectPool> MakePool(size_t payload, size_t slots) {
  return ObjectPool::Create({.pool_id = 7, .slot_payload_bytes = payload, .pool_bytes = slots * SlotBytes(payload), .domain = 3})
      .value();
}

ObjectKey PublishOne(ObjectPool& pool, size_t bytes, int fill = 1) {
  WritableObject object = pool.Reserve(bytes).value();
  std::memset(object.payload().data(), fill, bytes);
  return pool.Publish(std::move(object));
}

TEST(LocatorTest, PacksAndUnpacksEveryFieldAtItsExtremes) {
  for (const ObjectLocator at : {ObjectLocator{0, 0, 0}, ObjectLocator{0xffff, 0, 0}, ObjectLocator{0, 0xffff, 0},
                                 ObjectLocator{0, 0, 0xffffffff}, ObjectLocator{1, 2, 3}}) {
    EXPECT_EQ(UnpackLocator(PackLocator(at)), at);
  }
  EXPECT_EQ(PackLocator({0x1234, 0x5678, 0x9abcdef0}), 0x123456789abcdef0u);
}

TEST(LocatorTest, SlotsAreWholePagesThatHoldHeaderAndPayload) {
  EXPECT_EQ(SlotBytes(1), 4096u);
  EXPECT_EQ(SlotBytes(4096 - 128), 4096u);
  EXPECT_EQ(SlotBytes(4096 - 127), 8192u);
}

TEST(ObjectHeaderTest, FieldsLieWhereTheLayoutDocumentDrawsThem) {
  EXPECT_EQ(offsetof(tb_object_header, nonce), 8u);
  EXPECT_EQ(offsetof(tb_object_header, state), 20u);
  EXPECT_EQ(offsetof(tb_object_header, owner_epoch), 32u);
  EXPECT_EQ(offsetof(tb_object_header, layout_id), 48u);
  EXPECT_EQ(offsetof(tb_object_header, payload_bytes), 56u);
  EXPECT_EQ(offsetof(tb_object_header, weight), 64u);
  EXPECT_EQ(offsetof(tb_object_header, sum_squares), 88u);
  EXPECT_EQ(offsetof(tb_object_header, crc32c), 96u);
  EXPECT_EQ(offsetof(tb_object_header, contributors), 104u);
}

TEST(ObjectPoolTest, PublishedBytesCanBeReadUntilReleased) {
  auto pool = MakePool(1000, 2);
  const ObjectKey key = PublishOne(*pool, 1000, 42);
  TRIB_ASSERT_OK_AND_ASSIGN(auto bytes, pool->Read(key));
  EXPECT_EQ(bytes.size(), 1000u);
  EXPECT_EQ(bytes[999], std::byte{42});
  pool->Release(key);
  EXPECT_THAT(pool->Read(key), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ObjectPoolTest, PayloadIsAlignedToACacheLine) {
  auto pool = MakePool(100, 4);
  for (int i = 0; i < 4; ++i) {
    WritableObject object = pool->Reserve(100).value();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(object.payload().data()) % 64, 0u);
    pool->Publish(std::move(object));
  }
}

TEST(ObjectPoolTest, RefusesWhenEverySlotIsInUseAndServesAgainAfterARelease) {
  auto pool = MakePool(5000, 3);
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 3; ++i) keys.push_back(PublishOne(*pool, 5000));
  EXPECT_EQ(pool->used_slots(), 3u);
  EXPECT_THAT(pool->Reserve(5000), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("3 slots")));
  pool->Release(keys[1]);
  EXPECT_THAT(pool->Reserve(5000), IsOk());
}

TEST(ObjectPoolTest, AtLeastOneSlotIsGrantedHoweverSmallTheBudget) {
  TRIB_ASSERT_OK_AND_ASSIGN(auto pool, ObjectPool::Create({.slot_payload_bytes = 100'000, .pool_bytes = 1}));
  EXPECT_EQ(pool->capacity_slots(), 1u);
  EXPECT_THAT(pool->Reserve(100'000), IsOk());
}

TEST(ObjectPoolTest, ReuseOfASlotChangesTheNonceSoThatStaleKeysDie) {
  auto pool = MakePool(100, 1);
  std::set<uint64_t> nonces;
  ObjectKey last;
  for (int i = 0; i < 100; ++i) {
    const ObjectKey key = PublishOne(*pool, 100);
    EXPECT_EQ(UnpackLocator(key.hi), (ObjectLocator{7, 0, 0}));
    EXPECT_TRUE(nonces.insert(key.lo).second);
    if (i > 0) {
      EXPECT_THAT(pool->Read(last), StatusIs(absl::StatusCode::kNotFound));
    }
    pool->Release(last);  // stale: must not free the live object
    EXPECT_THAT(pool->Read(key), IsOk());
    pool->Release(key);
    last = key;
  }
}

TEST(ObjectPoolTest, AnUnpublishedObjectGivesItsSlotBack) {
  auto pool = MakePool(100, 1);
  { WritableObject object = pool->Reserve(100).value(); }
  EXPECT_EQ(pool->used_slots(), 0u);
  WritableObject first = pool->Reserve(100).value();
  WritableObject second = std::move(first);
  EXPECT_FALSE(first.valid());
  EXPECT_TRUE(second.valid());
  EXPECT_THAT(pool->Read(second.key()), StatusIs(absl::StatusCode::kNotFound));  // not published yet
  second = WritableObject();
  EXPECT_EQ(pool->used_slots(), 0u);
}

TEST(ObjectPoolTest, HeaderKeepsWhatTheOwnerWroteAndRepairsWhatIsThePools) {
  auto pool = MakePool(100, 1);
  WritableObject object = pool->Reserve(64).value();
  object.header().weight = 12.5;
  object.header().round = 9;
  object.header().magic = 0;
  object.header().nonce = 1;
  object.header().payload_bytes = ~uint64_t{0};
  tb_object_header& header = object.header();
  const ObjectKey key = pool->Publish(std::move(object));
  EXPECT_EQ(header.magic, TB_OBJECT_MAGIC);
  EXPECT_EQ(header.nonce, key.lo);
  EXPECT_EQ(header.state, static_cast<uint32_t>(TB_PUBLISHED));
  EXPECT_EQ(header.payload_bytes, 64u);
  EXPECT_EQ(header.weight, 12.5);
  EXPECT_EQ(header.round, 9u);
  EXPECT_EQ(header.domain, 3u);
  pool->Release(key);
  WritableObject next = pool->Reserve(64).value();
  EXPECT_EQ(next.header().weight, 0.0);  // nothing of the previous object stays
  EXPECT_EQ(next.header().generation, 2u);
}

TEST(ObjectPoolTest, RefusesAnObjectLargerThanASlot) {
  auto pool = MakePool(100, 1);
  EXPECT_THAT(pool->Reserve(101), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 100")));
  EXPECT_THAT(ObjectPool::Create({.slot_payload_bytes = 0, .pool_bytes = 1}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ObjectPoolTest, AListenerHearsOfOldSegmentsFirstAndThenOfNewOnes) {
  const size_t payload = size_t{20} << 20;  // a segment each
  auto pool = MakePool(payload, 3);
  PublishOne(*pool, 1);
  std::vector<uint16_t> heard;
  pool->SetSegmentListener([&](uint16_t segment, int fd, size_t bytes) {
    EXPECT_GE(fd, 0);
    EXPECT_EQ(bytes, SlotBytes(payload));
    heard.push_back(segment);
  });
  EXPECT_THAT(heard, ::testing::ElementsAre(0));
  PublishOne(*pool, 1);
  EXPECT_THAT(heard, ::testing::ElementsAre(0, 1));
  EXPECT_EQ(pool->committed_bytes(), 2 * SlotBytes(payload));
  pool->SetSegmentListener({});
  PublishOne(*pool, 1);
  EXPECT_EQ(heard.size(), 2u);
}

// Otherwise its update could be at a worker that has never heard of the segment, and be refused.
TEST(ObjectPoolTest, NoObjectIsGivenAwayBeforeItsSegmentWasToldOf) {
  auto pool = MakePool(256, 8);
  absl::Notification first_tells;
  absl::Notification let_go;
  std::atomic<int> told = 0;
  pool->SetSegmentListener([&](uint16_t, int, size_t) {
    if (!first_tells.HasBeenNotified()) {
      first_tells.Notify();
      let_go.WaitForNotification();
    }
    ++told;
  });
  std::jthread slow([&] { EXPECT_THAT(pool->Reserve(256).status(), IsOk()); });
  first_tells.WaitForNotification();
  EXPECT_THAT(pool->Reserve(256).status(), IsOk());  // in the segment that the other thread has not told of yet
  EXPECT_EQ(told, 1);
  let_go.Notify();
  slow.join();
  EXPECT_EQ(told, 2);
  EXPECT_THAT(pool->Reserve(256).status(), IsOk());
  EXPECT_EQ(told, 2);
}

TEST(ObjectPoolTest, ManyThreadsShareTheSlotsWithoutGivingOneToTwo) {
  auto pool = MakePool(256, 8);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 2000; ++i) {
        auto object = pool->Reserve(256);
        if (!object.ok()) continue;
        std::memset(object->payload().data(), t, 256);
        const ObjectKey key = pool->Publish(*std::move(object));
        const auto bytes = pool->Read(key).value();
        for (const std::byte b : bytes) ASSERT_EQ(b, static_cast<std::byte>(t));
        pool->Release(key);
      }
    });
  }
  threads.clear();
  EXPECT_EQ(pool->used_slots(), 0u);
}

}  // namespace
}  // namespace tributary::aggregator
