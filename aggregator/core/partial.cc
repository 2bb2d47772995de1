#include "aggregator/core/partial.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

static_assert(std::endian::native == std::endian::little, "saved partials are little-endian");
constexpr uint64_t kSavedMagic = 0x0000'0001'5450'4254;  // "TBPT" and format 1

template <typename T>
void Put(std::string* out, const T& value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Reads values off the front of untrusted bytes.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  bool Take(T* value) {
    return TakeBytes(value, sizeof(*value));
  }
  bool TakeBytes(void* to, size_t size) {
    if (bytes_.size() < size) return false;
    if (size > 0) std::memcpy(to, bytes_.data(), size);
    bytes_.remove_prefix(size);
    return true;
  }
  size_t left() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
};

}  // namespace

Partial::Partial(TensorLayout layout, Arithmetic arithmetic, int64_t expected_updates)
    : Partial(layout, MakeMeanReducer(layout.float_dtype(), arithmetic), arithmetic, expected_updates) {}

Partial::Partial(TensorLayout layout, std::unique_ptr<Reducer> reducer, Arithmetic arithmetic, int64_t expected_updates, const UpdateEncoding& encoding)
    : layout_(std::move(layout)),
      arithmetic_(arithmetic),
      expected_updates_(expected_updates),
      encoding_(encoding.codec == Codec::kPlain ? UpdateEncoding::Of(Codec::kPlain, 1, layout_) : encoding),
      reducer_(WithCodec(std::move(reducer), encoding_)),
      state_(layout_.float_count() * reducer_->state_bytes_per_element()),
      counters_(layout_.counter_count()) {}

double Partial::sum_weight() const { return OrderFreeSum(weights_); }

double Partial::SafeBound() const { return arithmetic_ == Arithmetic::kFixedPoint ? 0.999 * FixedPointLimit(1) : 1e307; }

absl::StatusOr<ScanResult> Partial::CheckInput(const PartialInput& input) const {
  const auto& [id, update, weight, known, runs] = input;
  if (!std::isfinite(weight) || weight <= 0) {
    return InvalidArgument("update {}: weight must be finite and > 0, got {}", ToHex(id), weight);
  }
  const absl::StatusOr<ScanResult> scan = known ? *known : ScanUpdate(encoding_, update);
  if (!scan.ok()) return Annotate(scan.status(), fmt::format("update {}", ToHex(id)));
  if (!scan->finite) return InvalidArgument("update {}: it has a NaN or an infinity", ToHex(id));
  TRIB_RETURN_IF_ERROR(Annotate(CheckRuns(runs, layout_.float_count()), fmt::format("update {}", ToHex(id))));
  if (arithmetic_ == Arithmetic::kFixedPoint) {
    const double limit = FixedPointLimit(std::max<int64_t>(expected_updates_, 1)), largest = scan->max_abs * weight * LargestFactor(runs);
    if (!(largest <= limit)) {
      return InvalidArgument("update {}: |weight × value| is up to {}, fixed point with {} updates allows {}", ToHex(id), largest, expected_updates_, limit);
    }
  }
  return scan;
}

absl::Status Partial::Accumulate(const UpdateId& id, std::span<const std::byte> update, double weight) {
  const PartialInput input{.id = id, .update = update, .weight = weight};
  return AccumulateAll({&input, 1});
}

absl::Status Partial::AccumulateAll(std::span<const PartialInput> inputs, const ForEach& for_each) {
  for (const PartialInput& input : inputs) {
    if (input.update.size() == encoding_.total_bytes()) continue;
    return InvalidArgument("update {}: expected {} bytes, got {}", ToHex(input.id), encoding_.total_bytes(), input.update.size());
  }
  const bool fresh = contributors_.empty();
  TRIB_RETURN_IF_ERROR(AccumulateWith(inputs, [&](std::span<const UpdateView> views, bool first) {
    const size_t bytes_per_element = reducer_->state_bytes_per_element();
    const size_t blocks = (layout_.float_count() + kBlockElements - 1) / kBlockElements;
    std::atomic<size_t> overflowed = layout_.float_count();
    const auto fold = [&](size_t block) {
      const size_t begin = block * kBlockElements;
      const size_t count = std::min(kBlockElements, layout_.float_count() - begin);
      if (!reducer_->FoldBlock(state_.data() + begin * bytes_per_element, begin, count, views, first)) overflowed = begin;
    };
    if (for_each) {
      for_each(blocks, fold);
    } else {
      for (size_t block = 0; block < blocks && overflowed == layout_.float_count(); ++block) fold(block);
    }
    return overflowed == layout_.float_count() ? std::nullopt : std::optional<size_t>(overflowed);
  }));
  for (size_t i = 0; i < inputs.size(); ++i) {
    FoldCounters(counters_.data(), inputs[i].update.data() + encoding_.counters_offset(), layout_.counter_count(), fresh && i == 0);
  }
  return absl::OkStatus();
}

absl::Status Partial::AccumulateElsewhere(std::span<const PartialInput> inputs, const FoldElsewhere& fold) {
  TRIB_CHECK(encoding_.codec == Codec::kPlain && layout_.counter_count() == 0);
  for (const PartialInput& input : inputs) TRIB_CHECK(input.scan.has_value() && input.runs.empty());
  return AccumulateWith(inputs, [&](std::span<const UpdateView>, bool first) -> absl::StatusOr<std::optional<size_t>> {
    TRIB_ASSIGN_OR_RETURN(const bool folded, fold(state_, first));
    return folded ? std::nullopt : std::optional<size_t>(0);
  });
}

absl::Status Partial::AccumulateWith(std::span<const PartialInput> inputs,
                                     const std::function<absl::StatusOr<std::optional<size_t>>(std::span<const UpdateView> views, bool fresh)>& fold) {
  if (inputs.empty()) return absl::OkStatus();
  double bound = bound_;
  std::set<UpdateId> ids;
  std::vector<UpdateView> views;
  for (const PartialInput& input : inputs) {
    TRIB_ASSIGN_OR_RETURN(const ScanResult scan, CheckInput(input));
    if (contributors_.contains(input.id) || !ids.insert(input.id).second) return AlreadyExists("update {} is already counted", ToHex(input.id));
    bound += scan.max_abs * input.weight * LargestFactor(input.runs);
    views.push_back({.flat = input.update.data(), .weight = input.weight, .runs = input.runs});
  }
  // Sums this small cannot overflow. Others may, and the fold finds out half-way: only they pay for a copy to go back to.
  std::vector<std::byte> before;
  if (!(bound < SafeBound())) before = state_;
  const absl::StatusOr<std::optional<size_t>> overflowed = fold(views, contributors_.empty());
  if (!overflowed.ok() || *overflowed) {
    if (!before.empty()) state_ = std::move(before);
    TRIB_RETURN_IF_ERROR(overflowed.status());
    return InvalidArgument("update {}: the sum leaves the range of the accumulators from element {} on", ToHex(inputs[0].id), **overflowed);
  }
  for (const PartialInput& input : inputs) weights_.push_back(input.weight);
  contributors_.merge(ids);
  bound_ = bound;
  return absl::OkStatus();
}

absl::Status Partial::Merge(Partial&& other) {
  if (!(other.layout_ == layout_)) return InvalidArgument("partials of different layouts do not merge");
  if (other.arithmetic_ != arithmetic_) return InvalidArgument("partials of different arithmetic do not merge");
  for (const UpdateId& id : other.contributors_) {
    if (contributors_.contains(id)) return AlreadyExists("update {} is already counted", ToHex(id));
  }
  if (other.contributors_.empty()) return absl::OkStatus();
  if (contributors_.empty()) {
    state_ = std::move(other.state_);
    counters_ = std::move(other.counters_);
  } else {
    const bool may_overflow = !(bound_ + other.bound_ < SafeBound());
    std::vector<std::byte> before;
    if (may_overflow) before = state_;
    if (!reducer_->MergeBlock(state_.data(), other.state_.data(), layout_.float_count())) {
      if (may_overflow) state_ = std::move(before);
      return InvalidArgument("the merged sum leaves the range of the accumulators");
    }
    for (size_t i = 0; i < counters_.size(); ++i) counters_[i] = std::max(counters_[i], other.counters_[i]);
  }
  bound_ += other.bound_;
  contributors_.merge(other.contributors_);
  weights_.insert(weights_.end(), other.weights_.begin(), other.weights_.end());
  return absl::OkStatus();
}

std::string Partial::Save() const {
  std::string out;
  Put(&out, kSavedMagic);
  const std::string fingerprint = layout_.Fingerprint();
  Put(&out, static_cast<uint64_t>(fingerprint.size()));
  out += fingerprint;
  Put(&out, static_cast<uint64_t>(arithmetic_));
  Put(&out, static_cast<uint64_t>(contributors_.size()));
  for (const UpdateId& id : contributors_) Put(&out, id);
  for (const double weight : weights_) Put(&out, weight);
  Put(&out, bound_);
  out.append(reinterpret_cast<const char*>(state_.data()), state_.size());
  out.append(reinterpret_cast<const char*>(counters_.data()), counters_.size() * sizeof(int64_t));
  return out;
}

absl::Status Partial::Restore(std::string_view saved) {
  Reader reader(saved);
  uint64_t magic = 0, fingerprint_size = 0, arithmetic = 0, count = 0;
  const std::string expected = layout_.Fingerprint();
  if (!reader.Take(&magic) || magic != kSavedMagic) return InvalidArgument("saved partial: not one of this format ({} bytes)", saved.size());
  std::string fingerprint(expected.size(), '\0');
  if (!reader.Take(&fingerprint_size) || fingerprint_size != expected.size() ||
      !reader.TakeBytes(fingerprint.data(), fingerprint.size()) || fingerprint != expected) {
    return InvalidArgument("saved partial: it is for another layout");
  }
  if (!reader.Take(&arithmetic) || arithmetic != static_cast<uint64_t>(arithmetic_)) {
    return InvalidArgument("saved partial: expected arithmetic {}, got {}", static_cast<int>(arithmetic_), arithmetic);
  }
  const size_t body = sizeof(bound_) + state_.size() + counters_.size() * sizeof(int64_t);
  if (!reader.Take(&count) || count > reader.left() / (sizeof(UpdateId) + sizeof(double)) ||
      reader.left() != count * (sizeof(UpdateId) + sizeof(double)) + body) {
    return InvalidArgument("saved partial: its length {} does not fit {} contributors", saved.size(), count);
  }
  std::set<UpdateId> contributors;
  for (uint64_t i = 0; i < count; ++i) {
    UpdateId id;
    if (!reader.Take(&id) || !contributors.insert(id).second) return InvalidArgument("saved partial: contributor {} is named twice", ToHex(id));
  }
  std::vector<double> weights(count);
  for (double& weight : weights) {
    if (!reader.Take(&weight) || !std::isfinite(weight) || weight <= 0) return InvalidArgument("saved partial: a weight is {}", weight);
  }
  double bound = 0;
  if (!reader.Take(&bound) || !(bound >= 0)) return InvalidArgument("saved partial: its bound is {}", bound);
  std::vector<std::byte> state(state_.size());
  std::vector<int64_t> counters(counters_.size());
  if (!reader.TakeBytes(state.data(), state.size()) || !reader.TakeBytes(counters.data(), counters.size() * sizeof(int64_t))) {
    return InvalidArgument("saved partial: too short ({} bytes)", saved.size());
  }
  state_ = std::move(state);
  counters_ = std::move(counters);
  weights_ = std::move(weights);
  bound_ = bound;
  contributors_ = std::move(contributors);
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
