#include "simulate/recorder.h"

#include <utility>

#include "aggregator/state/engine_rows.h"
#include "common/clock.h"
#include "common/digest.h"
#include "proto/codec.h"
#include "proto/moe_codec.h"

namespace tributary::simulate {

absl::StatusOr<Recorder> Recorder::Begin(aggregator::StateStore* store, const std::string& id, const JobSpec& spec, const TensorLayout& layout,
                                         const std::string& artifact, std::span<const std::byte> model, const std::string& sha256,
                                         const std::optional<v1::PrivacySpend>& privacy) {
  if (store->GetJob(id).ok()) return AlreadyExists("the store has a job '{}'", id);
  Recorder recorder(store);
  v1::JobRow& row = recorder.row_;
  row.set_format_version(1);
  row.set_id(id);
  row.set_spec_yaml(CanonicalYaml(spec));
  row.set_spec_sha256(Sha256Hex(std::as_bytes(std::span(row.spec_yaml()))));
  *row.mutable_layout() = LayoutToProto(layout);
  row.set_state(v1::JOB_STATE_RUNNING);
  row.set_submitted_us(WallMicros());
  if (!artifact.empty()) {
    row.set_artifact_sha256(Sha256Hex(std::as_bytes(std::span(artifact))));
    TRIB_RETURN_IF_ERROR(store->PutArtifact(id, artifact));
  }
  aggregator::VersionCommit commit;
  commit.job = row;
  commit.tensors = model;
  commit.version.set_format_version(1);
  v1::VersionInfo& info = *commit.version.mutable_info();
  info.set_job(id);
  info.set_sha256(sha256);
  info.set_bytes(model.size());
  info.set_committed_us(row.submitted_us());
  info.set_trigger("submitted");
  if (privacy) *info.mutable_privacy() = *privacy;
  info.set_epoch(store->epoch());
  TRIB_RETURN_IF_ERROR(store->CommitVersion(std::move(commit)));
  recorder.parent_sha256_ = sha256;
  return recorder;
}

absl::Status Recorder::Commit(const Version& version) {
  const aggregator::Commit& commit = *version.commit;
  row_.set_updates_committed(row_.updates_committed() + commit.contributors.size());
  aggregator::VersionCommit batch;
  batch.job = row_;
  batch.tensors = version.model;
  for (const auto& [name, values] : version.state->vectors) batch.strategy_state.push_back({name, values});
  batch.version.set_format_version(1);
  batch.version.set_registered(static_cast<uint64_t>(commit.registered));
  batch.version.set_since_start_ns(absl::ToInt64Nanoseconds(commit.since_start));
  v1::VersionInfo& info = *batch.version.mutable_info();
  info.set_job(row_.id());
  info.set_version(commit.version);
  info.set_sha256(version.sha256);
  info.set_parent_sha256(parent_sha256_);
  info.set_bytes(version.model.size());
  info.set_committed_us(MicrosAt(version.now_ns));
  info.set_trigger(commit.trigger);
  if (version.privacy) *info.mutable_privacy() = *version.privacy;
  info.mutable_measured()->insert(version.measured.begin(), version.measured.end());
  if (version.moe != nullptr && version.moe->step > 0) *info.mutable_moe() = GlobalMoeToProto(*version.moe);
  info.set_epoch(store_->epoch());
  for (const auto& vector : batch.strategy_state) info.add_strategy_state(vector.name);
  for (const aggregator::RoundContributor& contributor : commit.contributors) {
    *info.add_contributors() = aggregator::CommittedRow(contributor, version.updates != nullptr);
    v1::UpdateRow update;
    update.set_format_version(1);
    update.set_version(commit.version);
    if (version.updates != nullptr) {
      const LargeBytes& payload = *version.updates->at(contributor.key.update);
      TRIB_RETURN_IF_ERROR(store_->PutRecord(row_.id(), contributor.key.update, payload));
      update.set_xxh3_128(Xxh3Digest(payload));
    }
    batch.updates.emplace_back(contributor.key.update, std::move(update));
  }
  for (const auto& [client, scalars] : commit.client_changes) batch.client_state.push_back(aggregator::ParticipationRow(client, scalars));
  batch.client_vectors = version.client_vectors;
  v1::RoundTiming& timing = *batch.version.mutable_timing();
  timing.set_version(commit.version);
  timing.set_updates(commit.contributors.size());
  TRIB_RETURN_IF_ERROR(store_->CommitVersion(std::move(batch)));
  parent_sha256_ = version.sha256;
  return absl::OkStatus();
}

absl::Status Recorder::End(const Totals& totals) {
  row_.set_state(totals.state);
  row_.set_state_reason(totals.reason);
  row_.set_finished_us(MicrosAt(totals.now_ns));
  row_.set_bytes_up(totals.bytes_up);
  row_.set_bytes_down(totals.bytes_down);
  row_.mutable_updates_rejected()->insert(totals.rejected.begin(), totals.rejected.end());
  return store_->PutJob(row_);
}

}  // namespace tributary::simulate
