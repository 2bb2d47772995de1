#include "aggregator/coordinator/tree_state.h"

#include <algorithm>

#include "common/check.h"

namespace tributary::aggregator {

void TreeState::Build() {
  nodes_.assign(options_.leaves, {});
  const uint32_t groups = options_.fan_in == 0 ? 1 : (options_.leaves + options_.fan_in - 1) / options_.fan_in;
  const uint32_t middles = groups > 1 ? groups : 0;
  const uint32_t top = options_.leaves + middles;
  nodes_.resize(top + 1);
  nodes_[top].role = SeatRole::kTop;
  const auto link = [this](uint32_t child, uint32_t parent) {
    nodes_[child].parent = parent;
    nodes_[parent].children.push_back(child);
  };
  for (uint32_t i = 0; i < options_.leaves; ++i) {
    nodes_[i].seat = i;
    link(i, middles == 0 ? top : options_.leaves + i / options_.fan_in);
  }
  for (uint32_t i = 0; i < middles; ++i) {
    nodes_[options_.leaves + i].role = SeatRole::kMiddle;
    link(options_.leaves + i, top);
  }
  next_seat_ = std::max(next_seat_, options_.leaves);
  closed_ = false;
  untouched_ = true;
}

std::vector<TreeAction> TreeState::Begin(const std::vector<bool>& used, std::optional<uint32_t> holder) {
  TRIB_CHECK(used.size() == options_.leaves, "{} leaves, {} said", options_.leaves, used.size());
  Build();
  std::vector<TreeAction> actions;
  // First all that take no part, without consequences: a role is told once, as it will be.
  std::vector<uint32_t> idle;
  for (uint32_t i = 0; i < options_.leaves; ++i) {
    if (used[i] && holder != i) continue;
    nodes_[i].complete = nodes_[i].empty = nodes_[i].merged = true;
    idle.push_back(i);
  }
  if (holder) {
    nodes_.back().seat = holder;
    next_seat_ = std::max(next_seat_, *holder + 1);
  }
  for (const uint32_t i : idle) Advance(i, &actions);
  actions.clear();
  if (holder) TellRole(*holder, &actions);
  for (uint32_t i = 0; i < options_.leaves; ++i) {
    if (!nodes_[i].complete) TellRole(i, &actions);
  }
  if (holder) {
    for (uint32_t node = 0; node < nodes_.size(); ++node) Connect(node, &actions);
  }
  untouched_ = true;
  return actions;
}

std::optional<uint32_t> TreeState::Highest(uint32_t seat) const {
  std::optional<uint32_t> highest;  // parents have higher numbers
  for (uint32_t node = 0; node < nodes_.size(); ++node) {
    if (nodes_[node].seat == seat) highest = node;
  }
  return highest;
}

SeatRole TreeState::role(uint32_t seat) const {
  const std::optional<uint32_t> node = Highest(seat);
  if (!node || (nodes_[*node].complete && (nodes_[*node].merged || nodes_[*node].empty))) return SeatRole::kParked;
  return nodes_[*node].role;
}

uint64_t TreeState::children(uint32_t seat) const {
  uint64_t mask = 0;
  for (const Node& node : nodes_) {
    if (node.seat != seat) continue;
    for (const uint32_t child : node.children) {
      if (nodes_[child].seat != seat && !nodes_[child].empty) mask |= uint64_t{1} << child;
    }
  }
  return mask;
}

void TreeState::TellRole(uint32_t seat, std::vector<TreeAction>* actions) const {
  const std::optional<uint32_t> node = Highest(seat);
  TRIB_CHECK(node.has_value(), "seat {} has no role", seat);
  actions->push_back({.kind = TreeAction::Kind::kRole, .seat = seat, .role = nodes_[*node].role, .children = children(seat)});
}

// Gives `node` its way up, if there is one to give.
void TreeState::Connect(uint32_t node, std::vector<TreeAction>* actions) {
  Node& child = nodes_[node];
  if (!child.parent || !child.seat || child.empty || child.connected) return;
  const Node& parent = nodes_[*child.parent];
  if (!parent.seat || parent.seat == child.seat) return;
  child.connected = true;
  actions->push_back({.kind = TreeAction::Kind::kConnect, .seat = *child.seat, .node = node, .parent = *parent.seat});
}

void TreeState::Occupy(uint32_t node, uint32_t seat, std::vector<TreeAction>* actions) {
  nodes_[node].seat = seat;
  TellRole(seat, actions);
  for (const uint32_t child : nodes_[node].children) Connect(child, actions);
  Connect(node, actions);
}

void TreeState::Advance(uint32_t number, std::vector<TreeAction>* actions) {
  Node& node = nodes_[number];
  if (!node.parent) return;
  Node& parent = nodes_[*node.parent];
  if (node.empty) {
    node.merged = true;
    if (parent.seat) {  // it waits for one partial less
      if (parent.seat != node.seat) TellRole(*parent.seat, actions);
      return;
    }
    const bool all_empty = std::all_of(parent.children.begin(), parent.children.end(), [&](uint32_t child) { return nodes_[child].empty; });
    if (all_empty && parent.parent) {
      parent.complete = parent.empty = true;
      Advance(*node.parent, actions);
    }
    return;
  }
  if (parent.seat) return Connect(number, actions);
  if (options_.reuse) {
    node.merged = true;  // its sums are the parent's
    return Occupy(*node.parent, *node.seat, actions);
  }
  const uint32_t fresh = next_seat_++;
  actions->push_back({.kind = TreeAction::Kind::kStart, .seat = fresh});
  Occupy(*node.parent, fresh, actions);
}

bool TreeState::may_complete(uint32_t seat) const {
  const std::optional<uint32_t> node = Highest(seat);
  return node && nodes_[*node].parent && !nodes_[*node].complete;
}

bool TreeState::may_merge(uint32_t seat, uint32_t node) const {
  return node < nodes_.size() && (children(seat) >> node & 1) != 0 && !nodes_[node].merged;
}

std::vector<TreeAction> TreeState::OnComplete(uint32_t seat, bool empty) {
  TRIB_CHECK(may_complete(seat), "seat {} has nothing to complete", seat);
  const std::optional<uint32_t> number = Highest(seat);
  untouched_ = false;
  nodes_[*number].complete = true;
  nodes_[*number].empty = empty;
  std::vector<TreeAction> actions;
  Advance(*number, &actions);
  return actions;
}

void TreeState::OnMerged(uint32_t node) {
  TRIB_CHECK(node + 1 < nodes_.size(), "node {} merged", node);
  untouched_ = false;
  nodes_[node].merged = true;
}

std::vector<TreeAction> TreeState::Close(const std::vector<bool>& has_updates) {
  TRIB_CHECK(has_updates.size() == options_.leaves, "{} leaves, {} said", options_.leaves, has_updates.size());
  closed_ = true;
  std::vector<uint32_t> idle;
  for (uint32_t i = 0; i < options_.leaves; ++i) {
    if (nodes_[i].complete || has_updates[i]) continue;
    nodes_[i].complete = nodes_[i].empty = true;
    idle.push_back(i);
  }
  std::vector<TreeAction> actions;
  for (const uint32_t i : idle) Advance(i, &actions);
  for (uint32_t i = 0; i < options_.leaves; ++i) {
    if (!nodes_[i].complete) TellRole(i, &actions);
  }
  return actions;
}

bool TreeState::may_open(uint32_t leaf) const {
  if (closed_ || leaf >= options_.leaves || !nodes_[leaf].complete || !nodes_[leaf].empty || Highest(leaf) != leaf) return false;
  // A middle somebody is may have sent what it was told to wait for, and word of that be on its way.
  for (std::optional<uint32_t> above = nodes_[leaf].parent; above && nodes_[*above].parent; above = nodes_[*above].parent) {
    if (nodes_[*above].seat) return false;
  }
  return true;
}

std::vector<TreeAction> TreeState::Open(uint32_t leaf) {
  TRIB_CHECK(may_open(leaf), "leaf {} cannot be opened", leaf);
  std::vector<TreeAction> actions;
  // Middles that were empty with all their leaves come back too.
  for (std::optional<uint32_t> at = leaf; at && nodes_[*at].complete; at = nodes_[*at].parent) {
    Node& node = nodes_[*at];
    node.complete = node.empty = node.merged = false;
    const std::optional<uint32_t> waiting = node.parent ? nodes_[*node.parent].seat : std::nullopt;
    if (waiting) TellRole(*waiting, &actions);  // for one partial more
  }
  TellRole(leaf, &actions);
  return actions;
}

std::vector<TreeAction> TreeState::Drop(uint32_t leaf) {
  TRIB_CHECK(leaf < options_.leaves && !closed_ && !nodes_[leaf].complete, "leaf {} is not open", leaf);
  nodes_[leaf].complete = nodes_[leaf].empty = true;
  std::vector<TreeAction> actions;
  Advance(leaf, &actions);
  return actions;
}

bool TreeState::done() const {
  for (uint32_t node = 0; node + 1 < nodes_.size(); ++node) {
    if (!nodes_[node].complete || !nodes_[node].merged) return false;
  }
  return true;
}

}  // namespace tributary::aggregator
