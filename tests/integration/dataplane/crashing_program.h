// Worker processes that die or stop at a named place, for the tests of the pool.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "common/ids.h"

namespace tributary::aggregator {

// A worker program of which the given starts, counted from 0, die (or stop) at a crash point; the others live.
class CrashingProgram {
 public:
  CrashingProgram(const std::string& where, const std::string& starts) : folder_(::testing::TempDir() + "crash_" + RandomHex(8)) {
    std::filesystem::create_directories(folder_);
    std::ofstream script(path());
    script << "#!/bin/sh\n"
           << "i=0; while ! mkdir " << folder_ << "/$i 2>/dev/null; do i=$((i+1)); done\n"
           << "case ' " << starts << " ' in *\" $i \"*) export TRIBUTARY_CRASH=" << where << ";; esac\n"
           << "exec " << WORKER_PROGRAM << " \"$@\"\n";
    script.close();
    ::chmod(path().c_str(), 0755);
  }
  ~CrashingProgram() { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ + "/worker"; }

 private:
  const std::string folder_;
};

}  // namespace tributary::aggregator
