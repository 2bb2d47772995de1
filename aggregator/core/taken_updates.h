// The updates of one aggregate in the order of their arrival, found by id and by client without looking at them all: a round of thousands
// asks for each of them many times.
// Threads: thread-compatible. Pointers stay valid until the set is changed.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "aggregator/core/contribution.h"

namespace tributary::aggregator {

struct TakenUpdate {
  RoundContributor contributor;
  uint64_t version = 0;   // that it started from
  bool folded = false;    // by every worker
  bool of_node = false;   // came in a partial: its task is another engine's
};

class TakenUpdates {
 public:
  size_t size() const { return updates_.size(); }
  bool empty() const { return updates_.empty(); }
  size_t folded() const { return folded_; }
  const std::vector<TakenUpdate>& all() const { return updates_; }
  auto begin() const { return updates_.begin(); }
  auto end() const { return updates_.end(); }

  // nullptr: not here.
  const TakenUpdate* Find(const UpdateId& update) const {
    const auto at = place_.find(update);
    return at == place_.end() ? nullptr : &updates_[at->second];
  }
  // The clients that have an update here, each with how many.
  bool HasClient(const std::string& client) const { return clients_.contains(client); }
  const std::map<std::string, size_t>& clients() const { return clients_; }

  void Add(TakenUpdate update) {
    place_[update.contributor.key.update] = updates_.size();
    ++clients_[update.contributor.key.client];
    folded_ += update.folded;
    updates_.push_back(std::move(update));
  }
  void MarkFolded(const UpdateId& update) {
    const auto at = place_.find(update);
    if (at == place_.end() || updates_[at->second].folded) return;
    updates_[at->second].folded = true;
    ++folded_;
  }
  // Linear, for the rare case.
  void Remove(const UpdateId& update) {
    std::vector<TakenUpdate> rest = Take();
    for (TakenUpdate& one : rest) {
      if (one.contributor.key.update != update) Add(std::move(one));
    }
  }
  // All of them; the set is empty afterwards.
  std::vector<TakenUpdate> Take() {
    std::vector<TakenUpdate> all;
    all.swap(updates_);
    clear();
    return all;
  }
  void clear() {
    updates_.clear();
    place_.clear();
    clients_.clear();
    folded_ = 0;
  }

 private:
  std::vector<TakenUpdate> updates_;
  std::unordered_map<UpdateId, size_t> place_;
  std::map<std::string, size_t> clients_;
  size_t folded_ = 0;
};

}  // namespace tributary::aggregator
