// What a job keeps of each client that it has ever seen: few numbers, from which weight rules tell how often a client takes part
// (algorithms.md §8, §9). Absence costs nothing: only those that took part in a commit change, the rest follows from the round's number.
//
// A *round* here is what the rule counts: commits, or ticks. Rounds are numbered from 1; `since` is the round of the client's last
// contribution, 0 before the first.
// Source: FedAU's estimator, Wang and Ji, ICLR 2024, Alg. 2; with an infinite cutoff the running mean of intervals of algorithms.md §8.
// Threads: values.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>

namespace tributary::aggregator {

struct ClientScalars {
  double interval_sum = 0;    // of closed intervals, in rounds
  double interval_count = 0;
  double since = 0;
  double claimed = 0;         // weight that its last counted update claimed; 0: none yet
  bool operator==(const ClientScalars&) const = default;
};

inline constexpr double kNoCutoff = std::numeric_limits<double>::infinity();

// The estimator as it stands before `round`, with every interval closed that the cutoff has ended by then.
ClientScalars BeforeRound(const ClientScalars& client, uint64_t round, double cutoff);
// Mean closed interval, 1 before the first is closed.
double MeanInterval(const ClientScalars& client);
// After it contributed to `round` (again: an interval of 0).
ClientScalars AfterContribution(const ClientScalars& client, uint64_t round, double cutoff, double claimed);

// The version that counted the client's last update, where rounds are versions; 0: none after version `epoch`.
uint64_t StateVersionOf(const ClientScalars& client, uint64_t epoch);

class ClientTable {
 public:
  // False if it is known already.
  bool Register(const std::string& client);
  void Put(const std::string& client, const ClientScalars& scalars);
  // What is known of a client, zeros if it is new.
  ClientScalars Find(const std::string& client) const;
  bool Contains(const std::string& client) const { return rows_.contains(client); }
  const std::map<std::string, ClientScalars>& rows() const { return rows_; }
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  // Mean weight claimed by the clients that have claimed one, `fresh` among them in place of `client`'s former one.
  double MeanClaimed(const std::string& client, double fresh) const;

 private:
  std::map<std::string, ClientScalars> rows_;
  double claimed_sum_ = 0;
  int64_t claimed_count_ = 0;
};

}  // namespace tributary::aggregator
