#include "aggregator/state/engine_rows.h"

#include "proto/codec.h"

namespace tributary::aggregator {

v1::Contributor ContributorRow(const RoundContributor& contributor) {
  v1::Contributor row;
  row.set_client(contributor.key.client);
  row.set_task(contributor.key.task);
  row.set_update_id(ToBytes(contributor.key.update));
  row.set_weight(contributor.weight);
  row.set_examples(contributor.examples);
  row.set_staleness(contributor.staleness);
  row.set_claimed(contributor.claimed);
  row.mutable_scalars()->insert(contributor.scalars.begin(), contributor.scalars.end());
  return row;
}

v1::ClientStateRow ParticipationRow(const std::string& client, const ClientScalars& scalars) {
  v1::ClientStateRow row;
  v1::ClientParticipation& participation = *row.mutable_participation();
  participation.set_client(client);
  participation.set_interval_sum(scalars.interval_sum);
  participation.set_interval_count(scalars.interval_count);
  participation.set_since(scalars.since);
  participation.set_claimed(scalars.claimed);
  return row;
}

}  // namespace tributary::aggregator
