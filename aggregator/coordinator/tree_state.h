// Who is what in the tree of one job during one lap, and what has to happen next. Pure: events in, actions out.
//
//   leaves ──> [middles, one for each fan_in leaves, if that is more than one] ──> top
//
// A parent is nobody until its first child is complete. With reuse that child's seat is promoted: same process, and its slab is the
// parent's initial accumulator. Without, a fresh seat is started for it. The other children send their partials there.
// Every leaf's updates have one path to the top, and every partial is merged once. A leaf without updates takes no part.
//
// Seats are numbers of the caller's: leaf i is seat i; those started for parents come after. Nodes are numbers too: leaves first, then
// middles, then the top; a child's node is its bit in the mask of its parent.
// Source: dataplane.md §9.3. Deterministic. Thread-compatible. A wrong event is a bug of the caller: TRIB_CHECK.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "aggregator/transport/worker_channel.h"

namespace tributary::aggregator {

struct TreeAction {
  enum class Kind {
    kStart,    // make a fresh seat numbered `seat`
    kRole,     // tell `seat` its role and the children it has to merge
    kConnect,  // the partial of `node`, which is with `seat`, goes to `parent`; both are to be told
  } kind;
  uint32_t seat = 0;
  SeatRole role = SeatRole::kParked;  // kRole
  uint64_t children = 0;              // kRole: a bit for each node
  uint32_t node = 0, parent = 0;      // kConnect
  bool operator==(const TreeAction&) const = default;
};

class TreeState {
 public:
  static constexpr uint32_t kMaxLeaves = 32;  // with middles and top less than TB_MAX_CHILDREN
  struct Options {
    uint32_t leaves = 1;   // 1 to kMaxLeaves
    uint32_t fan_in = 0;   // leaves that a middle merges, >= 2; 0: no middles
    bool reuse = true;
  };
  explicit TreeState(const Options& options) : options_(options) {}

  // A new lap. `used[i]`: leaf i may get updates. `holder`: a seat whose slab holds sums already; it is the top, and if it is a leaf's
  // seat that leaf takes no part. It may be a fresh one, with a number beyond all others.
  std::vector<TreeAction> Begin(const std::vector<bool>& used, std::optional<uint32_t> holder);
  // Whether the seat has a role that can be completed, and is not complete.
  bool may_complete(uint32_t seat) const;
  // The seat has all inputs of its role. `empty`: there is nothing in its sums (all its updates were refused).
  std::vector<TreeAction> OnComplete(uint32_t seat, bool empty);
  // Whether the partial of `node` is one that `seat` has to merge, and has not.
  bool may_merge(uint32_t seat, uint32_t node) const;
  // The partial of `node` is in the sums of its parent.
  void OnMerged(uint32_t node);
  // No more updates in this lap. `has_updates[i]`: leaf i was given some. Leaves that are still open get a kRole (their goal is now
  // what they were given), or take no part.
  std::vector<TreeAction> Close(const std::vector<bool>& has_updates);
  // A new plan within the lap. Whether a leaf that takes no part may be given one: its seat has no other role, and whoever would merge
  // its partial still can.
  bool may_open(uint32_t leaf) const;
  std::vector<TreeAction> Open(uint32_t leaf);
  // An open leaf that was given nothing takes no part any more.
  std::vector<TreeAction> Drop(uint32_t leaf);

  bool closed() const { return closed_; }
  // Nothing has happened yet: no seat but the leaves' own (or the holder's) has a role.
  bool untouched() const { return untouched_; }
  // Everything that was complete is merged into the top, and no leaf is open.
  bool done() const;
  std::optional<uint32_t> top() const { return nodes_.back().seat; }
  bool open_leaf(uint32_t leaf) const { return !nodes_[leaf].complete; }
  // The highest role of a seat; kParked for one that has sent its partial or takes no part.
  SeatRole role(uint32_t seat) const;
  uint64_t children(uint32_t seat) const;
  bool merged(uint32_t node) const { return nodes_[node].merged; }
  uint32_t leaves() const { return options_.leaves; }

 private:
  struct Node {
    SeatRole role = SeatRole::kLeaf;
    std::optional<uint32_t> parent;  // a node
    std::vector<uint32_t> children;  // nodes
    std::optional<uint32_t> seat;
    bool complete = false;
    bool empty = false;              // complete, with nothing in it
    bool connected = false;          // its partial has a way up
    bool merged = false;
  };

  void Build();
  void Advance(uint32_t node, std::vector<TreeAction>* actions);
  void Occupy(uint32_t node, uint32_t seat, std::vector<TreeAction>* actions);
  void Connect(uint32_t node, std::vector<TreeAction>* actions);
  void TellRole(uint32_t seat, std::vector<TreeAction>* actions) const;
  std::optional<uint32_t> Highest(uint32_t seat) const;  // node

  const Options options_;
  std::vector<Node> nodes_;
  uint32_t next_seat_ = 0;
  bool closed_ = false;
  bool untouched_ = true;
};

}  // namespace tributary::aggregator
