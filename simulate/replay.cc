#include "simulate/replay.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "aggregator/core/round.h"
#include "common/digest.h"
#include "proto/codec.h"
#include "proto/moe_codec.h"
#include "simulate/commit_maker.h"

namespace tributary::simulate {
namespace {

using aggregator::RoundContributor;
using aggregator::Strategy;

// Task ids of the record lie below this epoch: the engine takes their updates as those of before a restart.
constexpr uint64_t kReplayEpoch = uint64_t{1} << 31;

class Replayer {
 public:
  Replayer(const aggregator::StateStore& store, std::string job, JobSpec spec, std::unique_ptr<Strategy> strategy, TensorLayout layout)
      : store_(store), job_(std::move(job)), spec_(std::move(spec)), strategy_(std::move(strategy)), layout_(std::move(layout)) {}

  absl::StatusOr<ReplayResult> Run() {
    auto first = std::make_shared<std::vector<std::byte>>(layout_.total_bytes());
    TRIB_RETURN_IF_ERROR(store_.ReadTensors(job_, 0, *first, /*verify=*/true));
    model_ = std::move(first);
    TRIB_ASSIGN_OR_RETURN(maker_, CommitMaker::Make(spec_, *strategy_, layout_, *model_));
    TRIB_ASSIGN_OR_RETURN(const std::vector<v1::VersionRow> versions, store_.ListVersions(job_));
    spec_.stop = {.versions = static_cast<int64_t>(versions.size()) + 1'000'000, .accuracy = 0};  // it ends with the record
    aggregator::RoundOptions options;
    options.epoch = kReplayEpoch;
    options.recorded = true;
    round_.emplace(spec_, *strategy_, std::move(options), now_);
    TRIB_RETURN_IF_ERROR(FindClients(versions));
    for (const v1::VersionRow& row : versions) {
      recorded_[row.info().version()] = row.info().sha256();
      began_anew_.insert(row.info().state_epoch());
      if (row.info().version() > 0) TRIB_RETURN_IF_ERROR(Fold(row));
    }
    for (ReplayedVersion& version : result_.versions) version.recorded_sha256 = recorded_[version.version];
    result_.strategy = spec_.strategy;
    result_.model = {.layout = layout_, .bytes = *model_};
    return std::move(result_);
  }

 private:
  // Everybody, in the order in which they first contributed; those that never did come last.
  absl::Status FindClients(const std::vector<v1::VersionRow>& versions) {
    const auto add = [&](const std::string& client) {
      if (known_.insert(client).second) to_register_.push_back(client);
    };
    for (const v1::VersionRow& row : versions) {
      for (const v1::Contributor& contributor : row.info().contributors()) add(contributor.client());
    }
    TRIB_ASSIGN_OR_RETURN(const std::vector<v1::ClientStateRow> rows, store_.ListClientState(job_));
    for (const v1::ClientStateRow& row : rows) add(row.participation().client());
    return absl::OkStatus();
  }

  // As many as the job had seen by then; all, if the record does not say.
  absl::Status RegisterFor(const v1::VersionRow& row) {
    aggregator::ClientsRegistered event;
    const uint64_t wanted = row.registered() == 0 ? known_.size() : row.registered();
    while (!to_register_.empty() && registered_ < wanted) {
      event.clients.push_back(std::move(to_register_.front()));
      to_register_.pop_front();
      ++registered_;
    }
    return event.clients.empty() ? absl::OkStatus() : Post(std::move(event));
  }

  absl::Status Fold(const v1::VersionRow& row) {
    now_ = absl::UnixEpoch() + absl::Nanoseconds(row.since_start_ns());
    TRIB_RETURN_IF_ERROR(RegisterFor(row));
    const auto& contributors = row.info().contributors();
    if (strategy_->synchronous()) {
      if (contributors.empty()) return Post(aggregator::RoundSkipped{});
      CohortSpec cohort = spec_.cohort;
      cohort.size = contributors.size();
      cohort.quorum = 0;
      TRIB_RETURN_IF_ERROR(Post(aggregator::CohortChanged{cohort}));
    }
    for (const v1::Contributor& contributor : contributors) TRIB_RETURN_IF_ERROR(Arrive(contributor));
    return strategy_->synchronous() ? absl::OkStatus() : Post(aggregator::Tick{});
  }

  absl::Status Arrive(const v1::Contributor& row) {
    TRIB_ASSIGN_OR_RETURN(const UpdateId id, UpdateIdFromBytes(row.update_id()));
    absl::StatusOr<std::vector<std::byte>> stored = store_.GetRecord(job_, id);
    if (absl::IsNotFound(stored.status())) {
      return FailedPrecondition("job '{}': update {} of client '{}' was not kept; a job with `record: true` keeps them", job_, ToHex(id), row.client());
    }
    if (!stored.ok()) return stored.status();
    std::vector<std::byte>& payload = *stored;
    if (maker_->live() != nullptr) {
      TRIB_ASSIGN_OR_RETURN(const LargeBytes all, maker_->live()->Unpack(*model_, payload));
      payload.assign(all.begin(), all.end());
    }
    if (payload.size() != maker_->encoding().total_bytes()) {
      return InvalidArgument("job '{}': its updates have {} bytes, those of strategy '{}' have {}", job_, payload.size(), spec_.strategy.name,
                             maker_->encoding().total_bytes());
    }
    const uint64_t staleness = strategy_->synchronous() ? 0 : std::min(row.staleness(), round_->version());
    aggregator::UpdateArrived arrived{.key = {.client = row.client(), .task = row.task(), .update = id},
                                      .version = round_->version() - staleness,
                                      .weight = row.claimed(),
                                      .examples = row.examples()};
    for (const aggregator::ScalarInfo& scalar : strategy_->scalars()) {
      const auto at = row.scalars().find(scalar.name);
      if (at != row.scalars().end()) arrived.scalars.emplace(scalar.name, at->second);
    }
    TRIB_ASSIGN_OR_RETURN(arrived.moe, MoeStatsFromProto(row.moe()));
    TRIB_ASSIGN_OR_RETURN(const CommitMaker::Checked checked, maker_->Check(payload, arrived.moe, &arrived.scalars));
    payloads_[id] = {.bytes = std::make_shared<const std::vector<std::byte>>(*std::move(stored)), .scan = checked.scan, .moe = arrived.moe};
    return Post(std::move(arrived));
  }

  absl::Status Post(aggregator::RoundEvent event) {
    posted_.push_back(std::move(event));
    if (applying_) return absl::OkStatus();
    applying_ = true;
    absl::Status status;
    while (!posted_.empty() && status.ok()) {
      const aggregator::RoundEvent next = std::move(posted_.front());
      posted_.pop_front();
      for (const aggregator::RoundAction& action : round_->OnEvent(next, now_)) {
        status = Do(action);
        if (!status.ok()) break;
      }
    }
    applying_ = false;
    return status;
  }

  absl::Status Do(const aggregator::RoundAction& action) {
    if (const auto* fold = std::get_if<aggregator::Fold>(&action)) {
      const auto& [bytes, scan, moe] = payloads_.at(fold->key.update);
      TRIB_RETURN_IF_ERROR(maker_->Fold(fold->key, fold->weight, *bytes, moe, bytes, scan));
      payloads_.erase(fold->key.update);
      return Post(aggregator::UpdateFolded{fold->key.update});
    }
    if (const auto* refuse = std::get_if<aggregator::Refuse>(&action)) {
      if (result_.refused++ == 0) result_.why_refused = refuse->reason;
      payloads_.erase(refuse->key.update);
      return absl::OkStatus();
    }
    if (const auto* commit = std::get_if<aggregator::Commit>(&action)) return Make(*commit);
    return absl::OkStatus();  // nobody is asked to train or to evaluate
  }

  absl::Status Make(const aggregator::Commit& commit) {
    std::vector<std::byte> base;
    if (strategy_->server_step().needs_base() && !commit.contributors.empty()) {
      base.resize(layout_.total_bytes());
      TRIB_RETURN_IF_ERROR(store_.ReadTensors(job_, commit.version - 1 - commit.contributors[0].staleness, base, /*verify=*/true));
    }
    // Only to a strategy whose vectors are sums over the clients' states is it of any concern.
    const bool anew = strategy_->client_state() == aggregator::ClientStateKind::kShared && began_anew_.contains(commit.version);
    TRIB_ASSIGN_OR_RETURN(model_, maker_->NextModel(commit, model_, base, anew));
    result_.versions.push_back({.version = commit.version, .sha256 = Sha256Hex(*model_), .recorded_sha256 = "", .updates = commit.contributors.size()});
    return Post(aggregator::VersionCommitted{commit.version});
  }

  const aggregator::StateStore& store_;
  const std::string job_;
  JobSpec spec_;
  const std::unique_ptr<Strategy> strategy_;
  const TensorLayout layout_;
  absl::Time now_ = absl::UnixEpoch();
  std::optional<aggregator::Round> round_;
  std::deque<aggregator::RoundEvent> posted_;
  bool applying_ = false;
  ModelRef model_;
  std::unique_ptr<CommitMaker> maker_;
  std::set<std::string> known_;                           // clients of the record
  std::deque<std::string> to_register_;
  uint64_t registered_ = 0;
  struct Payload {
    std::shared_ptr<const std::vector<std::byte>> bytes;
    aggregator::ScanResult scan;
    MoeStats moe;
  };
  std::map<UpdateId, Payload> payloads_;                  // arrived, not folded yet
  std::map<uint64_t, std::string> recorded_;              // hashes, by version
  std::set<uint64_t> began_anew_;                         // versions from which all clients' states began, since one was lost
  ReplayResult result_;
};

}  // namespace

absl::StatusOr<ReplayResult> Replay(const aggregator::StateStore& store, const std::string& job, const std::optional<StrategySpec>& strategy) {
  TRIB_ASSIGN_OR_RETURN(const v1::JobRow row, store.GetJob(job));
  TRIB_ASSIGN_OR_RETURN(JobSpec spec, ParseJobSpec(row.spec_yaml(), fmt::format("job '{}'", job)));
  TRIB_ASSIGN_OR_RETURN(TensorLayout layout, LayoutFromProto(row.layout()));
  if (!spec.record) return FailedPrecondition("job '{}' was not recorded: a job with `record: true` keeps its updates", job);
  if (strategy) spec.strategy = *strategy;
  auto made = aggregator::StrategyOf(spec);
  if (!made.ok()) return InvalidArgument("strategy: {}", MessageOf(made.status()));
  return Replayer(store, job, std::move(spec), *std::move(made), std::move(layout)).Run();
}

}  // namespace tributary::simulate
