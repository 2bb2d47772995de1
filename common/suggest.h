// "Did you mean": the nearest of `known` to `word` by Damerau-Levenshtein distance, or "" when none is near (more than a
// third of the word's length, at least 2). Ties go to the first. Pure.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tributary {
std::string NearestOf(std::string_view word, std::span<const std::string> known);
// " (did you mean 'x'?)" or "": ready to end an error message.
std::string DidYouMean(std::string_view word, std::span<const std::string> known);
}  // namespace tributary
