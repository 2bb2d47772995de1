#include "client/core/local_buffers.h"

#include <cstring>
#include <utility>
#include <vector>

#include "client/core/widen.h"

namespace tributary::client {
namespace {

size_t BufferCount(const TensorLayout& layout) { return layout.summed_count() - layout.trainable_count(); }

// Of a flat form that ends with the layout's buffers and counters: an update too, whatever vectors it carries before them.
std::span<std::byte> BuffersOf(const TensorLayout& layout, std::span<std::byte> flat) {
  const size_t after = BufferCount(layout) * DTypeBytes(layout.float_dtype());
  const size_t counters = layout.counter_count() * sizeof(int64_t);
  // What the server owns lies behind them in a model, and is in no update.
  const size_t owned = flat.size() == layout.total_bytes() ? layout.server_owned_count() * DTypeBytes(layout.float_dtype()) : 0;
  return flat.subspan(flat.size() - counters - owned - after, after);
}

bool KeepsBuffers(const TrainRequest& request) {
  const TensorLayout& layout = *request.layout;
  return BuffersStayLocal(request.spec->strategy) && (BufferCount(layout) > 0 || layout.counter_count() > 0);
}

}  // namespace

bool BuffersStayLocal(const StrategySpec& strategy) {
  const auto at = strategy.params.find("buffers");
  return at != strategy.params.end() && at->second == "local";
}

absl::StatusOr<TrainResult> TrainLocally(Learner& learner, TrainRequest request, const Dataset* data) {
  if (!KeepsBuffers(request)) return learner.Train(request, data);
  request.may_stay_on_device = false;  // part of it is put in the place of another
  const TensorLayout& layout = *request.layout;
  const size_t buffers = BufferCount(layout);
  const std::span<const std::byte> received = request.model;
  std::vector<std::byte> model(received.begin(), received.end());
  if (request.state != nullptr && request.state->vectors.contains(kBuffersVector)) {
    const std::vector<double>& own = request.state->vectors.at(kBuffersVector);
    if (own.size() != buffers) return InvalidArgument("client state: buffers: expected {} elements, got {}", buffers, own.size());
    NarrowFloats(layout.float_dtype(), own, BuffersOf(layout, model));
  }
  request.model = model;
  TRIB_ASSIGN_OR_RETURN(TrainResult result, learner.Train(request, data));
  const std::span<std::byte> trained = BuffersOf(layout, result.update);
  if (!result.state) result.state.emplace();
  result.state->vectors[kBuffersVector] = WidenFloats(layout.float_dtype(), trained);
  std::memcpy(model.data(), received.data(), received.size());
  std::memcpy(trained.data(), BuffersOf(layout, model).data(), trained.size());
  const size_t counters = layout.counter_count() * sizeof(int64_t);
  if (request.spec->privacy.enabled && counters > 0) {
    std::memcpy(result.update.data() + (result.update.size() - counters), received.data() + (received.size() - counters), counters);
  }
  return result;
}

std::vector<absl::StatusOr<TrainResult>> TrainCohortLocally(Learner& learner, std::span<const CohortMember> members) {
  if (members.empty() || !KeepsBuffers(members[0].request)) return learner.TrainCohort(members);
  std::vector<absl::StatusOr<TrainResult>> results;
  for (const CohortMember& member : members) results.push_back(TrainLocally(learner, member.request, member.data));
  return results;
}

}  // namespace tributary::client
