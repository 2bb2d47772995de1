#include "aggregator/state/engine_rows.h"

#include <limits>

#include "proto/codec.h"
#include "proto/moe_codec.h"

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
  if (!contributor.moe.empty()) *row.mutable_moe() = MoeStatsToProto(contributor.moe);
  return row;
}

v1::Contributor CommittedRow(const RoundContributor& contributor, bool recorded) {
  v1::Contributor row = ContributorRow(contributor);
  row.mutable_scalars()->erase(kWithinClip);
  if (!recorded) row.clear_moe();
  return row;
}

v1::PrivacySpend PrivacyRow(const JobPrivacy& privacy, uint64_t version, double clip) {
  const PrivacySpend spend = privacy.SpendAfter(version);
  const JobSpec& spec = privacy.spec();
  v1::PrivacySpend out;
  out.set_epsilon(spend.epsilon());
  out.set_delta(spec.privacy.delta);
  out.set_epsilon_rdp(spend.rdp);
  out.set_epsilon_pld(spend.pld.value_or(std::numeric_limits<double>::quiet_NaN()));
  out.set_epsilon_budget(spec.privacy.epsilon_budget);
  out.set_noise_multiplier(spec.privacy.noise_multiplier);
  out.set_clip(clip);
  out.set_sampling(std::string(SamplingEventName(privacy.event().sampling)));
  out.set_sample_rate(privacy.event().sample_rate);
  out.set_adjacency(spec.privacy.replace ? "replace" : "add_remove");
  out.set_placement(std::string(NoisePlacementName(spec.privacy.placement)));
  out.set_insecure_seed(spec.privacy.insecure_seed);
  return out;
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
