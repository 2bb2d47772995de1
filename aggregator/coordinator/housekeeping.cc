#include "aggregator/coordinator/housekeeping.h"

#include <algorithm>

namespace tributary::aggregator {
namespace {

constexpr int kVersionsACall = 16;

}  // namespace

absl::StatusOr<bool> Housekeeping::Tidy(const std::string& job, const std::function<bool(uint64_t base)>& too_stale, int64_t now_us) {
  const absl::StatusOr<uint64_t> latest = store_->LatestVersion(job);
  if (absl::IsNotFound(latest.status())) return false;
  if (!latest.ok()) return latest.status();
  auto at = progress_.find(job);
  if (at == progress_.end()) {
    TRIB_ASSIGN_OR_RETURN(const uint64_t first, store_->FirstVersion(job));
    at = progress_.emplace(job, Progress{first, first, first}).first;
  }
  TRIB_ASSIGN_OR_RETURN(const bool more_tensors, TidyTensors(job, *latest, at->second, now_us));
  TRIB_ASSIGN_OR_RETURN(const bool more_updates, TidyUpdates(job, *latest, at->second, too_stale, now_us));
  return more_tensors || more_updates;
}

absl::StatusOr<bool> Housekeeping::TidyTensors(const std::string& job, uint64_t latest, Progress& at, int64_t now_us) {
  if (options_.newest == 0) return false;
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow newest, store_->GetVersion(job, latest));
  for (int done = 0; at.tensors + options_.newest <= latest; ++at.tensors) {
    if (KeepsTensors(options_, at.tensors, at.first, latest)) continue;
    if (at.tensors == newest.info().state_epoch()) continue;  // clients that come late begin from it
    if (done++ == kVersionsACall) return true;
    TRIB_RETURN_IF_ERROR(store_->DropTensors(job, at.tensors, now_us));
  }
  return false;
}

absl::StatusOr<bool> Housekeeping::TidyUpdates(const std::string& job, uint64_t latest, Progress& at,
                                               const std::function<bool(uint64_t base)>& too_stale, int64_t now_us) {
  for (int done = 0; at.updates <= latest; ++at.updates) {
    if (done++ == kVersionsACall) return true;
    TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, store_->GetVersion(job, at.updates));
    if (row.dedupe_expired_us() != 0 || row.info().contributors().empty()) continue;
    if (now_us - row.info().committed_us() < absl::ToInt64Microseconds(options_.dedupe_rows)) return false;
    // An update of version v that is s commits stale was made from v - 1 - s.
    const bool needed = std::any_of(row.info().contributors().begin(), row.info().contributors().end(), [&](const v1::Contributor& contributor) {
      return !too_stale(at.updates - std::min(at.updates, contributor.staleness() + 1));
    });
    if (needed) return false;
    TRIB_RETURN_IF_ERROR(store_->ExpireUpdates(job, at.updates, now_us));
  }
  return false;
}

}  // namespace tributary::aggregator
