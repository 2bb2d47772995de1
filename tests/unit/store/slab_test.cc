#include "aggregator/store/slab.h"

#include <cstring>
#include <vector>

#include "aggregator/core/kernels.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::StatusIs;

struct Page {
  alignas(64) std::byte bytes[64];
};

std::span<std::byte> Region(std::vector<Page>& memory, size_t bytes) {
  memory.resize((bytes + 63) / 64);
  return {memory.data()->bytes, bytes};
}

TEST(SlabTest, AreasFollowEachOtherWithoutOverlap) {
  for (const size_t elements : {size_t{0}, size_t{1}, kBlockElements, kBlockElements + 1, size_t{100'000}}) {
    const SlabShape shape{5, elements, 8, 3};
    std::vector<Page> memory;
    const size_t bytes = SlabBytes(shape).value();
    TRIB_ASSERT_OK_AND_ASSIGN(Slab slab, Slab::Format(Region(memory, bytes), shape));
    const std::byte* base = memory.data()->bytes;
    EXPECT_GE(slab.undo() - base, static_cast<ptrdiff_t>(sizeof(tb_slab_header)));
    EXPECT_GE(slab.state() - slab.undo(), static_cast<ptrdiff_t>(std::min(elements, kBlockElements) * 8));
    EXPECT_GE(reinterpret_cast<std::byte*>(slab.counters()) - slab.state(), static_cast<ptrdiff_t>(elements * 8));
    EXPECT_LE(reinterpret_cast<std::byte*>(slab.counters() + 3) - base, static_cast<ptrdiff_t>(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slab.state()) % 64, 0u);
    EXPECT_EQ(slab.blocks(), (elements + kBlockElements - 1) / kBlockElements);
  }
}

TEST(SlabTest, AttachRefusesAHeaderThatSaysAnythingElse) {
  const SlabShape shape{0, 1000, 8, 2};
  std::vector<Page> memory;
  const size_t bytes = SlabBytes(shape).value();
  const std::span<std::byte> region = Region(memory, bytes);
  TRIB_ASSERT_OK_AND_ASSIGN(Slab slab, Slab::Format(region, shape));
  EXPECT_TRUE(Slab::Attach(region, shape).ok());
  EXPECT_THAT(Slab::Attach(region.first(bytes - 64), shape), StatusIs(absl::StatusCode::kDataLoss));
  SlabShape other = shape;
  other.first_element = 8;
  EXPECT_THAT(Slab::Attach(region, other), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("1000 of 8 from 0")));
  slab.header().state_offset += 64;
  EXPECT_THAT(Slab::Attach(region, shape), StatusIs(absl::StatusCode::kDataLoss));
  slab.header().state_offset -= 64;
  slab.header().magic = 0;
  EXPECT_THAT(Slab::Attach(region, shape), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("magic")));
}

TEST(SlabTest, RefusesShapesThatCannotBe) {
  EXPECT_THAT(SlabBytes({0, uint64_t{1} << 60, 8, 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SlabBytes({0, 10, 0, 0}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace tributary::aggregator
