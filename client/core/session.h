// One client identity as a state machine: attach state, the task it works on, the tasks that wait, and where each update of its
// outbox stands. Events in, actions out; the runtime (client/rpc) does what the actions say and reports back.
//
//   stream      kDown --(kConnect)--> kConnecting --(kWelcomed)--> kAttached --(kStreamEnded)--> kDown, retry after backoff
//   task        queued -> working -> update in the outbox | evaluation reported | declined with a reason
//   update      kWaiting -> kSending -> kAnswered (ACCEPTED, JOURNALED) -> dropped on COMMITTED, REJECTED or EXPIRED only
//
// Rules (reliability.md §2): every update is offered in each Hello and the answers settle what to send; uploads start only while
// attached; a failed upload is tried again with the same id and bytes; an answer that an upload got before the present attachment
// is not believed (the server may have restarted in between) but asked again; training goes on while the stream is down.
// Pure: no I/O, clock, thread or randomness (jitter comes from Options::jitter_seed). Thread-compatible. No errors: whatever the
// server says is either acted on or ignored, never a broken invariant.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "client/core/backoff.h"
#include "client/core/random.h"
#include "common/ids.h"
#include "common/moe_stats.h"
#include "common/status.h"

namespace tributary::client {

enum class Phase { kIdle, kFetching, kTraining, kUploading, kEvaluating };
std::string PhaseName(Phase phase);

// reliability.md §2; the same names as on the wire.
enum class UpdateState { kUnknown, kPartial, kAccepted, kJournaled, kCommitted, kRejected, kExpired };
std::string UpdateStateName(UpdateState state);

struct OutboxKey {
  std::string job;
  uint64_t task = 0;
  UpdateId update;
  auto operator<=>(const OutboxKey&) const = default;
};

struct Verdict {
  UpdateState state = UpdateState::kUnknown;
  uint64_t version = 0;  // kCommitted
  std::string reason;    // kRejected, kExpired
};

// What a session must know of a job before it takes its tasks.
struct JobSummary {
  std::string job;
  uint64_t update_bytes = 0;  // of one encoded update
  bool torchscript = false;
  std::string problem;        // why no task of this job can be done here; empty if none is known
};

struct Task {
  enum class Kind { kTrain, kEvaluate };
  Kind kind = Kind::kTrain;
  std::string job;
  uint64_t task = 0;
  uint64_t version = 0;
  absl::Time deadline = absl::InfiniteFuture();
  uint64_t state_version = 0;  // kTrain: whose client state it starts from (TrainTask of federation.proto)
  uint64_t state_epoch = 0;
  double clip = 0;            // of jobs with adaptive clipping: C of this version; 0: the job's
  GlobalMoe moe{};            // of mixtures of experts
  uint64_t noise_seed = 0;    // of jobs whose clients try members of a population
};

struct Evaluation {
  std::string job;
  uint64_t task = 0;
  uint64_t version = 0;
  double loss = 0;
  double accuracy = 0;
  uint64_t examples = 0;
};

namespace event {
struct Start {};
struct Welcomed {
  absl::Duration heartbeat_interval;
  std::vector<std::pair<OutboxKey, Verdict>> outbox;
};
struct StreamEnded {
  absl::Status status;
  std::optional<absl::Duration> push_back;
};
struct JobKnown { JobSummary job; };
struct TaskIssued { Task task; };       // deadline already made absolute
struct TaskCancelled { std::string job; uint64_t task = 0; std::string reason; };
struct UpdateSettled { OutboxKey key; Verdict verdict; };  // the server's unasked message
struct PhaseChanged { uint64_t task = 0; Phase phase = Phase::kIdle; };
struct Progressed { uint64_t task = 0; float done = 0; };
struct UpdateStored { OutboxKey key; uint64_t bytes = 0; };   // work done: the update is in the outbox
struct Evaluated { Evaluation evaluation; };                  // work done
struct WorkFailed { std::string job; uint64_t task = 0; std::string reason; };
struct UploadAnswered { OutboxKey key; uint64_t attachment = 0; Verdict verdict; };
struct UploadFailed { OutboxKey key; absl::Status status; std::optional<absl::Duration> push_back; };
struct UpdateLost { OutboxKey key; std::string reason; };     // its file is damaged and was set aside
struct Tick {};                                               // NextWake() has come
struct Stop {};
}  // namespace event

using Event = std::variant<event::Start, event::Welcomed, event::StreamEnded, event::JobKnown, event::TaskIssued, event::TaskCancelled,
                           event::UpdateSettled, event::PhaseChanged, event::Progressed, event::UpdateStored, event::Evaluated,
                           event::WorkFailed, event::UploadAnswered, event::UploadFailed, event::UpdateLost, event::Tick, event::Stop>;

namespace action {
struct Connect { std::vector<OutboxKey> outbox; };  // open the stream and say Hello with these keys
struct Disconnect {};
struct SendHeartbeat { Phase phase = Phase::kIdle; std::string job; uint64_t task = 0; float progress = 0; };
struct SendDecline { std::string job; uint64_t task = 0; std::string reason; };
struct SendEvaluation { Evaluation evaluation; };
struct StartWork { Task task; };
struct CancelWork { std::string job; uint64_t task = 0; };    // answered by one of the "work done" events or WorkFailed
struct StartUpload { OutboxKey key; uint64_t attachment = 0; bool retry = false; };
struct DropUpdate { OutboxKey key; Verdict verdict; };
}  // namespace action

using Action = std::variant<action::Connect, action::Disconnect, action::SendHeartbeat, action::SendDecline, action::SendEvaluation,
                            action::StartWork, action::CancelWork, action::StartUpload, action::DropUpdate>;

struct SessionOptions {
  std::string client;
  bool trains = true;
  bool evaluates = false;
  bool allow_torchscript = false;
  uint64_t outbox_limit_bytes = uint64_t{4} << 30;
  uint64_t jitter_seed = 0;
  size_t max_queued_tasks = 8;
  // An update that the server holds but has not settled is asked about again after this long, in case a message was lost.
  absl::Duration recheck = absl::Seconds(60);
  // A stream that brings no Welcome in this time is given up.
  absl::Duration welcome_timeout = absl::Seconds(30);
};

class Session {
 public:
  // `kept`: what the outbox holds at start, with sizes in bytes.
  Session(SessionOptions options, const std::vector<std::pair<OutboxKey, uint64_t>>& kept);

  std::vector<Action> OnEvent(const Event& event, absl::Time now);
  // When the next Tick is due; InfiniteFuture if nothing waits for time.
  absl::Time NextWake() const;

  bool attached() const { return stream_ == Stream::kAttached; }
  // As action::StartUpload has it; 0 while not attached.
  uint64_t attachment() const { return attached() ? attachment_ : 0; }
  bool working() const { return work_.has_value(); }
  uint64_t outbox_bytes() const { return outbox_bytes_; }
  size_t outbox_count() const { return outbox_.size(); }

 private:
  enum class Stream { kDown, kConnecting, kAttached, kStopped };
  enum class Sending { kWaiting, kSending, kAnswered };
  struct Entry {
    uint64_t bytes = 0;
    Sending sending = Sending::kWaiting;
    absl::Time due = absl::InfinitePast();  // kWaiting: not before; kAnswered: ask again then
    bool tried = false;
    Backoff backoff;
  };

  void Handle(const event::Start& e);
  void Handle(const event::Welcomed& e);
  void Handle(const event::StreamEnded& e);
  void Handle(const event::JobKnown& e);
  void Handle(const event::TaskIssued& e);
  void Handle(const event::TaskCancelled& e);
  void Handle(const event::UpdateSettled& e);
  void Handle(const event::PhaseChanged& e);
  void Handle(const event::Progressed& e);
  void Handle(const event::UpdateStored& e);
  void Handle(const event::Evaluated& e);
  void Handle(const event::WorkFailed& e);
  void Handle(const event::UploadAnswered& e);
  void Handle(const event::UploadFailed& e);
  void Handle(const event::UpdateLost& e);
  void Handle(const event::Tick& e);
  void Handle(const event::Stop& e);

  void Emit(Action action) { actions_.push_back(std::move(action)); }
  void Connect();
  void Settle(const OutboxKey& key, const Verdict& verdict);
  void Decline(const std::string& job, uint64_t task, const std::string& reason);
  std::string ReasonToDecline(const Task& task) const;
  bool Knows(const Task& task) const;
  void StartNextWork();
  void StartDueUploads();
  void FinishWork(const std::string& job, uint64_t task);
  void Beat();

  const SessionOptions options_;
  CounterRandom jitter_;
  Stream stream_ = Stream::kDown;
  uint64_t attachment_ = 0;  // counts Welcomes
  Backoff reconnect_;
  absl::Time reconnect_at_ = absl::InfiniteFuture();
  absl::Time welcome_by_ = absl::InfiniteFuture();
  absl::Duration heartbeat_interval_ = absl::InfiniteDuration();
  absl::Time heartbeat_at_ = absl::InfiniteFuture();
  std::map<std::string, JobSummary> jobs_;
  std::optional<Task> work_;
  bool work_cancelled_ = false;
  Phase phase_ = Phase::kIdle;
  float progress_ = 0;
  std::deque<Task> queue_;
  std::vector<action::SendDecline> undelivered_declines_;
  std::vector<Evaluation> undelivered_evaluations_;
  std::map<OutboxKey, Entry> outbox_;
  uint64_t outbox_bytes_ = 0;
  absl::Time now_;
  std::vector<Action> actions_;
};

}  // namespace tributary::client
