#include "aggregator/core/policies.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/status.h"

namespace tributary::aggregator {
namespace {

uint64_t NextRandom(uint64_t* state) {  // SplitMix64 (Steele, Lea, Flood 2014)
  uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// `count` of `names`, uniformly without replacement (the first steps of a Fisher-Yates shuffle).
std::vector<std::string> Draw(std::vector<std::string> names, size_t count, uint64_t seed) {
  count = std::min(count, names.size());
  if (count < names.size()) {
    for (size_t i = 0; i < count; ++i) std::swap(names[i], names[i + NextRandom(&seed) % (names.size() - i)]);
    names.resize(count);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class SynchronousAdmission final : public AdmissionPolicy {
 public:
  SynchronousAdmission(int64_t asked, absl::Duration deadline) : asked_(asked), deadline_(deadline) {}

  std::vector<std::string> Admit(const RoundView& view, Moment) override {
    // A task older than the deadline may never come back: it no longer keeps another client from filling its place.
    int64_t expected = static_cast<int64_t>(view.contributions->size()) + view.expected_from_nodes;
    for (const OutstandingTask& task : *view.outstanding) {
      if (task.version == view.version && view.now - task.issued < deadline_) ++expected;
    }
    if (expected >= asked_) return {};
    std::set<std::string> contributed;
    for (const Contribution& contribution : *view.contributions) contributed.insert(contribution.client);
    std::vector<std::string> eligible;
    for (const std::string& client : *view.idle) {
      if (!contributed.contains(client)) eligible.push_back(client);
    }
    return Draw(std::move(eligible), static_cast<size_t>(asked_ - expected), view.draw);
  }

 private:
  int64_t asked_;
  absl::Duration deadline_;
};

class SynchronousTrigger final : public CommitTrigger {
 public:
  SynchronousTrigger(int64_t size, int64_t quorum, absl::Duration deadline) : size_(size), quorum_(quorum), deadline_(deadline) {}

  std::optional<std::string> ShouldClose(const RoundView& view) const override {
    const int64_t in = static_cast<int64_t>(view.contributions->size());
    if (in >= size_) return "cohort complete";
    if (in >= quorum_ && view.now >= view.opened + deadline_) return fmt::format("deadline with {} of {} updates", in, size_);
    return std::nullopt;
  }

  absl::Time NextCheck(const RoundView& view) const override {
    if (const absl::Time end = view.opened + deadline_; end > view.now) return end;
    // Below the quorum: the next moment at which a task grows too old to be counted on.
    absl::Time next = absl::InfiniteFuture();
    for (const OutstandingTask& task : *view.outstanding) {
      if (const absl::Time old = task.issued + deadline_; old > view.now) next = std::min(next, old);
    }
    return next;
  }

  int64_t target() const override { return size_; }

 private:
  int64_t size_;
  int64_t quorum_;
  absl::Duration deadline_;
};

class FreshOnly final : public StalenessPolicy {
 public:
  std::optional<double> Factor(uint64_t staleness) const override {
    if (staleness > 0) return std::nullopt;
    return 1.0;
  }
};

}  // namespace

RoundPolicies MakeSynchronousPolicies(const CohortSpec& cohort) {
  JobSpec spec;
  spec.cohort = cohort;
  return {.admission = std::make_unique<SynchronousAdmission>(spec.ClientsAsked(), cohort.deadline),
          .trigger = std::make_unique<SynchronousTrigger>(cohort.size, spec.EffectiveQuorum(), cohort.deadline),
          .staleness = std::make_unique<FreshOnly>()};
}

}  // namespace tributary::aggregator
