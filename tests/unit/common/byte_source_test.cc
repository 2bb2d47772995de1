#include "common/byte_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>

#include "common/safetensors.h"
#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

FileSource FileOf(const std::string& content, UniqueFd* writer = nullptr) {
  UniqueFd fd(::memfd_create("source", MFD_CLOEXEC));
  EXPECT_EQ(::write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  if (writer != nullptr) *writer = UniqueFd(::dup(fd.get()));
  return FileSource::Of(std::move(fd), "'the file'").value();
}

std::string ReadAll(const ByteSource& source, size_t piece_bytes) {
  std::string all;
  EXPECT_THAT(ForEachPiece(source, piece_bytes, [&](std::span<const std::byte> piece) {
                all.append(reinterpret_cast<const char*>(piece.data()), piece.size());
                return absl::OkStatus();
              }), IsOk());
  return all;
}

TEST(ByteSourceTest, PiecesAreTheWholeInOrder) {
  std::string content;
  for (int i = 0; i < 1000; ++i) content.push_back(static_cast<char>(i % 251));
  for (const size_t piece : {1u, 7u, 1000u, 4096u}) {
    EXPECT_EQ(ReadAll(MemorySource(content), piece), content);
    EXPECT_EQ(ReadAll(FileOf(content), piece), content);
  }
  EXPECT_EQ(ReadAll(FileOf(""), 10), "");
}

TEST(ByteSourceTest, ReadingPastTheEndIsRefused) {
  std::array<std::byte, 4> out{};
  for (const uint64_t offset : {uint64_t{1}, uint64_t{5}, UINT64_MAX}) {
    EXPECT_THAT(MemorySource("abcd").Read(offset, out), StatusIs(absl::StatusCode::kOutOfRange)) << offset;
    EXPECT_THAT(FileOf("abcd").Read(offset, out), StatusIs(absl::StatusCode::kOutOfRange)) << offset;
  }
}

TEST(ByteSourceTest, AFileThatIsCutMeanwhileIsAnErrorNotASignal) {
  UniqueFd writer;
  const FileSource file = FileOf("abcdefgh", &writer);
  ASSERT_EQ(::ftruncate(writer.get(), 5), 0);
  std::array<std::byte, 8> out{};
  EXPECT_THAT(file.Read(0, out), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("'the file': expected 8 bytes, it ends at 5 by now")));
}

TEST(ByteSourceTest, OnlyRegularFilesAreTaken) {
  EXPECT_THAT(FileSource::Open("/proc/self"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got a directory")));
  EXPECT_THAT(FileSource::Open("/dev/zero"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another kind")));
  EXPECT_THAT(FileSource::Open("/absent"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/absent")));
}

TEST(ByteSourceTest, ASafetensorsFileIsReadIntoPlaceWithoutBeingHeld) {
  const TensorLayout layout = *TensorLayout::Create({{"a", {3}, DType::kF32, TensorKind::kTrainable},
                                                     {"n", {2}, DType::kI64, TensorKind::kCounter},
                                                     {"b", {1, 2}, DType::kF32, TensorKind::kBuffer}});
  std::vector<std::byte> flat(layout.total_bytes());
  for (size_t i = 0; i < flat.size(); ++i) flat[i] = static_cast<std::byte>(i + 1);
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string content, SerializeSafetensors(layout, flat));
  const FileSource file = FileOf(content);
  TRIB_ASSERT_OK_AND_ASSIGN(const SafetensorsView view, ReadSafetensorsHeader(file));
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout read, LayoutOf(view));
  EXPECT_EQ(read.Fingerprint(), layout.Fingerprint());
  std::vector<std::byte> out(layout.total_bytes());
  ASSERT_THAT(ReadFlat(file, view, layout, out), IsOk());
  EXPECT_EQ(out, flat);
  // The header is judged as that of a whole buffer.
  const auto judged = [](const std::string& bytes) {
    const absl::Status whole = ParseSafetensors(std::as_bytes(std::span(bytes))).status();
    EXPECT_EQ(ReadSafetensorsHeader(MemorySource(bytes)).status(), whole);
    return whole;
  };
  for (const size_t cut : {size_t{0}, size_t{7}, size_t{8}, size_t{40}, content.size() - 1}) {
    EXPECT_THAT(judged(content.substr(0, cut)), StatusIs(absl::StatusCode::kInvalidArgument)) << cut;
  }
  EXPECT_THAT(judged(content + "x"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace tributary
