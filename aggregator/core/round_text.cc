#include "aggregator/core/round_text.h"

#include <algorithm>

#include "aggregator/core/round.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMaxReason = 120;
constexpr size_t kDeclinesShown = 3;

// "41 s", "3 min", "2 h".
std::string Age(absl::Duration duration) {
  const int64_t seconds = std::max<int64_t>(0, absl::ToInt64Seconds(duration));
  if (seconds < 180) return fmt::format("{} s", seconds);
  if (seconds < 3 * 3600) return fmt::format("{} min", seconds / 60);
  return fmt::format("{} h", seconds / 3600);
}

std::string Counted(int64_t count, const std::string& singular) {
  return fmt::format("{} {}{}", count, singular, count == 1 ? "" : "s");
}

}  // namespace

std::string Shortened(const std::string& reason) {
  return reason.size() <= kMaxReason ? reason : reason.substr(0, kMaxReason) + "…";
}

size_t Round::updates_in() const { return taken_.size(); }

int64_t Round::updates_expected() const { return policies_.trigger->target(); }

std::string Round::WaitingFor(absl::Time now) const {
  if (finished_ || phase_ != Phase::kCollecting) return "";
  const int64_t wanted = policies_.trigger->target();
  const int64_t in = static_cast<int64_t>(taken_.size());
  const int64_t training = static_cast<int64_t>(outstanding_.size());
  std::string text;
  if (training > 0) {
    absl::Time oldest = now;
    for (const auto& [client, task] : outstanding_) oldest = std::min(oldest, task.issued);
    text = fmt::format("waiting for {} more of {}: {} training (oldest {})", std::max<int64_t>(wanted - in, 0), Counted(wanted, "update"),
                       Counted(training, "client"), Age(now - oldest));
  }
  if (expected_from_nodes_ > 0) {
    if (text.empty()) text = fmt::format("waiting for {} more of {}", std::max<int64_t>(wanted - in, 0), Counted(wanted, "update"));
    text += fmt::format("{} {} from other nodes", training > 0 ? "," : ":", expected_from_nodes_);
  }
  if (in + training + expected_from_nodes_ < wanted) {
    const std::string connected = fmt::format("{} of {} connected", attached_.size(), Counted(wanted, "client"));
    if (text.empty()) {
      text = fmt::format("waiting for clients: {}", attached_.empty() ? "none" : fmt::format("{}", attached_.size()));
      text += fmt::format(" of {} connected", wanted);
      if (in > 0) text += fmt::format(", {} in", Counted(in, "update"));
    } else {
      text += ", " + connected;
    }
  }
  if (text.empty()) text = fmt::format("waiting for updates: {} of {} in", in, wanted);
  if (spec_.cohort.deadline != absl::InfiniteDuration()) {
    const absl::Time end = opened_ + spec_.cohort.deadline;
    if (now < end) {
      text += fmt::format("; deadline in {}", Age(end - now + absl::Milliseconds(999)));
    } else {
      text += fmt::format("; the deadline passed {} ago with {} of the quorum of {}", Age(now - end), in, spec_.EffectiveQuorum());
    }
  }
  if (!declined_.empty()) {
    text += "; declined: ";
    size_t shown = 0;
    for (const auto& [client, decline] : declined_) {
      if (shown == kDeclinesShown) break;
      text += fmt::format("{}{} ({})", shown++ == 0 ? "" : ", ", client, decline.reason);
    }
    if (declined_.size() > shown) text += fmt::format(" and {} more", declined_.size() - shown);
  }
  return text;
}

}  // namespace tributary::aggregator
