// Any bytes as a key or a row of the state store: refused with DATA_LOSS or FAILED_PRECONDITION, or read into a row that is
// written and read again as the same bytes. First byte: which row; the rest: its value, and a key.
#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <string_view>

#include "aggregator/state/keys.h"
#include "aggregator/state/rows.h"
#include "common/check.h"

namespace {

using namespace tributary;
using namespace tributary::aggregator;

template <typename Row>
void TryRow(std::string_view bytes) {
  const auto row = DecodeRow<Row>(bytes, "row");
  if (!row.ok()) {
    TRIB_CHECK(absl::IsDataLoss(row.status()) || absl::IsFailedPrecondition(row.status()), "{}", row.status().ToString());
    return;
  }
  const std::string written = EncodeRow(*row);
  const auto again = DecodeRow<Row>(written, "row");
  TRIB_CHECK(again.ok(), "{}", again.status().ToString());
  TRIB_CHECK(EncodeRow(*again).size() == written.size(), "a row changed by being written");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // protobuf prints a line for each string that is not UTF-8.
  [[maybe_unused]] static auto* const quiet = google::protobuf::SetLogHandler(nullptr);
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 9) {
    case 0: TryRow<v1::MetaRow>(bytes); break;
    case 1: TryRow<v1::JobRow>(bytes); break;
    case 2: TryRow<v1::VersionRow>(bytes); break;
    case 3: TryRow<v1::UpdateRow>(bytes); break;
    case 4: TryRow<v1::ClientRow>(bytes); break;
    case 5: TryRow<v1::MetricRow>(bytes); break;
    case 6: TryRow<v1::EventRow>(bytes); break;
    case 7: TryRow<v1::PartialRow>(bytes); break;
    default: TryRow<v1::ArtifactRow>(bytes); break;
  }
  if (const auto shard = keys::ParseShard(bytes)) {
    TRIB_CHECK(bytes.starts_with(keys::Payload(shard->owner, shard->job, shard->number)), "a shard's key changed");
  }
  if (const auto version = keys::ParseVersion(bytes)) {
    TRIB_CHECK(bytes == keys::Version(version->first, version->second), "a version's key changed");
  }
  if (const auto event = keys::ParseEvent(bytes)) TRIB_CHECK(bytes == keys::Event(event->first, event->second), "an event's key changed");
  if (const auto update = keys::ParseUpdate(bytes)) TRIB_CHECK(bytes == keys::Update(update->first, update->second), "an update's key changed");
  return 0;
}
