// What every entry of strategies.def must satisfy. The suite also runs a deliberately wrong reducer, which it must reject.
#include <gmock/gmock.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <ostream>
#include <thread>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/strategy.h"
#include "common/state_version.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {

std::ostream& operator<<(std::ostream& out, const StrategyEntry& entry) { return out << entry.name; }

namespace {

using MakeReducerFunction = std::function<std::unique_ptr<Reducer>(DType, Arithmetic)>;

constexpr int64_t kElements = 301;
constexpr size_t kUpdates = 9;

class Contract {
 public:
  Contract(MakeReducerFunction make, DType dtype, Arithmetic arithmetic) : make_(std::move(make)), dtype_(dtype), arithmetic_(arithmetic) {
    for (size_t i = 0; i < kUpdates; ++i) {
      updates_.push_back(Flat(RandomValues(kElements, 100 + i)));
      weights_.push_back(0.5 + 3.7 * static_cast<double>(i));
    }
  }

  // What is broken, in words; empty if nothing is. `mergeable`: the entry's trait.
  std::vector<std::string> Check(bool mergeable) {
    EqualUpdatesGiveThatUpdate();
    PermutationChangesRoundingOnly();
    WrongSizeIsRefusedAndChangesNothing();
    SaveAndRestoreMidwayIsInvisible();
    if (mergeable) MergedPartsAreTheWhole();
    if (mergeable) MemoryDoesNotGrow();
    return broken_;
  }

 private:
  std::vector<std::byte> Flat(const std::vector<double>& values) const {
    return dtype_ == DType::kF64 ? AsBytes(values) : AsBytes(ToFloats(values));
  }
  Partial Empty() const { return Partial(VectorLayout(kElements, dtype_), make_(dtype_, arithmetic_), arithmetic_, 1000); }
  void Expect(bool holds, const std::string& what) {
    if (!holds) broken_.push_back(what);
  }
  void Add(Partial* partial, size_t i) {
    const absl::Status status = partial->Accumulate(Id(i), updates_[i], weights_[i]);
    Expect(status.ok(), "a good update is refused: " + status.ToString());
  }
  Partial Sum(const std::vector<size_t>& order) {
    Partial partial = Empty();
    for (const size_t i : order) Add(&partial, i);
    return partial;
  }
  std::vector<double> Mean(const Partial& partial) const {
    std::vector<double> mean(kElements);
    partial.reducer().ReportBlock(partial.state().data(), kElements, partial.sum_weight(), mean.data());
    return mean;
  }
  static std::vector<size_t> InOrder(size_t n) {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    return order;
  }
  // fp64: a few roundings of 2^-53 a term. Fixed point: half a unit of 2^-40 a term, over Σ w >= 0.5.
  double Tolerance() const { return arithmetic_ == Arithmetic::kFloat64 ? 1e-14 : 1e-10; }
  // Order: fixed point has none.
  void ExpectSame(const Partial& a, const Partial& b, const std::string& what) {
    const Difference difference = Compare(Mean(a), Mean(b));
    const double allowed = arithmetic_ == Arithmetic::kFloat64 ? 1e-14 : 0;
    Expect(difference.max_norm <= allowed, what + ": " + Words(difference));
  }

  void EqualUpdatesGiveThatUpdate() {
    const std::vector<double> values = RandomValues(kElements, 7);
    const std::vector<float> floats = ToFloats(values);
    const std::vector<double> expected = dtype_ == DType::kF64 ? values : std::vector<double>(floats.begin(), floats.end());
    Partial partial = Empty();
    for (size_t i = 0; i < kUpdates; ++i) {
      Expect(partial.Accumulate(Id(i), Flat(values), weights_[i]).ok(), "an equal update is refused");
    }
    const Difference difference = Compare(Mean(partial), expected);
    Expect(difference.max_norm <= Tolerance(), "n equal updates do not give that update: " + Words(difference));
  }
  void PermutationChangesRoundingOnly() {
    std::vector<size_t> order = InOrder(kUpdates);
    const Partial straight = Sum(order);
    std::mt19937_64 random(5);
    for (int i = 0; i < 10; ++i) {
      std::shuffle(order.begin(), order.end(), random);
      ExpectSame(Sum(order), straight, "a permutation changes more than rounding");
    }
  }
  void WrongSizeIsRefusedAndChangesNothing() {
    Partial partial = Sum({0, 1});
    const std::string before = partial.Save();
    std::vector<std::byte> wrong = updates_[2];
    for (const size_t size : {size_t{0}, wrong.size() - 1, wrong.size() - 4, wrong.size() + 8}) {
      wrong.resize(size);
      Expect(partial.Accumulate(Id(2), wrong, 1.0).code() == absl::StatusCode::kInvalidArgument, "a wrong size is not refused");
    }
    Expect(partial.Save() == before, "a refused update changes the state");
  }
  void SaveAndRestoreMidwayIsInvisible() {
    const Partial straight = Sum(InOrder(kUpdates));
    const Partial half = Sum(InOrder(4));
    Partial resumed = Empty();
    Expect(resumed.Restore(half.Save()).ok(), "a saved state is not restored");
    for (size_t i = 4; i < kUpdates; ++i) Add(&resumed, i);
    Expect(resumed.Save() == straight.Save(), "save and restore midway shows");
  }
  void MergedPartsAreTheWhole() {
    const Partial whole = Sum(InOrder(kUpdates));
    Partial a = Sum({0, 1, 2}), b = Sum({3, 4, 5, 6, 7}), c = Sum({8}), empty = Empty();
    Expect(b.Merge(std::move(c)).ok() && a.Merge(std::move(b)).ok() && a.Merge(std::move(empty)).ok(), "parts do not merge");
    Expect(a.contributors() == whole.contributors() && a.sum_weight() == whole.sum_weight(), "merging loses contributors or weights");
    ExpectSame(a, whole, "merged parts are not the whole");
  }
  void MemoryDoesNotGrow() {
    Partial partial = Sum({0});
    const size_t after_one = partial.Save().size();
    for (size_t i = 1; i < 200; ++i) Expect(partial.Accumulate(Id(i), updates_[i % kUpdates], 1.0).ok(), "an update is refused");
    Expect(partial.Save().size() - after_one <= 199 * 32, "memory grows by more than an id and a weight an update");
  }

  MakeReducerFunction make_;
  DType dtype_;
  Arithmetic arithmetic_;
  std::vector<std::vector<std::byte>> updates_;
  std::vector<double> weights_;
  std::vector<std::string> broken_;
};

class StrategyContractTest : public ::testing::TestWithParam<StrategyEntry> {};

INSTANTIATE_TEST_SUITE_P(All, StrategyContractTest, ::testing::ValuesIn(Strategies().begin(), Strategies().end()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(StrategyContractTest, ReducerKeepsTheAlgebra) {
  const auto strategy = GetParam().make({.name = std::string(GetParam().name), .params = {}}, {});
  ASSERT_THAT(strategy, tributary::testing::IsOk());
  if ((*strategy)->whole_reducer() != nullptr) return;  // it has no sums; CommitsDoNotDependOnTheOrderOfArrival covers it
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    for (const Arithmetic arithmetic : {Arithmetic::kFloat64, Arithmetic::kFixedPoint}) {
      Contract contract([&](DType d, Arithmetic a) { return (*strategy)->MakeReducer(d, a); }, dtype, arithmetic);
      EXPECT_THAT(contract.Check(GetParam().trait == StrategyTrait::kMergeable), ::testing::IsEmpty())
          << DTypeName(dtype) << ", arithmetic " << static_cast<int>(arithmetic);
    }
  }
}

// Three commits of nine updates each; which come first is shuffled by `seed`. Nothing but model, vectors, rows and clients lasts from
// one to the next, as over a restart.
struct CommitPath {
  std::vector<std::byte> model;
  MemoryState state;
  bool operator==(const CommitPath&) const = default;
};

CommitPath RunCommits(const StrategyEntry& entry, DType dtype, Arithmetic arithmetic, uint64_t seed, bool together = false) {
  auto strategy = *entry.make({.name = std::string(entry.name), .params = {}}, {});
  const TensorLayout layout = LayoutOf({{.name = "w", .shape = {kElements - 40}, .dtype = dtype, .kind = TensorKind::kTrainable},
                                        {.name = "running", .shape = {40}, .dtype = dtype, .kind = TensorKind::kBuffer},
                                        {.name = "batches", .shape = {2}, .dtype = DType::kI64, .kind = TensorKind::kCounter}});
  const TensorLayout update_layout = *strategy->UpdateLayout(layout);
  const auto flat = [&](uint64_t number, const TensorLayout& of) {
    const std::vector<double> values = RandomValues(of.float_count(), number);
    std::vector<std::byte> bytes = dtype == DType::kF64 ? AsBytes(values) : AsBytes(ToFloats(values));
    const std::vector<std::byte> counters = AsBytes<int64_t>({static_cast<int64_t>(number % 7), 3});
    if (of.counter_count() > 0) bytes.insert(bytes.end(), counters.begin(), counters.end());
    return bytes;
  };
  CommitPath path{.model = flat(1, layout), .state = {}};
  const size_t updates = strategy->server_step().needs_base() ? 1 : kUpdates;
  ClientTable clients;
  for (size_t k = 0; k < updates; ++k) clients.Register(std::string(1, static_cast<char>('a' + k)));
  for (uint64_t version = 1; version <= 3; ++version) {
    Aggregate aggregate(*strategy, layout, arithmetic, 1000);
    std::vector<size_t> order(updates);
    std::iota(order.begin(), order.end(), size_t{0});
    std::mt19937_64 random(seed + version);
    if (seed != 0) std::shuffle(order.begin(), order.end(), random);
    std::vector<RoundContributor> contributors;
    std::vector<double> weights;
    std::vector<std::vector<std::byte>> flats;
    for (const size_t k : order) {
      const std::vector<std::byte> bytes = flat(100 * version + k, update_layout);
      RoundContributor contributor;
      contributor.key = {.client = std::string(1, static_cast<char>('a' + k)), .task = k + 1, .update = Id(100 * version + k)};
      contributor.claimed = 0.5 + 3.7 * static_cast<double>(k);
      for (const ScalarInfo& info : strategy->scalars()) contributor.scalars[info.name] = info.low + 0.3 + static_cast<double>(k);
      AddMeasured(*strategy, layout, bytes, &contributor.scalars);
      const auto weight = strategy->weights().Weight({.client = contributor.key.client, .claimed = contributor.claimed, .scalars = contributor.scalars,
                                                      .round = version, .clients = &clients});
      EXPECT_THAT(weight, tributary::testing::IsOk());
      contributor.weight = *weight;
      weights.push_back(contributor.weight);
      if (!together) {
        EXPECT_THAT(aggregate.Fold(contributor, bytes), tributary::testing::IsOk());
      }
      contributors.push_back(contributor);
      flats.push_back(bytes);
    }
    if (together) {
      std::vector<UpdateKeyRef> keys;
      std::vector<PartialInput> inputs;
      for (size_t k = 0; k < updates; ++k) {
        keys.push_back(contributors[k].key);
        inputs.push_back({.id = contributors[k].key.update, .update = flats[k], .weight = contributors[k].weight});
      }
      const ForEach side_by_side = [](size_t count, const std::function<void(size_t)>& call) {
        std::vector<std::jthread> threads;
        for (size_t i = 0; i < count; ++i) threads.emplace_back(call, i);
      };
      EXPECT_THAT(aggregate.FoldAll(keys, inputs, side_by_side), tributary::testing::IsOk());
    }
    std::sort(contributors.begin(), contributors.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    for (const RoundContributor& c : contributors) {
      clients.Put(c.key.client, AfterContribution(clients.Find(c.key.client), version, strategy->weights().cutoff(), c.claimed));
    }
    std::vector<std::byte> next(layout.total_bytes());
    const absl::Status stepped =
        aggregate.Step({.facts = {.version = version, .sum_weight = OrderFreeSum(weights), .registered = clients.size(), .contributors = contributors},
                        .previous = path.model, .base = path.model},
                       &path.state, next);
    EXPECT_THAT(stepped, tributary::testing::IsOk());
    path.model = next;
  }
  return path;
}

TEST_P(StrategyContractTest, AllUpdatesAtOnceAreThemOneByOneBitForBit) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    for (const Arithmetic arithmetic : {Arithmetic::kFloat64, Arithmetic::kFixedPoint}) {
      EXPECT_TRUE(RunCommits(GetParam(), dtype, arithmetic, 3, /*together=*/true) == RunCommits(GetParam(), dtype, arithmetic, 3)) << DTypeName(dtype);
    }
  }
}

TEST_P(StrategyContractTest, CommitsDoNotDependOnTheOrderOfArrival) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const CommitPath exact = RunCommits(GetParam(), dtype, Arithmetic::kFixedPoint, 0);
    const CommitPath straight = RunCommits(GetParam(), dtype, Arithmetic::kFloat64, 0);
    for (const uint64_t seed : {3, 4, 5}) {
      EXPECT_TRUE(RunCommits(GetParam(), dtype, Arithmetic::kFixedPoint, seed) == exact) << "reproducible, " << DTypeName(dtype) << ", seed " << seed;
      if (dtype != DType::kF64) continue;
      const CommitPath shuffled = RunCommits(GetParam(), dtype, Arithmetic::kFloat64, seed);
      const size_t floats = kElements * sizeof(double);
      const Difference difference = Compare(FromBytes<double>(std::span(shuffled.model).first(floats)), FromBytes<double>(std::span(straight.model).first(floats)));
      EXPECT_LE(difference.max_norm, 1e-12) << Words(difference);
    }
  }
}

TEST_P(StrategyContractTest, DescribesItselfAndItsDefaultsAreValid) {
  const StrategyEntry& entry = GetParam();
  EXPECT_FALSE(entry.help.empty());
  EXPECT_FALSE(entry.down.empty());
  EXPECT_FALSE(entry.up.empty());
  StrategySpec spec{.name = std::string(entry.name), .params = {}};
  for (const ParamInfo& param : entry.params()) {
    EXPECT_FALSE(param.help.empty()) << param.name;
    EXPECT_FALSE(param.range.empty()) << param.name;
    spec.params[param.name] = param.default_value;
  }
  EXPECT_THAT(entry.make(spec, {}), tributary::testing::IsOk());
}

TEST_P(StrategyContractTest, WhatItsClientsKeepGoesWithRoundsAndACountOfThem) {
  const auto strategy = GetParam().make({.name = std::string(GetParam().name), .params = {}}, {});
  ASSERT_THAT(strategy, tributary::testing::IsOk());
  const Strategy& made = **strategy;
  if (!made.in_place_of_model().empty()) {
    EXPECT_EQ(made.version_vectors(), std::vector<std::string>{made.in_place_of_model()});
  }
  if (made.client_state() == ClientStateKind::kNone) {
    EXPECT_EQ(CheckScalars(made, {{kStateVersion, 0}}).code(), absl::StatusCode::kInvalidArgument);
    return;
  }
  EXPECT_TRUE(made.weights().keeps_clients());
  EXPECT_TRUE(made.synchronous());
  EXPECT_THAT(CheckClientState(made, {{kStateVersion, 0}}, 4), tributary::testing::IsOk());
  EXPECT_THAT(CheckClientState(made, {{kStateVersion, 4}}, 4), tributary::testing::IsOk());
  EXPECT_FALSE(CheckClientState(made, {{kStateVersion, 3}}, 4).ok());
  EXPECT_FALSE(CheckClientState(made, {}, 4).ok());
  EXPECT_TRUE(LostClientState(made, {{kStateVersion, 0}}, 4));
  EXPECT_FALSE(LostClientState(made, {{kStateVersion, 4}}, 4));
  EXPECT_FALSE(LostClientState(made, {{kStateVersion, 0}}, 0));
}

TEST_P(StrategyContractTest, RefusesParametersItDoesNotHave) {
  StrategySpec spec{.name = std::string(GetParam().name), .params = {{"no_such_parameter", "1"}}};
  EXPECT_THAT(GetParam().make(spec, {}), tributary::testing::StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("no_such_parameter")));
}

TEST_P(StrategyContractTest, RefusesValuesThatAreNotOfTheirKind) {
  for (const ParamInfo& param : GetParam().params()) {
    for (const char* value : {"", "nan", "banana", "-inf"}) {
      StrategySpec spec{.name = std::string(GetParam().name), .params = {{param.name, value}}};
      EXPECT_THAT(GetParam().make(spec, {}), tributary::testing::StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr(param.name)))
          << value;
    }
  }
}

// Divides by the running total at every update: the mistake the suite is made to find.
class RunningTotalReducer final : public Reducer {
 public:
  size_t state_bytes_per_element() const override { return 8; }
  bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const override {
    if (fresh) total_ = 0;
    std::vector<double> sums = FromBytes<double>({state, count * 8});
    for (const UpdateView& update : updates) {
      total_ += update.weight;
      const std::vector<double> x = FromBytes<double>({update.flat + first * 8, count * 8});
      for (size_t i = 0; i < count; ++i) sums[i] = ((fresh ? 0 : sums[i]) + update.weight * x[i]) / total_;
      fresh = false;
    }
    std::memcpy(state, sums.data(), count * 8);
    return true;
  }
  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override {
    std::vector<double> sums = FromBytes<double>({state, count * 8});
    const std::vector<double> more = FromBytes<double>({other, count * 8});
    for (size_t i = 0; i < count; ++i) sums[i] += more[i];
    std::memcpy(state, sums.data(), count * 8);
    return true;
  }
  void ReportBlock(const std::byte* state, size_t count, double, double* mean) const override { std::memcpy(mean, state, count * 8); }

 private:
  mutable double total_ = 0;
};

TEST(StrategyContractSuiteTest, RejectsAReducerThatDividesByTheRunningTotal) {
  Contract contract([](DType, Arithmetic) { return std::make_unique<RunningTotalReducer>(); }, DType::kF64, Arithmetic::kFloat64);
  const std::vector<std::string> broken = contract.Check(true);
  EXPECT_THAT(broken, ::testing::Contains(::testing::HasSubstr("n equal updates do not give that update")));
  EXPECT_THAT(broken, ::testing::Contains(::testing::HasSubstr("a permutation changes more than rounding")));
  EXPECT_THAT(broken, ::testing::Contains(::testing::HasSubstr("merged parts are not the whole")));
}

}  // namespace
}  // namespace tributary::aggregator
