#include "aggregator/core/weight_rule.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <iterator>
#include <limits>

namespace tributary::aggregator {
namespace {

class ClaimedWeight final : public WeightRule {
 public:
  explicit ClaimedWeight(bool uniform) : uniform_(uniform) {}
  absl::StatusOr<double> Weight(const WeightInput& input) const override { return uniform_ ? 1.0 : input.claimed; }
  absl::StatusOr<double> Most() const override {
    if (uniform_) return 1.0;
    return InvalidArgument("strategy.weighting: expected uniform, got weights that the client sets: no bound on what one client adds to the sum");
  }

 private:
  bool uniform_;
};

class ClientCountingWeight final : public WeightRule {
 public:
  absl::StatusOr<double> Weight(const WeightInput&) const override { return 1.0; }
  absl::StatusOr<double> Most() const override { return 1.0; }
  bool keeps_clients() const override { return true; }
};

}  // namespace

absl::StatusOr<double> WeightRule::Most() const {
  return InvalidArgument("what one update weighs has no bound that the job states");
}

std::unique_ptr<WeightRule> MakeClientCountingWeight() { return std::make_unique<ClientCountingWeight>(); }

std::unique_ptr<WeightRule> MakeClaimedWeight(bool uniform) { return std::make_unique<ClaimedWeight>(uniform); }

double Importance(const WeightInput& input, bool uniform) {
  const double registered = static_cast<double>(std::max<int64_t>(1, input.clients->size()));
  if (uniform) return 1.0 / registered;
  return input.claimed / (registered * input.clients->MeanClaimed(input.client, input.claimed));
}

absl::StatusOr<PerClient> PerClient::Parse(const std::string& text, double high) {
  PerClient values;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<std::string> sides = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const std::string number(absl::StripAsciiWhitespace(sides.back()));
    double value = 0;
    if (!absl::SimpleAtod(number, &value) || !(value > 0 && value <= high)) {
      return InvalidArgument("expected values in (0, {}], got '{}'", high, number);
    }
    if (sides.size() == 1) {
      values.in_order_.push_back(value);
    } else {
      const std::string name(absl::StripAsciiWhitespace(sides.front()));
      if (!values.by_name_.emplace(name, value).second) return InvalidArgument("client '{}' is named twice", name);
    }
  }
  if (!values.in_order_.empty() && !values.by_name_.empty()) return InvalidArgument("expected values by order or by name, got both");
  return values;
}

double PerClient::Smallest() const {
  double smallest = std::numeric_limits<double>::infinity();
  for (const double value : in_order_) smallest = std::min(smallest, value);
  for (const auto& [name, value] : by_name_) smallest = std::min(smallest, value);
  return smallest;
}

absl::StatusOr<double> PerClient::Find(const std::string& client, const ClientTable& clients) const {
  if (!by_name_.empty()) {
    const auto at = by_name_.find(client);
    if (at == by_name_.end()) return InvalidArgument("client '{}': the job states no value for it", client);
    return at->second;
  }
  if (in_order_.size() == 1) return in_order_.front();
  if (static_cast<size_t>(clients.size()) != in_order_.size()) {
    return FailedPrecondition("the job states {} values, {} clients are registered", in_order_.size(), clients.size());
  }
  const auto at = clients.rows().find(client);
  if (at == clients.rows().end()) return InvalidArgument("client '{}' is not registered", client);
  return in_order_[static_cast<size_t>(std::distance(clients.rows().begin(), at))];
}

}  // namespace tributary::aggregator
