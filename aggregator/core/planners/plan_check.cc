// The static check of a round plan, written against the definition and not against how plan.cc builds one.
#include <map>

#include "aggregator/core/planners/plan.h"

namespace tributary::aggregator {
namespace {

using PlannedRole = RoundPlan::PlannedRole;

class Checker {
 public:
  explicit Checker(const RoundPlan& plan) : plan_(plan), count_(static_cast<int64_t>(plan.roles.size())) {}

  absl::Status Check() {
    TRIB_RETURN_IF_ERROR(ParentsMakeOneTree());
    TRIB_RETURN_IF_ERROR(GoalsAddUp());
    TRIB_RETURN_IF_ERROR(NodesAddUp());
    TRIB_RETURN_IF_ERROR(RouteFits());
    return LeavesAreLevel();
  }

 private:
  template <typename... Args>
  absl::Status Wrong(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgument("plan of round {}, epoch {}: {}", plan_.key.round, plan_.key.epoch,
                           fmt::format(format, std::forward<Args>(args)...));
  }
  const PlannedRole& At(int64_t role) const { return plan_.roles[static_cast<size_t>(role)]; }

  absl::Status ParentsMakeOneTree() const {
    int64_t roots = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int32_t parent = At(i).parent;
      roots += parent == -1;
      if (parent < -1 || parent >= count_) return Wrong("role {}: its parent {} is none of {} roles", i, parent, count_);
      if (parent >= 0 && At(parent).role == Role::kLeaf) return Wrong("role {}: its parent {} is a leaf, which takes updates only", i, parent);
      if (At(i).role == Role::kParked) return Wrong("role {}: parked is no role of a plan", i);
      if (At(i).role == Role::kMiddle && (parent < 0 || At(parent).role != Role::kTop)) return Wrong("role {}: a middle sends to the top", i);
      if (parent >= 0 && At(parent).role == Role::kMiddle && At(parent).node != At(i).node) {
        return Wrong("role {} on node {}: its middle is on node {}", i, At(i).node, At(parent).node);
      }
      if (At(i).role == Role::kTop && parent >= 0) return Wrong("role {}: a top with a parent", i);
    }
    if (roots != 1) return Wrong("expected one root, got {}", roots);
    // Every step goes up, leaf to middle to top, so there is no cycle; with one root everyone reaches it.
    return absl::OkStatus();
  }

  absl::Status GoalsAddUp() const {
    std::vector<int64_t> children(plan_.roles.size(), 0);
    for (const PlannedRole& role : plan_.roles) {
      if (role.parent >= 0) ++children[static_cast<size_t>(role.parent)];
    }
    int64_t updates = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const PlannedRole& role = At(i);
      if (role.shards < 1) return Wrong("role {}: expected at least one shard, got {}", i, role.shards);
      if (role.role == Role::kLeaf) {
        if (role.goal < 1 || role.taken < 0 || role.taken > role.goal || (role.closed && role.taken != role.goal)) {
          return Wrong("leaf {}: goal {}, taken {}{}", i, role.goal, role.taken, role.closed ? ", closed" : "");
        }
        updates += role.goal;
      } else if (role.goal != children[static_cast<size_t>(i)] || role.goal < 1) {
        return Wrong("role {} ({}): its goal is {}, it has {} children", i, RoleName(role.role), role.goal, children[static_cast<size_t>(i)]);
      }
    }
    if (updates != plan_.target) return Wrong("the leaves' goals make {} updates, the target is {}", updates, plan_.target);
    return absl::OkStatus();
  }

  absl::Status NodesAddUp() const {
    std::map<uint32_t, int64_t> goals;
    std::map<uint32_t, int64_t> middles;
    for (const PlannedRole& role : plan_.roles) {
      if (role.role == Role::kLeaf) goals[role.node] += role.goal;
      if (role.role == Role::kMiddle && ++middles[role.node] > 1) return Wrong("node {} has two middles", role.node);
    }
    if (goals.size() != plan_.nodes.size()) return Wrong("leaves are on {} nodes, shares on {}", goals.size(), plan_.nodes.size());
    for (const RoundPlan::NodeShare& share : plan_.nodes) {
      const auto found = goals.find(share.node);
      const int64_t sum = found == goals.end() ? 0 : found->second;
      if (sum != share.updates) return Wrong("node {}: its share is {} updates, its leaves take {}", share.node, share.updates, sum);
    }
    return absl::OkStatus();
  }

  absl::Status RouteFits() const {
    std::vector<int64_t> places(plan_.roles.size(), 0);
    for (size_t i = 0; i < plan_.route.size(); ++i) {
      const int32_t leaf = plan_.route[i];
      if (leaf < 0 || leaf >= count_ || At(leaf).role != Role::kLeaf) return Wrong("update {} goes to role {}, which is no leaf", i, leaf);
      ++places[static_cast<size_t>(leaf)];
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (At(i).role == Role::kLeaf && places[static_cast<size_t>(i)] != At(i).goal) {
        return Wrong("leaf {}: {} updates go to it, its goal is {}", i, places[static_cast<size_t>(i)], At(i).goal);
      }
    }
    return absl::OkStatus();
  }

  absl::Status LeavesAreLevel() const {
    std::map<uint32_t, std::pair<int64_t, int64_t>> levels;  // lowest goal of leaves that are open, highest of those that take more
    for (const PlannedRole& role : plan_.roles) {
      if (role.role != Role::kLeaf || role.closed) continue;
      const auto [at, added] = levels.try_emplace(role.node, role.goal, 0);
      at->second.first = std::min(at->second.first, role.goal);
      if (role.goal > role.taken) at->second.second = std::max(at->second.second, role.goal);
    }
    for (const auto& entry : levels) {
      if (entry.second.second - entry.second.first > 1) {
        return Wrong("node {}: leaves' goals go from {} to {}, expected a difference of at most 1", entry.first, entry.second.first,
                     entry.second.second);
      }
    }
    return absl::OkStatus();
  }

  const RoundPlan& plan_;
  const int64_t count_;
};

}  // namespace

absl::Status CheckPlan(const RoundPlan& plan) { return Checker(plan).Check(); }

}  // namespace tributary::aggregator
