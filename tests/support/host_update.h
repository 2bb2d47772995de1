// An update "on a device" that is this host: plain bytes, given from the end to the beginning, and sums by the reference's kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "aggregator/core/kernels_reference.h"
#include "client/core/device_update.h"

namespace tributary::testing {

class HostUpdate final : public client::DeviceUpdate {
 public:
  explicit HostUpdate(std::string bytes) : bytes_(std::move(bytes)) {}

  size_t flat_bytes() const override { return bytes_.size(); }
  absl::StatusOr<double> Encode(const client::UpdatePlan&, const Sink& sink) override {
    for (size_t end = bytes_.size(); end > 0;) {
      const size_t begin = end > 7 ? end - 7 : 0;
      TRIB_RETURN_IF_ERROR(sink(begin, std::as_bytes(std::span(bytes_).subspan(begin, end - begin))));
      end = begin;
    }
    return 0.0;
  }
  double max_abs() const override { return aggregator::Scan(std::as_bytes(std::span(bytes_)), DType::kF32).max_abs; }
  absl::StatusOr<bool> Fold(std::span<const client::DeviceTerm> terms, bool first, std::span<double> sums) override {
    return FoldInto(terms, first, sums, reference::FoldF32);
  }
  absl::StatusOr<bool> FoldFixed(std::span<const client::DeviceTerm> terms, bool first, std::span<int64_t> sums) override {
    return FoldInto(terms, first, sums, reference::FoldFixedF32);
  }

 private:
  template <typename Sum, typename Reference>
  static absl::StatusOr<bool> FoldInto(std::span<const client::DeviceTerm> terms, bool first, std::span<Sum> sums, const Reference& fold) {
    std::vector<const std::byte*> updates;
    std::vector<double> weights;
    for (const client::DeviceTerm& term : terms) {
      const auto& update = dynamic_cast<const HostUpdate&>(*term.update);
      if (update.bytes_.size() != sums.size() * sizeof(float)) return InvalidArgument("an update of {} bytes for {} sums", update.bytes_.size(), sums.size());
      updates.push_back(reinterpret_cast<const std::byte*>(update.bytes_.data()));
      weights.push_back(term.weight);
    }
    return fold(sums.data(), updates.data(), weights.data(), updates.size(), sums.size(), first);
  }

  const std::string bytes_;
};

}  // namespace tributary::testing
