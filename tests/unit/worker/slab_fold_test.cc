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
  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override {
    if (seen) {
      seen();
      if (!inner_->MergeBlock(state, other, count / 2)) return false;
      seen();
      if (!inner_->MergeBlock(state + count / 2 * 8, other + count / 2 * 8, count - count / 2)) return false;
      seen();
      return true;
    }
    return inner_->MergeBlock(state, other, count);
  }
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
      ASSERT_EQ(replacement.ResumeFold(Inputs(3, 3)), FoldResult::kFolded);
      EXPECT_EQ(SumsOf(slab), expected);
      EXPECT_EQ(slab.header().total.folded, fresh ? 3u : 6u);
      EXPECT_EQ(slab.header().total.weight, slab_.header().total.weight);
      EXPECT_EQ(slab.header().total.digest, slab_.header().total.digest);
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
    ASSERT_EQ(replacement.ResumeFold(Inputs(3, 3)), FoldResult::kFolded);
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
  slab_.header().completed_batch = 0;
  slab_.header().completed_cursor = 0;
  slab_.header().total = {};
  SlabFold replacement(slab_, &reducer_);
  ASSERT_TRUE(replacement.Recover()->under_way);
  int blocks = 0;
  reducer_.seen = [&] { ++blocks; };
  ASSERT_EQ(replacement.ResumeFold(Inputs(0, 3)), FoldResult::kFolded);
  EXPECT_EQ(blocks, 0);
  EXPECT_EQ(SumsOf(slab_), expected);
  EXPECT_EQ(slab_.header().total.folded, 3u);
}

TEST_F(SlabFoldTest, ABadValueInTheFirstBlockLeavesTheSlabAsItWas) {
  SlabFold fold(slab_, &reducer_);
  ASSERT_EQ(fold.Fold(Inputs(0, 3), 3), FoldResult::kFolded);
  const std::vector<std::byte> before = SumsOf(slab_);
  updates_[4].floats[17] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fold.Fold(Inputs(3, 3), 6), FoldResult::kUnchanged);
  EXPECT_EQ(SumsOf(slab_), before);
  EXPECT_EQ(slab_.header().total.folded, 3u);
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

// Leaves, each a slab of its own with some of the updates, published.
class SlabMergeTest : public SlabFoldTest {
 protected:
  void SetUp() override {
    SlabFoldTest::SetUp();
    slab_.BeginLap(1, 1, false);
    leaves_.resize(3);
    for (size_t leaf = 0; leaf < 3; ++leaf) {
      leaves_[leaf].resize(memory_.size());
      Slab slab = Slab::Format(Bytes(leaves_[leaf]), kShape).value();
      slab.BeginLap(1, 1, false);
      SlabFold fold(slab, &reducer_);
      ASSERT_EQ(fold.Fold(Inputs(2 * leaf, 2), 2), FoldResult::kFolded);
      fold.Publish(1);
    }
  }
  MergeInput Partial(size_t leaf) {
    const PartialView view = PartialView::Attach(Bytes(leaves_[leaf]), kShape).value();
    MergeInput input;
    input.desc.kind = TB_KIND_PARTIAL;
    input.child = static_cast<uint32_t>(leaf);
    input.desc.lane = static_cast<uint16_t>(leaf);
    input.desc.key_lo = reinterpret_cast<const tb_slab_header*>(Bytes(leaves_[leaf]).data())->nonce;
    input.state = view.state();
    input.counters = view.counters();
    input.totals = view.Find(1, input.desc.key_lo).value();
    return input;
  }
  std::vector<Memory> leaves_;
};

TEST_F(SlabMergeTest, PartialsGiveWhatTheirUpdatesWouldHaveGiven) {
  Memory flat_memory(memory_.size());
  const Slab flat = Slab::Format(Bytes(flat_memory), kShape).value();
  SlabFold reference(flat, &reducer_);
  ASSERT_EQ(reference.Fold(Inputs(0, 6), 6), FoldResult::kFolded);
  SlabFold fold(slab_, &reducer_);
  const MergeInput first[] = {Partial(1)};
  ASSERT_EQ(fold.Merge(first), FoldResult::kFolded);
  const MergeInput rest[] = {Partial(2), Partial(0)};
  ASSERT_EQ(fold.Merge(rest), FoldResult::kFolded);
  const auto* got = reinterpret_cast<const double*>(slab_.state());
  const auto* expected = reinterpret_cast<const double*>(flat.state());
  for (size_t i = 0; i < kElements; ++i) ASSERT_NEAR(got[i], expected[i], 1e-12) << i;
  for (size_t i = 0; i < kCounters; ++i) EXPECT_EQ(slab_.counters()[i], flat.counters()[i]);
  const tb_slab_totals total = slab_.header().total;
  EXPECT_EQ(total.folded, 6u);
  EXPECT_EQ(total.digest, flat.header().total.digest);
  EXPECT_DOUBLE_EQ(total.weight, flat.header().total.weight);
  EXPECT_EQ(total.merged, 0b111u);
}

TEST_F(SlabMergeTest, AnInstantOfDeathMergesNothingTwice) {
  for (const bool fresh : {true, false}) {
    SetUp();
    SlabFold fold(slab_, &reducer_);
    if (!fresh) {
      ASSERT_EQ(fold.Fold(Inputs(0, 1), 1), FoldResult::kFolded);
    }
    const MergeInput inputs[] = {Partial(1), Partial(2)};
    std::vector<Memory> deaths;
    reducer_.seen = [&] { deaths.push_back(memory_); };
    ASSERT_EQ(fold.Merge(inputs), FoldResult::kFolded);
    reducer_.seen = nullptr;
    ASSERT_EQ(deaths.size(), fresh ? 9u : 18u);  // into nothing the first one is copied
    const std::vector<std::byte> expected = SumsOf(slab_);
    for (Memory& left : deaths) {
      const Slab slab = Slab::Attach(Bytes(left), kShape).value();
      SlabFold replacement(slab, &reducer_);
      TRIB_ASSERT_OK_AND_ASSIGN(const SlabFold::Recovered found, replacement.Recover());
      ASSERT_TRUE(found.under_way);
      ASSERT_EQ(found.batch_size, 2u);
      EXPECT_EQ(found.batch[0].kind, TB_KIND_PARTIAL);
      EXPECT_EQ(found.batch[1].lane, 2u);
      EXPECT_EQ(found.merged, 0u);
      ASSERT_EQ(replacement.ResumeMerge(inputs), FoldResult::kFolded);
      EXPECT_EQ(SumsOf(slab), expected);
      EXPECT_EQ(slab.header().total.merged, 0b110u);
      EXPECT_EQ(slab.header().total.folded, fresh ? 4u : 5u);
      EXPECT_EQ(slab.header().completed_cursor, fresh ? 0u : 1u);
      EXPECT_FALSE(SlabFold(slab, &reducer_).Recover()->under_way);
    }
  }
}

TEST_F(SlabMergeTest, APartialIsFoundOnlyCompleteAndUnderItsOwnName) {
  const std::span<std::byte> bytes = Bytes(leaves_[0]);
  auto& header = *reinterpret_cast<tb_slab_header*>(bytes.data());
  TRIB_ASSERT_OK_AND_ASSIGN(const PartialView view, PartialView::Attach(bytes, kShape));
  EXPECT_EQ(view.Find(1, header.nonce)->folded, 2u);
  EXPECT_THAT(view.Find(2, header.nonce), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(view.Find(1, header.nonce + 1), StatusIs(absl::StatusCode::kNotFound));
  const tb_slab_header good = header;
  header.published = 0;
  EXPECT_THAT(view.Find(1, header.nonce), StatusIs(absl::StatusCode::kNotFound));
  header = good;
  header.batch_size = 1;
  EXPECT_THAT(view.Find(1, header.nonce), StatusIs(absl::StatusCode::kDataLoss));
  header = good;
  header.total.weight = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(view.Find(1, header.nonce), StatusIs(absl::StatusCode::kDataLoss));
  header = good;
  const uint64_t nonce = header.nonce;
  Slab::Attach(bytes, kShape)->BeginLap(1, 2, false);
  EXPECT_THAT(view.Find(1, nonce), StatusIs(absl::StatusCode::kNotFound));
  SlabShape other = kShape;
  other.elements -= 1;
  EXPECT_THAT(PartialView::Attach(bytes, other), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(SlabMergeTest, ALapThatKeepsItsSumsForgetsOnlyWhichChildrenItMerged) {
  SlabFold fold(slab_, &reducer_);
  const MergeInput inputs[] = {Partial(0)};
  ASSERT_EQ(fold.Merge(inputs), FoldResult::kFolded);
  slab_.BeginLap(1, 2, true);
  EXPECT_EQ(slab_.header().total.folded, 2u);
  EXPECT_EQ(slab_.header().total.merged, 0u);
  EXPECT_EQ(slab_.header().fresh, 0u);
  slab_.BeginLap(2, 3, false);
  EXPECT_EQ(slab_.header().total.folded, 0u);
  EXPECT_EQ(slab_.header().fresh, 1u);
}

}  // namespace
}  // namespace tributary::aggregator
