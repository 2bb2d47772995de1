#include "aggregator/worker/fold_timing.h"

namespace tributary::aggregator {
namespace {

bool IsComplete(const FoldQueue& queue) { return queue.goal_known && queue.missing == 0; }

class Eager final : public FoldTiming {
 public:
  FoldDecision Decide(const FoldQueue& queue) const override { return {.fold = queue.queued > 0}; }
};

class Lazy final : public FoldTiming {
 public:
  FoldDecision Decide(const FoldQueue& queue) const override { return {.fold = queue.queued > 0 && IsComplete(queue)}; }
};

class Batch final : public FoldTiming {
 public:
  Batch(uint32_t size, absl::Duration age) : size_(size), age_(age) {}
  FoldDecision Decide(const FoldQueue& queue) const override {
    if (queue.queued == 0) return {};
    const absl::Time too_old = queue.oldest + age_;
    if (queue.queued >= size_ || IsComplete(queue) || queue.now >= too_old) return {.fold = true};
    return {.look_again = too_old};
  }

 private:
  const uint64_t size_;
  const absl::Duration age_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FoldTiming>> MakeFoldTiming(FoldTimingKind kind, uint32_t batch, absl::Duration age) {
  switch (kind) {
    case FoldTimingKind::kEager:
      return std::make_unique<Eager>();
    case FoldTimingKind::kLazy:
      return std::make_unique<Lazy>();
    case FoldTimingKind::kBatch:
      if (batch == 0) return InvalidArgument("timing batch: expected at least 1 update, got 0");
      return std::make_unique<Batch>(batch, age);
  }
  return InvalidArgument("timing: expected eager, lazy or batch, got kind {}", static_cast<uint32_t>(kind));
}

}  // namespace tributary::aggregator
