#include "client/data/client_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "common/check.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "common/unique_fd.h"

namespace tributary::client {
namespace {

constexpr size_t kDigestBytes = 16;

absl::Status FailedFileSystem(const std::filesystem::path& path, const std::error_code& error, std::string_view what) {
  return ErrnoStatus(error.value(), fmt::format("{}: {}", path.string(), what));
}

// A job id comes from the server and becomes the name of a folder.
absl::Status CheckFolderName(const std::string& job) {
  if (!job.empty() && job != "." && job != ".." && job.find('/') == std::string::npos && job.find('\0') == std::string::npos) return absl::OkStatus();
  return InvalidArgument("client state: job '{}' cannot be the name of a folder", job);
}

// The version in "<name>.v<version>"; nothing for other files.
std::optional<uint64_t> VersionIn(const std::string& file, const std::string& name) {
  const size_t digits = name.size() + 2;
  uint64_t version = 0;
  if (file.size() <= digits || !file.starts_with(name) || file.compare(name.size(), 2, ".v") != 0) return std::nullopt;
  if (!absl::SimpleAtoi(file.substr(digits), &version)) return std::nullopt;
  return version;
}

// The names of a folder's files; none if it is not there.
absl::StatusOr<std::vector<std::string>> FilesIn(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator files(folder, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  if (error) return FailedFileSystem(folder, error, "list");
  for (const auto& file : files) names.push_back(file.path().filename().string());
  return names;
}

}  // namespace

absl::StatusOr<std::optional<StateValue>> StateFiles::Current(const std::string& job, const std::string& name) const {
  TRIB_RETURN_IF_ERROR(CheckFolderName(job));
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesIn(folder_ / job));
  std::optional<uint64_t> newest;
  for (const std::string& file : files) newest = std::max(newest, VersionIn(file, name));
  if (!newest) return std::optional<StateValue>();
  const std::filesystem::path path = folder_ / job / fmt::format("{}.v{}", name, *newest);
  TRIB_ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  const auto bytes = std::as_bytes(std::span(content));
  if (bytes.size() < kDigestBytes || Xxh3Digest(bytes.subspan(kDigestBytes)) != content.substr(0, kDigestBytes)) {
    return DataLoss("{}: the bytes are not what was written", path.string());
  }
  return std::optional(StateValue{*newest, {bytes.begin() + kDigestBytes, bytes.end()}});
}

absl::Status StateFiles::Stage(const std::string& job, const std::string& name, const UpdateId& update, std::span<const std::byte> value) const {
  TRIB_RETURN_IF_ERROR(CheckFolderName(job));
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder_ / job));
  std::string content = Xxh3Digest(value);
  content.append(reinterpret_cast<const char*>(value.data()), value.size());
  return WriteFileAtomically(folder_ / job / fmt::format("{}.{}", name, ToHex(update)), content);
}

absl::Status StateFiles::Settle(const std::string& job, const UpdateId& update, std::optional<uint64_t> version) const {
  TRIB_RETURN_IF_ERROR(CheckFolderName(job));
  const std::string ending = "." + ToHex(update);
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesIn(folder_ / job));
  std::vector<std::string> promoted;
  std::error_code error;
  for (const std::string& file : files) {
    if (file.size() <= ending.size() || !file.ends_with(ending)) continue;
    const std::string name = file.substr(0, file.size() - ending.size());
    if (version) {
      std::filesystem::rename(folder_ / job / file, folder_ / job / fmt::format("{}.v{}", name, *version), error);
      promoted.push_back(name);
    } else {
      std::filesystem::remove(folder_ / job / file, error);
    }
    if (error) return FailedFileSystem(folder_ / job / file, error, version ? "rename" : "remove");
  }
  if (promoted.empty()) return absl::OkStatus();
  // A promotion must be on disk before the update leaves the outbox, and before what it replaces goes.
  TRIB_RETURN_IF_ERROR(SyncFolder(folder_ / job));
  for (const std::string& name : promoted) {
    for (const std::string& file : files) {
      const std::optional<uint64_t> older = VersionIn(file, name);
      if (older && *older < *version) std::filesystem::remove(folder_ / job / file, error);
      if (error) return FailedFileSystem(folder_ / job / file, error, "remove");
    }
  }
  return absl::OkStatus();
}

absl::Status StateFiles::Promote(const std::string& job, const UpdateId& update, uint64_t version) const { return Settle(job, update, version); }
absl::Status StateFiles::Discard(const std::string& job, const UpdateId& update) const { return Settle(job, update, std::nullopt); }

absl::Status StateFiles::Sweep(const std::set<UpdateId>& kept) const {
  std::error_code error;
  std::filesystem::recursive_directory_iterator files(folder_, error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  if (error) return FailedFileSystem(folder_, error, "list");
  for (const auto& file : files) {
    const std::string extension = file.path().extension().string();
    if (!file.is_regular_file() || extension.empty() || extension.starts_with(".v")) continue;
    const absl::StatusOr<UpdateId> update = UpdateIdFromHex(extension.substr(1));
    if (update.ok() && kept.contains(*update)) continue;
    std::filesystem::remove(file.path(), error);
    if (error) return FailedFileSystem(file.path(), error, "remove");
  }
  return absl::OkStatus();
}

std::string EncodeClientState(const ClientState& state) {
  std::vector<TensorSpec> specs;
  std::vector<std::byte> flat;
  for (const auto& [name, values] : state.vectors) {
    specs.push_back({.name = name, .shape = {static_cast<int64_t>(values.size())}, .dtype = DType::kF64, .kind = TensorKind::kTrainable});
    const auto bytes = std::as_bytes(std::span(values));
    flat.insert(flat.end(), bytes.begin(), bytes.end());
  }
  const absl::StatusOr<TensorLayout> layout = TensorLayout::Create(std::move(specs));
  TRIB_CHECK(layout.ok(), "client state: {}", MessageOf(layout.status()));
  absl::StatusOr<std::string> file = SerializeSafetensors(*layout, flat, {{"tributary", "client state 1"}});
  TRIB_CHECK(file.ok(), "client state: {}", MessageOf(file.status()));
  return *std::move(file);
}

absl::StatusOr<ClientState> ReadClientState(const StateFiles& files, const std::string& job) {
  ClientState state;
  TRIB_ASSIGN_OR_RETURN(const std::optional<StateValue> value, files.Current(job, kStrategyState));
  if (!value) return state;
  const absl::StatusOr<SafetensorsView> view = ParseSafetensors(value->bytes);
  if (!view.ok()) return DataLoss("client state of job '{}': {}", job, MessageOf(view.status()));
  state.version = value->version;
  for (const SafetensorsEntry& entry : view->entries) {
    if (entry.dtype != "F64") return DataLoss("client state of job '{}': vector '{}': expected F64, got {}", job, entry.name, entry.dtype);
    std::vector<double>& values = state.vectors[entry.name];
    values.resize(entry.bytes.size() / sizeof(double));
    if (!values.empty()) std::memcpy(values.data(), entry.bytes.data(), entry.bytes.size());
  }
  return state;
}

}  // namespace tributary::client
