// A known number of bytes that can be read in any order: memory, or a file that somebody else may change or cut meanwhile. Such a file
// is read, never mapped: what is missing then is an error (DATA_LOSS), not a signal.
// Threads: reading is safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  // Fills `out` with the bytes from `offset` on. OUT_OF_RANGE when they do not lie within size().
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  virtual absl::Status ReadWithin(uint64_t offset, std::span<std::byte> out) const = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string bytes) : bytes_(std::move(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }

 private:
  absl::Status ReadWithin(uint64_t offset, std::span<std::byte> out) const override;
  const std::string bytes_;
};

class FileSource final : public ByteSource {
 public:
  // NOT_FOUND and other errors of open; INVALID_ARGUMENT for what is no regular file.
  static absl::StatusOr<FileSource> Open(const std::filesystem::path& path);
  // `name` stands for the file in messages.
  static absl::StatusOr<FileSource> Of(UniqueFd fd, std::string name);
  uint64_t size() const override { return size_; }
  int fd() const { return fd_.get(); }

 private:
  FileSource(UniqueFd fd, uint64_t size, std::string name) : fd_(std::move(fd)), size_(size), name_(std::move(name)) {}
  absl::Status ReadWithin(uint64_t offset, std::span<std::byte> out) const override;
  UniqueFd fd_;
  uint64_t size_;  // when it was opened
  std::string name_;
};

// Calls `sink` with the source's bytes in order, in pieces of at most `piece_bytes`.
absl::Status ForEachPiece(const ByteSource& source, size_t piece_bytes, const std::function<absl::Status(std::span<const std::byte>)>& sink);

}  // namespace tributary
