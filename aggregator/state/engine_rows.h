// What the engine says of a commit, as the rows that keep it; the daemon and the simulator write the same ones.
// Pure. Threads: safe.
#pragma once

#include <string>

#include "aggregator/core/client_table.h"
#include "aggregator/core/contribution.h"
#include "tributary/v1/store.pb.h"

namespace tributary::aggregator {

v1::Contributor ContributorRow(const RoundContributor& contributor);
v1::ClientStateRow ParticipationRow(const std::string& client, const ClientScalars& scalars);

}  // namespace tributary::aggregator
