// What a worker pool may not leave behind in the process that had it: descriptors, shared memory, children.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace tributary::aggregator {

inline size_t CountFds() {
  const std::filesystem::directory_iterator fds("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(fds), end(fds)));
}

// Bytes of shared memory this process has mapped.
inline size_t MappedBytes() {
  std::ifstream maps("/proc/self/maps");
  size_t bytes = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:tributary") == std::string::npos) continue;
    unsigned long first = 0, last = 0;
    std::sscanf(line.c_str(), "%lx-%lx", &first, &last);
    bytes += last - first;
  }
  return bytes;
}

// Of this process, zombies included.
inline size_t CountChildren() {
  size_t count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(task.path() / "children");
    for (std::string pid; children >> pid;) ++count;
  }
  return count;
}

class NothingLeftBehind : public ::testing::Test {
 protected:
  void SetUp() override {
    fds_ = CountFds();
    ASSERT_EQ(MappedBytes(), 0u);
    ASSERT_EQ(CountChildren(), 0u);
  }
  void TearDown() override {
    EXPECT_EQ(CountFds(), fds_);
    EXPECT_EQ(MappedBytes(), 0u);
    EXPECT_EQ(CountChildren(), 0u);
  }

 private:
  size_t fds_ = 0;
};

}  // namespace tributary::aggregator
