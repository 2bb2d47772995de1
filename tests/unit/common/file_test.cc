#include "common/file.h"

#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "trib-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::filesystem::path dir_;
};

TEST_F(FileTest, WritesReadsAndLeavesNoTemporaryFile) {
  const std::string content("a\0b\n", 4);
  ASSERT_THAT(WriteFileAtomically(dir_ / "f", content), IsOk());
  ASSERT_THAT(WriteFileAtomically(dir_ / "f", content + content, false), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string read, ReadFile(dir_ / "f"));
  EXPECT_EQ(read, content + content);
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir_)) ++files;
  EXPECT_EQ(files, 1u);
}

TEST_F(FileTest, AFailedWriteLeavesTheFolderAsItWas) {
  std::filesystem::create_directory(dir_ / "taken");
  std::filesystem::create_directory(dir_ / "taken" / "x");
  EXPECT_FALSE(WriteFileAtomically(dir_ / "taken", std::string_view("x")).ok());
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir_)) ++files;
  EXPECT_EQ(files, 1u);
  EXPECT_THAT(WriteFileAtomically(dir_ / "no" / "f", std::string_view("x")), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(FileTest, ReadRefusesMissingFoldersAndTooLong) {
  EXPECT_THAT(ReadFile(dir_ / "absent"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent")));
  EXPECT_THAT(ReadFile(dir_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("directory")));
  ASSERT_THAT(WriteFileAtomically(dir_ / "ten", std::string_view("0123456789")), IsOk());
  EXPECT_THAT(ReadFile(dir_ / "ten", 9), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("at most 9")));
  EXPECT_THAT(ReadFile(dir_ / "ten", 10), IsOk());
  // Without a size of its own.
  EXPECT_THAT(ReadFile("/dev/zero", 1000), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(FileTest, MakesMissingParentsPrivately) {
  ASSERT_THAT(MakeDirectories(dir_ / "a" / "b" / "c"), IsOk());
  ASSERT_THAT(MakeDirectories(dir_ / "a" / "b" / "c"), IsOk());
  struct stat info {};
  ASSERT_EQ(::stat((dir_ / "a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  ASSERT_THAT(WriteFileAtomically(dir_ / "file", std::string_view("")), IsOk());
  EXPECT_THAT(MakeDirectories(dir_ / "file"), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(FileTest, MapsWholeFilesAndEmptyOnes) {
  ASSERT_THAT(WriteFileAtomically(dir_ / "f", std::string_view("mapped")), IsOk());
  ASSERT_THAT(WriteFileAtomically(dir_ / "empty", std::string_view("")), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(MappedFile file, MappedFile::Open(dir_ / "f"));
  const MappedFile moved = std::move(file);
  ASSERT_EQ(moved.bytes().size(), 6u);
  EXPECT_EQ(static_cast<char>(moved.bytes()[0]), 'm');
  TRIB_ASSERT_OK_AND_ASSIGN(const MappedFile empty, MappedFile::Open(dir_ / "empty"));
  EXPECT_TRUE(empty.bytes().empty());
  EXPECT_THAT(MappedFile::Open(dir_ / "absent"), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(FileTest, FollowsXdgAndIgnoresRelativeValues) {
  ::setenv("XDG_CACHE_HOME", "/somewhere/cache", 1);
  EXPECT_EQ(UserCacheDir(), "/somewhere/cache/tributary");
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  ::setenv("HOME", "/home/someone", 1);
  EXPECT_EQ(UserCacheDir(), "/home/someone/.cache/tributary");
  ::unsetenv("XDG_CONFIG_HOME");
  EXPECT_EQ(UserConfigFile(), "/home/someone/.config/tributary/config.yaml");
  EXPECT_TRUE(std::filesystem::exists(ExecutableDir() / "common_test"));
}

}  // namespace
}  // namespace tributary
