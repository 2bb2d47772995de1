#include "simulate/simulation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <optional>
#include <queue>
#include <set>
#include <unordered_map>
#include <utility>

#include "aggregator/core/planners/hierarchy.h"
#include "aggregator/core/round.h"
#include "aggregator/state/engine_rows.h"
#include "client/core/device_update.h"
#include "client/core/random.h"
#include "common/check.h"
#include "common/digest.h"
#include "common/eggroll_spec.h"
#include "simulate/availability.h"
#include "simulate/channel.h"
#include "simulate/commit_maker.h"
#include "simulate/delays.h"
#include "simulate/known_rates.h"
#include "simulate/recorder.h"
#include "simulate/training.h"

namespace tributary::simulate {
namespace {

using aggregator::Strategy;
using aggregator::UpdateKeyRef;

constexpr int64_t kTraceStepNs = 1'000'000'000;  // events of a trace are a virtual second apart
constexpr double kSecondsPerNs = 1e-9;
constexpr size_t kMaxKeptElements = size_t{1} << 27;  // 1 GiB

// Kinds of a moment, in the order in which they happen.
enum class Kind : uint8_t { kArrival, kTrace, kTick };

struct Event {
  int64_t ns = 0;
  Kind kind = Kind::kArrival;
  uint64_t order = 0;
  uint64_t task = 0;    // kArrival
  size_t place = 0;     // kTrace
  bool operator>(const Event& other) const { return std::tie(ns, kind, order) > std::tie(other.ns, other.kind, other.order); }
};

// An update that the engine has not asked to fold yet.
struct Arrived {
  std::shared_ptr<const LargeBytes> bytes;
  std::shared_ptr<client::DeviceUpdate> on_device;  // in place of bytes
  CommitMaker::Checked checked;
  MoeStats moe{};
};

class Simulation {
 public:
  Simulation(const SimulationOptions& options, JobSpec spec, std::unique_ptr<Strategy> strategy)
      : options_(options), spec_(std::move(spec)), strategy_(std::move(strategy)), layout_(options.initial.layout) {}

  absl::Status Prepare();
  absl::StatusOr<SimulationResult> Run();

 private:
  // What of the job a simulation cannot do.
  absl::Status CheckJob() const;
  absl::Status PrepareClients();
  // After `version` versions; nothing without privacy.
  std::optional<v1::PrivacySpend> Spend(uint64_t version) const;
  absl::Time Now() const { return absl::UnixEpoch() + absl::Nanoseconds(now_ns_); }
  bool synchronous() const { return synchronous_; }
  bool traced() const { return !trace_.empty(); }
  absl::Status Post(aggregator::RoundEvent event);
  uint64_t DownBytes(uint32_t client, uint64_t version) const;
  absl::Status Do(const aggregator::IssueTask& action);
  absl::Status Do(const aggregator::CancelTask& action);
  absl::Status Do(const aggregator::Fold& action);
  absl::Status Do(const aggregator::Refuse& action);
  absl::Status Do(const aggregator::Commit& action);
  absl::Status Do(const aggregator::Evaluate& action);
  absl::Status Do(const aggregator::Finish& action);
  absl::Status Do(const aggregator::WakeAt& action);
  // Tells the engine who takes part in the round that is about to open.
  absl::Status TellPresence();
  // What goes down with the current version besides the model.
  absl::Status MakeVectors();
  // Adds the current model to the result, where it is wanted.
  absl::Status KeepModel();
  absl::Status Begin();
  absl::Status Step(const Event& event);
  absl::Status Arrive(uint64_t task);
  absl::Status Follow(const TraceEvent& event);
  void Push(int64_t ns, Kind kind, uint64_t task, size_t place = 0) { queue_.push({ns, kind, order_++, task, place}); }
  void Fail(const absl::Status& status);

  const SimulationOptions& options_;
  const JobSpec spec_;
  const std::unique_ptr<Strategy> strategy_;
  const TensorLayout& layout_;
  std::unique_ptr<CommitMaker> maker_;
  bool synchronous_ = true;
  std::unique_ptr<Availability> availability_;
  std::unique_ptr<Delays> delays_;
  std::vector<TraceEvent> trace_;
  Channel channel_;
  std::optional<Training> training_;
  std::unique_ptr<aggregator::Round> round_;
  std::optional<Recorder> recorder_;

  std::priority_queue<Event, std::vector<Event>, std::greater<>> queue_;
  uint64_t order_ = 0;
  int64_t now_ns_ = 0;
  std::set<int64_t> ticks_;  // moments that have one in the queue
  std::deque<aggregator::RoundEvent> posted_;
  bool applying_ = false;
  bool finished_ = false;

  std::unordered_map<std::string, uint32_t> index_;        // of clients, by id
  std::vector<uint64_t> tasks_of_;                         // tasks issued so far, by client
  std::vector<std::pair<uint64_t, uint64_t>> latest_;      // version and number of tasks from it, by client
  std::vector<uint64_t> task_of_;                          // its current task, 0: none
  std::vector<uint32_t> present_;                          // of the open round, ascending
  CohortSpec cohort_;                                      // as the engine has it now
  ModelRef model_;
  std::map<std::string, ModelRef> vectors_;
  std::vector<std::shared_ptr<const client::ClientState>> states_;  // of each client; shared with the tasks that start from them
  std::unordered_map<UpdateId, std::shared_ptr<client::ClientState>> staged_;
  std::string sha256_;
  std::unordered_map<UpdateId, Arrived> arrived_;          // handed to the engine, not folded yet
  std::map<UpdateId, std::shared_ptr<const LargeBytes>> kept_;  // folded, of a job that records them
  std::unordered_map<UpdateId, ModelRef> bases_;           // what they started from, for steps that need it
  SimulationResult result_;
};

absl::Status Simulation::CheckJob() const {
  const SimulateSpec& simulate = spec_.simulate;
  const auto clients = static_cast<int64_t>(options_.clients.size());
  if (!synchronous_ && simulate.participation.kind != "all") {
    return InvalidArgument("simulate.participation: kind {} is for synchronous strategies; in {} a client that is away is one with a long delay",
                           simulate.participation.kind, spec_.strategy.name);
  }
  if (!simulate.delay.events.empty() && synchronous_) {
    return InvalidArgument("simulate.delay.events: for asynchronous strategies, not {}", spec_.strategy.name);
  }
  TRIB_RETURN_IF_ERROR(aggregator::ResolveHierarchy(spec_.hierarchy, spec_.strategy.name, aggregator::FindStrategy(spec_.strategy.name)->trait).status());
  if (spec_.record && options_.store == nullptr) return InvalidArgument("record: true keeps the updates in a state store: name one (--out DIR)");
  const bool all = simulate.participation.kind == "all";
  if (spec_.cohort.population > 0 && !all) {
    return InvalidArgument("cohort.population: cohorts are drawn among all clients: expected simulate.participation all, got {}", simulate.participation.kind);
  }
  if (spec_.cohort.population > clients) {
    return InvalidArgument("cohort.population: expected at most the {} clients of the simulation, got {}", clients, spec_.cohort.population);
  }
  if (spec_.privacy.enabled && spec_.privacy.placement == NoisePlacement::kDistributed && !(all && clients >= spec_.EffectiveQuorum())) {
    return InvalidArgument("privacy: placement distributed: each adds a share for {} that take part: expected as many clients and simulate.participation all, "
                           "got {} clients and {}", spec_.EffectiveQuorum(), clients, simulate.participation.kind);
  }
  if (spec_.codec != "f32" && spec_.codec != "f64" && (simulate.channel.has_snr || simulate.channel.uplink_var > 0)) {
    return InvalidArgument("simulate.channel: noise on the uplink is for numbers, not for codes: expected codec f32, got {}", spec_.codec);
  }
  if (layout_.trainable_count() == 0) return InvalidArgument("the model has no trainable element");
  if (layout_.float_dtype() != spec_.dtype) {
    return InvalidArgument("dtype: the job says {}, the model's tensors are {}", DTypeName(spec_.dtype), DTypeName(layout_.float_dtype()));
  }
  return absl::OkStatus();
}

absl::Status Simulation::PrepareClients() {
  const auto clients = static_cast<int64_t>(options_.clients.size());
  const auto seed = static_cast<uint64_t>(spec_.seed);
  const SimulateSpec& simulate = spec_.simulate;
  if (!simulate.delay.events.empty()) {
    TRIB_ASSIGN_OR_RETURN(trace_, ParseTraceEvents(simulate.delay.events, clients));
  }
  TRIB_ASSIGN_OR_RETURN(availability_, Availability::Make(simulate.participation, clients, seed));
  TRIB_ASSIGN_OR_RETURN(delays_, Delays::Make(simulate.delay, clients, seed));
  channel_ = Channel(simulate.channel, &layout_, seed);
  index_.reserve(options_.clients.size());
  for (uint32_t i = 0; i < options_.clients.size(); ++i) index_.emplace(options_.clients[i], i);
  tasks_of_.resize(options_.clients.size());
  task_of_.resize(options_.clients.size());
  latest_.resize(options_.clients.size());
  states_.assign(options_.clients.size(), std::make_shared<const client::ClientState>());
  return absl::OkStatus();
}

absl::Status Simulation::Prepare() {
  synchronous_ = strategy_->synchronous();
  TRIB_RETURN_IF_ERROR(CheckJob());
  TRIB_RETURN_IF_ERROR(PrepareClients());
  model_ = std::make_shared<const std::vector<std::byte>>(options_.initial.bytes);
  TRIB_ASSIGN_OR_RETURN(maker_, CommitMaker::Make(spec_, *strategy_, layout_, *model_));
  training_.emplace(TrainingOptions{.spec = &spec_, .layout = &layout_, .update_layout = &maker_->update_layout(), .encoding = maker_->encoding(), .initial = model_,
                                    .clients = &options_.clients, .learners = options_.learners, .data = options_.data, .artifact_path = spec_.model.artifact_path(),
                                    .interrupted = options_.interrupted, .in_place_of_model = strategy_->in_place_of_model(),
                                    .updates_stay_on_device = maker_->folds_on_device() && !channel_.noisy_up()});
  sha256_ = Sha256Hex(*model_);
  TRIB_RETURN_IF_ERROR(MakeVectors());
  const std::string canonical = CanonicalYaml(spec_);
  result_.id = fmt::format("{}-{}", spec_.name, Sha256Hex(std::as_bytes(std::span(canonical))).substr(0, 6));
  result_.spec = spec_;
  result_.privacy = Spend(0);
  if (options_.store != nullptr) {
    TRIB_ASSIGN_OR_RETURN(recorder_, Recorder::Begin(options_.store, result_.id, spec_, layout_, options_.artifact, *model_, sha256_, Spend(0)));
  }
  cohort_ = spec_.cohort;
  JobSpec of_round = spec_;
  if (maker_->privacy() != nullptr) of_round.stop.versions = std::min(of_round.stop.versions, maker_->privacy()->versions());
  round_ = std::make_unique<aggregator::Round>(of_round, *strategy_, aggregator::RoundOptions{}, Now());
  return absl::OkStatus();
}

std::optional<v1::PrivacySpend> Simulation::Spend(uint64_t version) const {
  if (maker_->privacy() == nullptr) return std::nullopt;
  return aggregator::PrivacyRow(*maker_->privacy(), version, maker_->clip());
}

absl::Status Simulation::Post(aggregator::RoundEvent event) {
  posted_.push_back(std::move(event));
  if (applying_) return absl::OkStatus();
  applying_ = true;
  absl::Status status;
  while (!posted_.empty() && status.ok()) {
    const aggregator::RoundEvent next = std::move(posted_.front());
    posted_.pop_front();
    ++result_.engine_events;
    for (const aggregator::RoundAction& action : round_->OnEvent(next, Now())) {
      status = std::visit([this](const auto& a) { return Do(a); }, action);
      if (!status.ok()) break;
    }
  }
  applying_ = false;
  posted_.clear();
  return status;
}

absl::Status Simulation::TellPresence() {
  const std::span<const uint32_t> now = availability_->NextRound();
  std::vector<std::string> arrived;
  auto before = present_.begin();
  for (const uint32_t client : now) {
    while (before != present_.end() && *before < client) TRIB_RETURN_IF_ERROR(Post(aggregator::ClientGone{options_.clients[*before++]}));
    if (before != present_.end() && *before == client) {
      ++before;
    } else {
      arrived.push_back(options_.clients[client]);
    }
  }
  for (; before != present_.end(); ++before) TRIB_RETURN_IF_ERROR(Post(aggregator::ClientGone{options_.clients[*before]}));
  present_.assign(now.begin(), now.end());
  CohortSpec cohort = spec_.cohort;
  cohort.size = std::min<int64_t>(cohort.size, std::max<int64_t>(1, static_cast<int64_t>(present_.size())));
  cohort.quorum = std::min(cohort.quorum, cohort.size);
  if (!(cohort == cohort_)) {
    cohort_ = cohort;
    TRIB_RETURN_IF_ERROR(Post(aggregator::CohortChanged{cohort}));
  }
  if (!arrived.empty()) TRIB_RETURN_IF_ERROR(Post(aggregator::ClientsArrived{std::move(arrived)}));
  return absl::OkStatus();
}

absl::Status Simulation::MakeVectors() {
  for (const std::string& name : strategy_->version_vectors()) {
    const std::vector<double>& values = maker_->state().strategy.vectors.at(name);
    auto bytes = std::make_shared<std::vector<std::byte>>(values.size() * DTypeBytes(layout_.float_dtype()));
    if (!aggregator::StoreFloats(layout_.float_dtype(), values, *bytes)) return DataLoss("the strategy's vector '{}' is not finite", name);
    // In the model's place it comes with the model's buffers and counters.
    if (name == strategy_->in_place_of_model()) bytes->insert(bytes->end(), model_->begin() + static_cast<ptrdiff_t>(bytes->size()), model_->end());
    vectors_[name] = std::move(bytes);
  }
  return absl::OkStatus();
}

absl::Status Simulation::KeepModel() {
  if (!options_.keep_models) return absl::OkStatus();
  const size_t trainable = layout_.trainable_count();
  if (result_.models.size() + trainable > kMaxKeptElements) {
    return ResourceExhausted("the models of versions 0 to {} have more than {} elements in all: too many to keep", result_.version, kMaxKeptElements);
  }
  for (size_t i = 0; i < trainable; ++i) result_.models.push_back(aggregator::FloatAt(layout_, *model_, i));
  result_.model_times_s.push_back(static_cast<double>(now_ns_) * kSecondsPerNs);
  return absl::OkStatus();
}

absl::Status Simulation::Begin() {
  TRIB_RETURN_IF_ERROR(KeepModel());
  TRIB_RETURN_IF_ERROR(Post(aggregator::ClientsRegistered{options_.clients}));
  if (traced()) {
    for (size_t i = 0; i < trace_.size(); ++i) Push(static_cast<int64_t>(i) * kTraceStepNs, Kind::kTrace, 0, i);
    return absl::OkStatus();
  }
  TRIB_RETURN_IF_ERROR(TellPresence());
  if (present_.empty()) TRIB_RETURN_IF_ERROR(Post(aggregator::RoundSkipped{}));
  return absl::OkStatus();
}

// What the client fetches for its next task over TCP, if nobody shares its daemon.
uint64_t Simulation::DownBytes(uint32_t client, uint64_t version) const {
  const size_t model = layout_.total_bytes();
  if (const size_t log = strategy_->fitness_bytes(); log > 0 && tasks_of_[client] > 0) {
    const uint64_t versions = version - latest_[client].first;
    if (versions == 0) return 0;
    if (EggrollLogsAreShorter(versions, log, model)) return versions * log + kEggrollDigestBytes;
  }
  const size_t beside_model = vectors_.size() - (strategy_->in_place_of_model().empty() ? 0 : 1);
  return model + beside_model * layout_.trainable_count() * DTypeBytes(layout_.float_dtype());
}

absl::Status Simulation::Do(const aggregator::IssueTask& action) {
  const uint32_t client = index_.at(action.client);
  SimulatedTask task;
  task.id = action.task;
  task.client = client;
  task.version = action.version;
  result_.bytes_down += DownBytes(client, action.version);
  auto& [version, count] = latest_[client];
  count = version == action.version ? count : 0;
  version = action.version;
  task.repeat = count++;
  const std::string in_place = strategy_->in_place_of_model();
  if (in_place.empty()) task.model = channel_.Down(model_, client, action.version, task.repeat, 0);
  uint64_t part = 1;
  for (const auto& [name, values] : vectors_) task.vectors[name] = channel_.Down(values, client, action.version, task.repeat, part++);
  if (!in_place.empty()) task.model = task.vectors.at(in_place);
  task.state = states_[client];
  task.clip = maker_->clip();
  task.moe = maker_->moe();
  task.noise_seed = strategy_->noise_seed(action.client, action.version);
  task_of_[client] = action.task;
  const uint64_t k = tasks_of_[client]++;
  if (!traced()) {
    const std::optional<int64_t> ns = delays_->Nanoseconds(client, k, now_ns_);
    if (ns) Push(now_ns_ + *ns, Kind::kArrival, action.task);
  }
  training_->Issue(std::move(task));
  return absl::OkStatus();
}

absl::Status Simulation::Do(const aggregator::CancelTask& action) {
  training_->Cancel(action.task);
  return absl::OkStatus();
}

absl::Status Simulation::Arrive(uint64_t task_id) {
  TRIB_ASSIGN_OR_RETURN(SimulatedTask task, training_->Finish(task_id));
  TRIB_CHECK(task.result.has_value());
  client::TrainResult& trained = *task.result;
  const bool changed = trained.on_device == nullptr && channel_.Up(trained.update, task.client, task.version, task.repeat);
  aggregator::UpdateArrived arrived{.key = {.client = options_.clients[task.client], .task = task_id, .update = UpdateId{task_id, task.client + 1}},
                                    .version = task.version,
                                    .weight = trained.weight,
                                    .examples = trained.examples};
  arrived.scalars = std::move(trained.scalars);
  auto known = changed ? std::nullopt : std::optional(task.scan);
  size_t bytes_up = trained.on_device == nullptr ? trained.update.size() : trained.on_device->flat_bytes();
  if (maker_->live() != nullptr) {  // only what travels arrives
    const LargeBytes packed = maker_->live()->Pack(*model_, trained.update);
    bytes_up = packed.size();
    TRIB_ASSIGN_OR_RETURN(trained.update, maker_->live()->Unpack(*model_, packed));
    known.reset();
  }
  const absl::StatusOr<CommitMaker::Checked> checked = trained.on_device == nullptr ? maker_->Check(trained.update, trained.moe, &arrived.scalars, known)
                                                                                    : maker_->Check(*trained.on_device, arrived.scalars);
  if (!checked.ok()) return Annotate(checked.status(), fmt::format("client '{}', version {}", arrived.key.client, task.version));
  result_.bytes_up += bytes_up;
  if (strategy_->server_step().needs_base()) bases_[arrived.key.update] = task.model;
  if (trained.state) staged_[arrived.key.update] = std::make_shared<client::ClientState>(*std::move(trained.state));
  arrived.moe = trained.moe;
  arrived_[arrived.key.update] = {.bytes = std::make_shared<const LargeBytes>(std::move(trained.update)), .on_device = std::move(trained.on_device),
                                  .checked = *checked, .moe = std::move(trained.moe)};
  return Post(std::move(arrived));
}

absl::Status Simulation::Do(const aggregator::Fold& action) {
  const auto at = arrived_.find(action.key.update);
  if (at == arrived_.end()) return Internal("update {} is to be folded but is not here", ToHex(action.key.update));
  auto& [bytes, on_device, checked, moe] = at->second;
  const double weight = action.weight * checked.clip_factor;
  TRIB_RETURN_IF_ERROR(on_device == nullptr ? maker_->Fold(action.key, weight, *bytes, moe, bytes, checked.scan)
                                            : maker_->Fold(action.key, weight, std::move(on_device), checked.scan));
  if (spec_.record) kept_[action.key.update] = maker_->live() == nullptr ? bytes : std::make_shared<const LargeBytes>(maker_->live()->Pack(*model_, *bytes));
  arrived_.erase(at);
  return Post(aggregator::UpdateFolded{action.key.update});
}

absl::Status Simulation::Do(const aggregator::Refuse& action) {
  ++result_.updates_rejected[action.reason];
  arrived_.erase(action.key.update);
  bases_.erase(action.key.update);
  staged_.erase(action.key.update);
  return absl::OkStatus();
}

absl::Status Simulation::Do(const aggregator::Commit& commit) {
  std::span<const std::byte> base;
  if (strategy_->server_step().needs_base() && !commit.contributors.empty()) base = *bases_.at(commit.contributors[0].key.update);
  TRIB_ASSIGN_OR_RETURN(model_, maker_->NextModel(commit, model_, base));
  std::vector<std::pair<std::string, std::span<const std::byte>>> rows;
  for (const aggregator::RoundContributor& contributor : commit.contributors) {
    const auto row = maker_->state().rows.find(contributor.key.client);
    if (row != maker_->state().rows.end()) rows.emplace_back(row->first, row->second);
  }
  result_.privacy = Spend(commit.version);
  if (recorder_) {
    sha256_ = Sha256Hex(*model_);
    TRIB_RETURN_IF_ERROR(recorder_->Commit({.commit = &commit, .model = *model_, .sha256 = sha256_, .state = &maker_->state().strategy, .client_vectors = rows,
                                            .updates = spec_.record ? &kept_ : nullptr, .privacy = result_.privacy, .measured = maker_->measured(), .moe = &maker_->moe(), .now_ns = now_ns_}));
  }
  kept_.clear();
  if (!bases_.empty()) {
    for (const aggregator::RoundContributor& contributor : commit.contributors) bases_.erase(contributor.key.update);
  }
  TRIB_RETURN_IF_ERROR(MakeVectors());
  for (const aggregator::RoundContributor& contributor : commit.contributors) {
    if (const auto staged = staged_.find(contributor.key.update); staged != staged_.end()) {
      staged->second->version = commit.version;
      states_[index_.at(contributor.key.client)] = std::move(staged->second);
      staged_.erase(staged);
    }
  }
  result_.version = commit.version;
  result_.updates_committed += commit.contributors.size();
  TRIB_RETURN_IF_ERROR(KeepModel());
  if (options_.keep_history) {
    result_.history.push_back({.version = commit.version, .virtual_s = static_cast<double>(now_ns_) * kSecondsPerNs, .trigger = commit.trigger,
                               .contributors = commit.contributors, .privacy = result_.privacy});
  }
  if (options_.progress) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const bool measured = !result_.metrics.empty();
    const bool go_on = options_.progress({.version = commit.version, .virtual_s = static_cast<double>(now_ns_) * kSecondsPerNs,
                                          .updates = result_.updates_committed, .loss = measured ? result_.metrics.back().loss() : nan,
                                          .accuracy = measured ? result_.metrics.back().accuracy() : nan});
    if (!go_on) TRIB_RETURN_IF_ERROR(Post(aggregator::CancelRequested{"interrupted"}));
  }
  // While the engine waits for its commit it asks nobody: those who take part in the next round are there when it opens.
  if (synchronous()) TRIB_RETURN_IF_ERROR(TellPresence());
  TRIB_RETURN_IF_ERROR(Post(aggregator::VersionCommitted{commit.version}));
  if (synchronous() && present_.empty()) TRIB_RETURN_IF_ERROR(Post(aggregator::RoundSkipped{}));
  return absl::OkStatus();
}

absl::Status Simulation::Do(const aggregator::Evaluate& action) {
  if (options_.evaluation == nullptr) return absl::OkStatus();
  TRIB_ASSIGN_OR_RETURN(const client::EvaluateResult measured, training_->Evaluate(action.version, *model_, *options_.evaluation));
  v1::Metric& metric = result_.metrics.emplace_back();
  metric.set_version(action.version);
  metric.set_wall_s(static_cast<double>(now_ns_) * kSecondsPerNs);
  metric.set_loss(measured.loss);
  metric.set_accuracy(measured.accuracy);
  metric.set_examples(measured.examples);
  metric.set_evaluator("simulation");
  metric.set_bytes_up(result_.bytes_up);
  metric.set_bytes_down(result_.bytes_down);
  if (action.version == result_.version) metric.mutable_measured()->insert(maker_->measured().begin(), maker_->measured().end());
  if (recorder_) TRIB_RETURN_IF_ERROR(recorder_->Metric(metric));
  return Post(aggregator::MetricReported{action.version, measured.accuracy});
}

absl::Status Simulation::Do(const aggregator::Finish& action) {
  finished_ = true;
  result_.state = action.outcome == aggregator::Outcome::kDone        ? SimulationState::kDone
                  : action.outcome == aggregator::Outcome::kCancelled ? SimulationState::kCancelled
                                                                      : SimulationState::kFailed;
  result_.reason = action.reason;
  if (maker_->privacy() != nullptr && action.outcome == aggregator::Outcome::kDone) {
    result_.reason = maker_->privacy()->EndedByBudget(result_.version).value_or(action.reason);
  }
  return absl::OkStatus();
}

absl::Status Simulation::Do(const aggregator::WakeAt& action) {
  // The engine asks at each event when it is to be woken: for one moment one tick, or there would be more of them in every round.
  const int64_t ns = absl::ToInt64Nanoseconds(action.when - absl::UnixEpoch());
  if (ticks_.insert(ns).second) Push(ns, Kind::kTick, 0);
  return absl::OkStatus();
}

absl::Status Simulation::Follow(const TraceEvent& event) {
  const std::string& client = options_.clients[event.client];
  if (!event.download) {
    const uint64_t task = std::exchange(task_of_[event.client], 0);
    if (task == 0) return InvalidArgument("simulate.delay.events: client {} uploads without a download before", event.client);
    return Arrive(task);
  }
  if (task_of_[event.client] != 0) {
    return InvalidArgument("simulate.delay.events: client {} downloads twice without an upload between", event.client);
  }
  TRIB_RETURN_IF_ERROR(Post(aggregator::ClientIdle{client, {}}));
  if (task_of_[event.client] == 0) {
    return InvalidArgument("simulate.delay.events: client {} is given no task at its download; is cohort.size below the number of clients?", event.client);
  }
  // It begins again when the trace says so, not when the engine would have it.
  return Post(aggregator::ClientGone{client});
}

absl::Status Simulation::Step(const Event& event) {
  now_ns_ = event.ns;
  switch (event.kind) {
    case Kind::kArrival:
      return training_->Has(event.task) ? Arrive(event.task) : absl::OkStatus();  // else it was cancelled
    case Kind::kTrace:
      return Follow(trace_[event.place]);
    case Kind::kTick:
      ticks_.erase(event.ns);
      return Post(aggregator::Tick{});
  }
  return absl::OkStatus();
}

void Simulation::Fail(const absl::Status& status) {
  finished_ = true;
  result_.state = SimulationState::kFailed;
  result_.reason = MessageOf(status);
}

absl::StatusOr<SimulationResult> Simulation::Run() {
  absl::Status status = Begin();
  while (status.ok() && !finished_ && !queue_.empty()) {
    const Event event = queue_.top();
    queue_.pop();
    status = Step(event);
  }
  if (absl::IsCancelled(status)) {
    finished_ = true;
    result_.state = SimulationState::kCancelled;
    result_.reason = "interrupted";
  } else if (!status.ok()) {
    Fail(Annotate(status, fmt::format("version {} cannot be made", result_.version + 1)));
  } else if (!finished_ && traced()) {
    result_.reason = fmt::format("the trace ends after version {}", result_.version);
  } else if (!finished_) {
    Fail(FailedPrecondition("nothing will happen any more: {}", round_->WaitingFor(Now())));
  }
  result_.virtual_s = static_cast<double>(now_ns_) * kSecondsPerNs;
  result_.model = {.layout = layout_, .bytes = *model_};
  result_.model_sha256 = Sha256Hex(*model_);
  result_.clients_trained = training_->trained();
  result_.client_states = states_;
  if (recorder_) {
    const v1::JobState state = result_.state == SimulationState::kDone        ? v1::JOB_STATE_DONE
                               : result_.state == SimulationState::kCancelled ? v1::JOB_STATE_CANCELLED
                                                                              : v1::JOB_STATE_FAILED;
    TRIB_RETURN_IF_ERROR(recorder_->End({.state = state, .reason = result_.reason, .now_ns = now_ns_, .bytes_up = result_.bytes_up,
                                         .bytes_down = result_.bytes_down, .rejected = result_.updates_rejected}));
  }
  return std::move(result_);
}

}  // namespace

absl::StatusOr<SimulationResult> RunSimulation(const SimulationOptions& options) {
  if (options.clients.empty() || options.learners.empty()) return InvalidArgument("a simulation needs a client and a learner");
  JobSpec spec = options.spec;
  spec.privacy.insecure_seed = spec.privacy.enabled;
  spec.cohort.draw_key = static_cast<uint64_t>(spec.seed);
  if (spec.cohort.poisson && spec.cohort.population == 0) {
    spec.cohort.population = static_cast<int64_t>(options.clients.size());
    spec.cohort.size = spec.cohort.PoissonSize();
  }
  TRIB_RETURN_IF_ERROR(aggregator::ResolveNoise(&spec));
  TRIB_RETURN_IF_ERROR(FillKnownRates(options.clients, &spec));
  auto strategy = aggregator::StrategyOf(spec);
  if (!strategy.ok()) return InvalidArgument("strategy: {}", MessageOf(strategy.status()));
  Simulation simulation(options, std::move(spec), *std::move(strategy));
  TRIB_RETURN_IF_ERROR(simulation.Prepare());
  return simulation.Run();
}

}  // namespace tributary::simulate
