// Every row of the repair table in aggregator/store/LAYOUT.md: the slab as a killed worker leaves it, taken on by another.
#include "aggregator/worker/slab_fold.h"

#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using tributary::testing::StatusIs;

constexpr size_t kElements = 2 * kBlockElements + 100;  // three blocks
constexpr uint32_t kCounters = 2;
const SlabShape kShape{0, kElements, 8, kCounters};

// Calls `seen` before and after each block, with the slab as it is at that instant.
class WatchedReducer final : public Reducer {
 public:
  size_t state_bytes_per_element() const override { return 8; }
  bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const override {
    if (seen) {
      seen();
      // As killed half-way through: the first half of the block is done, the rest is not.
      if (!inner_->FoldBlock(state, first, count / 2, updates, fresh)) return false;
      seen();
      if (!inner_->FoldBlock(state + count / 2 * 8, first + count / 2, count - count / 2, updates, fresh)) return false;
      seen();
      return true;
    }
    return inner_->FoldBlock(state, first, count, updates, fresh);
  }
  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override { return inner_->MergeBlock(state, other, count); }
  void ReportBlock(const std::byte* state, size_t count, double weight, double* mean) const override {
    inner_->ReportBlock(state, count, weight, mean);
  }
  std::function<void()> seen;

 private:
  std::unique_ptr<Reducer> inner_ = MakeMeanReducer(DType::kF32, Arithmetic::kFloat64);
};

struct Update {
  std::vector<float> floats;
  int64_t counters[kCounters];
};

class SlabFoldTest : public ::testing::Test {
 protected:
  struct Line {
    alignas(64) std::byte bytes[64];
  };
  using Memory = std::vector<Line>;

  void SetUp() override {
    memory_.resize(SlabBytes(kShape).value() / 64);
    slab_ = Slab::Format(Bytes(memory_), kShape).value();
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int u = 0; u < 6; ++u) {
      Update update;
      for (size_t i = 0; i < kElements; ++i) update.floats.push_back(normal(random));
      for (int64_t& counter : update.counters) counter = static_cast<int64_t>(random() % 100);
      updates_.push_back(std::move(update));
    }
  }
  static std::span<std::byte> Bytes(Memory& memory) { return {memory.data()->bytes, memory.size() * 64}; }
  std::vector<FoldInput> Inputs(size_t first, size_t count) const {
    std::vector<FoldInput> inputs;
    for (size_t i = first; i < first + count; ++i) {
      FoldInput input;
      input.desc.key_lo = i;
      input.view = {reinterpret_cast<const std::byte*>(updates_[i].floats.data()), 1.5 + static_cast<double>(i)};
      input.counters = reinterpret_cast<const std::byte*>(updates_[i].counters);
      inputs.push_back(input);
    }
    return inputs;
  }
  // Accumulators and counters.
  static std::vector<std::byte> SumsOf(const Slab& slab) {
    std::vector<std::byte> sums(slab.state_bytes() + kCounters * 8);
    std::memcpy(sums.data(), slab.state(), slab.state_bytes());
    std::memcpy(sums.data() + slab.state_bytes(), slab.counters(), kCounters * 8);
    return sums;
  }

  WatchedReducer reducer_;
  Memory memory_;
  Slab slab_;
  std::vector<Update> updates_;
};

TEST_F(SlabFoldTest, AnInstantOfDeathDoesNotShowInTheSums) {
  for (const bool fresh : {true, false}) {
    SetUp();
    SlabFold fold(slab_, &reducer_);
    uint32_t cursor = 0;
    if (!fresh) {
      ASSERT_EQ(fold.Fold(Inputs(0, 3), cursor += 3), FoldResult::kFolded);
    }
    std::vector<Memory> deaths;
    reducer_.seen = [&] { deaths.push_back(memory_); };
    ASSERT_EQ(fold.Fold(Inputs(3, 3), cursor + 3), FoldResult::kFolded);
    reducer_.seen = nullptr;
    ASSERT_EQ(deaths.size(), 9u);
    const std::vector<std::byte> expected = SumsOf(slab_);
    for (Memory& left : deaths) {
      const Slab slab = Slab::Attach(Bytes(left), kShape).value();
      SlabFold replacement(slab, &reducer_);
      TRIB_ASSERT_OK_AND_ASSIGN(const SlabFold::Recovered found, replacement.Recover());
      ASSERT_TRUE(found.under_way);
      EXPECT_EQ(found.completed_cursor, cursor);
      EXPECT_EQ(found.batch_done_cursor, cursor + 3);
      ASSERT_EQ(found.batch_size, 3u);
      EXPECT_EQ(found.batch[2].key_lo, 5u);
      EXPECT_EQ(found.batch_weight[2], 6.5);
      ASSERT_EQ(replacement.Resume(Inputs(3, 3)), FoldResult::kFolded);
      EXPECT_EQ(SumsOf(slab), expected);
      EXPECT_EQ(slab.header().folded, fresh ? 3u : 6u);
      EXPECT_EQ(slab.header().completed_cursor, cursor + 3);
    }
  }
}

TEST_F(SlabFoldTest, ARecoveryThatIsItselfCutShortIsRecovered) {
  SlabFold fold(slab_, &reducer_);
  ASSERT_EQ(fold.Fold(Inputs(0, 3), 3), FoldResult::kFolded);
  Memory left;
  int calls = 0;
  reducer_.seen = [&] {
    if (++calls == 5) left = memory_;  // half of the second block
  };
  ASSERT_EQ(fold.Fold(Inputs(3, 3), 6), FoldResult::kFolded);
  const std::vector<std::byte> expected = SumsOf(slab_);
  for (int life = 0; life < 3; ++life) {  // each life dies half-way through the block again
    const Slab slab = Slab::Attach(Bytes(left), kShape).value();
    SlabFold replacement(slab, &reducer_);
    ASSERT_TRUE(replacement.Recover()->under_way);
    Memory next;
    int passes = 0;
    reducer_.seen = [&] {
      if (++passes == 2) next = left;
    };
    ASSERT_EQ(replacement.Resume(Inputs(3, 3)), FoldResult::kFolded);
    EXPECT_EQ(SumsOf(slab), expected);
    left = std::move(next);
  }
}

TEST_F(SlabFoldTest, ACommittedBatchIsNotFoldedAgainWhenOnlyItsTidyingWasCutOff) {
  SlabFold fold(slab_, &reducer_);
  ASSERT_EQ(fold.Fold(Inputs(0, 3), 3), FoldResult::kFolded);
  slab_.header().batch_size = 3;  // as between the commit and the store that ends the batch
  SlabFold replacement(slab_, &reducer_);
  TRIB_ASSERT_OK_AND_ASSIGN(const SlabFold::Recovered found, replacement.Recover());
  EXPECT_FALSE(found.under_way);
  EXPECT_EQ(found.completed_cursor, 3u);
  EXPECT_EQ(slab_.header().batch_size, 0u);
}

TEST_F(SlabFoldTest, DeathAfterTheCountersAndBeforeTheCommitRepeatsOnlyTheCounters) {
  SlabFold fold(slab_, &reducer_);
  ASSERT_EQ(fold.Fold(Inputs(0, 3), 3), FoldResult::kFolded);
  const std::vector<std::byte> expected = SumsOf(slab_);
  slab_.header().batch_size = 3;
  slab_.header().completed_cursor = 0;
  SlabFold replacement(slab_, &reducer_);
  ASSERT_TRUE(replacement.Recover()->under_way);
  int blocks = 0;
  reducer_.seen = [&] { ++blocks; };
  ASSERT_EQ(replacement.Resume(Inputs(0, 3)), FoldResult::kFolded);
  EXPECT_EQ(blocks, 0);
  EXPECT_EQ(SumsOf(slab_), expected);
  EXPECT_EQ(slab_.header().folded, 3u);
}

TEST_F(SlabFoldTest, ABadValueInTheFirstBlockLeavesTheSlabAsItWas) {
  SlabFold fold(slab_, &reducer_);
  ASSERT_EQ(fold.Fold(Inputs(0, 3), 3), FoldResult::kFolded);
  const std::vector<std::byte> before = SumsOf(slab_);
  updates_[4].floats[17] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fold.Fold(Inputs(3, 3), 6), FoldResult::kUnchanged);
  EXPECT_EQ(SumsOf(slab_), before);
  EXPECT_EQ(slab_.header().folded, 3u);
  EXPECT_FALSE(fold.Recover()->under_way);
}

TEST_F(SlabFoldTest, ABadValueInALaterBlockIsReportedAsBroken) {
  SlabFold fold(slab_, &reducer_);
  updates_[1].floats[kBlockElements] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(fold.Fold(Inputs(0, 3), 3), FoldResult::kBroken);
}

TEST_F(SlabFoldTest, ARecordThatContradictsItselfIsRefused) {
  const Memory good = memory_;
  for (const auto& spoil : {+[](tb_slab_header& h) { h.batch_size = TB_MAX_BATCH + 1; }, +[](tb_slab_header& h) { h.blocks_done = 4; },
                            +[](tb_slab_header& h) { h.undo_block = 4; }, +[](tb_slab_header& h) { h.undo_block = 2; },
                            +[](tb_slab_header& h) { h.undo_block = ~0u; }}) {
    memory_ = good;
    const Slab slab = Slab::Attach(Bytes(memory_), kShape).value();
    spoil(slab.header());
    SlabFold fold(slab, &reducer_);
    EXPECT_THAT(fold.Recover(), StatusIs(absl::StatusCode::kDataLoss));
  }
}

}  // namespace
}  // namespace tributary::aggregator
