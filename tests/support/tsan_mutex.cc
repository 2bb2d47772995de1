// ThreadSanitizer and an Abseil library that was built without it: the library's Mutex is invisible to TSan, so every guarded
// variable looks like a race. Linked with --wrap (TributaryTargets.cmake, scripts/tsan_grpc.sh), these wrappers tell TSan what the mutex
// does. TSan builds only.
#include <absl/synchronization/mutex.h>
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
namespace {
using absl::CondVar;
using absl::Condition;
using absl::Mutex;
constexpr unsigned kFlags = __tsan_mutex_linker_init;
// Conditions of other threads are evaluated inside these calls, under the real mutex: not to be looked at.
struct Ignore {
  Ignore() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Ignore() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};
// A wait that lets go of `mu` and has it again at its end.
template <typename Wait>
auto Without(Mutex* mu, Wait wait) {
  __tsan_mutex_pre_unlock(mu, kFlags);
  __tsan_mutex_post_unlock(mu, kFlags);
  struct Lock {
    Mutex* mu;
    ~Lock() {
      __tsan_mutex_pre_lock(mu, kFlags);
      __tsan_mutex_post_lock(mu, kFlags, 0);
    }
  } lock{mu};
  const Ignore ignore;
  return wait();
}
}  // namespace

#define REAL(name) __real_##name
#define WRAP(name) __wrap_##name
extern "C" {
void REAL(_ZN4absl7debian35Mutex4LockEv)(Mutex*);
void WRAP(_ZN4absl7debian35Mutex4LockEv)(Mutex* mu) {
  __tsan_mutex_pre_lock(mu, kFlags);
  { Ignore ignore; REAL(_ZN4absl7debian35Mutex4LockEv)(mu); }
  __tsan_mutex_post_lock(mu, kFlags, 0);
}
void REAL(_ZN4absl7debian35Mutex6UnlockEv)(Mutex*);
void WRAP(_ZN4absl7debian35Mutex6UnlockEv)(Mutex* mu) {
  __tsan_mutex_pre_unlock(mu, kFlags);
  { Ignore ignore; REAL(_ZN4absl7debian35Mutex6UnlockEv)(mu); }
  __tsan_mutex_post_unlock(mu, kFlags);
}
// Unlocks inside Abseil, where no wrapper sees it. The mutex is its only member.
void REAL(_ZN4absl7debian319ReleasableMutexLock7ReleaseEv)(absl::ReleasableMutexLock*);
void WRAP(_ZN4absl7debian319ReleasableMutexLock7ReleaseEv)(absl::ReleasableMutexLock* lock) {
  static_assert(sizeof(absl::ReleasableMutexLock) == sizeof(Mutex*));
  Mutex* const mu = *reinterpret_cast<Mutex**>(lock);
  __tsan_mutex_pre_unlock(mu, kFlags);
  { Ignore ignore; REAL(_ZN4absl7debian319ReleasableMutexLock7ReleaseEv)(lock); }
  __tsan_mutex_post_unlock(mu, kFlags);
}
bool REAL(_ZN4absl7debian35Mutex7TryLockEv)(Mutex*);
bool WRAP(_ZN4absl7debian35Mutex7TryLockEv)(Mutex* mu) {
  __tsan_mutex_pre_lock(mu, kFlags | __tsan_mutex_try_lock);
  bool locked = false;
  { Ignore ignore; locked = REAL(_ZN4absl7debian35Mutex7TryLockEv)(mu); }
  __tsan_mutex_post_lock(mu, kFlags | __tsan_mutex_try_lock | (locked ? 0 : __tsan_mutex_try_lock_failed), 0);
  return locked;
}
void REAL(_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE)(Mutex*, const Condition&);
void WRAP(_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE)(Mutex* mu, const Condition& c) {
  Without(mu, [&] { REAL(_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE)(mu, c); });
}
bool REAL(_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE)(Mutex*, const Condition&, absl::Duration);
bool WRAP(_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE)(Mutex* mu, const Condition& c, absl::Duration d) {
  return Without(mu, [&] { return REAL(_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE)(mu, c, d); });
}
void REAL(_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE)(CondVar*, Mutex*);
void WRAP(_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE)(CondVar* cv, Mutex* mu) {
  Without(mu, [&] { REAL(_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE)(cv, mu); });
}
bool REAL(_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE)(CondVar*, Mutex*, absl::Duration);
bool WRAP(_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE)(CondVar* cv, Mutex* mu, absl::Duration d) {
  return Without(mu, [&] { return REAL(_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE)(cv, mu, d); });
}
bool REAL(_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE)(CondVar*, Mutex*, absl::Time);
bool WRAP(_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE)(CondVar* cv, Mutex* mu, absl::Time t) {
  return Without(mu, [&] { return REAL(_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE)(cv, mu, t); });
}
}
