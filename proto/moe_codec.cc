#include "proto/moe_codec.h"

#include <algorithm>
#include <cmath>

namespace tributary {
namespace {

constexpr uint64_t kMaxTokens = uint64_t{1} << 53;  // exact in a double
// Scores are rounded one by one before they are added.
constexpr double kSlack = 1e-3;

absl::Status CheckSizes(int layers, int l, int experts) {
  if (layers > kMaxMoeLayers) return InvalidArgument("moe: expected at most {} layers, got {}", kMaxMoeLayers, layers);
  if (experts < 1 || experts > kMaxExperts) return InvalidArgument("moe: layer {}: expected 1 to {} experts, got {}", l, kMaxExperts, experts);
  return absl::OkStatus();
}

absl::StatusOr<MoeLayerStats> LayerFromProto(int l, const v1::MoeLayerStats& message) {
  MoeLayerStats out;
  if (message.tokens() > kMaxTokens) return InvalidArgument("moe: layer {}: tokens: expected at most 2^53, got {}", l, message.tokens());
  out.tokens = static_cast<int64_t>(message.tokens());
  for (const uint64_t count : message.counts()) {
    if (count > message.tokens()) return InvalidArgument("moe: layer {}: an expert cannot serve {} of {} tokens", l, count, message.tokens());
    out.counts.push_back(static_cast<int64_t>(count));
  }
  const double most = static_cast<double>(message.tokens()) * (1 + kSlack);
  if (message.prob_sum_size() != message.counts_size()) {
    return InvalidArgument("moe: layer {}: prob_sum: expected {} numbers, got {}", l, message.counts_size(), message.prob_sum_size());
  }
  for (const double sum : message.prob_sum()) {
    if (!(sum >= 0 && sum <= most)) return InvalidArgument("moe: layer {}: prob_sum: expected 0 to {}, got {}", l, most, sum);  // NaN fails too
    out.prob_sum.push_back(sum);
  }
  const double squares = most * static_cast<double>(message.counts_size());
  if (!(message.square_sum() >= 0 && message.square_sum() <= squares)) {
    return InvalidArgument("moe: layer {}: square_sum: expected 0 to {}, got {}", l, squares, message.square_sum());
  }
  out.square_sum = message.square_sum();
  const int bins = message.margins_size() / std::max(message.counts_size(), 1);
  if (message.margins_size() != bins * message.counts_size() || bins > kMaxMarginBins) {
    return InvalidArgument("moe: layer {}: margins: expected at most {} bins for each of {} experts, got {} counts", l, kMaxMarginBins, message.counts_size(),
                           message.margins_size());
  }
  for (const uint64_t count : message.margins()) {
    if (count > message.tokens()) return InvalidArgument("moe: layer {}: margins: a bin cannot have {} of {} tokens", l, count, message.tokens());
    out.margins.push_back(static_cast<int64_t>(count));
  }
  return out;
}

}  // namespace

absl::StatusOr<MoeStats> MoeStatsFromProto(const v1::MoeStats& message) {
  MoeStats out;
  for (int l = 0; l < message.layers_size(); ++l) {
    TRIB_RETURN_IF_ERROR(CheckSizes(message.layers_size(), l, message.layers(l).counts_size()));
    TRIB_ASSIGN_OR_RETURN(out.emplace_back(), LayerFromProto(l, message.layers(l)));
  }
  return out;
}

v1::MoeStats MoeStatsToProto(const MoeStats& stats) {
  v1::MoeStats out;
  for (const MoeLayerStats& layer : stats) {
    v1::MoeLayerStats& row = *out.add_layers();
    row.mutable_counts()->Add(layer.counts.begin(), layer.counts.end());
    row.mutable_prob_sum()->Add(layer.prob_sum.begin(), layer.prob_sum.end());
    row.set_square_sum(layer.square_sum);
    row.set_tokens(static_cast<uint64_t>(layer.tokens));
    row.mutable_margins()->Add(layer.margins.begin(), layer.margins.end());
  }
  return out;
}

absl::StatusOr<GlobalMoe> GlobalMoeFromProto(const v1::GlobalMoe& message) {
  GlobalMoe out;
  out.step = message.step();
  for (int l = 0; l < message.layers_size(); ++l) {
    const v1::MoeLayerLoad& layer = message.layers(l);
    TRIB_RETURN_IF_ERROR(CheckSizes(message.layers_size(), l, layer.share_size()));
    if (!(layer.tokens() >= 0 && std::isfinite(layer.tokens()))) return InvalidArgument("moe: layer {}: tokens: expected a finite number >= 0, got {}", l, layer.tokens());
    MoeLayerLoad& load = out.layers.emplace_back();
    load.tokens = layer.tokens();
    for (const double share : layer.share()) {
      if (!(share >= 0 && share <= 1 + kSlack)) return InvalidArgument("moe: layer {}: share: expected 0 to 1, got {}", l, share);
      load.share.push_back(share);
    }
  }
  return out;
}

v1::GlobalMoe GlobalMoeToProto(const GlobalMoe& load) {
  v1::GlobalMoe out;
  out.set_step(load.step);
  for (const MoeLayerLoad& layer : load.layers) {
    v1::MoeLayerLoad& row = *out.add_layers();
    row.mutable_share()->Add(layer.share.begin(), layer.share.end());
    row.set_tokens(layer.tokens);
  }
  return out;
}

}  // namespace tributary
