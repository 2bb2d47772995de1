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

#include "aggregator/core/aggregate.h"
#include "aggregator/core/planners/hierarchy.h"
#include "aggregator/core/round.h"
#include "client/core/random.h"
#include "common/digest.h"
#include "simulate/availability.h"
#include "simulate/channel.h"
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

class Simulation {
 public:
  Simulation(const SimulationOptions& options, JobSpec spec, std::unique_ptr<Strategy> strategy)
      : options_(options), spec_(std::move(spec)), strategy_(std::move(strategy)), layout_(options.initial.layout) {}

  absl::Status Prepare();
  absl::StatusOr<SimulationResult> Run();

 private:
  absl::Time Now() const { return absl::UnixEpoch() + absl::Nanoseconds(now_ns_); }
  bool synchronous() const { return synchronous_; }
  bool traced() const { return !trace_.empty(); }
  absl::Status Post(aggregator::RoundEvent event);
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
  absl::Status MakeModel(const aggregator::Commit& commit, std::vector<std::byte>* next);
  void Push(int64_t ns, Kind kind, uint64_t task, size_t place = 0) { queue_.push({ns, kind, order_++, task, place}); }
  void Fail(const absl::Status& status);

  const SimulationOptions& options_;
  const JobSpec spec_;
  const std::unique_ptr<Strategy> strategy_;
  const TensorLayout& layout_;
  TensorLayout update_layout_;
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
  aggregator::MemoryState memory_;
  std::optional<aggregator::Aggregate> aggregate_;         // of the open round, once something is folded
  std::unordered_map<UpdateId, LargeBytes> arrived_;       // handed to the engine, not folded yet
  std::map<UpdateId, LargeBytes> kept_;                    // folded, of a job that records them
  std::unordered_map<UpdateId, ModelRef> bases_;           // what they started from, for steps that need it
  SimulationResult result_;
};

absl::Status Simulation::Prepare() {
  const auto clients = static_cast<int64_t>(options_.clients.size());
  const auto seed = static_cast<uint64_t>(spec_.seed);
  synchronous_ = strategy_->synchronous();
  const SimulateSpec& simulate = spec_.simulate;
  if (!synchronous_ && simulate.participation.kind != "all") {
    return InvalidArgument("simulate.participation: kind {} is for synchronous strategies; in {} a client that is away is one with a long delay",
                           simulate.participation.kind, spec_.strategy.name);
  }
  if (!simulate.delay.events.empty()) {
    if (synchronous_) return InvalidArgument("simulate.delay.events: for asynchronous strategies, not {}", spec_.strategy.name);
    TRIB_ASSIGN_OR_RETURN(trace_, ParseTraceEvents(simulate.delay.events, clients));
  }
  TRIB_ASSIGN_OR_RETURN(availability_, Availability::Make(simulate.participation, clients, seed));
  TRIB_ASSIGN_OR_RETURN(delays_, Delays::Make(simulate.delay, clients, seed));
  TRIB_RETURN_IF_ERROR(strategy_->CheckJob(spec_));
  TRIB_RETURN_IF_ERROR(aggregator::ResolveHierarchy(spec_.hierarchy, spec_.strategy.name, aggregator::FindStrategy(spec_.strategy.name)->trait).status());
  if (spec_.record && options_.store == nullptr) return InvalidArgument("record: true keeps the updates in a state store: name one (--out DIR)");
  channel_ = Channel(simulate.channel, &layout_, seed);
  if (spec_.privacy.enabled) return InvalidArgument("privacy: a simulation adds no noise and accounts nothing; run the job through daemons, or leave the key out");
  if (spec_.Encoding(layout_).codec != Codec::kPlain) {
    return InvalidArgument("codec: a simulation passes updates as they are: expected {}, got {}", spec_.dtype == DType::kF64 ? "f64" : "f32", spec_.codec);
  }
  if (spec_.cohort.population > 0) return InvalidArgument("cohort.population: a simulation draws from those that simulate.participation lets take part");
  if (layout_.trainable_count() == 0) return InvalidArgument("the model has no trainable element");
  if (layout_.float_dtype() != spec_.dtype) {
    return InvalidArgument("dtype: the job says {}, the model's tensors are {}", DTypeName(spec_.dtype), DTypeName(layout_.float_dtype()));
  }
  index_.reserve(options_.clients.size());
  for (uint32_t i = 0; i < options_.clients.size(); ++i) index_.emplace(options_.clients[i], i);
  tasks_of_.resize(options_.clients.size());
  task_of_.resize(options_.clients.size());
  latest_.resize(options_.clients.size());
  states_.assign(options_.clients.size(), std::make_shared<const client::ClientState>());
  TRIB_ASSIGN_OR_RETURN(update_layout_, aggregator::UpdateLayout(*strategy_, layout_));
  model_ = std::make_shared<const std::vector<std::byte>>(options_.initial.bytes);
  training_.emplace(TrainingOptions{.spec = &spec_, .layout = &layout_, .update_layout = &update_layout_, .initial = model_, .clients = &options_.clients, .learners = options_.learners,
                                    .data = options_.data, .artifact_path = spec_.model.torchscript,
                                    .interrupted = options_.interrupted, .in_place_of_model = strategy_->in_place_of_model()});
  sha256_ = Sha256Hex(*model_);
  TRIB_RETURN_IF_ERROR(aggregator::PrepareState(*strategy_, layout_, *model_, &memory_.strategy));
  TRIB_RETURN_IF_ERROR(MakeVectors());
  const std::string canonical = CanonicalYaml(spec_);
  result_.id = fmt::format("{}-{}", spec_.name, Sha256Hex(std::as_bytes(std::span(canonical))).substr(0, 6));
  if (options_.store != nullptr) {
    TRIB_ASSIGN_OR_RETURN(recorder_, Recorder::Begin(options_.store, result_.id, spec_, layout_, options_.artifact, *model_, sha256_));
  }
  cohort_ = spec_.cohort;
  round_ = std::make_unique<aggregator::Round>(spec_, *strategy_, aggregator::RoundOptions{}, Now());
  return absl::OkStatus();
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
    const std::vector<double>& values = memory_.strategy.vectors.at(name);
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

absl::Status Simulation::Do(const aggregator::IssueTask& action) {
  const uint32_t client = index_.at(action.client);
  SimulatedTask task;
  task.id = action.task;
  task.client = client;
  task.version = action.version;
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
  task_of_[client] = action.task;
  const size_t beside_model = vectors_.size() - (in_place.empty() ? 0 : 1);
  result_.bytes_down += layout_.total_bytes() + beside_model * layout_.trainable_count() * DTypeBytes(layout_.float_dtype());
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
  client::TrainResult& trained = *task.result;
  channel_.Up(trained.update, task.client, task.version, task.repeat);
  aggregator::UpdateArrived arrived{.key = {.client = options_.clients[task.client], .task = task_id, .update = UpdateId{task_id, task.client + 1}},
                                    .version = task.version,
                                    .weight = trained.weight,
                                    .examples = trained.examples};
  for (const aggregator::ScalarInfo& scalar : strategy_->scalars()) {
    const auto at = trained.scalars.find(scalar.name);
    if (at != trained.scalars.end()) arrived.scalars.insert(*at);
  }
  TRIB_RETURN_IF_ERROR(aggregator::CheckScalars(*strategy_, arrived.scalars));
  const aggregator::ScanResult scan = aggregator::Scan(std::span(trained.update).first(update_layout_.float_bytes()), layout_.float_dtype());
  if (!scan.finite) return Internal("client '{}', version {}: the update is not finite", arrived.key.client, task.version);
  aggregator::AddMeasured(*strategy_, layout_, trained.update, &arrived.scalars);
  result_.bytes_up += trained.update.size();
  if (strategy_->server_step().needs_base()) bases_[arrived.key.update] = task.model;
  if (trained.state) staged_[arrived.key.update] = std::make_shared<client::ClientState>(*std::move(trained.state));
  arrived_[arrived.key.update] = std::move(trained.update);
  return Post(std::move(arrived));
}

absl::Status Simulation::Do(const aggregator::Fold& action) {
  const auto at = arrived_.find(action.key.update);
  if (at == arrived_.end()) return Internal("update {} is to be folded but is not here", ToHex(action.key.update));
  if (!aggregate_) {
    const auto arithmetic = spec_.reproducible ? aggregator::Arithmetic::kFixedPoint : aggregator::Arithmetic::kFloat64;
    aggregate_.emplace(*strategy_, layout_, arithmetic, std::max<int64_t>(1, spec_.ClientsAsked()));
  }
  TRIB_RETURN_IF_ERROR(aggregate_->Fold({.key = action.key, .weight = action.weight}, at->second));
  if (spec_.record) kept_[action.key.update] = std::move(at->second);
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

absl::Status Simulation::MakeModel(const aggregator::Commit& commit, std::vector<std::byte>* next) {
  std::span<const std::byte> base;
  if (strategy_->server_step().needs_base()) base = *bases_.at(commit.contributors[0].key.update);
  const aggregator::CommitFacts facts{
      .version = commit.version, .sum_weight = commit.sum_weight, .registered = commit.registered, .contributors = commit.contributors};
  return aggregate_->Step({.facts = facts, .previous = *model_, .base = base}, &memory_, *next);
}

absl::Status Simulation::Do(const aggregator::Commit& commit) {
  std::vector<std::pair<std::string, std::span<const std::byte>>> rows;
  if (!commit.contributors.empty()) {
    auto next = std::make_shared<std::vector<std::byte>>(layout_.total_bytes());
    TRIB_RETURN_IF_ERROR(MakeModel(commit, next.get()));
    model_ = std::move(next);
    for (const aggregator::RoundContributor& contributor : commit.contributors) {
      const auto row = memory_.rows.find(contributor.key.client);
      if (row != memory_.rows.end()) rows.emplace_back(row->first, row->second);
    }
  }
  if (recorder_) {
    sha256_ = Sha256Hex(*model_);
    TRIB_RETURN_IF_ERROR(recorder_->Commit({.commit = &commit, .model = *model_, .sha256 = sha256_, .state = &memory_.strategy, .client_vectors = rows, .updates = spec_.record ? &kept_ : nullptr, .now_ns = now_ns_}));
  }
  aggregate_.reset();
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
                               .contributors = commit.contributors});
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
  if (recorder_) TRIB_RETURN_IF_ERROR(recorder_->Metric(metric));
  return Post(aggregator::MetricReported{action.version, measured.accuracy});
}

absl::Status Simulation::Do(const aggregator::Finish& action) {
  finished_ = true;
  result_.state = action.outcome == aggregator::Outcome::kDone        ? SimulationState::kDone
                  : action.outcome == aggregator::Outcome::kCancelled ? SimulationState::kCancelled
                                                                      : SimulationState::kFailed;
  result_.reason = action.reason;
  return absl::OkStatus();
}

absl::Status Simulation::Do(const aggregator::WakeAt& action) {
  Push(absl::ToInt64Nanoseconds(action.when - absl::UnixEpoch()), Kind::kTick, 0);
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
  TRIB_RETURN_IF_ERROR(FillKnownRates(options.clients, &spec));
  auto strategy = aggregator::MakeStrategy(spec.strategy, spec.local);
  if (!strategy.ok()) return InvalidArgument("strategy: {}", MessageOf(strategy.status()));
  Simulation simulation(options, std::move(spec), *std::move(strategy));
  TRIB_RETURN_IF_ERROR(simulation.Prepare());
  return simulation.Run();
}

}  // namespace tributary::simulate
