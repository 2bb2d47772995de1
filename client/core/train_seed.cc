#include "client/core/train_seed.h"

#include <fmt/format.h>

#include <cstring>
#include <span>

#include "common/digest.h"

namespace tributary::client {

uint64_t TrainSeed(int64_t job_seed, const std::string& client, uint64_t version) {
  const std::string text = fmt::format("{}|{}|{}", job_seed, client, version);
  const std::string digest = Xxh3Digest(std::as_bytes(std::span(text.data(), text.size())));
  uint64_t seed = 0;
  std::memcpy(&seed, digest.data(), sizeof(seed));
  return seed;
}

}  // namespace tributary::client
