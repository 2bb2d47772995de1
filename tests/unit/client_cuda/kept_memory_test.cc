#include "client/torch/device/kept_memory.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

namespace tributary::client {
namespace {

int gotten = 0;
int freed = 0;
bool empty = false;

void* Get(size_t bytes) {
  if (empty) return nullptr;
  ++gotten;
  return std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
}
void Free(void* memory) {
  ++freed;
  std::free(memory);
}

class KeptMemoryTest : public ::testing::Test {
 protected:
  KeptMemoryTest() {
    gotten = freed = 0;
    empty = false;
  }
};

TEST_F(KeptMemoryTest, UsesABlockAgainForTheSameSize) {
  KeptMemory memory(&Get, &Free, 1 << 20);
  void* const first = memory.Take(1000);
  void* const second = memory.Take(1000);
  EXPECT_NE(first, second);
  EXPECT_TRUE(memory.Give(first));
  void* const other = memory.Take(2000);
  EXPECT_NE(other, first);
  EXPECT_EQ(memory.Take(1000), first);
  EXPECT_EQ(gotten, 3);
  EXPECT_EQ(memory.bytes(), 4000U);
  for (void* block : {first, second, other}) EXPECT_TRUE(memory.Give(block));
}

TEST_F(KeptMemoryTest, StaysBelowItsLimitAndMakesRoomFromWhatNobodyUses) {
  KeptMemory memory(&Get, &Free, 3000);
  void* const used = memory.Take(1000);
  void* const idle = memory.Take(1500);
  EXPECT_EQ(memory.Take(1000), nullptr) << "over the limit";
  memory.Give(idle);
  void* const large = memory.Take(2000);
  EXPECT_NE(large, nullptr);
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(memory.bytes(), 3000U);
  EXPECT_TRUE(memory.Give(used));
  EXPECT_TRUE(memory.Give(large));
  empty = true;
  EXPECT_EQ(memory.Take(500), nullptr) << "there is none to get";
}

TEST_F(KeptMemoryTest, KnowsWhatIsNotItsOwn) {
  KeptMemory memory(&Get, &Free, 3000);
  int other = 0;
  EXPECT_FALSE(memory.Give(&other));
}

TEST_F(KeptMemoryTest, ServesLargeByteVectorsBesideTheSystem) {
  LargeBytes before(3 << 20);  // the system's, freed while there is a source
  {
    KeptMemory memory(&Get, &Free, 5 << 20);
    large_memory_source = &memory;
    {
      LargeBytes small(100), first(3 << 20), over(3 << 20);
      std::memset(first.data(), 1, first.size());
      std::memset(over.data(), 1, over.size());
      EXPECT_EQ(gotten, 1);
      before = LargeBytes();
    }
    {
      const LargeBytes again(3 << 20);
      EXPECT_EQ(gotten, 1);
    }
    large_memory_source = nullptr;
  }
}

}  // namespace
}  // namespace tributary::client
