// What the state store's tests share: deterministic contents, so that a store can be judged by anyone who knows job and version.
#pragma once

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "aggregator/state/state_store.h"
#include "common/digest.h"

namespace tributary::aggregator {

inline std::vector<std::byte> TestTensors(uint64_t seed, size_t bytes) {
  std::vector<std::byte> out(bytes);
  uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
  for (size_t i = 0; i < bytes; i += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(out.data() + i, &state, std::min<size_t>(8, bytes - i));
  }
  return out;
}

inline UpdateId TestUpdate(uint64_t version, uint64_t index) { return UpdateId{version, index + 1}; }

inline v1::JobRow TestJob(const std::string& id, uint64_t updates_committed = 0) {
  v1::JobRow row;
  row.set_id(id);
  row.set_state(v1::JOB_STATE_RUNNING);
  row.set_submitted_us(1000);
  row.set_updates_committed(updates_committed);
  return row;
}

// Version `version` of `job` with `updates` contributors, one strategy vector and one event. `tensors` must outlive the result.
inline VersionCommit TestCommit(const std::string& job, uint64_t version, const std::vector<std::byte>& tensors, uint64_t updates = 2) {
  VersionCommit commit;
  commit.job = TestJob(job, version * updates);
  commit.tensors = tensors;
  v1::VersionInfo& info = *commit.version.mutable_info();
  info.set_version(version);
  for (uint64_t i = 0; i < updates; ++i) {
    v1::Contributor& contributor = *info.add_contributors();
    contributor.set_client("client-" + std::to_string(i));
    contributor.set_update_id(ToBytes(TestUpdate(version, i)));
    contributor.set_weight(1);
    commit.updates.emplace_back(TestUpdate(version, i), v1::UpdateRow());
  }
  commit.strategy_state.push_back({"momentum", std::vector<double>(tensors.size() / 8, static_cast<double>(version) + 0.5)});
  v1::EventRow event;
  event.set_kind("commit");
  event.set_text("version " + std::to_string(version));
  commit.events.push_back(event);
  return commit;
}

// A folder under the system's temporary folder, removed at the end.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "trib-state-XXXXXX").string();
    if (::mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  std::string store() const { return path_ + "/store"; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace tributary::aggregator
