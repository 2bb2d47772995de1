// A number that goes up with an update of a job whose clients keep a state: the version that counted the client's update before this one, whose
// state this one starts from; 0: it starts from none (algorithms.md §1.7). Said by the client's daemon, checked by the aggregator.
#pragma once

namespace tributary {

inline constexpr const char* kStateVersion = "state_version";  // among the update's scalars

}  // namespace tributary
