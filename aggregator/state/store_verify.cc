// The audit: what each row claims against what is there. Reads everything once, one shard in memory at a time.
#include "aggregator/state/rocks_store.h"
#include "common/digest.h"

namespace tributary::aggregator {

class Auditor {
 public:
  Auditor(const RocksStateStore& store, const std::function<void(const std::string&)>& progress) : store_(store), progress_(progress) {}

  absl::StatusOr<std::vector<std::string>> Run() && {
    TRIB_ASSIGN_OR_RETURN(const std::vector<v1::JobRow> jobs, store_.ListJobs());
    for (const v1::JobRow& job : jobs) {
      CheckVersions(job);
      CheckUpdates(job.id());
      CheckRecords(job.id());
      CheckPartial(job.id());
      CheckArtifact(job);
    }
    CheckOwners(jobs);
    return std::move(findings_);
  }

 private:
  void Find(std::string text) { findings_.push_back(std::move(text)); }
  // True when OK; an error is a finding, a missing row is one when `required`.
  bool Sound(const absl::Status& status, bool required = true) {
    if (!status.ok() && (required || !absl::IsNotFound(status))) Find(MessageOf(status));
    return status.ok();
  }

  void CheckVersions(const v1::JobRow& job) {
    counted_.clear();
    versions_.clear();
    std::string parent;
    std::optional<uint64_t> last;
    // Key by key, so that one damaged row does not hide the others.
    const absl::Status scanned = store_.Scan(
        kVersions, keys::JobPrefix(keys::kVersion, job.id()), [&](std::string_view key, std::string_view value) -> absl::Status {
          const auto parsed = keys::ParseVersion(key);
          if (!parsed) {
            Find(fmt::format("job '{}': a version row has a malformed key", job.id()));
            return absl::OkStatus();
          }
          const std::string what = fmt::format("job '{}' version {}", job.id(), parsed->second);
          if (progress_) progress_(what);
          if (last && parsed->second != *last + 1) Find(fmt::format("{}: the version before it is {}", what, *last));
          const auto row = DecodeRow<v1::VersionRow>(value, what);
          const bool follows = last.has_value();
          last = parsed->second;
          if (!Sound(row.status())) {
            parent.clear();
            return absl::OkStatus();
          }
          CheckVersion(job, *row, parsed->second, what);
          if (follows && !parent.empty() && row->info().parent_sha256() != parent) {
            Find(fmt::format("{}: names the parent {}, the version before it is {}", what, row->info().parent_sha256(), parent));
          }
          parent = row->info().sha256();
          return absl::OkStatus();
        });
    Sound(scanned);
  }

  void CheckTensors(const v1::JobRow& job, const v1::VersionRow& row, uint64_t version, const std::string& what) {
    Sha256 sha256;
    const absl::Status read = store_.payloads_->ReadPiece(store_.family(kVersions), row.bulk(),
                                                          keys::Payload(keys::Owner::kVersion, job.id(), version), 0, row.info().bytes(),
                                                          row.shard_bytes(), what, [&](std::span<const std::byte> shard) {
                                                            sha256.Update(shard);
                                                            return absl::OkStatus();
                                                          });
    if (Sound(read)) {
      const std::string got = sha256.HexDigest();
      if (got != row.info().sha256()) Find(fmt::format("{}: expected SHA-256 {}, got {}", what, row.info().sha256(), got));
    }
    Sound(store_.ReadStrategyState(job.id(), version).status());
  }

  void CheckVersion(const v1::JobRow& job, const v1::VersionRow& row, uint64_t version, const std::string& what) {
    if (row.info().version() != version || row.info().job() != job.id()) {
      Find(fmt::format("{}: the row says job '{}' version {}", what, row.info().job(), row.info().version()));
    }
    versions_.insert(version);
    if (row.info().pruned_us() == 0) CheckTensors(job, row, version, what);
    for (const v1::Contributor& contributor : row.info().contributors()) {
      const auto id = UpdateIdFromBytes(contributor.update_id());
      if (!Sound(Annotate(id.status(), what + ": contributor '" + contributor.client() + "'"))) continue;
      const auto [place, fresh] = counted_.emplace(*id, version);
      if (!fresh) Find(fmt::format("{}: update {} is counted in version {} already", what, ToHex(*id), place->second));
      if (row.dedupe_expired_us() != 0) continue;
      const auto dedupe = store_.GetUpdate(job.id(), *id);
      if (!dedupe.ok()) {
        Find(fmt::format("{}: update {} of client '{}' has no dedupe row: {}", what, ToHex(*id), contributor.client(),
                         MessageOf(dedupe.status())));
      } else if (dedupe->version() != version) {
        Find(fmt::format("{}: the dedupe row of update {} says version {}", what, ToHex(*id), dedupe->version()));
      }
    }
  }

  void CheckRecords(const std::string& job) {
    const auto ids = store_.ListRecords(job);
    if (!Sound(ids.status())) return;
    for (const UpdateId& id : *ids) Sound(store_.GetRecord(job, id).status());
  }

  void CheckUpdates(const std::string& job) {
    const absl::Status scanned = store_.Scan(
        kUpdates, keys::JobPrefix(std::nullopt, job), [&](std::string_view key, std::string_view value) -> absl::Status {
          const auto parsed = keys::ParseUpdate(key);
          if (!parsed) {
            Find(fmt::format("job '{}': a dedupe row has a malformed key", job));
            return absl::OkStatus();
          }
          const std::string what = fmt::format("job '{}' update {}", job, ToHex(parsed->second));
          const auto row = DecodeRow<v1::UpdateRow>(value, what);
          if (Sound(row.status()) && !counted_.contains(parsed->second)) {
            Find(fmt::format("{}: its dedupe row says version {}, which {}", what, row->version(),
                             versions_.contains(row->version()) ? "does not list it" : "does not exist"));
          }
          return absl::OkStatus();
        });
    Sound(scanned);
  }

  void CheckPartial(const std::string& job) {
    const auto partial = store_.GetPartial(job);
    if (!Sound(partial.status(), /*required=*/false)) return;
    for (const v1::Contributor& contributor : partial->row.contributors()) {
      const auto id = UpdateIdFromBytes(contributor.update_id());
      if (!Sound(Annotate(id.status(), fmt::format("partial of job '{}'", job)))) continue;
      const auto counted = counted_.find(*id);
      if (counted != counted_.end()) {
        Find(fmt::format("partial of job '{}': update {} is counted in version {} already", job, ToHex(*id), counted->second));
      }
    }
  }

  void CheckArtifact(const v1::JobRow& job) {
    const auto artifact = store_.GetArtifact(job.id());
    if (!Sound(artifact.status(), /*required=*/!job.artifact_sha256().empty())) return;
    if (!job.artifact_sha256().empty() && Sha256Hex(std::as_bytes(std::span(*artifact))) != job.artifact_sha256()) {
      Find(fmt::format("job '{}': its artifact is not the one it names ({})", job.id(), job.artifact_sha256()));
    }
  }

  // Versions of jobs that are not there, bulk files that no row names.
  void CheckOwners(const std::vector<v1::JobRow>& jobs) {
    std::set<std::string> known;
    for (const v1::JobRow& job : jobs) known.insert(job.id());
    std::set<std::string> strangers;
    Sound(store_.Scan(kVersions, std::string(1, keys::kVersion), [&](std::string_view key, std::string_view) -> absl::Status {
      const auto parsed = keys::ParseVersion(key);
      if (!parsed || !known.contains(parsed->first)) strangers.insert(parsed ? parsed->first : "?");
      return absl::OkStatus();
    }));
    for (const std::string& job : strangers) Find(fmt::format("job '{}': has versions but no job row", job));
    if (store_.options_.mode == StateStore::Mode::kReadOnly) return;   // a crash's orphans are swept by the next writer
    for (const auto& file : store_.payloads_->ListBulk()) {
      if (file.payload && store_.PayloadIsNamed(*file.payload)) continue;
      Find(fmt::format("bulk family: a file of {} bytes belongs to no row ({})", file.bytes,
                       file.payload ? fmt::format("job '{}', number {}", file.payload->job, file.payload->number) : "unknown key"));
    }
  }

  const RocksStateStore& store_;
  const std::function<void(const std::string&)>& progress_;
  std::vector<std::string> findings_;
  std::map<UpdateId, uint64_t> counted_;   // of the job being checked: update, version
  std::set<uint64_t> versions_;
};

absl::StatusOr<std::vector<std::string>> RocksStateStore::Verify(const std::function<void(const std::string&)>& progress) const {
  return Auditor(*this, progress).Run();
}

}  // namespace tributary::aggregator
