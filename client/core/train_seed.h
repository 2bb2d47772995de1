// Seed of everything random in one task: the same for equal (job seed, client, version), whatever happened in between, in a daemon and
// in a simulation.
#pragma once

#include <cstdint>
#include <string>

namespace tributary::client {

uint64_t TrainSeed(int64_t job_seed, const std::string& client, uint64_t version);

}  // namespace tributary::client
