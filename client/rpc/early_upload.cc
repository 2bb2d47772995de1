#include "client/rpc/early_upload.h"

#include <algorithm>
#include <utility>

#include "client/rpc/local_transfer.h"
#include "common/crash_points.h"

namespace tributary::client {

EarlyUpload::EarlyUpload(Connection& connection, Identity identity, std::shared_ptr<const OutboxEntry> entry, uint64_t attachment)
    : connection_(connection), identity_(std::move(identity)), entry_(std::move(entry)), attachment_(attachment), thread_([this] { result_ = Run(); }) {}

EarlyUpload::~EarlyUpload() {
  absl::MutexLock lock(&mutex_);
  progress_.abandoned = true;
  if (stream_ != nullptr) stream_->Cancel();
}

void EarlyUpload::Written(size_t at, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  apart_[at] = at + bytes;
  while (!apart_.empty() && apart_.begin()->first <= progress_.ready) {
    progress_.ready = std::max(progress_.ready, apart_.begin()->second);
    apart_.erase(apart_.begin());
  }
}

void EarlyUpload::Stored(const OutboxHeader& header) {
  TRIB_CRASH_POINT(early_upload_before_digest);
  absl::MutexLock lock(&mutex_);
  progress_.xxh3_128 = header.xxh3_128;
}

std::variant<Verdict, CallError> EarlyUpload::Wait() {
  thread_.join();
  return std::move(result_);
}

EarlyUpload::Progress EarlyUpload::Await() {
  absl::MutexLock lock(&mutex_);
  const auto more = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return progress_.ready > sent_ || !progress_.xxh3_128.empty() || progress_.abandoned;
  };
  mutex_.Await(absl::Condition(&more));
  return progress_;
}

std::variant<Verdict, CallError> EarlyUpload::Run() {
  v1::UpdateStatus begun;
  if (CallError error = BeginUpload(connection_, identity_, entry_->header, &begun); !error.status.ok()) return error;
  if (begun.state() != v1::UPDATE_STATE_PARTIAL || begun.upload_id() == 0 || begun.next_offset() != 0) {
    return CallError{Internal("BeginUpload of {}, which is new, was answered with state {} at {}", ToHex(entry_->header.update), static_cast<int>(begun.state()),
                              begun.next_offset()), {}};
  }
  v1::UpdateStatus answer;
  CallError error = connection_.local_address().empty() ? Send(begun, &answer) : SendLocally(begun, &answer);
  if (!error.status.ok()) return error;
  Verdict verdict = VerdictFromProto(answer);
  if (verdict.state == UpdateState::kUnknown || verdict.state == UpdateState::kPartial) {
    return CallError{Unavailable("upload of {}: the server stands at {} of {} bytes", ToHex(entry_->header.update), answer.next_offset(), entry_->header.bytes), {}};
  }
  return verdict;
}

CallError EarlyUpload::Send(const v1::UpdateStatus& begun, v1::UpdateStatus* answer) {
  PushStream stream(connection_, identity_, entry_, begun);
  {
    absl::MutexLock lock(&mutex_);
    stream_ = &stream;
  }
  bool abandoned = false, more = true;
  while (more) {
    const Progress now = Await();
    abandoned = now.abandoned;
    more = !abandoned && stream.Send(now.ready, now.xxh3_128) && now.xxh3_128.empty();
    sent_ = now.ready;
  }
  CallError error = abandoned ? CallError{Cancelled("upload of {}: abandoned", ToHex(entry_->header.update)), {}} : stream.Finish(answer);
  absl::MutexLock lock(&mutex_);
  stream_ = nullptr;
  return error;
}

CallError EarlyUpload::SendLocally(const v1::UpdateStatus& begun, v1::UpdateStatus* answer) {
  while (true) {
    const Progress now = Await();
    if (now.abandoned) return {Cancelled("upload of {}: abandoned", ToHex(entry_->header.update)), {}};
    absl::StatusOr<v1::UpdateStatus> pushed = PushLocally(connection_, identity_, begun.upload_id(), *entry_, now.ready, now.xxh3_128);
    if (!pushed.ok()) {
      ForgetLocalAddress(connection_, pushed.status());
      return {pushed.status(), {}};
    }
    if (!now.xxh3_128.empty() || pushed->state() != v1::UPDATE_STATE_PARTIAL) {
      *answer = *std::move(pushed);
      return {};
    }
    sent_ = now.ready;
  }
}

std::shared_ptr<EarlyUpload> EarlyUploads::Start(const Identity& identity, const std::shared_ptr<const OutboxEntry>& entry, uint64_t attachment) {
  if (attachment == 0) return nullptr;
  if (running_.fetch_add(1) >= at_most_) {
    --running_;
    return nullptr;
  }
  return {new EarlyUpload(connection_, identity, entry, attachment), [this](EarlyUpload* early) {
            delete early;
            --running_;
          }};
}

void EarlyUploads::Add(const UpdateId& update, std::shared_ptr<EarlyUpload> early) {
  absl::MutexLock lock(&mutex_);
  stored_[update] = std::move(early);
}

std::shared_ptr<EarlyUpload> EarlyUploads::Take(const UpdateId& update, uint64_t attachment) {
  std::shared_ptr<EarlyUpload> early;  // another attachment's ends outside the lock
  absl::MutexLock lock(&mutex_);
  if (auto found = stored_.extract(update); !found.empty()) early = std::move(found.mapped());
  if (early != nullptr && early->attachment() != attachment) return nullptr;
  return early;
}

}  // namespace tributary::client
