#include "aggregator/core/policies.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/philox.h"
#include "common/random_words.h"
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
    if (view.now - view.opened < deadline_) {
      expected += view.outstanding_current;
    } else {
      for (const auto& [client, task] : *view.outstanding) {
        if (task.version == view.version && view.now - task.issued < deadline_) ++expected;
      }
    }
    if (expected >= asked_) return {};
    std::vector<std::string> eligible;
    for (const std::string& client : *view.idle) {
      if (!view.contributions->HasClient(client)) eligible.push_back(client);
    }
    return Draw(std::move(eligible), static_cast<size_t>(asked_ - expected), view.draw);
  }

 private:
  int64_t asked_;
  absl::Duration deadline_;
};

// The cohort of the open version, once it is drawn; shared by the two policies that go by it.
struct Cohort {
  bool drawn = false;
  uint64_t version = 0;
  std::set<std::string> clients;
  bool Of(uint64_t asked) const { return drawn && version == asked; }
};

// Draws once a version, among all that are attached then, and fills no gap: what a privacy accountant calls sampling. What a client
// draws depends on key, client and version only, so the same clients give the same cohort after a restart.
class SampledAdmission final : public AdmissionPolicy {
 public:
  SampledAdmission(const CohortSpec& spec, std::shared_ptr<Cohort> cohort) : spec_(spec), cohort_(std::move(cohort)) {}

  std::vector<std::string> Admit(const RoundView& view, Moment) override {
    if (!cohort_->Of(view.version)) {
      std::set<std::string> attached(view.idle->begin(), view.idle->end());
      for (const auto& [client, task] : *view.outstanding) attached.insert(client);
      for (const auto& [client, updates] : view.contributions->clients()) attached.insert(client);
      if (static_cast<int64_t>(attached.size()) < spec_.population) return {};
      *cohort_ = {.drawn = true, .version = view.version, .clients = DrawFrom(attached, view.version)};
    }
    std::vector<std::string> admitted;
    for (const std::string& client : *view.idle) {
      if (cohort_->clients.contains(client) && !view.contributions->HasClient(client)) admitted.push_back(client);
    }
    return admitted;
  }

 private:
  std::set<std::string> DrawFrom(const std::set<std::string>& attached, uint64_t version) const {
    std::vector<std::pair<uint64_t, std::string>> scores;
    for (const std::string& client : attached) {
      const PhiloxWords words = PhiloxStream{.seed = spec_.draw_key,
                                             .client = ClientNumber(client),
                                             .version = static_cast<uint32_t>(version),
                                             .stage = RandomStage::kSelection}
                                    .Quad(0);
      scores.emplace_back(uint64_t{words.word[0]} << 32 | words.word[1], client);
    }
    std::set<std::string> drawn;
    if (spec_.poisson) {
      for (auto& [score, client] : scores) {
        if (static_cast<double>(score) * 0x1p-64 < spec_.rate) drawn.insert(std::move(client));
      }
      return drawn;
    }
    std::sort(scores.begin(), scores.end());
    for (size_t i = 0; i < scores.size() && i < static_cast<size_t>(spec_.size); ++i) drawn.insert(std::move(scores[i].second));
    return drawn;
  }

  const CohortSpec spec_;
  const std::shared_ptr<Cohort> cohort_;  // shared with the trigger
};

// Closes when all that were drawn are in, or after the deadline with the quorum (Poisson: with anybody).
class SampledTrigger final : public CommitTrigger {
 public:
  SampledTrigger(const CohortSpec& spec, std::shared_ptr<Cohort> cohort) : spec_(spec), cohort_(std::move(cohort)) {}

  std::optional<std::string> ShouldClose(const RoundView& view) const override {
    const auto in = static_cast<int64_t>(view.contributions->size());
    if (in >= Size(view.version)) return "cohort complete";
    const int64_t quorum = spec_.poisson ? 1 : spec_.quorum == 0 ? spec_.size : spec_.quorum;
    if (in >= quorum && view.now >= view.opened + spec_.deadline) return fmt::format("deadline with {} of {} updates", in, Size(view.version));
    return std::nullopt;
  }
  absl::Time NextCheck(const RoundView& view) const override {
    const absl::Time end = view.opened + spec_.deadline;
    return end > view.now ? end : absl::InfiniteFuture();
  }
  bool NobodyDrawn(uint64_t version) const override { return cohort_->Of(version) && cohort_->clients.empty(); }
  // Before the first draw it is clients that are missing, not updates.
  int64_t target() const override { return cohort_->drawn ? static_cast<int64_t>(cohort_->clients.size()) : spec_.population; }

 private:
  int64_t Size(uint64_t version) const { return cohort_->Of(version) ? static_cast<int64_t>(cohort_->clients.size()) : spec_.size; }

  const CohortSpec spec_;
  const std::shared_ptr<Cohort> cohort_;  // shared with the admission
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
    for (const auto& [client, task] : *view.outstanding) {
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

// Whoever is idle starts, as long as fewer than `most` train or wait for a commit.
class RestartAdmission final : public AdmissionPolicy {
 public:
  RestartAdmission(int64_t most, bool at_commit) : most_(most), at_commit_(at_commit) {}

  std::vector<std::string> Admit(const RoundView& view, Moment) override {
    size_t held = 0;  // contributors whose turn comes with the commit
    if (at_commit_) {
      held = view.contributions->clients().size();
      for (const auto& [client, count] : view.waiting->clients()) held += !view.contributions->HasClient(client);
    }
    const int64_t busy = static_cast<int64_t>(view.outstanding->size() + held);
    if (busy >= most_) return {};
    std::vector<std::string> eligible;
    for (const std::string& client : *view.idle) {
      if (!at_commit_ || !(view.contributions->HasClient(client) || view.waiting->HasClient(client))) eligible.push_back(client);
    }
    return Draw(std::move(eligible), static_cast<size_t>(most_ - busy), view.draw);
  }

 private:
  int64_t most_;
  bool at_commit_;
};

class BufferTrigger final : public CommitTrigger {
 public:
  explicit BufferTrigger(int64_t buffer) : buffer_(buffer) {}
  std::optional<std::string> ShouldClose(const RoundView& view) const override {
    if (static_cast<int64_t>(view.contributions->size()) < buffer_) return std::nullopt;
    return buffer_ == 1 ? std::string("an update came") : fmt::format("buffer of {} full", buffer_);
  }
  absl::Time NextCheck(const RoundView&) const override { return absl::InfiniteFuture(); }
  int64_t target() const override { return buffer_; }

 private:
  int64_t buffer_;
};

// Closes in a Tick only: of what arrives at the very moment of a tick, all is in it, whichever comes first.
class TickTrigger final : public CommitTrigger {
 public:
  explicit TickTrigger(absl::Duration interval) : interval_(interval) {}
  std::optional<std::string> ShouldClose(const RoundView& view) const override {
    const int64_t due = TicksUntil(view.now - view.start, interval_);
    if (!view.ticking || due <= TicksUntil(std::max(view.opened, view.last_tick) - view.start, interval_)) return std::nullopt;
    return fmt::format("tick {}", due);
  }
  absl::Time NextCheck(const RoundView& view) const override {
    return view.start + (TicksUntil(view.now - view.start, interval_) + 1) * interval_;
  }
  int64_t target() const override { return 1; }

 private:
  absl::Duration interval_;
};

class StalenessByRule final : public StalenessPolicy {
 public:
  explicit StalenessByRule(const StalenessRule& rule) : rule_(rule) {}
  std::optional<double> Factor(uint64_t staleness) const override {
    if (staleness > rule_.most) return std::nullopt;
    const double tau = static_cast<double>(staleness);
    switch (rule_.kind) {
      case StalenessRule::Kind::kPolynomial: return std::pow(1.0 + tau, -rule_.a);
      case StalenessRule::Kind::kConstant: return 1.0;
      case StalenessRule::Kind::kHinge: return tau <= rule_.b ? 1.0 : 1.0 / (rule_.a * (tau - rule_.b) + 1.0);
    }
    return 1.0;
  }

 private:
  StalenessRule rule_;
};

}  // namespace

int64_t TicksUntil(absl::Duration since_start, absl::Duration interval) {
  absl::Duration rest;
  return std::max<int64_t>(0, absl::IDivDuration(std::max(since_start, absl::ZeroDuration()), interval, &rest));
}

RoundPolicies MakeAsynchronousPolicies(const CohortSpec& cohort, const AsynchronousSpec& spec) {
  RoundPolicies policies;
  policies.admission = std::make_unique<RestartAdmission>(cohort.size, spec.restart_at_commit);
  if (spec.interval > absl::ZeroDuration()) {
    policies.trigger = std::make_unique<TickTrigger>(spec.interval);
  } else {
    policies.trigger = std::make_unique<BufferTrigger>(spec.buffer);
  }
  policies.staleness = std::make_unique<StalenessByRule>(spec.staleness);
  policies.second_update = spec.once_per_buffer ? SecondUpdate::kWaits : SecondUpdate::kCounts;
  return policies;
}

RoundPolicies MakeSynchronousPolicies(const CohortSpec& cohort) {
  if (cohort.population > 0) {
    const auto drawn = std::make_shared<Cohort>();
    return {.admission = std::make_unique<SampledAdmission>(cohort, drawn),
            .trigger = std::make_unique<SampledTrigger>(cohort, drawn),
            .staleness = std::make_unique<FreshOnly>()};
  }
  JobSpec spec;
  spec.cohort = cohort;
  return {.admission = std::make_unique<SynchronousAdmission>(spec.ClientsAsked(), cohort.deadline),
          .trigger = std::make_unique<SynchronousTrigger>(cohort.size, spec.EffectiveQuorum(), cohort.deadline),
          .staleness = std::make_unique<FreshOnly>(),
          .second_update = SecondUpdate::kRefused};
}

}  // namespace tributary::aggregator
