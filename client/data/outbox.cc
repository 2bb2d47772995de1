#include "client/data/outbox.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <absl/strings/escaping.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "common/crash_points.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/log.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr size_t kMaxHeaderBytes = 4 << 20;  // as a message may have: statistics of wide mixtures go into both

absl::StatusOr<UniqueFd> OpenFd(const fs::path& path, int flags, mode_t mode = 0600) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd.valid()) return ErrnoStatus(errno, fmt::format("{}: open", path.string()));
  return fd;
}

absl::Status Sync(const UniqueFd& fd, const fs::path& path) {
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, fmt::format("{}: fsync", path.string()));
  return absl::OkStatus();
}

absl::Status WriteAt(const UniqueFd& fd, const fs::path& path, size_t at, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, fmt::format("{}: write", path.string()));
    at += static_cast<size_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status WriteSynced(const fs::path& path, std::span<const std::byte> bytes) {
  TRIB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_WRONLY | O_CREAT | O_TRUNC));
  TRIB_RETURN_IF_ERROR(WriteAt(fd, path, 0, bytes));
  return Sync(fd, path);
}

absl::Status Rename(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoStatus(errno, fmt::format("{}: rename to {}", from.string(), to.string()));
  }
  return absl::OkStatus();
}

void RemoveTree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) TRIB_LOG(warn, "{}: remove: {}", path.string(), error.message());
}

uint32_t TextCrc(const std::string& text) { return Crc32c(std::as_bytes(std::span(text.data(), text.size()))); }

json MoeJson(const MoeStats& stats) {
  json layers = json::array();
  for (const MoeLayerStats& layer : stats) {
    layers.push_back({{"counts", layer.counts}, {"prob_sum", layer.prob_sum}, {"square_sum", layer.square_sum}, {"tokens", layer.tokens}});
    if (!layer.margins.empty()) layers.back()["margins"] = layer.margins;
  }
  return layers;
}

MoeStats MoeFrom(const json& layers) {
  MoeStats stats;
  for (const json& layer : layers) {
    stats.push_back({.counts = layer.at("counts"), .prob_sum = layer.at("prob_sum"), .square_sum = layer.at("square_sum"), .tokens = layer.at("tokens"),
                     .margins = layer.value("margins", std::vector<int64_t>())});
  }
  return stats;
}

std::string SerializeHeader(const OutboxHeader& header) {
  json metrics = json::object();
  for (const auto& [name, value] : header.metrics) metrics[name] = value;
  const json document = {{"format_version", kFormatVersion},
                         {"job", header.job},
                         {"task", header.task},
                         {"update", ToHex(header.update)},
                         {"version", header.version},
                         {"layout", header.layout},
                         {"codec", header.codec},
                         {"bytes", header.bytes},
                         {"xxh3_128", absl::BytesToHexString(header.xxh3_128)},
                         {"weight", header.weight},
                         {"examples", header.examples},
                         {"metrics", std::move(metrics)},
                         {"scalars", header.scalars},
                         {"moe", MoeJson(header.moe)}};
  const std::string text = document.dump(-1, ' ', false, json::error_handler_t::replace);
  return fmt::format("{:08x} {}\n", TextCrc(text), text);
}

absl::StatusOr<OutboxHeader> ParseHeader(const std::string& line, const std::string& origin) {
  if (line.size() < 11 || line[8] != ' ' || line.back() != '\n') return DataLoss("{}: not an outbox header", origin);
  const std::string text = line.substr(9, line.size() - 10);
  if (fmt::format("{:08x}", TextCrc(text)) != line.substr(0, 8)) {
    return DataLoss("{}: checksum {:08x} expected, got {}", origin, TextCrc(text), line.substr(0, 8));
  }
  // The checksum matched, so these are our own words; another release's words are still possible.
  try {
    const json document = json::parse(text);
    if (document.at("format_version") != kFormatVersion) {
      return DataLoss("{}: format version {} expected, got {}", origin, kFormatVersion, document.at("format_version").dump());
    }
    OutboxHeader header;
    header.job = document.at("job");
    header.task = document.at("task");
    TRIB_ASSIGN_OR_RETURN(header.update, UpdateIdFromHex(document.at("update").get<std::string>()));
    header.version = document.at("version");
    header.layout = document.at("layout");
    header.codec = document.at("codec");
    header.bytes = document.at("bytes");
    header.xxh3_128 = absl::HexStringToBytes(document.at("xxh3_128").get<std::string>());
    header.weight = document.at("weight");
    header.examples = document.at("examples");
    header.metrics = document.at("metrics").get<std::map<std::string, double>>();
    if (document.contains("scalars")) header.scalars = document.at("scalars").get<std::map<std::string, double>>();
    if (document.contains("moe")) header.moe = MoeFrom(document.at("moe"));
    return header;
  } catch (const json::exception& error) {
    return DataLoss("{}: {}", origin, error.what());
  }
}

}  // namespace

Outbox::Outbox(fs::path folder, uint64_t limit_bytes, UniqueFd lock)
    : folder_(std::move(folder)), outbox_(folder_ / "outbox"), limit_bytes_(limit_bytes), lock_(std::move(lock)) {}

absl::StatusOr<std::unique_ptr<Outbox>> Outbox::Open(const fs::path& folder, uint64_t limit_bytes) {
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder / "outbox"));
  TRIB_ASSIGN_OR_RETURN(UniqueFd lock, OpenFd(folder / "lock", O_RDWR | O_CREAT));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return FailedPrecondition("{}: another client daemon works with this state folder; give this one another --name or --state",
                                folder.string());
    }
    return ErrnoStatus(errno, fmt::format("{}: flock", (folder / "lock").string()));
  }
  std::unique_ptr<Outbox> outbox(new Outbox(folder, limit_bytes, std::move(lock)));
  TRIB_RETURN_IF_ERROR(outbox->Scan());
  return outbox;
}

absl::Status Outbox::Scan() {
  std::error_code error;
  std::vector<fs::path> entries;
  for (fs::directory_iterator at(outbox_, error), end; !error && at != end; at.increment(error)) entries.push_back(at->path());
  if (error) return ErrnoStatus(error.value(), fmt::format("{}: list", outbox_.string()));
  absl::MutexLock lock(&mutex_);
  for (const fs::path& entry : entries) {
    const std::string name = entry.filename().string();
    if (name.starts_with(".")) {
      RemoveTree(entry);
      continue;
    }
    const fs::path header_path = entry / "header";
    absl::StatusOr<OutboxHeader> header = InvalidArgument("not read");
    if (absl::StatusOr<std::string> text = ReadFile(header_path, kMaxHeaderBytes); text.ok()) {
      header = ParseHeader(*text, header_path.string());
    } else {
      header = text.status();
    }
    std::error_code size_error;
    const uintmax_t size = fs::file_size(entry / "payload", size_error);
    if (header.ok() && ToHex(header->update) != name) {
      header = DataLoss("{}: names update {}", header_path.string(), ToHex(header->update));
    } else if (header.ok() && (size_error || size != header->bytes)) {
      header = DataLoss("{}: payload of {} bytes expected, got {}", entry.string(), header->bytes,
                        size_error ? size_error.message() : std::to_string(size));
    }
    if (!header.ok()) {
      SetAside(entry, MessageOf(header.status()));
      continue;
    }
    bytes_ += header->bytes;
    headers_[header->update] = *std::move(header);
  }
  return absl::OkStatus();
}

void Outbox::SetAside(const fs::path& entry, const std::string& why) {
  const fs::path damaged = folder_ / "damaged";
  const fs::path target = damaged / fmt::format("{}-{}", entry.filename().string(), RandomHex(4));
  absl::Status moved = MakeDirectories(damaged);
  if (moved.ok()) moved = Rename(entry, target);
  TRIB_LOG(warn, "outbox entry {} is damaged and will not be sent: {}; {}", entry.filename().string(), why,
           moved.ok() ? "kept as " + target.string() : "it could not be moved: " + MessageOf(moved));
}

std::vector<OutboxHeader> Outbox::Headers() const {
  absl::MutexLock lock(&mutex_);
  std::vector<OutboxHeader> headers;
  headers.reserve(headers_.size());
  for (const auto& [id, header] : headers_) headers.push_back(header);
  return headers;
}

std::optional<OutboxHeader> Outbox::Find(const UpdateId& update) const {
  absl::MutexLock lock(&mutex_);
  const auto found = headers_.find(update);
  if (found == headers_.end()) return std::nullopt;
  return found->second;
}

uint64_t Outbox::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

absl::Status Outbox::WritePayload(const fs::path& path, const Fill& fill, OutboxHeader* header) {
  const uint64_t bytes = header->bytes;
  TRIB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenFd(path, O_WRONLY | O_CREAT | O_TRUNC));
  // Of its whole size from the beginning, so that it can be mapped; what is not written yet takes no room.
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return ErrnoStatus(errno, fmt::format("{}: {} bytes", path.string(), bytes));
  TRIB_ASSIGN_OR_RETURN(MappedFile payload, MappedFile::Open(path));
  TRIB_ASSIGN_OR_RETURN(UniqueFd file, OpenFd(path, O_RDONLY));
  const auto entry = std::make_shared<const OutboxEntry>(OutboxEntry{*header, std::move(payload), std::move(file)});  // shared with who sends it meanwhile
  uint64_t given = 0, hashed = 0;
  Xxh3 digest;
  const PartWriter write = [&](size_t at, std::span<const std::byte> part) -> absl::Status {
    if (at > bytes || part.size() > bytes - at) return Internal("{}: a part of {} bytes at {} passes the end at {}", path.string(), part.size(), at, bytes);
    given += part.size();
    if (at == hashed) {  // while it is in cache
      digest.Update(part);
      hashed += part.size();
    }
    return WriteAt(fd, path, at, part);
  };
  TRIB_RETURN_IF_ERROR(fill(write, entry, header));
  if (given != bytes) return Internal("{}: expected {} bytes in parts, got {}", path.string(), bytes, given);
  TRIB_RETURN_IF_ERROR(Sync(fd, path));
  digest.Update(entry->payload.bytes().subspan(hashed));
  header->xxh3_128 = digest.Digest();
  return absl::OkStatus();
}

absl::StatusOr<OutboxHeader> Outbox::Put(OutboxHeader header, uint64_t bytes, const Fill& fill) {
  if (!std::isfinite(header.weight)) return InvalidArgument("update {}: weight is not finite", ToHex(header.update));
  header.bytes = bytes;
  const std::string name = ToHex(header.update);
  {
    absl::MutexLock lock(&mutex_);
    if (headers_.contains(header.update)) return AlreadyExists("update {} is in the outbox already", name);
    if (bytes_ > limit_bytes_ || bytes > limit_bytes_ - bytes_) {
      return ResourceExhausted("outbox is full: {} of {} bytes used, update {} needs {}", bytes_, limit_bytes_, name, bytes);
    }
    bytes_ += bytes;
  }
  const fs::path temporary = outbox_ / (".tmp-" + name);
  const auto write = [&]() -> absl::Status {
    TRIB_RETURN_IF_ERROR(MakeDirectories(temporary));
    TRIB_RETURN_IF_ERROR(WritePayload(temporary / "payload", fill, &header));
    const std::string text = SerializeHeader(header);
    TRIB_RETURN_IF_ERROR(WriteSynced(temporary / "header", std::as_bytes(std::span(text.data(), text.size()))));
    TRIB_RETURN_IF_ERROR(SyncFolder(temporary));
    TRIB_CRASH_POINT(outbox_before_rename);
    TRIB_RETURN_IF_ERROR(Rename(temporary, PathOf(header.update)));
    TRIB_CRASH_POINT(outbox_after_rename);
    return SyncFolder(outbox_);
  };
  if (const absl::Status written = write(); !written.ok()) {
    RemoveTree(temporary);
    RemoveTree(PathOf(header.update));
    absl::MutexLock lock(&mutex_);
    bytes_ -= bytes;
    // First what matters: who reads it far from here sees the beginning only.
    return absl::IsResourceExhausted(written) ? Annotate(written, "the outbox's disk is full") : written;
  }
  absl::MutexLock lock(&mutex_);
  headers_[header.update] = header;
  verified_.insert(header.update);
  return header;
}

absl::StatusOr<OutboxEntry> Outbox::Load(const UpdateId& update) {
  OutboxHeader header;
  bool verified = false;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = headers_.find(update);
    if (found == headers_.end()) return NotFound("update {} is not in the outbox", ToHex(update));
    header = found->second;
    verified = verified_.contains(update);
  }
  const fs::path path = PathOf(update);
  absl::StatusOr<MappedFile> payload = MappedFile::Open(path / "payload");
  absl::StatusOr<UniqueFd> file = OpenFd(path / "payload", O_RDONLY);
  absl::Status problem = payload.ok() ? file.status() : payload.status();
  if (problem.ok() && payload->bytes().size() != header.bytes) {
    problem = DataLoss("{}: payload of {} bytes expected, got {}", path.string(), header.bytes, payload->bytes().size());
  } else if (problem.ok() && !verified && Xxh3Digest(payload->bytes()) != header.xxh3_128) {
    problem = DataLoss("{}: payload does not match its xxh3 digest", path.string());
  }
  absl::MutexLock lock(&mutex_);
  if (problem.ok()) {
    if (headers_.contains(update)) verified_.insert(update);
    return OutboxEntry{std::move(header), *std::move(payload), *std::move(file)};
  }
  // Dropped by another thread meanwhile, or a passing shortage (file table full): the entry itself is not to blame.
  if (headers_.erase(update) == 0) return NotFound("update {} is not in the outbox", ToHex(update));
  if (absl::IsResourceExhausted(problem)) {
    headers_[update] = header;
    return problem;
  }
  verified_.erase(update);
  bytes_ -= header.bytes;
  SetAside(path, MessageOf(problem));
  return DataLoss("update {}: {}", ToHex(update), MessageOf(problem));
}

absl::Status Outbox::Drop(const UpdateId& update) {
  {
    absl::MutexLock lock(&mutex_);
    const auto found = headers_.find(update);
    if (found == headers_.end()) return absl::OkStatus();
    bytes_ -= found->second.bytes;
    headers_.erase(found);
    verified_.erase(update);
  }
  TRIB_CRASH_POINT(client_before_outbox_drop);
  // The rename makes the removal one step: a crash between the two unlinks leaves no half entry under its name.
  const fs::path gone = outbox_ / (".drop-" + ToHex(update));
  TRIB_RETURN_IF_ERROR(Rename(PathOf(update), gone));
  RemoveTree(gone);
  return absl::OkStatus();
}

absl::StatusOr<std::string> ClientSecret(const fs::path& folder) {
  const fs::path path = folder / "secret";
  absl::StatusOr<std::string> text = ReadFile(path, 4096);
  if (text.ok()) {
    if (text->size() != 64 || text->find_first_not_of("0123456789abcdef") != std::string::npos) {
      return FailedPrecondition("{}: expected 64 lower-case hex digits, got {} bytes; the server knows this client by that secret: "
                                "restore the file, or choose another client name", path.string(), text->size());
    }
    return *text;
  }
  if (!absl::IsNotFound(text.status())) return text.status();
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder));
  const std::string secret = RandomHex(32);
  // Made with mode 0600 under another name, so that it is never readable by others, not even for a moment.
  const fs::path temporary = folder / ".tmp-secret";
  TRIB_RETURN_IF_ERROR(WriteSynced(temporary, std::as_bytes(std::span(secret.data(), secret.size()))));
  TRIB_RETURN_IF_ERROR(Rename(temporary, path));
  TRIB_RETURN_IF_ERROR(SyncFolder(folder));
  return secret;
}

}  // namespace tributary::client
