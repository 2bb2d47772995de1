// The ends of lanes whose doorbells, and with skmsg-inline whose descriptors, travel as records through an endpoint's anchor. Inside this
// folder only; others open lanes through SkMsgEndpoint.
// Borrows the endpoint and the region. Thread-compatible, in the endpoint's thread. Errors: as TransportEndpoint's Open functions.
#pragma once

#include <memory>
#include <span>

#include "aggregator/transport/skmsg_endpoint.h"

namespace tributary::aggregator {

absl::StatusOr<std::unique_ptr<LaneProducer>> MakeSkMsgProducer(SkMsgEndpoint& endpoint, std::span<std::byte> region, const LaneOptions& options);
// `stray` counts records that belong to no waiting slot.
absl::StatusOr<std::unique_ptr<LaneConsumer>> MakeSkMsgConsumer(SkMsgEndpoint& endpoint, std::span<std::byte> region, const LaneOptions& options,
                                                                uint64_t* stray);

}  // namespace tributary::aggregator
