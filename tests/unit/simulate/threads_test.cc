#include "simulate/threads.h"

#include <gmock/gmock.h>

#include <atomic>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary::simulate {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

// Of numbers that change from call to call, so that members who sat out a turn are wanted in the next.
TEST(OnThreadsTest, CallsEachOnceWhateverTheNumberOfThreads) {
  for (size_t turn = 0; turn < 3000; ++turn) {
    const size_t threads = 1 + turn * 7 % 9, count = turn * 5 % 23;
    std::vector<std::atomic<int>> calls(count);
    std::vector<std::atomic<bool>> busy(threads);
    ASSERT_THAT(OnThreads(threads, count, [&](size_t i, size_t thread) {
                  EXPECT_LT(thread, threads);
                  EXPECT_FALSE(busy[thread].exchange(true)) << "two calls at a time with one number";
                  ++calls[i];
                  busy[thread] = false;
                  return absl::OkStatus();
                }), IsOk());
    for (const std::atomic<int>& called : calls) ASSERT_EQ(called, 1);
  }
}

TEST(OnThreadsTest, WorksSideBySide) {
  std::atomic<int> here{0};
  ASSERT_THAT(OnThreads(3, 3, [&](size_t, size_t) {
                ++here;
                while (here < 3) std::this_thread::yield();  // ends only if all three are at work at once
                return absl::OkStatus();
              }), IsOk());
}

TEST(OnThreadsTest, TellsTheFirstErrorInOrder) {
  EXPECT_THAT(OnThreads(4, 100, [](size_t i, size_t) { return i % 10 == 3 ? Internal("call {}", i) : absl::OkStatus(); }),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("call 3")));
}

TEST(OnThreadsTest, ACallInsideACallAndTwoCallersAtATimeAreServed) {
  std::atomic<int> calls{0};
  const auto twice = [&] {
    return OnThreads(4, 8, [&](size_t, size_t) {
      return OnThreads(4, 8, [&](size_t, size_t) {
        ++calls;
        return absl::OkStatus();
      });
    });
  };
  std::jthread other([&] { EXPECT_THAT(twice(), IsOk()); });
  EXPECT_THAT(twice(), IsOk());
  other.join();
  EXPECT_EQ(calls, 128);
}

}  // namespace
}  // namespace tributary::simulate
