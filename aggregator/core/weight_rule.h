// What an update weighs in the fold, apart from its staleness: decided by the engine when it takes the update, from what came with it
// and from what the job keeps of its client.
//
// A rule is pure: the table belongs to the engine, which changes it when a version is committed, in the batch of that version.
// Threads: immutable. Errors: INVALID_ARGUMENT naming the client and what is missing; FAILED_PRECONDITION where it may come right later.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "aggregator/core/client_table.h"
#include "aggregator/core/contribution.h"
#include "common/status.h"

namespace tributary::aggregator {

struct WeightInput {
  std::string client;
  double claimed = 1;                    // > 0, finite
  Scalars scalars{};
  uint64_t round = 1;                    // the one it will be part of
  const ClientTable* clients = nullptr;  // before that round; the client is in it
};

class WeightRule {
 public:
  virtual ~WeightRule() = default;
  virtual absl::StatusOr<double> Weight(const WeightInput& input) const = 0;
  // What no update weighs more than, for bounds on what one client adds to a sum. INVALID_ARGUMENT with the reason where the job states
  // no such number.
  virtual absl::StatusOr<double> Most() const;
  // Whether it reads the table: then the table is kept with the versions. Otherwise the weight follows from what came with the update.
  virtual bool keeps_clients() const { return false; }
  // Cutoff of the interval estimator.
  virtual double cutoff() const { return kNoCutoff; }
  // Number of the round that the next commit makes, `since_start` after the job began.
  virtual uint64_t RoundAt(uint64_t version, absl::Duration) const { return version + 1; }
};

// n_i, or 1.
std::unique_ptr<WeightRule> MakeClaimedWeight(bool uniform);

// 1 for all; the table is kept because the number of registered clients divides.
std::unique_ptr<WeightRule> MakeClientCountingWeight();

// Importance p_i, Σ p = 1 over the registered clients: 1/N, or n_i/Σn (a client that has not reported counts as an average one).
double Importance(const WeightInput& input, bool uniform);

// One value a client, from text: "0.5" for all, "0.5, 0.25" in the order of the registered clients' names, or "a=0.5, b=0.25" by name.
class PerClient {
 public:
  // INVALID_ARGUMENT: empty, a value out of (0, high], a name twice, both forms mixed.
  static absl::StatusOr<PerClient> Parse(const std::string& text, double high);
  // FAILED_PRECONDITION: as many clients are not registered yet; INVALID_ARGUMENT: it has no value.
  absl::StatusOr<double> Find(const std::string& client, const ClientTable& clients) const;
  double Smallest() const;

 private:
  std::vector<double> in_order_;
  std::map<std::string, double> by_name_;
};

}  // namespace tributary::aggregator
