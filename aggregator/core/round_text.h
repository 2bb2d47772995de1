// What people read of a round.
#pragma once

#include <string>

namespace tributary::aggregator {

// Reasons come from clients; what people read stays short.
std::string Shortened(const std::string& reason);

}  // namespace tributary::aggregator
