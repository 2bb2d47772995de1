// The coordinator as the top of several nodes: who brings how many updates, and the partials that come.
#include <algorithm>
#include <utility>

#include "aggregator/coordinator/coordinator.h"
#include "aggregator/core/planners/node_shares.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr int kMissedReports = 3;
constexpr size_t kMaxNodes = 16;          // each holds a thread of gRPC's while attached
constexpr uint32_t kRetryMs = 50;

v1::PartialAnswer AnswerOf(v1::PartialState state, const std::string& reason = "") {
  v1::PartialAnswer answer;
  answer.set_state(state);
  answer.set_reason(reason);
  if (state == v1::PARTIAL_STATE_RETRY) answer.set_retry_ms(kRetryMs);
  return answer;
}

std::vector<RoundContributor> ContributorsOf(const CheckedPartial& partial) {
  std::vector<RoundContributor> out;
  out.reserve(partial.contributors.size());
  for (const CheckedContributor& c : partial.contributors) {
    out.push_back({.key = {c.client, c.task, c.update}, .weight = c.weight, .examples = c.examples, .staleness = c.staleness, .moe = c.moe});
  }
  return out;
}

}  // namespace

absl::StatusOr<uint64_t> Coordinator::AttachNode(const std::string& name, const v1::NodeHello& hello, std::shared_ptr<NodeSink> sink) {
  absl::MutexLock lock(&mutex_);
  if (draining_) return Unavailable("this server is shutting down");
  if (std::find(options_.relay_nodes.begin(), options_.relay_nodes.end(), name) == options_.relay_nodes.end()) {
    return PermissionDenied("'{}' is not among the nodes that may relay to this one (setting relay_nodes)", name);
  }
  if (!nodes_.contains(name) && nodes_.size() >= kMaxNodes) return ResourceExhausted("node '{}': {} nodes are known already", name, kMaxNodes);
  NodeRecord& node = nodes_[name];
  if (hello.epoch() < node.epoch) {
    return FailedPrecondition("node '{}': epoch {} is fenced, a later start of it had {}", name, hello.epoch(), node.epoch);
  }
  if (node.session != 0) node.sink->Close(Aborted("node '{}' attached again", name));
  if (node.id == 0) node.id = static_cast<uint32_t>(nodes_.size());
  node.name = name;
  node.session = next_session_++;
  node.sink = std::move(sink);
  node.epoch = hello.epoch();
  node.capacity = hello.capacity();
  node.clients = hello.clients();
  node.last_seen = clock_->Now();
  node.given_up = absl::InfiniteFuture();
  node.jobs_sent.clear();
  TRIB_LOG(info, "node {} is here: capacity {:.0f} updates, {} clients", name, node.capacity, node.clients);
  v1::TopMessage welcome;
  welcome.mutable_welcome()->set_heartbeat_interval_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat)));
  welcome.mutable_welcome()->set_fence(store_->epoch());
  node.sink->Send(std::move(welcome));
  for (const std::string& id : hello.jobs()) {
    const JobPtr job = FindJob(id);
    if (job == nullptr || job->Final()) {
      v1::TopMessage message;
      v1::RelayJobEnded& ended = *message.mutable_ended();
      ended.set_job(id);
      ended.set_state(job == nullptr ? v1::JOB_STATE_CANCELLED : job->row.state());
      ended.set_reason(job == nullptr ? "the node above does not know this job" : job->row.state_reason());
      if (job != nullptr) SendRound(*job, node, 0, /*again=*/false);  // its last version first
      node.sink->Send(std::move(message));
    } else if (job->Open()) {
      NodeShare& share = job->nodes.shares[name];
      share.told = true;
      SendRound(*job, node, share.goal, /*again=*/false);
    }
  }
  ShareOpenJobs();
  return node.session;
}

NodeRecord* Coordinator::NodeOf(uint64_t session) {
  for (auto& [name, node] : nodes_) {
    if (node.session == session) return &node;
  }
  return nullptr;
}

void Coordinator::OnNodeReport(uint64_t session, const v1::NodeReport& report) {
  absl::MutexLock lock(&mutex_);
  NodeRecord* const node = NodeOf(session);
  if (node == nullptr) return;
  node->last_seen = clock_->Now();
  const bool more = report.clients() > node->clients;
  node->clients = report.clients();
  // Nobody there can bring what it was asked for, unless somebody comes back.
  node->given_up = node->clients > 0 ? absl::InfiniteFuture() : std::min(node->given_up, clock_->Now() + kMissedReports * options_.heartbeat);
  if (more) ShareOpenJobs();
}

void Coordinator::DetachNode(uint64_t session) {
  absl::MutexLock lock(&mutex_);
  NodeRecord* const node = NodeOf(session);
  if (node == nullptr) return;
  node->session = 0;
  node->sink.reset();
  node->clients = 0;
  node->given_up = clock_->Now() + kMissedReports * options_.heartbeat;
  TRIB_LOG(info, "node {} is away", node->name);
  loop_wake_.Signal();
}

void Coordinator::RunNodeTimers(absl::Time now) {
  for (auto& [name, node] : nodes_) {
    if (node.session != 0 && now - node.last_seen > kMissedReports * options_.heartbeat) {
      node.sink->Close(DeadlineExceeded("node '{}': no report for {} heartbeats", name, kMissedReports));
      node.session = 0;
      node.sink.reset();
      node.clients = 0;
      node.given_up = now;
    }
    if (node.given_up > now) continue;
    node.given_up = absl::InfiniteFuture();
    for (const JobPtr& job : std::vector<JobPtr>(jobs_)) {
      if (!job->Open()) continue;
      const auto share = job->nodes.shares.find(name);
      if (share == job->nodes.shares.end() || share->second.arrived || share->second.goal == 0) continue;
      GiveUpShare(job, name, node.session == 0 ? "it has gone" : "its clients have gone");
    }
  }
  for (const JobPtr& job : std::vector<JobPtr>(jobs_)) {
    if (job->Open() && !job->finishing) MaybeGatherAgain(job, now);
  }
}

// A node brings one partial a round. Where it has clients that came too late for it, and nobody else is left who could bring what the
// version lacks, a round without a deadline would wait for ever: so everybody sends once more, and that node with them.
void Coordinator::MaybeGatherAgain(const JobPtr& job, absl::Time now) {
  if (job->spec.cohort.deadline != absl::InfiniteDuration() || !NodesMayServe(*job)) return;
  int64_t missing = job->spec.cohort.size - static_cast<int64_t>(job->runtime->round->updates_in());
  const bool stuck = missing > 0 && !job->committing && !job->journalling && job->tasks.empty() && ExpectedFromNodes(*job) == 0;
  job->nodes.stuck_since = stuck ? std::min(job->nodes.stuck_since, now) : absl::InfiniteFuture();
  if (now - job->nodes.stuck_since < kMissedReports * options_.heartbeat) return;
  std::map<std::string, int64_t> more;
  for (const auto& [name, share] : job->nodes.shares) {
    const auto node = nodes_.find(name);
    if (!share.arrived || missing == 0 || node == nodes_.end() || node->second.session == 0) continue;
    // In vain once is enough: its clients may be the same that others have brought.
    const auto before = job->nodes.gathered.find(name);
    if (before != job->nodes.gathered.end() && node->second.clients <= before->second) continue;
    const int64_t spare = node->second.clients - AskedOf(name) - static_cast<int64_t>(share.updates);
    const int64_t taken = std::clamp<int64_t>(spare, 0, missing);
    if (taken > 0) more[name] = taken;
    missing -= taken;
  }
  if (missing > 0) return;
  for (const auto& [name, count] : more) {
    NodeShare& share = job->nodes.shares[name];
    share.goal = share.updates + static_cast<uint64_t>(count);
    job->nodes.gathered[name] = nodes_.at(name).clients;
  }
  LoseAggregate(job, fmt::format("clients came to {} node(s) after their partials: all send again, with {} updates more", more.size(),
                                 job->spec.cohort.size - static_cast<int64_t>(job->runtime->round->updates_in())));
}

// Updates that a node has been asked for, of all jobs, and has not brought.
int64_t Coordinator::AskedOf(const std::string& name) const {
  int64_t asked = 0;
  for (const JobPtr& job : jobs_) {
    const auto share = job->nodes.shares.find(name);
    if (share != job->nodes.shares.end() && !share->second.arrived) asked += static_cast<int64_t>(share->second.goal);
  }
  return asked;
}

void Coordinator::GiveUpShare(const JobPtr& job, const std::string& name, const std::string& reason) {
  NodeShare& share = job->nodes.shares[name];
  Record(*job, "node_share_given_up", name, 0, fmt::format("{} updates of node '{}' for version {} are asked elsewhere: {}", share.goal, name,
                                                           job->runtime->round->version() + 1, reason));
  share.goal = 0;
  ShareJob(job);
}

void Coordinator::ShareOpenJobs() {
  for (const JobPtr& job : std::vector<JobPtr>(jobs_)) {
    if (job->Open() && !job->finishing) ShareJob(job);
  }
}

int64_t Coordinator::ExpectedFromNodes(const Job& job) const {
  int64_t expected = 0;
  for (const auto& [name, share] : job.nodes.shares) {
    if (!share.arrived) expected += static_cast<int64_t>(share.goal);
  }
  return expected;
}

bool Coordinator::NodesMayServe(const Job& job) const {
  if (job.row.relayed() || options_.relay_nodes.empty()) return false;
  const StrategyEntry* const entry = options_.find_strategy(job.spec.strategy.name);
  if (job.Open() && !ServesNodes(*job.runtime->strategy)) return false;
  // What a version costs is known of cohorts that one node draws, and clips by one norm.
  if (job.spec.privacy.enabled || job.spec.cohort.population > 0) return false;
  if (job.spec.record) return false;  // a partial holds no updates
  return entry != nullptr && entry->trait == StrategyTrait::kMergeable;
}

void Coordinator::ShareJob(const JobPtr& job) {
  if (nodes_.empty() || job->committing || !NodesMayServe(*job)) return;
  // What is placed already: what nodes bring or brought, and what this node's clients have in or in hand.
  const int64_t placed = static_cast<int64_t>(job->tasks.size() + job->runtime->round->updates_in()) + ExpectedFromNodes(*job);
  // Workers here may be waiting for updates that come to another node now.
  if (PlaceShares(*job, job->spec.cohort.size - placed)) workers_->Hurry(job->runtime->number);
  Post(job, NodesExpected{ExpectedFromNodes(*job)});
}

bool Coordinator::PlaceShares(Job& job, int64_t missing) {
  if (missing <= 0 || nodes_.empty() || !NodesMayServe(job)) return false;
  std::vector<NodeOffer> offers;
  std::vector<NodeRecord*> records;
  int64_t own_clients = 0;
  int64_t own_load = 0;
  for (const JobPtr& other : jobs_) {
    if (other->Open() && other.get() != &job) own_load += static_cast<int64_t>(other->tasks.size());
  }
  for (const auto& [id, client] : clients_) {
    if (client.attached() && client.hello.trains() && !HasTask(client)) ++own_clients;
  }
  offers.push_back({0, options_.node_capacity - static_cast<double>(own_load), own_clients});
  records.push_back(nullptr);
  for (auto& [name, node] : nodes_) {
    if (node.session == 0) continue;
    const auto share = job.nodes.shares.find(name);
    if (share != job.nodes.shares.end() && share->second.arrived) continue;  // one partial a round
    const int64_t load = AskedOf(name);
    offers.push_back({node.id, node.capacity - static_cast<double>(load), node.clients - load});
    records.push_back(&node);
  }
  const absl::StatusOr<std::vector<int64_t>> shares = ShareAmongNodes(job.spec.hierarchy.placement, offers, missing);
  if (!shares.ok()) {
    TRIB_LOG(error, "job {}: updates cannot be placed on nodes: {}", job.id, MessageOf(shares.status()));
    return false;
  }
  bool changed = false;
  for (size_t i = 1; i < offers.size(); ++i) {
    if ((*shares)[i] == 0) continue;
    NodeShare& share = job.nodes.shares[records[i]->name];
    share.goal += static_cast<uint64_t>((*shares)[i]);
    share.told = true;
    SendRound(job, *records[i], share.goal, /*again=*/false);
    changed = true;
  }
  return changed;
}

void Coordinator::SendRound(const Job& job, NodeRecord& node, uint64_t goal, bool again) {
  if (node.session == 0) return;
  if (node.jobs_sent.insert(job.id).second) {
    v1::TopMessage message;
    v1::JobInfo& info = *message.mutable_job();
    info.set_job(job.id);
    info.set_spec_yaml(job.row.spec_yaml());
    *info.mutable_layout() = job.row.layout();
    info.set_artifact_sha256(job.row.artifact_sha256());
    info.set_artifact_bytes(job.artifact_bytes);
    node.sink->Send(std::move(message));
  }
  v1::TopMessage message;
  v1::RelayRound& round = *message.mutable_round();
  round.set_job(job.id);
  round.set_version(job.latest.info().version());
  round.set_goal(goal);
  round.set_fence(store_->epoch());
  round.set_again(again);
  node.sink->Send(std::move(message));
}

// A version is committed: the next one is shared out, and whoever had to do with the last hears of it.
void Coordinator::OpenShares(const JobPtr& job) {
  std::map<std::string, NodeShare> before;
  before.swap(job->nodes.shares);
  job->nodes.sums.reset();
  job->nodes.gathered.clear();
  const bool last = job->latest.info().version() >= static_cast<uint64_t>(job->spec.stop.versions);
  if (!last) PlaceShares(*job, job->spec.cohort.size);
  for (const auto& [name, share] : before) {
    const auto node = nodes_.find(name);
    if (!share.told || job->nodes.shares.contains(name) || node == nodes_.end()) continue;  // with a goal it was told
    SendRound(*job, node->second, 0, /*again=*/false);
  }
}

void Coordinator::EndShares(const Job& job) {
  for (auto& [name, node] : nodes_) {
    if (node.session == 0 || !node.jobs_sent.contains(job.id)) continue;
    v1::TopMessage message;
    v1::RelayJobEnded& ended = *message.mutable_ended();
    ended.set_job(job.id);
    ended.set_state(job.row.state());
    ended.set_reason(job.row.state_reason());
    node.sink->Send(std::move(message));
  }
}

// The open aggregate is lost: partials in it are sent again.
void Coordinator::LoseShares(const JobPtr& job) {
  job->nodes.sums.reset();
  for (auto& [name, share] : job->nodes.shares) {
    if (!share.arrived) continue;
    share.arrived = false;
    share.goal = std::max(share.goal, share.updates);
    const auto node = nodes_.find(name);
    if (node != nodes_.end()) SendRound(*job, node->second, share.goal, /*again=*/true);
  }
  Post(job, NodesExpected{ExpectedFromNodes(*job)});
}

absl::Status Coordinator::CheckAgainstStore(const CheckedPartial& partial, v1::PartialAnswer* answer) const {
  std::set<uint64_t> versions;
  std::vector<UpdateId> counted;
  for (const CheckedContributor& contributor : partial.contributors) {
    const absl::StatusOr<v1::UpdateRow> row = store_->GetUpdate(partial.job, contributor.update);
    if (row.status().code() == absl::StatusCode::kNotFound) continue;
    if (!row.ok()) return row.status();
    versions.insert(row->version());
    counted.push_back(contributor.update);
  }
  if (counted.empty()) return absl::OkStatus();
  if (counted.size() == partial.contributors.size() && versions.size() == 1) {
    *answer = AnswerOf(v1::PARTIAL_STATE_COMMITTED);
    answer->set_version(*versions.begin());
    return absl::OkStatus();
  }
  *answer = AnswerOf(v1::PARTIAL_STATE_OVERLAP, fmt::format("{} of its {} updates are in versions already", counted.size(), partial.contributors.size()));
  for (const UpdateId& id : counted) answer->add_overlap(ToBytes(id));
  return absl::OkStatus();
}

// What can be said of a partial now. SEND: it can be taken. Sets *bad where the partial itself is wrong.
v1::PartialAnswer Coordinator::JudgePartial(const std::string& name, const CheckedPartial& partial, const JobPtr& job, bool* bad) const {
  *bad = false;
  const auto refuse = [&](const std::string& reason) {
    *bad = true;
    return AnswerOf(v1::PARTIAL_STATE_REFUSED, reason);
  };
  const auto node = nodes_.find(name);
  if (node == nodes_.end() || node->second.session == 0) return AnswerOf(v1::PARTIAL_STATE_RETRY, "the node is not attached");
  if (partial.node_epoch < node->second.epoch) {
    return AnswerOf(v1::PARTIAL_STATE_FENCED, fmt::format("node epoch {} is fenced, the node runs with {}", partial.node_epoch, node->second.epoch));
  }
  if (partial.fence != store_->epoch()) {
    return AnswerOf(v1::PARTIAL_STATE_FENCED, fmt::format("fence {} is of another run, this one has {}", partial.fence, store_->epoch()));
  }
  if (job == nullptr || job->Final() || job->finishing) return AnswerOf(v1::PARTIAL_STATE_REFUSED, "the job is over, or there is none");
  if (!job->Open()) return AnswerOf(v1::PARTIAL_STATE_RETRY, "the job is not open: " + job->queued_for);
  if (!NodesMayServe(*job)) return refuse(fmt::format("strategy '{}' needs every update at once: no partials", job->spec.strategy.name));
  const JobRuntime& runtime = *job->runtime;
  if (partial.layout != runtime.fingerprint) return refuse(fmt::format("layout: expected {}, got {}", runtime.fingerprint, partial.layout));
  const v1::SumsType type = runtime.arithmetic == Arithmetic::kFixedPoint ? v1::SUMS_TYPE_FIXED40 : v1::SUMS_TYPE_F64;
  if (partial.type != type) return refuse(fmt::format("type of sums: expected {}, got {}", v1::SumsType_Name(type), v1::SumsType_Name(partial.type)));
  if (partial.bytes != WorkerBytes(runtime)) return refuse(fmt::format("bytes: expected {}, got {}", WorkerBytes(runtime), partial.bytes));
  if (static_cast<int64_t>(partial.contributors.size()) > job->spec.ClientsAsked()) {
    return refuse(fmt::format("contributors: the job asks {} clients, got {}", job->spec.ClientsAsked(), partial.contributors.size()));
  }
  for (const CheckedContributor& contributor : partial.contributors) {
    const absl::Status counted = runtime.moe != nullptr       ? runtime.moe->CheckStats(contributor.moe)
                                 : contributor.moe.empty() ? absl::OkStatus()
                                                           : InvalidArgument("moe: the job's model has no experts");
    if (!counted.ok()) return refuse(fmt::format("update {}: {}", ToHex(contributor.update), MessageOf(counted)));
  }
  if (partial.version == runtime.round->version()) {
    const auto share = job->nodes.shares.find(name);
    if (share != job->nodes.shares.end() && share->second.arrived) {
      if (share->second.digest == partial.contributors_digest) return AnswerOf(v1::PARTIAL_STATE_DUPLICATE, "it is in the sums already");
      return AnswerOf(v1::PARTIAL_STATE_REFUSED, fmt::format("another partial of this node, of {} updates, is in version {} already", share->second.updates, partial.version + 1));
    }
  }
  std::vector<UpdateId> overlap;
  const absl::Status status = runtime.round->CheckPartial(partial.version, ContributorsOf(partial), &overlap);
  if (status.ok()) return AnswerOf(v1::PARTIAL_STATE_SEND);
  if (status.code() == absl::StatusCode::kInvalidArgument) return refuse(MessageOf(status));
  if (status.code() == absl::StatusCode::kAlreadyExists) {
    v1::PartialAnswer answer = AnswerOf(v1::PARTIAL_STATE_OVERLAP, MessageOf(status));
    for (const UpdateId& id : overlap) answer.add_overlap(ToBytes(id));
    return answer;
  }
  // Being committed: soon it is a version, and another answer is true.
  if (partial.version >= runtime.round->version()) return AnswerOf(v1::PARTIAL_STATE_RETRY, MessageOf(status));
  return AnswerOf(v1::PARTIAL_STATE_REFUSED, MessageOf(status));
}

void Coordinator::CountBadPartial(const std::string& name, const JobPtr& job, const std::string& reason) {
  TRIB_LOG(warn, "node {}: its partial is refused: {}", name, reason);
  if (job == nullptr || !job->Open()) return;
  ++(*job->row.mutable_updates_rejected())["partial"];
  Record(*job, "partial_refused", name, 0, reason);
  const auto share = job->nodes.shares.find(name);
  if (share != job->nodes.shares.end() && !share->second.arrived && share->second.goal > 0) {
    // It would send the same again: others bring these updates, it may try with the next version.
    const auto node = nodes_.find(name);
    const int64_t clients = node == nodes_.end() ? 0 : std::exchange(node->second.clients, 0);
    GiveUpShare(job, name, "its partial was refused: " + reason);
    if (node != nodes_.end()) node->second.clients = clients;
  }
}

PartialAdmission Coordinator::BeginPartial(const std::string& name, const CheckedPartial& partial) {
  PartialAdmission admission;
  v1::PartialAnswer counted;
  if (const absl::Status read = CheckAgainstStore(partial, &counted); !read.ok()) {
    admission.answer = AnswerOf(v1::PARTIAL_STATE_RETRY, MessageOf(read));
    return admission;
  }
  absl::MutexLock lock(&mutex_);
  if (draining_) {
    admission.answer = AnswerOf(v1::PARTIAL_STATE_RETRY, "this server is shutting down");
    return admission;
  }
  const JobPtr job = FindJob(partial.job);
  bool bad = false;
  admission.answer = JudgePartial(name, partial, job, &bad);
  if (bad) CountBadPartial(name, job, admission.answer.reason());
  // A fence is a fence, also for what has been counted; everything else that the store says is more exact.
  if (counted.state() != v1::PARTIAL_STATE_UNSPECIFIED && admission.answer.state() != v1::PARTIAL_STATE_FENCED && !bad) admission.answer = counted;
  if (admission.answer.state() != v1::PARTIAL_STATE_SEND) return admission;
  const JobRuntime& runtime = *job->runtime;
  admission.answer.set_chunk_bytes(kPartialChunkBytes);
  admission.float_bytes = runtime.update_layout.float_count() * runtime.reducer->state_bytes_per_element();
  admission.limit = FixedPointLimit(job->spec.ClientsAsked()) * static_cast<double>(int64_t{1} << kFixedPointBits);
  admission.sums.resize(partial.bytes);
  return admission;
}

void Coordinator::RefusePartial(const std::string& name, const CheckedPartial& partial, const std::string& reason) {
  absl::MutexLock lock(&mutex_);
  CountBadPartial(name, FindJob(partial.job), reason);
}

v1::PartialAnswer Coordinator::FinishPartial(const std::string& name, const CheckedPartial& partial, std::span<const std::byte> sums) {
  std::shared_ptr<JobRuntime> runtime;
  std::shared_ptr<NodeSums> target;
  JobPtr job;
  uint64_t round_number = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return AnswerOf(v1::PARTIAL_STATE_RETRY, "this server is shutting down");
    job = FindJob(partial.job);
    bool bad = false;
    v1::PartialAnswer answer = JudgePartial(name, partial, job, &bad);  // much may have happened since the header came
    if (answer.state() != v1::PARTIAL_STATE_SEND) return answer;
    runtime = job->runtime;
    round_number = job->round_number;
    if (job->nodes.sums == nullptr) job->nodes.sums = std::make_shared<NodeSums>();
    target = job->nodes.sums;
    NodeShare& share = job->nodes.shares[name];
    share.arrived = true;
    share.updates = partial.contributors.size();
    share.digest = partial.contributors_digest;
    share.told = true;
    for (const CheckedContributor& c : partial.contributors) {
      UpdateEntry entry;
      entry.key = {c.client, c.task, c.update};
      entry.digest = c.digest;
      entry.state = v1::UPDATE_STATE_ACCEPTED;
      entry.base_version = partial.version;
      entry.weight = c.weight;
      entry.examples = c.examples;
      entry.moe = c.moe;
      entry.node = name;
      entry.admitted = clock_->Now();
      job->updates.insert_or_assign(c.update, std::move(entry));
    }
    job->row.set_bytes_up(job->row.bytes_up() + partial.bytes);
    ++job->partials_taken;
    if (job->first_task == absl::InfinitePast()) job->first_task = clock_->Now();
    if (job->started_us == 0) job->started_us = WallMicros();
    if (job->row.state() == v1::JOB_STATE_QUEUED) {
      job->row.set_state(v1::JOB_STATE_RUNNING);
      MarkChanged(*job, /*persist=*/true);
    }
    for (const CheckedContributor& c : partial.contributors) ForgetTask(*job, c.client, 0);
    Post(job, PartialArrived{ContributorsOf(partial)});  // nothing is committed before they count as folded
    Post(job, NodesExpected{ExpectedFromNodes(*job)});
  }
  const bool merged = target->Merge(*runtime->reducer, sums, runtime->update_layout.float_count(), runtime->layout.counter_count());
  absl::MutexLock lock(&mutex_);
  if (!job->Open() || job->round_number != round_number) return AnswerOf(v1::PARTIAL_STATE_RETRY, "the aggregate was lost meanwhile");
  if (!merged) {
    LoseAggregate(job, fmt::format("the sums overflow with the partial of node '{}'", name));
    return AnswerOf(v1::PARTIAL_STATE_RETRY, "the sums overflow");
  }
  for (const CheckedContributor& c : partial.contributors) {
    const auto entry = job->updates.find(c.update);
    if (entry != job->updates.end()) entry->second.folded = true;
  }
  ShareJob(job);  // it may have brought less than it was asked for
  for (const CheckedContributor& c : partial.contributors) Post(job, UpdateFolded{c.update});
  TRIB_LOG(info, "job {}: node {} brought {} updates for version {}", job->id, name, partial.contributors.size(), partial.version + 1);
  return AnswerOf(v1::PARTIAL_STATE_TAKEN);
}

absl::StatusOr<v1::RelayVersion> Coordinator::RelayGetVersion(const std::string& name, const std::string& id, uint64_t version) {
  {
    absl::MutexLock lock(&mutex_);
    if (!nodes_.contains(name)) return PermissionDenied("node '{}' has not attached", name);
  }
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, store_->GetVersion(id, version));
  v1::RelayVersion out;
  *out.mutable_info() = row.info();
  out.set_dedupe_expired_us(row.dedupe_expired_us());
  if (row.dedupe_expired_us() != 0) return out;
  for (const v1::Contributor& contributor : row.info().contributors()) {
    TRIB_ASSIGN_OR_RETURN(const UpdateId update, UpdateIdFromBytes(contributor.update_id()));
    TRIB_ASSIGN_OR_RETURN(const v1::UpdateRow dedupe, store_->GetUpdate(id, update));
    out.add_update_digests(dedupe.xxh3_128());
  }
  return out;
}

}  // namespace tributary::aggregator
