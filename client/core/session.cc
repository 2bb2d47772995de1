#include "client/core/session.h"

#include <algorithm>
#include <utility>

namespace tributary::client {
namespace {

// Reports kept while the stream is down; the oldest go first, because the server has long given those tasks up.
constexpr size_t kMaxUndelivered = 64;

bool IsFinal(UpdateState state) {
  return state == UpdateState::kCommitted || state == UpdateState::kRejected || state == UpdateState::kExpired;
}

bool IsHeld(UpdateState state) { return state == UpdateState::kAccepted || state == UpdateState::kJournaled; }

template <typename T>
void KeepBounded(std::vector<T>& kept, T item) {
  if (kept.size() == kMaxUndelivered) kept.erase(kept.begin());
  kept.push_back(std::move(item));
}

}  // namespace

std::string PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kIdle: return "idle";
    case Phase::kFetching: return "fetching";
    case Phase::kTraining: return "training";
    case Phase::kUploading: return "uploading";
    case Phase::kEvaluating: return "evaluating";
  }
  return "idle";
}

std::string UpdateStateName(UpdateState state) {
  switch (state) {
    case UpdateState::kUnknown: return "unknown";
    case UpdateState::kPartial: return "partial";
    case UpdateState::kAccepted: return "accepted";
    case UpdateState::kJournaled: return "journaled";
    case UpdateState::kCommitted: return "committed";
    case UpdateState::kRejected: return "rejected";
    case UpdateState::kExpired: return "expired";
  }
  return "unknown";
}

Session::Session(SessionOptions options, const std::vector<std::pair<OutboxKey, uint64_t>>& kept)
    : options_(std::move(options)), jitter_(options_.jitter_seed) {
  for (const auto& [key, bytes] : kept) {
    outbox_[key].bytes = bytes;
    outbox_bytes_ += bytes;
  }
}

std::vector<Action> Session::OnEvent(const Event& event, absl::Time now) {
  now_ = now;
  actions_.clear();
  // After Stop only the ends of work and uploads are noted; nothing new begins.
  std::visit([this](const auto& e) { Handle(e); }, event);
  return std::move(actions_);
}

absl::Time Session::NextWake() const {
  if (stream_ == Stream::kStopped) return absl::InfiniteFuture();
  absl::Time wake = std::min({reconnect_at_, heartbeat_at_, welcome_by_});
  if (work_.has_value() && !work_cancelled_) wake = std::min(wake, work_->deadline);
  if (stream_ == Stream::kAttached) {
    for (const auto& [key, entry] : outbox_) {
      if (entry.sending != Sending::kSending) wake = std::min(wake, entry.due);
    }
  }
  return wake;
}

void Session::Connect() {
  stream_ = Stream::kConnecting;
  reconnect_at_ = absl::InfiniteFuture();
  welcome_by_ = now_ + options_.welcome_timeout;
  action::Connect connect;
  connect.outbox.reserve(outbox_.size());
  for (const auto& [key, entry] : outbox_) connect.outbox.push_back(key);
  Emit(std::move(connect));
}

void Session::Handle(const event::Start&) {
  if (stream_ == Stream::kDown) Connect();
}

void Session::Handle(const event::Welcomed& e) {
  if (stream_ != Stream::kConnecting) return;
  stream_ = Stream::kAttached;
  ++attachment_;
  welcome_by_ = absl::InfiniteFuture();
  reconnect_.Reset();
  heartbeat_interval_ = std::clamp(e.heartbeat_interval, absl::Milliseconds(100), absl::Hours(1));
  heartbeat_at_ = now_ + heartbeat_interval_;
  // What the Welcome does not name, the server has no trace of.
  for (auto& [key, entry] : outbox_) {
    if (entry.sending == Sending::kAnswered) entry.sending = Sending::kWaiting;
    if (entry.sending == Sending::kWaiting) entry.due = now_;
  }
  for (const auto& [key, verdict] : e.outbox) Settle(key, verdict);
  for (action::SendDecline& decline : undelivered_declines_) Emit(std::move(decline));
  undelivered_declines_.clear();
  for (Evaluation& evaluation : undelivered_evaluations_) Emit(action::SendEvaluation{std::move(evaluation)});
  undelivered_evaluations_.clear();
  StartDueUploads();
  if (work_.has_value()) Beat();
}

void Session::Handle(const event::StreamEnded& e) {
  if (stream_ == Stream::kStopped || stream_ == Stream::kDown) return;
  stream_ = Stream::kDown;
  welcome_by_ = absl::InfiniteFuture();
  heartbeat_at_ = absl::InfiniteFuture();
  reconnect_at_ = now_ + reconnect_.Next(jitter_.Next(), e.push_back);
  // Tasks that never started belong to the old stream: the server issues them again, or others in their place.
  queue_.clear();
}

void Session::Handle(const event::JobKnown& e) { jobs_[e.job.job] = e.job; }

bool Session::Knows(const Task& task) const {
  const auto same = [&task](const Task& other) { return other.job == task.job && other.task == task.task; };
  if (work_.has_value() && same(*work_)) return true;
  if (std::any_of(queue_.begin(), queue_.end(), same)) return true;
  return std::any_of(outbox_.begin(), outbox_.end(),
                     [&task](const auto& item) { return item.first.job == task.job && item.first.task == task.task; });
}

std::string Session::ReasonToDecline(const Task& task) const {
  const auto found = jobs_.find(task.job);
  if (found == jobs_.end()) return fmt::format("job '{}' was not described before its task", task.job);
  const JobSummary& job = found->second;
  if (!job.problem.empty()) return job.problem;
  if (job.torchscript && !options_.allow_torchscript) {
    return "this site does not run TorchScript models (start the client with --allow-torchscript)";
  }
  if (task.kind == Task::Kind::kTrain && !options_.trains) return "this client only evaluates";
  if (task.kind == Task::Kind::kEvaluate && !options_.evaluates) return "this client does not evaluate";
  if (queue_.size() >= options_.max_queued_tasks) {
    return fmt::format("{} tasks wait here already", queue_.size());
  }
  if (task.kind == Task::Kind::kTrain) {
    // Each train task ahead of this one will add its update too.
    uint64_t promised = work_.has_value() && work_->kind == Task::Kind::kTrain ? jobs_.at(work_->job).update_bytes : 0;
    for (const Task& waiting : queue_) {
      if (waiting.kind == Task::Kind::kTrain) promised += jobs_.at(waiting.job).update_bytes;
    }
    const uint64_t used = outbox_bytes_ + promised;
    if (used > options_.outbox_limit_bytes || job.update_bytes > options_.outbox_limit_bytes - used) {
      return fmt::format("outbox is full: {} of {} bytes used or promised, an update needs {}", used, options_.outbox_limit_bytes,
                         job.update_bytes);
    }
  }
  return "";
}

void Session::Decline(const std::string& job, uint64_t task, const std::string& reason) {
  action::SendDecline decline{job, task, reason};
  if (stream_ == Stream::kAttached) {
    Emit(std::move(decline));
  } else {
    KeepBounded(undelivered_declines_, std::move(decline));
  }
}

void Session::Handle(const event::TaskIssued& e) {
  if (stream_ != Stream::kAttached || Knows(e.task)) return;
  if (const std::string reason = ReasonToDecline(e.task); !reason.empty()) {
    Decline(e.task.job, e.task.task, reason);
    return;
  }
  queue_.push_back(e.task);
  StartNextWork();
}

void Session::StartNextWork() {
  while (!work_.has_value() && !queue_.empty() && stream_ != Stream::kStopped) {
    Task task = std::move(queue_.front());
    queue_.pop_front();
    if (task.deadline <= now_) {
      Decline(task.job, task.task, "its deadline passed before this client could begin");
      continue;
    }
    work_ = task;
    work_cancelled_ = false;
    phase_ = Phase::kFetching;
    progress_ = 0;
    Emit(action::StartWork{std::move(task)});
    Beat();
  }
}

void Session::Handle(const event::TaskCancelled& e) {
  std::erase_if(queue_, [&e](const Task& task) { return task.job == e.job && task.task == e.task; });
  if (work_.has_value() && work_->job == e.job && work_->task == e.task && !work_cancelled_) {
    work_cancelled_ = true;
    Emit(action::CancelWork{e.job, e.task});
  }
}

void Session::Handle(const event::UpdateSettled& e) {
  Settle(e.key, e.verdict);
  StartDueUploads();
}

void Session::Settle(const OutboxKey& key, const Verdict& verdict) {
  const auto found = outbox_.find(key);
  if (found == outbox_.end()) return;
  Entry& entry = found->second;
  if (IsFinal(verdict.state)) {
    outbox_bytes_ -= entry.bytes;
    outbox_.erase(found);
    Emit(action::DropUpdate{key, verdict});
    return;
  }
  if (entry.sending == Sending::kSending) return;  // the upload under way will bring its own answer
  if (IsHeld(verdict.state)) {
    entry.sending = Sending::kAnswered;
    entry.due = now_ + options_.recheck;
  } else {
    entry.sending = Sending::kWaiting;
    entry.due = now_;
    if (verdict.state == UpdateState::kPartial) entry.tried = true;
  }
}

void Session::StartDueUploads() {
  if (stream_ != Stream::kAttached) return;
  for (auto& [key, entry] : outbox_) {
    if (entry.sending == Sending::kSending || entry.due > now_) continue;
    entry.sending = Sending::kSending;
    Emit(action::StartUpload{key, attachment_, entry.tried});
    entry.tried = true;
  }
}

void Session::Handle(const event::PhaseChanged& e) {
  if (!work_.has_value() || work_->task != e.task) return;
  phase_ = e.phase;
  progress_ = 0;
  Beat();
}

void Session::Handle(const event::Progressed& e) {
  if (work_.has_value() && work_->task == e.task) progress_ = std::clamp(e.done, 0.0f, 1.0f);
}

void Session::FinishWork(const std::string& job, uint64_t task) {
  if (!work_.has_value() || work_->job != job || work_->task != task) return;
  work_.reset();
  work_cancelled_ = false;
  phase_ = Phase::kIdle;
  progress_ = 0;
}

void Session::Handle(const event::UpdateStored& e) {
  if (const auto [at, fresh] = outbox_.try_emplace(e.key); fresh) {
    at->second.bytes = e.bytes;
    at->second.due = now_;
    outbox_bytes_ += e.bytes;
  }
  FinishWork(e.key.job, e.key.task);
  StartDueUploads();
  StartNextWork();
}

void Session::Handle(const event::Evaluated& e) {
  FinishWork(e.evaluation.job, e.evaluation.task);
  if (stream_ == Stream::kAttached) {
    Emit(action::SendEvaluation{e.evaluation});
  } else if (stream_ != Stream::kStopped) {
    KeepBounded(undelivered_evaluations_, e.evaluation);
  }
  StartNextWork();
}

void Session::Handle(const event::WorkFailed& e) {
  if (!work_.has_value() || work_->job != e.job || work_->task != e.task) return;
  const bool cancelled = work_cancelled_;
  FinishWork(e.job, e.task);
  // A task the server cancelled needs no answer.
  if (!cancelled && stream_ != Stream::kStopped) Decline(e.job, e.task, e.reason);
  StartNextWork();
}

void Session::Handle(const event::UploadAnswered& e) {
  const auto found = outbox_.find(e.key);
  if (found == outbox_.end()) return;
  Entry& entry = found->second;
  entry.sending = Sending::kWaiting;
  if (!IsFinal(e.verdict.state) && !IsHeld(e.verdict.state)) {
    // All bytes were sent and the server still wants some: not a thing to repeat at full speed.
    entry.due = now_ + entry.backoff.Next(jitter_.Next());
    return;
  }
  entry.backoff.Reset();
  if (IsHeld(e.verdict.state) && e.attachment != attachment_) {
    entry.due = now_;
    StartDueUploads();
    return;
  }
  Settle(e.key, e.verdict);
}

void Session::Handle(const event::UploadFailed& e) {
  const auto found = outbox_.find(e.key);
  if (found == outbox_.end()) return;
  Entry& entry = found->second;
  entry.sending = Sending::kWaiting;
  entry.due = now_ + entry.backoff.Next(jitter_.Next(), e.push_back);
}

void Session::Handle(const event::UpdateLost& e) {
  const auto found = outbox_.find(e.key);
  if (found == outbox_.end()) return;
  outbox_bytes_ -= found->second.bytes;
  outbox_.erase(found);
  Decline(e.key.job, e.key.task, e.reason);
}

void Session::Beat() {
  if (stream_ != Stream::kAttached) return;
  heartbeat_at_ = now_ + heartbeat_interval_;
  action::SendHeartbeat beat;
  if (work_.has_value()) {
    beat = {phase_, work_->job, work_->task, progress_};
  } else {
    const auto sending = std::find_if(outbox_.begin(), outbox_.end(),
                                      [](const auto& item) { return item.second.sending == Sending::kSending; });
    if (sending != outbox_.end()) beat = {Phase::kUploading, sending->first.job, sending->first.task, 0};
  }
  Emit(std::move(beat));
}

void Session::Handle(const event::Tick&) {
  if (stream_ == Stream::kStopped) return;
  if (stream_ == Stream::kDown && reconnect_at_ <= now_) Connect();
  if (welcome_by_ <= now_) {
    welcome_by_ = absl::InfiniteFuture();
    Emit(action::Disconnect{});  // StreamEnded follows, and with it the next try
  }
  if (work_.has_value() && !work_cancelled_ && work_->deadline <= now_) {
    work_cancelled_ = true;
    Decline(work_->job, work_->task, "its deadline passed while this client was " + PhaseName(phase_));
    Emit(action::CancelWork{work_->job, work_->task});
  }
  StartDueUploads();
  if (heartbeat_at_ <= now_) Beat();
}

void Session::Handle(const event::Stop&) {
  if (stream_ == Stream::kStopped) return;
  const bool open = stream_ == Stream::kConnecting || stream_ == Stream::kAttached;
  stream_ = Stream::kStopped;
  queue_.clear();
  if (work_.has_value() && !work_cancelled_) {
    work_cancelled_ = true;
    Emit(action::CancelWork{work_->job, work_->task});
  }
  if (open) Emit(action::Disconnect{});
}

}  // namespace tributary::client
