// The round and other nodes: partials that they send up, and versions that the top made.
#include <algorithm>
#include <utility>

#include "aggregator/core/round.h"

namespace tributary::aggregator {

absl::Status Round::CheckPartial(uint64_t version, const std::vector<RoundContributor>& contributors, std::vector<UpdateId>* overlap) const {
  overlap->clear();
  if (finished_ || finish_after_commit_) return FailedPrecondition("the job is over");
  if (version != version_) return FailedPrecondition("it starts from version {}, the current one is {}", version, version_);
  TRIB_ASSIGN_OR_RETURN(const double most, strategy_.weights().Weight({.client = "", .claimed = spec_.max_weight, .round = version_ + 1, .clients = &clients_}));
  for (const RoundContributor& contributor : contributors) {
    const UpdateKeyRef& key = contributor.key;
    if (IsTaken(key.update) || HasContributed(key.client)) overlap->push_back(key.update);
    if (!(contributor.weight > 0 && contributor.weight <= most)) {
      return InvalidArgument("update {}: expected a weight in (0, {}], got {}", ToHex(key.update), most, contributor.weight);
    }
    if (!policies_.staleness->Factor(contributor.staleness)) return FailedPrecondition("update {}: it is {} versions old", ToHex(key.update), contributor.staleness);
  }
  if (!overlap->empty()) {
    return AlreadyExists("{} of its {} updates, or others of their clients, count for version {} already", overlap->size(), contributors.size(), version_ + 1);
  }
  if (phase_ != Phase::kCollecting) return FailedPrecondition("version {} takes no more updates: {}", version_ + 1, trigger_);
  return absl::OkStatus();
}

void Round::On(const NodesExpected& event, absl::Time now, Actions* out) {
  expected_from_nodes_ = std::max<int64_t>(0, event.updates);
  Admit(Moment::kTaskLost, now, out);
}

void Round::On(const PartialArrived& event, absl::Time now, Actions* out) {
  for (const RoundContributor& contributor : event.contributors) {
    Register(contributor.key.client);
    taken_.Add({.contributor = contributor,
                      .version = version_ - std::min(version_, contributor.staleness),
                      .folded = false,
                      .of_node = true});
    // A task that it may have here as well: its client's contribution is made.
    if (const auto current = outstanding_.find(contributor.key.client); current != outstanding_.end()) {
      const std::string reason = "the client's update came through another node";
      out->push_back(CancelTask{.client = contributor.key.client, .task = current->second.task, .reason = reason});
      Close(current->second.task, reason);
      Release(contributor.key.client);
    }
  }
  MaybeClose(now, out);
  Admit(Moment::kUploadTaken, now, out);
}

void Round::On(const CohortChanged& event, absl::Time now, Actions* out) {
  spec_.cohort = event.cohort;
  policies_ = strategy_.MakePolicies(event.cohort);
  MaybeClose(now, out);
  Admit(Moment::kTick, now, out);
}

void Round::On(const VersionAdopted& event, absl::Time now, Actions* out) {
  if (event.version <= version_) return;
  TakenUpdates counted;
  for (TakenUpdate& update : taken_.Take()) {
    if (event.counted.contains(update.contributor.key.update)) {
      counted.Add(std::move(update));
      continue;
    }
    const std::string reason = fmt::format("version {} was committed without it", event.version);
    out->push_back(Refuse{.key = update.contributor.key, .reason = reason, .expired = true});
    Close(update.contributor.key.task, reason);
  }
  taken_ = std::move(counted);
  phase_ = Phase::kCommitting;
  version_ = event.version - 1;
  On(VersionCommitted{event.version}, now, out);
}

}  // namespace tributary::aggregator
