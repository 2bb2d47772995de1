// The commit thread: server step, SHA-256, the synced batch; and between commits the journalled partials of durable jobs.
#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "aggregator/core/privacy/noisy_sums.h"
#include "aggregator/state/engine_rows.h"
#include "common/clock.h"
#include "common/crash_points.h"
#include "common/digest.h"
#include "common/log.h"
#include "proto/moe_codec.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kCommitRetry = absl::Seconds(1);
constexpr absl::Duration kJournalRetry = absl::Seconds(10);
constexpr int kJournalShare = 9;  // pause at least this many times the time a journal took: at most 10 % of the time
constexpr absl::Duration kTidyEvery = absl::Hours(1);

v1::EventRow LostState(const std::string& client, bool anew, const v1::VersionInfo& version) {
  v1::EventRow event;
  event.set_format_version(1);
  event.set_at_us(version.committed_us());
  event.set_kind("client_state_lost");
  event.set_client(client);
  event.set_text(anew ? fmt::format("client '{}' has lost its state: all clients begin anew from version {}", client, version.version())
                      : fmt::format("client '{}' has lost its state and begins anew", client));
  TRIB_LOG(warn, "job {}: {}", version.job(), event.text());
  return event;
}

// The contributors' updates, which lie in the pool. `unpacked` holds those that travelled without the triplets that are out.
absl::Status ReadWhole(const JobRuntime& runtime, const ModelRef& previous, std::span<const RoundContributor> contributors, std::span<const ObjectKey> kept,
                       std::deque<LargeBytes>* unpacked, std::vector<WholeUpdate>* whole) {
  if (kept.size() != contributors.size()) return Internal("{} of {} updates are kept", kept.size(), contributors.size());
  const size_t each = runtime.UpdateBytes(previous);
  for (size_t i = 0; i < kept.size(); ++i) {
    TRIB_ASSIGN_OR_RETURN(std::span<const std::byte> bytes, runtime.pool->Read(kept[i]));
    bytes = bytes.first(each);
    if (runtime.live != nullptr && previous != nullptr) {
      TRIB_ASSIGN_OR_RETURN(LargeBytes all, runtime.live->Unpack(previous->bytes(), bytes));
      bytes = unpacked->emplace_back(std::move(all));
    }
    whole->push_back({.client = contributors[i].key.client, .flat = bytes, .weight = contributors[i].weight});
  }
  return absl::OkStatus();
}

// What the commit makes of its contributors' experts, in the model that the server step has made.
absl::Status StepExperts(const MoeState& state, std::span<const RoundContributor> contributors, std::span<std::byte> model, v1::GlobalMoe* moe,
                         std::map<std::string, double>* measured) {
  TRIB_ASSIGN_OR_RETURN(const GlobalMoe before, GlobalMoeFromProto(*moe));
  const GlobalMoe next = state.Next(before, contributors);
  if (next.step > before.step) TRIB_RETURN_IF_ERROR(state.MoveBiases(next.step, contributors, model));
  state.Measure(contributors, measured);
  *moe = GlobalMoeToProto(next);
  return absl::OkStatus();
}

}  // namespace

void Coordinator::CommitLoop(const std::stop_token& stop) {
  absl::Time tidy_all = clock_->Now() + kTidyEvery;
  while (true) {
    CommitWork work;
    JobPtr untidy;
    {
      absl::MutexLock lock(&mutex_);
      while (commits_.empty() && to_tidy_.empty() && !stop.stop_requested() && !stopping_) {
        commit_wake_.WaitWithTimeout(&mutex_, std::max(absl::ZeroDuration(), tidy_all - clock_->Now()));
        if (clock_->Now() < tidy_all) continue;
        to_tidy_.insert(jobs_.begin(), jobs_.end());
        tidy_all = clock_->Now() + kTidyEvery;
      }
      if (stop.stop_requested() || stopping_) return;
      if (!commits_.empty()) {
        work = std::move(commits_.front());
        commits_.pop_front();
      } else {
        untidy = to_tidy_.extract(to_tidy_.begin()).value();
      }
    }
    if (untidy != nullptr) {
      if (!TidyJob(untidy)) continue;
      absl::MutexLock lock(&mutex_);
      to_tidy_.insert(std::move(untidy));
    } else if (work.journal) {
      RunJournal(work);
    } else {
      RunCommit(work);
    }
  }
}

void Coordinator::RunCommit(CommitWork& work) {
  const JobPtr& job = work.job;
  JobRuntime& runtime = *work.runtime;
  const Commit& commit = work.commit;
  const absl::Time begin = clock_->Now();
  ModelRef previous;
  absl::Time first_task;
  std::shared_ptr<NodeSums> from_nodes;
  bool own_updates = false;
  double clip = 0;
  std::map<std::string, double> measured;  // by the step, of the version it makes
  v1::GlobalMoe moe;  // as the version before has it, then as the new one
  std::vector<ObjectKey> kept;  // of the contributors in their order, where updates are kept whole
  {
    absl::MutexLock lock(&mutex_);
    previous = job->model;
    first_task = job->first_task == absl::InfinitePast() ? begin : job->first_task;
    from_nodes = job->nodes.sums;
    clip = ClipOf(*job);
    moe = job->latest.info().moe();
    for (const RoundContributor& contributor : commit.contributors) {
      const auto entry = job->updates.find(contributor.key.update);
      own_updates = own_updates || entry == job->updates.end() || entry->second.node.empty();
      if (runtime.keeps_updates() && entry != job->updates.end() && entry->second.whole) kept.push_back(*entry->second.whole);
    }
  }
  TRIB_CRASH_POINT(round_before_server_step);
  absl::StatusOr<WorkerPool::Sums> sums = WorkerPool::Sums();
  std::vector<WholeUpdate> whole;
  std::deque<LargeBytes> unpacked;
  if (runtime.keeps_updates()) {
    if (const absl::Status read = ReadWhole(runtime, previous, commit.contributors, kept, &unpacked, &whole); !read.ok()) sums = read;
  } else if (own_updates) {
    sums = workers_->ReadSums(runtime.number);
  }
  std::vector<StatePiece> pieces;
  std::span<const int64_t> counters;
  if (sums.ok()) {
    pieces = sums->pieces;
    counters = sums->counters;
  }
  if (sums.ok() && from_nodes != nullptr) {
    if (const absl::Status whole = from_nodes->Finish(*runtime.reducer, pieces, counters); whole.ok()) {
      pieces = {{0, runtime.update_layout.float_count(), from_nodes->floats().data()}};
      counters = from_nodes->counters();
    } else {
      sums = whole;
    }
  }
  if (!sums.ok() || previous == nullptr) {
    absl::MutexLock lock(&mutex_);
    job->committing = false;
    for (auto& [id, entry] : job->updates) entry.committing = false;
    LoseAggregate(job, sums.ok() ? "the current model is gone" : MessageOf(sums.status()));
    changed_.SignalAll();
    return;
  }
  std::shared_ptr<ModelBuffer> model;
  while (model == nullptr) {
    absl::StatusOr<std::shared_ptr<ModelBuffer>> room = ModelBuffer::Make(runtime.shelf);
    if (room.ok()) {
      model = *std::move(room);
    } else if (!AwaitCommitRetry(job, commit.version, room.status())) {
      return;
    }
  }
  absl::Status stepped = MakeModel(job, runtime, commit, {.pieces = pieces, .counters = counters}, whole, *previous, *model, &clip, &measured);
  if (stepped.ok() && runtime.moe != nullptr) stepped = StepExperts(*runtime.moe, commit.contributors, model->writable(), &moe, &measured);
  // A client without its state trained as one that has none: its step counts, and what is a sum over all states begins with this version.
  const bool anew = !work.lost.empty() && runtime.strategy->client_state() == ClientStateKind::kShared;
  if (stepped.ok() && anew) stepped = BeginClientsAnew(*runtime.strategy, runtime.layout, model->bytes(), &runtime.state);
  std::vector<std::vector<std::byte>> rows;  // of the contributors, where the strategy keeps some
  if (stepped.ok() && runtime.keeps_updates() && runtime.strategy->whole_reducer()->keeps_rows()) stepped = NextRows(job, runtime, whole, &rows);
  if (!stepped.ok()) {
    // The same updates would give the same model: the job cannot go on by itself.
    absl::MutexLock lock(&mutex_);
    job->committing = false;
    for (auto& [id, entry] : job->updates) entry.committing = false;
    Finalize(*job, v1::JOB_STATE_FAILED, fmt::format("version {} cannot be made: {}", commit.version, MessageOf(stepped)));
    changed_.SignalAll();
    return;
  }
  TRIB_CRASH_POINT(round_after_server_step);
  const absl::Time made = clock_->Now();
  const double aggregate_s = absl::ToDoubleSeconds(made - first_task);
  const std::shared_future<std::string> sha256 = ModelBuffer::SealMeanwhile(model, commit.version);

  VersionCommit batch;
  batch.tensors = model->bytes();
  batch.sha256 = [sha256] { return sha256.get(); };
  for (const auto& [name, values] : runtime.state.vectors) batch.strategy_state.push_back({name, values});
  v1::VersionRow& row = batch.version;
  row.set_format_version(1);
  v1::VersionInfo& info = *row.mutable_info();
  info.set_job(job->id);
  info.set_version(commit.version);
  info.set_bytes(model->bytes().size());
  info.set_committed_us(WallMicros());
  info.set_parent_sha256(previous->sha256());
  info.set_trigger(commit.trigger);
  info.set_epoch(store_->epoch());
  for (const NamedVector& vector : batch.strategy_state) info.add_strategy_state(vector.name);
  if (runtime.privacy != nullptr) *info.mutable_privacy() = PrivacyRow(*runtime.privacy, commit.version, clip);
  info.mutable_measured()->insert(measured.begin(), measured.end());
  if (moe.step() > 0) *info.mutable_moe() = std::move(moe);
  row.mutable_timing()->mutable_measured()->insert(measured.begin(), measured.end());
  for (const auto& [client, scalars] : commit.client_changes) batch.client_state.push_back(ParticipationRow(client, scalars));
  for (size_t i = 0; i < rows.size(); ++i) batch.client_vectors.emplace_back(whole[i].client, rows[i]);
  if (runtime.strategy->fitness_bytes() > 0 && !whole.empty()) {
    const std::vector<std::byte> log = runtime.strategy->whole_reducer()->FitnessLog({.layout = &runtime.layout, .updates = whole, .version = commit.version});
    row.set_fitness(log.data(), log.size());
  }
  row.set_registered(static_cast<uint64_t>(commit.registered));
  row.set_since_start_ns(absl::ToInt64Nanoseconds(commit.since_start));
  previous.reset();
  {
    absl::MutexLock lock(&mutex_);
    for (const RoundContributor& contributor : commit.contributors) {
      *info.add_contributors() = CommittedRow(contributor, job->spec.record);
      v1::UpdateRow update;
      update.set_format_version(1);
      update.set_version(commit.version);
      const auto entry = job->updates.find(contributor.key.update);
      if (entry != job->updates.end()) update.set_xxh3_128(entry->second.digest);
      batch.updates.emplace_back(contributor.key.update, std::move(update));
    }
    row.set_last_task(job->max_task);
    info.set_state_epoch(anew ? commit.version : job->latest.info().state_epoch());
    batch.job = job->row;
    batch.job.set_updates_committed(job->row.updates_committed() + commit.contributors.size());
  }
  v1::RoundTiming& timing = *row.mutable_timing();
  timing.set_version(commit.version);
  timing.set_aggregate_s(aggregate_s);
  timing.set_commit_s(absl::ToDoubleSeconds(clock_->Now() - first_task));  // so far; the sync is added below
  timing.set_updates(commit.contributors.size());
  v1::EventRow event;
  event.set_format_version(1);
  event.set_at_us(info.committed_us());
  event.set_kind("committed");
  event.set_text(fmt::format("version {} from {} updates: {}", commit.version, commit.contributors.size(), commit.trigger));
  batch.events.push_back(std::move(event));
  for (const std::string& client : work.lost) batch.events.push_back(LostState(client, anew, info));

  while (true) {
    const absl::Status stored = store_->CommitVersion(batch);
    if (stored.ok()) break;
    // A failed write is an unknown outcome: the manifest tells.
    const absl::StatusOr<v1::VersionRow> found = store_->GetVersion(job->id, commit.version);
    if (found.ok() && found->info().sha256() == sha256.get()) break;
    if (!AwaitCommitRetry(job, commit.version, stored)) return;
  }
  const absl::Time stored_at = clock_->Now();
  timing.set_commit_s(absl::ToDoubleSeconds(stored_at - first_task));
  TRIB_LOG(debug, "job {} version {}: {:.3f} s after its first task the last update was in; server step {:.3f} s, hashes and store {:.3f} s",
           job->id, commit.version, absl::ToDoubleSeconds(begin - first_task), absl::ToDoubleSeconds(made - begin),
           absl::ToDoubleSeconds(stored_at - made));
  info.set_sha256(sha256.get());
  absl::MutexLock lock(&mutex_);
  ++job->commits_made;
  job->commit_time += stored_at - begin;
  Publish(job, commit, std::move(model), std::move(row));
  for (const ObjectKey& key : kept) runtime.pool->Release(key);  // if the job ended meanwhile, nobody else does
}

absl::Status Coordinator::MakeModel(const JobPtr& job, JobRuntime& runtime, const Commit& commit, const WorkerPool::Sums& sums,
                                    std::span<const WholeUpdate> whole, const ModelBuffer& previous, ModelBuffer& next, double* clip, std::map<std::string, double>* measured) {
  const JobPrivacy* privacy = runtime.privacy.get();
  const double noise_stddev = privacy != nullptr && privacy->central() ? privacy->SumStddev(*clip) : 0;
  std::span<const StatePiece> pieces = sums.pieces;
  std::vector<std::byte> nothing;
  StatePiece zero;
  if (commit.contributors.empty()) {
    if (noise_stddev == 0) {
      std::copy_n(previous.bytes().begin(), next.writable().size(), next.writable().begin());
      return absl::OkStatus();
    }
    // That nobody was drawn is as secret as who was: the sum of nobody gets its noise too.
    nothing.resize(runtime.update_layout.float_count() * runtime.reducer->state_bytes_per_element());
    zero = {0, runtime.update_layout.float_count(), nothing.data()};
    pieces = {&zero, 1};
  }
  // What a private job divides by, and the noise that its sums get before anything is made of them.
  const Reducer* reducer = runtime.reducer.get();
  double sum_weight = commit.sum_weight;
  std::unique_ptr<RandomWords> noise;
  std::optional<NoisySums> noisy;
  if (privacy != nullptr) {
    sum_weight = privacy->Denominator(sum_weight);
    std::optional<ChaChaKey> key;
    if (privacy->secret()) {
      TRIB_ASSIGN_OR_RETURN(key, SecretKey());
    }
    noise = privacy->NoiseOf(commit.version, key);
    if (noise_stddev > 0) reducer = &noisy.emplace(*reducer, pieces, runtime.update_layout.trainable_count(), noise_stddev, *noise);
    *clip = privacy->NextClip(*clip, commit.contributors, runtime.update_layout.trainable_count(), noise.get());
  }
  const CommitFacts facts{.version = commit.version, .sum_weight = sum_weight, .registered = commit.registered, .contributors = commit.contributors};
  if (runtime.keeps_updates()) {
    return ApplyWholeStep(*runtime.strategy, runtime.layout, whole, RowsOf(job), facts, previous.bytes(), runtime.state, next.writable(), measured);
  }
  SharedBytes base;
  if (runtime.strategy->server_step().needs_base()) {
    const uint64_t from = commit.version - 1 - commit.contributors.front().staleness;
    TRIB_ASSIGN_OR_RETURN(base, Model("", job->id, from));
  }
  const WeightRuns scales = runtime.moe == nullptr ? WeightRuns() : runtime.moe->ScalesOf(commit.contributors, commit.sum_weight);
  return ApplyServerStep(runtime.strategy->server_step(),
                         {.layout = &runtime.layout, .groups = runtime.strategy->update_groups().size(), .reducer = reducer, .pieces = pieces, .counters = sums.counters,
                          .previous = previous.bytes(), .base = base.bytes, .facts = facts, .keep_buffers = runtime.strategy->local_buffers(),
                          .without_buffers = !runtime.strategy->carries_buffers(), .scales = scales, .spread = runtime.strategy->spread()},
                         runtime.state, next.writable());
}

absl::Status Coordinator::DropUncounted(const std::string& job) {
  TRIB_ASSIGN_OR_RETURN(const std::vector<UpdateId> recorded, store_->ListRecords(job));
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::VersionRow> versions, store_->ListVersions(job));
  std::set<std::string> counted;
  for (const v1::VersionRow& row : versions) {
    for (const v1::Contributor& contributor : row.info().contributors()) counted.insert(contributor.update_id());
  }
  for (const UpdateId& id : recorded) {
    if (!counted.contains(ToBytes(id))) TRIB_RETURN_IF_ERROR(store_->DropRecord(job, id));
  }
  return absl::OkStatus();
}

absl::Status Coordinator::NextRows(const JobPtr& job, const JobRuntime& runtime, std::span<const WholeUpdate> whole, std::vector<std::vector<std::byte>>* rows) {
  const RowReader before = RowsOf(job);
  for (const WholeUpdate& update : whole) {
    TRIB_ASSIGN_OR_RETURN(rows->emplace_back(), NextRow(*runtime.strategy, runtime.layout, update, before));
  }
  return absl::OkStatus();
}

RowReader Coordinator::RowsOf(const JobPtr& job) {
  uint64_t epoch = 0;
  {
    absl::MutexLock lock(&mutex_);
    epoch = job->latest.info().state_epoch();
  }
  return [this, id = job->id, epoch](const std::string& client) -> absl::StatusOr<std::vector<std::byte>> {
    absl::StatusOr<std::vector<std::byte>> stored = store_->GetClientVector(id, client, epoch);
    if (absl::IsNotFound(stored.status())) return std::vector<std::byte>();
    return stored;
  };
}

bool Coordinator::TidyJob(const JobPtr& job) {
  const absl::StatusOr<bool> more = housekeeping_.Tidy(
      job->id,
      [&](uint64_t base) {
        absl::MutexLock lock(&mutex_);
        return job->Final() || (job->Open() && job->runtime->round->TooStale(base));
      },
      WallMicros());
  if (!more.ok()) TRIB_LOG(warn, "job {}: what the store could forget stays: {}", job->id, MessageOf(more.status()));
  bool over = false;
  {
    absl::MutexLock lock(&mutex_);
    over = job->spec.record && job->Final() && !std::exchange(job->records_tidied, true);
  }
  if (over) {
    if (const absl::Status dropped = DropUncounted(job->id); !dropped.ok()) {
      TRIB_LOG(warn, "job {}: recorded updates that no version counts stay: {}", job->id, MessageOf(dropped));
    }
  }
  return more.ok() && *more;
}

bool Coordinator::AwaitCommitRetry(const JobPtr& job, uint64_t version, const absl::Status& trouble) {
  TRIB_LOG(error, "job {}: version {} cannot be stored, trying again: {}", job->id, version, MessageOf(trouble));
  TidyJob(job);  // it may make the room that is missing
  absl::MutexLock lock(&mutex_);
  job->commit_trouble = MessageOf(trouble);
  MarkChanged(*job, /*persist=*/false);
  if (!stopping_) commit_wake_.WaitWithTimeout(&mutex_, kCommitRetry);
  return !stopping_;  // otherwise clients keep their updates and send them again
}

void Coordinator::Publish(const JobPtr& job, const Commit& commit, std::shared_ptr<ModelBuffer> model, v1::VersionRow row) {
  TRIB_LOG(info, "job {} committed version {} from {} updates ({})", job->id, commit.version, commit.contributors.size(), commit.trigger);
  job->committing = false;
  job->commit_trouble.clear();
  job->row.set_updates_committed(job->row.updates_committed() + commit.contributors.size());
  job->timings.push_back(row.timing());
  if (job->timings.size() > kMaxTimings) job->timings.pop_front();
  job->commits.emplace_back(row.info().committed_us(), commit.contributors.size());
  if (job->commits.size() > kMaxCommitsForRate) job->commits.pop_front();
  job->latest = std::move(row);
  if (job->Open()) job->model = std::move(model);
  job->first_task = absl::InfinitePast();
  job->folded_since_journal = 0;
  job->quiescing = false;
  job->next_journal = clock_->Now() + options_.journal_every;
  for (const RoundContributor& contributor : commit.contributors) {
    if (const auto entry = job->updates.find(contributor.key.update); entry != job->updates.end()) {
      ReleaseWhole(*job, entry->second);
      job->updates.erase(entry);
    }
    SendStatus(*job, contributor.key, v1::UPDATE_STATE_COMMITTED, commit.version, "");
    const auto client = clients_.find(contributor.key.client);
    if (client != clients_.end()) {
      ++client->second.updates_committed;
      dirty_clients_.insert(client->first);
    }
  }
  if (job->Open()) {
    OpenShares(job);
    const absl::Status begun = BeginRound(*job, *job->runtime, ++job->round_number, 0);
    Post(job, NodesExpected{ExpectedFromNodes(*job)});
    Post(job, VersionCommitted{commit.version});
    if (job->Open()) job->hurry_at = job->runtime->round->deadline();
    if (!begun.ok() && job->Open() && !job->finishing) LoseAggregate(job, MessageOf(begun));
  }
  to_tidy_.insert(job);
  MarkChanged(*job, /*persist=*/job->Final());
  changed_.SignalAll();
}

void Coordinator::MaybeJournal(const JobPtr& job, absl::Time now) {
  if (job->spec.durability != Durability::kDurable || !job->Open() || job->finishing || job->committing || job->journalling || job->relayed.busy) return;
  if (job->folded_since_journal == 0 || now < job->next_journal) return;
  const Round& round = *job->runtime->round;
  // The commit that is about to come makes the partial superfluous; and it waits for what was held back for the partial.
  if (!draining_ && static_cast<int64_t>(round.updates_in()) >= round.updates_expected()) return EndQuiescing(job);
  if (job->in_flight > 0) {
    // Lazy workers would wait for those that would wait for them. Their clients keep the updates; the journal comes when all is folded.
    if (!draining_ && MayRest(*job->runtime)) return EndQuiescing(job);
    job->quiescing = true;  // what comes meanwhile waits; the folds under way end soon
    return;
  }
  CommitWork work;
  work.job = job;
  work.runtime = job->runtime;
  work.journal = true;
  work.partial.set_format_version(1);
  work.partial.set_version(round.version());
  work.update_bytes = job->runtime->UpdateBytes(job->model);
  std::vector<const UpdateEntry*> folded;
  for (const auto& [id, entry] : job->updates) {
    const bool held = entry.state == v1::UPDATE_STATE_ACCEPTED || entry.state == v1::UPDATE_STATE_JOURNALED;
    if (entry.folded && held && entry.node.empty()) folded.push_back(&entry);  // of others their nodes keep the partial
  }
  std::sort(folded.begin(), folded.end(), [](const UpdateEntry* a, const UpdateEntry* b) { return a->key < b->key; });
  double sum_weight = 0;
  for (const UpdateEntry* entry : folded) {
    const uint64_t staleness = round.version() - std::min(round.version(), entry->base_version);
    *work.partial.add_contributors() = ContributorRow({entry->key, entry->weight, entry->examples, staleness, entry->claimed, entry->scalars, entry->moe});
    work.partial.add_digests(entry->digest);
    if (entry->whole) work.kept.push_back(*entry->whole);
    sum_weight += entry->weight;
  }
  work.partial.set_sum_weight(sum_weight);
  job->journalling = true;
  job->quiescing = false;
  commits_.push_back(std::move(work));
  commit_wake_.Signal();
}

void Coordinator::RunJournal(CommitWork& work) {
  const JobPtr& job = work.job;
  const absl::Time begin = clock_->Now();
  absl::Status status;
  if (work.runtime->keeps_updates()) {
    std::vector<std::byte> bytes;
    for (const ObjectKey& key : work.kept) {
      const absl::StatusOr<std::span<const std::byte>> update = work.runtime->pool->Read(key);
      if (!update.ok()) {
        status = update.status();
        break;
      }
      bytes.insert(bytes.end(), update->begin(), update->begin() + static_cast<ptrdiff_t>(work.update_bytes));
    }
    if (status.ok()) status = store_->PutPartial(job->id, work.partial, bytes);
  } else if (absl::StatusOr<WorkerPool::Sums> sums = workers_->ReadSums(work.runtime->number); !sums.ok()) {
    status = sums.status();
  } else {
    std::vector<StatePiece> pieces = sums->pieces;
    std::sort(pieces.begin(), pieces.end(), [](const StatePiece& a, const StatePiece& b) { return a.first < b.first; });
    const size_t per_element = work.runtime->reducer->state_bytes_per_element();
    if (pieces.size() == 1 && sums->counters.empty()) {
      status = store_->PutPartial(job->id, work.partial, {pieces[0].state, pieces[0].count * per_element});
    } else {
      std::vector<std::byte> bytes;
      bytes.reserve(WorkerBytes(*work.runtime));
      for (const StatePiece& piece : pieces) bytes.insert(bytes.end(), piece.state, piece.state + piece.count * per_element);
      const auto counters = std::as_bytes(sums->counters);
      bytes.insert(bytes.end(), counters.begin(), counters.end());
      status = store_->PutPartial(job->id, work.partial, bytes);
    }
  }
  const absl::Time end = clock_->Now();
  absl::MutexLock lock(&mutex_);
  if (status.ok()) {
    job->next_journal = end + std::max(options_.journal_every, kJournalShare * (end - begin));
    for (int i = 0; i < work.partial.contributors_size(); ++i) {
      const absl::StatusOr<UpdateId> id = UpdateIdFromBytes(work.partial.contributors(i).update_id());
      const auto entry = id.ok() ? job->updates.find(*id) : job->updates.end();
      if (entry == job->updates.end() || entry->second.state != v1::UPDATE_STATE_ACCEPTED) continue;
      entry->second.state = v1::UPDATE_STATE_JOURNALED;
      SendStatus(*job, entry->second.key, v1::UPDATE_STATE_JOURNALED, 0, "");
    }
    // Updates that are kept whole go on coming while the journal is written.
    job->folded_since_journal = static_cast<size_t>(std::count_if(job->updates.begin(), job->updates.end(), [](const auto& item) {
      return item.second.folded && item.second.node.empty() && item.second.state == v1::UPDATE_STATE_ACCEPTED;
    }));
  } else {
    TRIB_LOG(warn, "job {}: the partial could not be journalled: {}", job->id, MessageOf(status));
    job->next_journal = end + kJournalRetry;
  }
  EndJournal(job);
}

void Coordinator::EndQuiescing(const JobPtr& job) {
  job->quiescing = false;
  std::vector<std::pair<UpdateId, ObjectKey>> held;
  held.swap(job->held);
  for (const auto& [update, key] : held) SendFold(job, update, key);
}

void Coordinator::EndJournal(const JobPtr& job) {
  job->journalling = false;
  job->quiescing = false;
  if (job->Open()) {
    EndQuiescing(job);
    if (!job->lost_pending.empty()) LoseAggregate(job, std::exchange(job->lost_pending, ""));
  }
  changed_.SignalAll();
  loop_wake_.Signal();
}

}  // namespace tributary::aggregator
