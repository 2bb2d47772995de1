#include "aggregator/core/client_table.h"

#include <cmath>

namespace tributary::aggregator {

ClientScalars BeforeRound(const ClientScalars& client, uint64_t round, double cutoff) {
  ClientScalars now = client;
  const double missed = static_cast<double>(round) - 1 - client.since;
  if (!(missed >= cutoff)) return now;  // with no cutoff: never
  const double closed = std::floor(missed / cutoff);
  now.interval_sum += closed * cutoff;
  now.interval_count += closed;
  now.since += closed * cutoff;
  return now;
}

double MeanInterval(const ClientScalars& client) { return client.interval_count == 0 ? 1.0 : client.interval_sum / client.interval_count; }

ClientScalars AfterContribution(const ClientScalars& client, uint64_t round, double cutoff, double claimed) {
  ClientScalars now = BeforeRound(client, round, cutoff);
  now.interval_sum += static_cast<double>(round) - now.since;
  now.interval_count += 1;
  now.since = static_cast<double>(round);
  now.claimed = claimed;
  return now;
}

uint64_t StateVersionOf(const ClientScalars& client, uint64_t epoch) {
  const auto version = static_cast<uint64_t>(client.since);
  return version > epoch ? version : 0;
}

bool ClientTable::Register(const std::string& client) { return rows_.try_emplace(client).second; }

void ClientTable::Put(const std::string& client, const ClientScalars& scalars) {
  ClientScalars& row = rows_[client];
  claimed_sum_ += scalars.claimed - row.claimed;
  claimed_count_ += (scalars.claimed > 0 ? 1 : 0) - (row.claimed > 0 ? 1 : 0);
  row = scalars;
}

ClientScalars ClientTable::Find(const std::string& client) const {
  const auto at = rows_.find(client);
  return at == rows_.end() ? ClientScalars() : at->second;
}

double ClientTable::MeanClaimed(const std::string& client, double fresh) const {
  const double former = Find(client).claimed;
  const int64_t count = claimed_count_ + (former > 0 ? 0 : 1);
  return (claimed_sum_ - former + fresh) / static_cast<double>(count);
}

}  // namespace tributary::aggregator
