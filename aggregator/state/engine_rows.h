// What the engine says of a commit, as the rows that keep it; the daemon and the simulator write the same ones.
// Pure. Threads: safe.
#pragma once

#include <string>

#include "aggregator/core/client_table.h"
#include "aggregator/core/contribution.h"
#include "aggregator/core/privacy/job_privacy.h"
#include "tributary/v1/store.pb.h"

namespace tributary::aggregator {

v1::Contributor ContributorRow(const RoundContributor& contributor);
// The same for a version. Statistics of experts stay where updates are recorded, for replay; whose update was within the clip is not kept, the version's clip tells how many were, with noise.
v1::Contributor CommittedRow(const RoundContributor& contributor, bool recorded);
// `clip`: of updates that start from this version.
v1::PrivacySpend PrivacyRow(const JobPrivacy& privacy, uint64_t version, double clip);
v1::ClientStateRow ParticipationRow(const std::string& client, const ClientScalars& scalars);

}  // namespace tributary::aggregator
