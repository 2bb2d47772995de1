#include "common/suggest.h"

#include <algorithm>
#include <vector>

#include "common/status.h"

namespace tributary {
namespace {

// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours each cost 1.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), previous(b.size() + 1), current(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) current[j] = std::min(current[j], before[j - 2] + 1);
    }
    std::swap(before, previous);
    std::swap(previous, current);
  }
  return previous[b.size()];
}

}  // namespace

std::string NearestOf(std::string_view word, std::span<const std::string> known) {
  // Longer words are nobody's typing error, and the cost is quadratic.
  if (word.empty() || word.size() > 128) return "";
  const size_t allowed = std::max<size_t>(2, word.size() / 3);
  size_t best = allowed + 1;
  std::string nearest;
  for (const std::string& candidate : known) {
    const size_t longer = std::max(candidate.size(), word.size());
    if (longer - std::min(candidate.size(), word.size()) > allowed) continue;
    const size_t distance = Distance(word, candidate);
    // A "correction" that keeps no letter is none: 'x' is not near 'lr'.
    if (distance < best && distance < longer) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string DidYouMean(std::string_view word, std::span<const std::string> known) {
  const std::string nearest = NearestOf(word, known);
  return nearest.empty() ? "" : fmt::format(" (did you mean '{}'?)", nearest);
}

}  // namespace tributary
