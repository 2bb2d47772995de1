#include "client/rpc/client_runtime.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <utility>
#include <variant>

#include "client/core/private_update.h"
#include "client/data/client_state.h"
#include "client/rpc/attach_stream.h"
#include "client/rpc/early_upload.h"
#include "client/rpc/local_transfer.h"
#include "client/rpc/privatise.h"
#include "client/rpc/ready_tasks.h"
#include "client/rpc/upload.h"
#include "client/rpc/work.h"
#include "client/rpc/worker_pool.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/state_version.h"
#include "proto/codec.h"
#include "proto/local_call.h"
#include "proto/moe_codec.h"

namespace tributary::client {
namespace {

constexpr int kFetchThreads = 2;
constexpr int kMaxUploadThreads = 8;
// Events that wait for the loop. Only a server that floods its streams can reach this; its streams are then closed.
constexpr size_t kMaxEvents = 1 << 16;
constexpr size_t kPieceBytes = size_t{4} << 20;  // of an update that is written and sent at the same time
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);

v1::ClientPhase ToProto(Phase phase) {
  switch (phase) {
    case Phase::kIdle: return v1::CLIENT_PHASE_IDLE;
    case Phase::kFetching: return v1::CLIENT_PHASE_FETCHING;
    case Phase::kTraining: return v1::CLIENT_PHASE_TRAINING;
    case Phase::kUploading: return v1::CLIENT_PHASE_UPLOADING;
    case Phase::kEvaluating: return v1::CLIENT_PHASE_EVALUATING;
  }
  return v1::CLIENT_PHASE_UNSPECIFIED;
}

int UploadThreads(const ClientOptions& options) {
  return options.upload_threads > 0 ? options.upload_threads : std::min(options.identities, kMaxUploadThreads);
}

// One identity and what belongs to it. Lives as long as the runtime; only the loop thread touches `session` and `stream`.
struct Host {
  Identity identity;
  int64_t shard = 0;
  std::unique_ptr<Outbox> outbox;
  std::unique_ptr<StateFiles> state;
  std::unique_ptr<Session> session;
  std::shared_ptr<AttachStream> stream;  // shared with gRPC; null while down
  bool welcomed = false;
  std::shared_ptr<std::atomic<bool>> cancelled;  // of the task under way
  absl::Time wake = absl::InfiniteFuture();
  std::atomic<uint64_t> attachment{0};           // the session's, for threads that store updates
};

class Runtime {
 public:
  Runtime(const ClientOptions& options, const DatasetProvider& provide_data)
      : options_(options), provide_data_(provide_data), connection_(options.server),
        work_(connection_, options.state, options.data_path), early_(connection_, UploadThreads(options)) {}

  absl::Status Start(const LearnerFactory& make_learner);
  void Run(std::stop_token stop);

 private:
  using Message = std::variant<Event, v1::ServerMessage>;

  void Post(size_t host, Message message);
  void Dispatch(size_t index, const Event& event);
  void Receive(size_t index, const v1::ServerMessage& message);
  bool Welcomed(size_t index, const v1::Welcome& welcome);
  void ReceiveTask(size_t index, Task task, uint32_t deadline_ms);
  void StepOnce(absl::Time until);
  void Shutdown();
  bool Quiet() const;

  void Do(size_t index, action::Connect& a);
  void Do(size_t index, action::Disconnect& a);
  void Do(size_t index, action::SendHeartbeat& a);
  void Do(size_t index, action::SendDecline& a);
  void Do(size_t index, action::SendEvaluation& a);
  void Do(size_t index, action::StartWork& a);
  void Do(size_t index, action::CancelWork& a);
  void Do(size_t index, action::StartUpload& a);
  void Do(size_t index, action::DropUpdate& a);

  // Everything of a task is there, or nothing will be: the learners' pool looks again.
  void Arrived(const Task& task, std::optional<ReadyTask> ready);
  void Execute(std::vector<ReadyTask> tasks, Learner& learner);
  Work::Progress ProgressOf(size_t index, uint64_t task);
  void Trained(const ReadyTask& task, absl::StatusOr<TrainResult> result);
  void Store(size_t index, const PreparedTask& prepared, TrainResult& result);
  // Stages what the update changes in the client's state, then puts the update into the outbox; `early`: the upload that began meanwhile.
  absl::StatusOr<OutboxHeader> Keep(Host& host, const PreparedTask& prepared, OutboxHeader& header, TrainResult& result, std::shared_ptr<EarlyUpload>* early);
  std::variant<Verdict, CallError> Upload(const Host& host, const action::StartUpload& a, const std::shared_ptr<const OutboxEntry>& entry);
  void Report(UpdateEvent::Kind kind, const std::string& client, OutboxHeader header, Verdict verdict) const;
  void Fail(size_t index, const Task& task, const absl::Status& status);
  double SecondsSince(absl::Time begin) const { return absl::ToDoubleSeconds(clock_.Now() - begin); }

  bool HasMessages() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_requested_ || !messages_.empty(); }

  const ClientOptions& options_;
  const DatasetProvider& provide_data_;
  const BootClock clock_;
  Connection connection_;
  Work work_;
  std::vector<std::unique_ptr<Learner>> learners_;  // by train thread
  std::vector<Host> hosts_;
  std::set<std::pair<absl::Time, size_t>> wakes_;
  bool stopping_ = false;

  absl::Mutex mutex_;
  std::deque<std::pair<size_t, Message>> messages_ ABSL_GUARDED_BY(mutex_);
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;

  ReadyTasks ready_;

  EarlyUploads early_;

  // Last, so that their threads are joined before anything they use goes.
  std::unique_ptr<WorkerPool> uploads_;
  std::unique_ptr<WorkerPool> trains_;
  std::unique_ptr<WorkerPool> fetches_;
};

absl::Status Runtime::Start(const LearnerFactory& make_learner) {
  for (int i = 0; i < options_.train_threads; ++i) {
    TRIB_ASSIGN_OR_RETURN(std::unique_ptr<Learner> learner, make_learner());
    learners_.push_back(std::move(learner));
  }
  const std::vector<std::string> names = IdentityNames(options_.name, options_.identities);
  hosts_ = std::vector<Host>(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    TRIB_RETURN_IF_ERROR(ValidateClientId(names[i]));
    Host& host = hosts_[i];
    const std::filesystem::path folder = options_.state / names[i];
    TRIB_ASSIGN_OR_RETURN(host.outbox, Outbox::Open(folder, options_.outbox_limit_bytes));
    host.state = std::make_unique<StateFiles>(folder / "state");
    std::set<UpdateId> waiting;
    for (const OutboxHeader& header : host.outbox->Headers()) waiting.insert(header.update);
    TRIB_RETURN_IF_ERROR(host.state->Sweep(waiting));
    host.identity.client = names[i];
    TRIB_ASSIGN_OR_RETURN(host.identity.secret, ClientSecret(folder));
    host.shard = options_.first_shard + static_cast<int64_t>(i);
    std::vector<std::pair<OutboxKey, uint64_t>> kept;
    for (const OutboxHeader& header : host.outbox->Headers()) kept.push_back({{header.job, header.task, header.update}, header.bytes});
    SessionOptions session;
    session.client = names[i];
    session.trains = options_.trains;
    session.evaluates = options_.evaluates;
    session.allow_torchscript = options_.allow_torchscript;
    session.outbox_limit_bytes = options_.outbox_limit_bytes;
    session.jitter_seed = RandomU64();
    host.session = std::make_unique<Session>(session, kept);
  }
  uploads_ = std::make_unique<WorkerPool>(UploadThreads(options_));
  trains_ = std::make_unique<WorkerPool>(options_.train_threads);
  fetches_ = std::make_unique<WorkerPool>(kFetchThreads);
  return absl::OkStatus();
}

void Runtime::Post(size_t host, Message message) {
  absl::MutexLock lock(&mutex_);
  messages_.emplace_back(host, std::move(message));
}

void Runtime::Run(std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] {
    absl::MutexLock lock(&mutex_);
    stop_requested_ = true;
  });
  for (size_t i = 0; i < hosts_.size(); ++i) Dispatch(i, event::Start{});
  while (!stop.stop_requested()) StepOnce(absl::InfiniteFuture());
  Shutdown();
}

// Waits for messages, the next wake or `until`, then handles what is due.
void Runtime::StepOnce(absl::Time until) {
  std::deque<std::pair<size_t, Message>> messages;
  {
    absl::MutexLock lock(&mutex_);
    absl::Time wake = until;
    if (!wakes_.empty()) wake = std::min(wake, wakes_.begin()->first);
    // During shutdown stop_requested_ stays true: then only messages end the wait.
    const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ ? !messages_.empty() : HasMessages(); };
    if (wake == absl::InfiniteFuture()) {
      mutex_.Await(absl::Condition(&ready));
    } else {
      mutex_.AwaitWithTimeout(absl::Condition(&ready), std::max(absl::ZeroDuration(), wake - clock_.Now()));
    }
    messages.swap(messages_);
  }
  for (auto& [host, message] : messages) {
    if (const Event* event = std::get_if<Event>(&message)) {
      Dispatch(host, *event);
    } else {
      Receive(host, std::get<v1::ServerMessage>(message));
    }
  }
  const absl::Time now = clock_.Now();
  while (!wakes_.empty() && wakes_.begin()->first <= now) Dispatch(wakes_.begin()->second, event::Tick{});
}

void Runtime::Dispatch(size_t index, const Event& event) {
  Host& host = hosts_[index];
  if (const auto* ended = std::get_if<event::StreamEnded>(&event)) {
    host.stream.reset();
    host.welcomed = false;
    if (!stopping_) {
      TRIB_LOG(warn, "{}: not attached to {}: {}", host.identity.client, connection_.server(),
               ended->status.ok() ? "the server ended the stream" : MessageOf(ended->status));
    }
  }
  std::vector<Action> actions = host.session->OnEvent(event, clock_.Now());
  for (Action& action : actions) {
    std::visit([this, index](auto& a) { Do(index, a); }, action);
  }
  host.attachment = host.session->attachment();
  const absl::Time wake = host.session->NextWake();
  if (wake != host.wake) {
    wakes_.erase({host.wake, index});
    if (wake != absl::InfiniteFuture()) wakes_.insert({wake, index});
    host.wake = wake;
  }
}

bool Runtime::Welcomed(size_t index, const v1::Welcome& welcome) {
  event::Welcomed event;
  event.heartbeat_interval = absl::Milliseconds(welcome.heartbeat_interval_ms());
  for (const v1::UpdateStatus& status : welcome.outbox()) {
    absl::StatusOr<OutboxKey> key = OutboxKeyFromProto(status.key());
    if (!key.ok()) {
      TRIB_LOG(warn, "{}: Welcome: {}", hosts_[index].identity.client, MessageOf(key.status()));
      return false;
    }
    event.outbox.emplace_back(*std::move(key), VerdictFromProto(status));
  }
  hosts_[index].welcomed = true;
  connection_.set_local_address(IsLocalAddress(welcome.local_address()) ? welcome.local_address() : "");
  TRIB_LOG(info, "{}: attached to {}, {} updates in the outbox", hosts_[index].identity.client, connection_.server(),
           hosts_[index].outbox->Headers().size());
  Dispatch(index, event);
  return true;
}

void Runtime::Receive(size_t index, const v1::ServerMessage& message) {
  Host& host = hosts_[index];
  if (host.stream == nullptr) return;
  bool sensible = true;
  switch (message.message_case()) {
    case v1::ServerMessage::kWelcome:
      sensible = Welcomed(index, message.welcome());
      break;
    case v1::ServerMessage::kJob: {
      const std::shared_ptr<const Job> job = work_.jobs().Learn(message.job());
      if (!job->summary.problem.empty()) TRIB_LOG(warn, "{}: job '{}': {}", host.identity.client, message.job().job(), job->summary.problem);
      Dispatch(index, event::JobKnown{job->summary});
      break;
    }
    case v1::ServerMessage::kTrain: {
      absl::StatusOr<GlobalMoe> moe = GlobalMoeFromProto(message.train().moe());
      sensible = moe.ok();
      if (!sensible) break;
      ReceiveTask(index,
                  {.kind = Task::Kind::kTrain, .job = message.train().job(), .task = message.train().task(), .version = message.train().version(),
                   .state_version = message.train().state_version(), .state_epoch = message.train().state_epoch(), .clip = message.train().clip(),
                   .moe = *std::move(moe), .noise_seed = message.train().noise_seed()},
                  message.train().deadline_ms());
      break;
    }
    case v1::ServerMessage::kEvaluate:
      ReceiveTask(index, {.kind = Task::Kind::kEvaluate, .job = message.evaluate().job(), .task = message.evaluate().task(), .version = message.evaluate().version()}, 0);
      break;
    case v1::ServerMessage::kCancel:
      Dispatch(index, event::TaskCancelled{message.cancel().job(), message.cancel().task(), message.cancel().reason()});
      break;
    case v1::ServerMessage::kUpdate: {
      absl::StatusOr<OutboxKey> key = OutboxKeyFromProto(message.update().key());
      sensible = key.ok();
      if (key.ok()) Dispatch(index, event::UpdateSettled{*std::move(key), VerdictFromProto(message.update())});
      break;
    }
    case v1::ServerMessage::kDraining:
      TRIB_LOG(info, "{}: the server is going away: {}", host.identity.client, message.draining().reason());
      break;
    case v1::ServerMessage::MESSAGE_NOT_SET:
      break;  // a later release's message
  }
  // A server that talks nonsense is left and tried again later.
  if (!sensible && host.stream != nullptr) host.stream->Cancel();
}

void Runtime::ReceiveTask(size_t index, Task task, uint32_t deadline_ms) {
  if (deadline_ms > 0) task.deadline = clock_.Now() + absl::Milliseconds(deadline_ms);
  Dispatch(index, event::TaskIssued{std::move(task)});
}

void Runtime::Do(size_t index, action::Connect& a) {
  v1::ClientMessage message;
  v1::Hello& hello = *message.mutable_hello();
  hello.set_device(learners_[0]->device());
  hello.set_trains(options_.trains);
  hello.set_evaluates(options_.evaluates);
  hello.set_software(options_.software);
  for (const OutboxKey& key : a.outbox) *hello.add_outbox() = ToProto(key);
  const auto on_message = [this, index](v1::ServerMessage received) {
    absl::MutexLock lock(&mutex_);
    // What is not taken here is settled by the next Welcome.
    if (messages_.size() >= kMaxEvents) return false;
    messages_.emplace_back(index, std::move(received));
    return true;
  };
  hosts_[index].stream = AttachStream::Open(connection_.control(), hosts_[index].identity, std::move(message), on_message,
                                            [this, index](CallError error) {
                                              Post(index, Event(event::StreamEnded{std::move(error.status), error.push_back}));
                                            });
}

void Runtime::Do(size_t index, action::Disconnect&) {
  Host& host = hosts_[index];
  if (host.stream == nullptr) return;
  if (host.welcomed) {
    host.stream->Close();
  } else {
    host.stream->Cancel();
  }
}

void Runtime::Do(size_t index, action::SendHeartbeat& a) {
  v1::ClientMessage message;
  message.mutable_heartbeat()->set_phase(ToProto(a.phase));
  message.mutable_heartbeat()->set_job(a.job);
  message.mutable_heartbeat()->set_task(a.task);
  message.mutable_heartbeat()->set_progress(a.progress);
  if (const std::optional<DeviceUsage> usage = learners_[0]->usage()) {
    v1::DeviceUsage& device = *message.mutable_heartbeat()->mutable_device();
    device.set_id(usage->id);
    device.set_memory_used_bytes(usage->memory_used_bytes);
    device.set_memory_total_bytes(usage->memory_total_bytes);
    device.set_utilisation(static_cast<float>(usage->utilisation));
  }
  if (hosts_[index].stream != nullptr) hosts_[index].stream->Send(std::move(message));
}

void Runtime::Do(size_t index, action::SendDecline& a) {
  TRIB_LOG(warn, "{}: declines task {} of job '{}': {}", hosts_[index].identity.client, a.task, a.job, a.reason);
  v1::ClientMessage message;
  message.mutable_declined()->set_job(a.job);
  message.mutable_declined()->set_task(a.task);
  message.mutable_declined()->set_reason(a.reason.substr(0, kMaxReasonBytes));
  if (hosts_[index].stream != nullptr) hosts_[index].stream->Send(std::move(message));
}

void Runtime::Do(size_t index, action::SendEvaluation& a) {
  v1::ClientMessage message;
  v1::EvaluationReport& report = *message.mutable_evaluation();
  report.set_job(a.evaluation.job);
  report.set_task(a.evaluation.task);
  report.set_version(a.evaluation.version);
  report.set_loss(a.evaluation.loss);
  report.set_accuracy(a.evaluation.accuracy);
  report.set_examples(a.evaluation.examples);
  if (hosts_[index].stream != nullptr) hosts_[index].stream->Send(std::move(message));
}

void Runtime::Fail(size_t index, const Task& task, const absl::Status& status) {
  Post(index, Event(event::WorkFailed{task.job, task.task, MessageOf(status)}));
}

void Runtime::Do(size_t index, action::StartWork& a) {
  Host& host = hosts_[index];
  host.cancelled = std::make_shared<std::atomic<bool>>(false);
  WorkContext context{host.identity, host.shard, options_.shards > 0 ? options_.shards : options_.identities, host.cancelled, host.state.get()};
  ready_.Expect(a.task.job);
  fetches_->Submit([this, index, context = std::move(context), task = std::move(a.task)](int) {
    const absl::Time begin = clock_.Now();
    absl::StatusOr<PreparedTask> prepared = work_.Prepare(context, task);
    TRIB_LOG(debug, "{}: task {}: version {} here in {:.3f} s", context.identity.client, task.task, task.version, SecondsSince(begin));
    if (!prepared.ok()) {
      Fail(index, task, prepared.status());
      return Arrived(task, std::nullopt);
    }
    Arrived(task, ReadyTask{index, context, *std::move(prepared)});
  });
}

void Runtime::Arrived(const Task& task, std::optional<ReadyTask> ready) {
  ready_.Arrive(task.job, std::move(ready));
  trains_->Submit([this](int thread) {
    Learner& learner = *learners_[static_cast<size_t>(thread)];
    for (std::vector<ReadyTask> tasks = ready_.Take(learner.cohort_size()); !tasks.empty(); tasks = ready_.Take(learner.cohort_size())) {
      Execute(std::move(tasks), learner);
    }
  });
}

Work::Progress Runtime::ProgressOf(size_t index, uint64_t task) {
  return [this, index, task, reported = clock_.Now()](float done) mutable {
    const absl::Time now = clock_.Now();
    if (now - reported < kProgressInterval) return;
    reported = now;
    Post(index, Event(event::Progressed{task, done}));
  };
}

void Runtime::Execute(std::vector<ReadyTask> tasks, Learner& learner) {
  const bool train = tasks[0].prepared.task.kind == Task::Kind::kTrain;
  for (const ReadyTask& task : tasks) Post(task.identity, Event(event::PhaseChanged{task.prepared.task.task, train ? Phase::kTraining : Phase::kEvaluating}));
  if (!train) {
    const auto& [index, context, prepared] = tasks[0];
    absl::StatusOr<Evaluation> evaluation = Work::Evaluate(context, prepared, learner, provide_data_, ProgressOf(index, prepared.task.task));
    if (!evaluation.ok()) return Fail(index, prepared.task, evaluation.status());
    Post(index, Event(event::Evaluated{*std::move(evaluation)}));
    return;
  }
  const absl::Time begin = clock_.Now();
  std::vector<Work::CohortTask> cohort;
  for (const ReadyTask& task : tasks) cohort.push_back({&task.context, &task.prepared, ProgressOf(task.identity, task.prepared.task.task)});
  std::vector<absl::StatusOr<TrainResult>> results;
  if (tasks.size() == 1) {
    results.push_back(Work::Train(tasks[0].context, tasks[0].prepared, learner, provide_data_, cohort[0].progress));
  } else {
    results = Work::TrainCohort(cohort, learner, provide_data_);
  }
  TRIB_LOG(debug, "{}: task {}: trained in {:.3f} s, {} clients together", tasks[0].context.identity.client, tasks[0].prepared.task.task, SecondsSince(begin), tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) Trained(tasks[i], std::move(results[i]));
}

void Runtime::Trained(const ReadyTask& task, absl::StatusOr<TrainResult> result) {
  if (!result.ok()) return Fail(task.identity, task.prepared.task, result.status());
  Post(task.identity, Event(event::PhaseChanged{task.prepared.task.task, Phase::kUploading}));
  // Storing waits for the disk: not on this thread, which the next identity's training needs. std::function wants copyable
  // captures, hence the shared result.
  auto shared = std::make_shared<TrainResult>(*std::move(result));
  uploads_->Submit([this, index = task.identity, prepared = task.prepared, shared](int) { Store(index, prepared, *shared); });
}

absl::StatusOr<OutboxHeader> Runtime::Keep(Host& host, const PreparedTask& prepared, OutboxHeader& header, TrainResult& result,
                                           std::shared_ptr<EarlyUpload>* early) {
  // A learner that keeps nothing still has a state as far as the server is concerned: it says which update came last.
  if (prepared.job->client_state && !result.state) result.state.emplace();
  if (result.state) {
    const std::string state = EncodeClientState(*result.state);
    TRIB_RETURN_IF_ERROR(host.state->Stage(header.job, kStrategyState, header.update, std::as_bytes(std::span(state))));
  }
  const auto put = [&](uint64_t bytes, const std::function<absl::Status(const Outbox::PartWriter&, OutboxHeader*)>& make) {
    return host.outbox->Put(header, bytes, [&](const Outbox::PartWriter& write, const std::shared_ptr<const OutboxEntry>& entry, OutboxHeader* written) {
      if (bytes >= options_.early_upload_bytes && MayLeaveEarly(prepared.job->spec)) *early = early_.Start(host.identity, entry, host.attachment);
      if (*early == nullptr) return make(write, written);
      const auto write_and_tell = [&](size_t at, std::span<const std::byte> part) -> absl::Status {
        TRIB_RETURN_IF_ERROR(write(at, part));
        (*early)->Written(at, part.size());
        return absl::OkStatus();
      };
      TRIB_RETURN_IF_ERROR(make(write_and_tell, written));
      TRIB_LOG(debug, "{}: task {}: {} of {} bytes had left when the last was made", host.identity.client, prepared.task.task, (*early)->sent(), bytes);
      return absl::OkStatus();
    });
  };
  if (result.on_device != nullptr) {
    return put(prepared.job->encoding.total_bytes(), [&](const Outbox::PartWriter& write, OutboxHeader* written) {
      return PrivatiseOnDevice(*prepared.job, host.identity.client, prepared.task.clip, *result.on_device, write, written);
    });
  }
  TRIB_ASSIGN_OR_RETURN(LargeBytes encoded,
                        Privatise(*prepared.job, host.identity.client, prepared.task.clip, *host.state, std::move(result.update), &header));
  if (prepared.job->live != nullptr) encoded = prepared.job->live->Pack(prepared.model->bytes(), encoded);
  return put(encoded.size(), [&](const Outbox::PartWriter& write, OutboxHeader*) -> absl::Status {
    for (size_t at = 0; at < encoded.size(); at += kPieceBytes) {
      TRIB_RETURN_IF_ERROR(write(at, std::span(encoded).subspan(at, std::min(kPieceBytes, encoded.size() - at))));
    }
    return absl::OkStatus();
  });
}

void Runtime::Store(size_t index, const PreparedTask& prepared, TrainResult& result) {
  Host& host = hosts_[index];
  OutboxHeader header;
  header.job = prepared.task.job;
  header.task = prepared.task.task;
  header.update = RandomUpdateId();
  header.version = prepared.task.version;
  header.layout = prepared.job->layout_fingerprint;
  header.codec = prepared.job->spec.codec;
  header.weight = result.weight;
  header.examples = result.examples;
  header.metrics = result.metrics;
  header.scalars = result.scalars;
  header.moe = std::move(result.moe);
  if (prepared.job->client_state) header.scalars[kStateVersion] = static_cast<double>(prepared.state->version);
  const absl::Time begin = clock_.Now();
  std::shared_ptr<EarlyUpload> early;
  absl::StatusOr<OutboxHeader> stored = Keep(host, prepared, header, result, &early);
  if (!stored.ok()) {
    TRIB_LOG_IF_ERROR(host.state->Discard(header.job, header.update));
    return Fail(index, prepared.task, stored.status());
  }
  TRIB_LOG(debug, "{}: task {}: kept in the outbox in {:.3f} s", host.identity.client, stored->task, SecondsSince(begin));
  Report(UpdateEvent::Kind::kStored, host.identity.client, *stored, {});
  if (early != nullptr) early_.Add(stored->update, early);
  // First the session must know of it, then its upload may end: the server's verdict comes on another stream.
  Post(index, Event(event::UpdateStored{{stored->job, stored->task, stored->update}, stored->bytes}));
  if (early != nullptr) early->Stored(*stored);
}

std::variant<Verdict, CallError> Runtime::Upload(const Host& host, const action::StartUpload& a, const std::shared_ptr<const OutboxEntry>& entry) {
  const std::shared_ptr<EarlyUpload> early = early_.Take(a.key.update, a.attachment);
  if (early == nullptr) return UploadUpdate(connection_, host.identity, entry, a.retry);
  std::variant<Verdict, CallError> outcome = early->Wait();
  const CallError* const error = std::get_if<CallError>(&outcome);
  if (error == nullptr || error->push_back || connection_.cancelled()) return outcome;
  TRIB_LOG(debug, "{}: update {} did not get through while it was made: {}", host.identity.client, ToHex(a.key.update), MessageOf(error->status));
  return UploadUpdate(connection_, host.identity, entry, /*retry=*/true);
}

void Runtime::Do(size_t index, action::CancelWork&) {
  if (hosts_[index].cancelled != nullptr) hosts_[index].cancelled->store(true);
}

void Runtime::Do(size_t index, action::StartUpload& a) {
  uploads_->Submit([this, index, a](int) {
    Host& host = hosts_[index];
    absl::StatusOr<OutboxEntry> entry = host.outbox->Load(a.key.update);
    if (!entry.ok()) {
      if (absl::IsNotFound(entry.status())) return;  // settled and dropped while this waited
      if (absl::IsDataLoss(entry.status())) {
        Post(index, Event(event::UpdateLost{a.key, MessageOf(entry.status())}));
      } else {
        Post(index, Event(event::UploadFailed{a.key, entry.status(), {}}));
      }
      return;
    }
    const auto shared = std::make_shared<const OutboxEntry>(*std::move(entry));  // shared with gRPC's buffers
    const absl::Time begin = clock_.Now();
    std::variant<Verdict, CallError> outcome = Upload(host, a, shared);
    if (CallError* error = std::get_if<CallError>(&outcome)) {
      if (!connection_.cancelled()) {
        TRIB_LOG(warn, "{}: update {}: {}", host.identity.client, ToHex(a.key.update), MessageOf(error->status));
      }
      Post(index, Event(event::UploadFailed{a.key, std::move(error->status), error->push_back}));
      return;
    }
    Verdict verdict = std::move(std::get<Verdict>(outcome));
    TRIB_LOG(debug, "{}: task {}: uploaded in {:.3f} s", host.identity.client, a.key.task, SecondsSince(begin));
    Report(UpdateEvent::Kind::kAnswered, host.identity.client, shared->header, verdict);
    Post(index, Event(event::UploadAnswered{a.key, a.attachment, std::move(verdict)}));
  });
}

void Runtime::Do(size_t index, action::DropUpdate& a) {
  Host& host = hosts_[index];
  const std::optional<OutboxHeader> header = host.outbox->Find(a.key.update);
  if (!header.has_value()) return;
  if (a.verdict.state == UpdateState::kCommitted) {
    TRIB_LOG(debug, "{}: update {} is in version {} of job '{}'", host.identity.client, ToHex(a.key.update), a.verdict.version, a.key.job);
  } else {
    TRIB_LOG(warn, "{}: update {} of job '{}' {}: {}", host.identity.client, ToHex(a.key.update), a.key.job,
             UpdateStateName(a.verdict.state), a.verdict.reason);
  }
  Report(UpdateEvent::Kind::kSettled, host.identity.client, *header, a.verdict);
  TRIB_LOG_IF_ERROR(a.verdict.state == UpdateState::kCommitted ? host.state->Promote(a.key.job, a.key.update, a.verdict.version)
                                                               : host.state->Discard(a.key.job, a.key.update));
  TRIB_LOG_IF_ERROR(host.outbox->Drop(a.key.update));
  early_.Take(a.key.update, 0);
}

void Runtime::Report(UpdateEvent::Kind kind, const std::string& client, OutboxHeader header, Verdict verdict) const {
  if (options_.on_update) options_.on_update({kind, client, std::move(header), std::move(verdict)});
}

bool Runtime::Quiet() const {
  return std::all_of(hosts_.begin(), hosts_.end(), [](const Host& host) { return host.stream == nullptr; });
}

void Runtime::Shutdown() {
  stopping_ = true;
  for (size_t i = 0; i < hosts_.size(); ++i) Dispatch(i, event::Stop{});
  const absl::Time patience = clock_.Now() + options_.drain;
  while (!Quiet() && clock_.Now() < patience) StepOnce(patience);
  // Those that did not detach in good order, and all transfers. Offsets and outboxes stay valid.
  connection_.CancelAll();
  for (Host& host : hosts_) {
    if (host.stream != nullptr) host.stream->Cancel();
  }
  fetches_.reset();
  trains_.reset();
  uploads_.reset();
  // gRPC still calls back into this object until each stream has ended.
  while (!Quiet()) StepOnce(absl::InfiniteFuture());
}

absl::Status CheckOptions(const ClientOptions& options) {
  if (options.server.empty()) return InvalidArgument("server: HOST:PORT expected, got nothing");
  if (options.identities < 1 || options.identities > 100'000) {
    return InvalidArgument("identities: 1 to 100000 expected, got {}", options.identities);
  }
  const int64_t shards = options.shards > 0 ? options.shards : options.identities;
  if (options.first_shard < 0 || options.first_shard + options.identities > shards) {
    return InvalidArgument("shards: identities {} from shard {} do not fit into {} shards", options.identities, options.first_shard, shards);
  }
  if (options.train_threads < 1 || options.train_threads > 256) {
    return InvalidArgument("train_threads: 1 to 256 expected, got {}", options.train_threads);
  }
  if (options.upload_threads < 0 || options.upload_threads > 256) {
    return InvalidArgument("upload_threads: 0 to 256 expected, got {}", options.upload_threads);
  }
  if (!options.trains && !options.evaluates) return InvalidArgument("a client must train, evaluate, or both");
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> IdentityNames(const std::string& name, int identities) {
  if (identities == 1) return {name};
  std::vector<std::string> names;
  for (int i = 0; i < identities; ++i) names.push_back(fmt::format("{}-{}", name, i));
  return names;
}

absl::Status RunClient(const ClientOptions& options, const LearnerFactory& make_learner, const DatasetProvider& provide_data,
                       std::stop_token stop) {
  TRIB_RETURN_IF_ERROR(CheckOptions(options));
  Runtime runtime(options, provide_data);
  TRIB_RETURN_IF_ERROR(runtime.Start(make_learner));
  runtime.Run(std::move(stop));
  return absl::OkStatus();
}

}  // namespace tributary::client
