#include "client/data/outbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "common/crash_points.h"
#include "common/digest.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

std::vector<std::byte> Bytes(size_t count, uint8_t seed = 1) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(seed + i * 7);
  return bytes;
}

OutboxHeader Header(uint64_t n = 1) {
  OutboxHeader header;
  header.job = "job-1";
  header.task = n;
  header.update = {0xabc, n};
  header.version = 3;
  header.layout = std::string(64, 'a');
  header.codec = "f32";
  header.weight = 600.1;
  header.examples = 600;
  header.metrics = {{"train_loss", 0.25}};
  header.moe = {{.counts = {3, 5}, .prob_sum = {3.1, 4.9}, .square_sum = 1.0 / 3, .tokens = 4},
                {.counts = {1, 3}, .prob_sum = {2, 2}, .square_sum = 2, .tokens = 4, .margins = {1, 3, 4, 0}}};
  return header;
}

absl::StatusOr<OutboxHeader> PutBytes(Outbox& outbox, const OutboxHeader& header, std::span<const std::byte> payload) {
  return outbox.Put(header, payload.size(), [payload](const Outbox::PartWriter& write, const auto&, OutboxHeader*) { return write(0, payload); });
}

class OutboxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "trib-outbox-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  std::unique_ptr<Outbox> Open(uint64_t limit = 1 << 20) {
    auto outbox = Outbox::Open(folder_, limit);
    EXPECT_THAT(outbox, IsOk());
    return *std::move(outbox);
  }
  fs::path Entry(uint64_t n = 1) const { return folder_ / "outbox" / ToHex(Header(n).update); }
  static void FlipByte(const fs::path& path, int at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get());
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 0x10));
  }
  fs::path folder_;
};

TEST_F(OutboxTest, TakesAPayloadInPartsInAnyOrder) {
  const std::vector<std::byte> payload = Bytes(5000);
  const std::span<const std::byte> bytes(payload);
  const auto outbox = Open();
  TRIB_ASSERT_OK_AND_ASSIGN(const OutboxHeader stored, outbox->Put(Header(), payload.size(), [&](const Outbox::PartWriter& write, const std::shared_ptr<const OutboxEntry>& entry, OutboxHeader* header) -> absl::Status {
    EXPECT_EQ(entry->header.bytes, payload.size());
    EXPECT_EQ(entry->header.xxh3_128, "");
    TRIB_RETURN_IF_ERROR(write(4096, bytes.subspan(4096)));
    // What is written can be read by now.
    EXPECT_TRUE(std::equal(bytes.begin() + 4096, bytes.end(), entry->payload.bytes().begin() + 4096, entry->payload.bytes().end()));
    TRIB_RETURN_IF_ERROR(write(100, bytes.subspan(100, 3996)));
    header->scalars["within_clip"] = 1;
    return write(0, bytes.first(100));
  }));
  EXPECT_EQ(stored.xxh3_128, Xxh3Digest(payload));
  EXPECT_EQ(stored.scalars.at("within_clip"), 1);
  TRIB_ASSERT_OK_AND_ASSIGN(const OutboxEntry entry, outbox->Load(stored.update));
  EXPECT_EQ(entry.header, stored);
  EXPECT_TRUE(std::equal(payload.begin(), payload.end(), entry.payload.bytes().begin(), entry.payload.bytes().end()));
}

TEST_F(OutboxTest, KeepsNothingOfAPayloadWhosePartsFailOrAreTooFew) {
  const std::vector<std::byte> payload = Bytes(500);
  const auto outbox = Open();
  const auto put = [&](const absl::Status& then) {
    return outbox->Put(Header(), 1000, [&](const Outbox::PartWriter& write, const auto&, OutboxHeader*) -> absl::Status {
      TRIB_RETURN_IF_ERROR(write(0, payload));
      EXPECT_THAT(write(501, payload), StatusIs(absl::StatusCode::kInternal, HasSubstr("passes the end at 1000")));
      return then;
    }).status();
  };
  EXPECT_THAT(put(Internal("the device fell off the bus")), StatusIs(absl::StatusCode::kInternal, HasSubstr("fell off the bus")));
  EXPECT_THAT(put(absl::OkStatus()), StatusIs(absl::StatusCode::kInternal, HasSubstr("expected 1000 bytes in parts, got 500")));
  EXPECT_THAT(outbox->Headers(), IsEmpty());
  EXPECT_EQ(outbox->bytes(), 0u);
  EXPECT_FALSE(fs::exists(Entry()));
  EXPECT_THAT(PutBytes(*outbox, Header(), payload), IsOk());
}

TEST_F(OutboxTest, KeepsHeaderAndBytesOverARestart) {
  const auto payload = Bytes(5000);
  OutboxHeader stored;
  {
    auto outbox = Open();
    TRIB_ASSERT_OK_AND_ASSIGN(stored, PutBytes(*outbox, Header(), payload));
  }
  EXPECT_EQ(stored.bytes, 5000u);
  EXPECT_EQ(stored.xxh3_128, Xxh3Digest(payload));
  auto outbox = Open();
  ASSERT_THAT(outbox->Headers(), SizeIs(1));
  EXPECT_EQ(outbox->Headers()[0], stored);
  EXPECT_EQ(outbox->bytes(), 5000u);
  TRIB_ASSERT_OK_AND_ASSIGN(const OutboxEntry entry, outbox->Load(stored.update));
  EXPECT_EQ(entry.header, stored);
  EXPECT_TRUE(std::equal(payload.begin(), payload.end(), entry.payload.bytes().begin(), entry.payload.bytes().end()));
}

TEST_F(OutboxTest, DropRemovesFilesAndRoom) {
  auto outbox = Open();
  ASSERT_THAT(PutBytes(*outbox, Header(), Bytes(100)), IsOk());
  ASSERT_THAT(outbox->Drop(Header().update), IsOk());
  EXPECT_EQ(outbox->bytes(), 0u);
  EXPECT_TRUE(fs::is_empty(folder_ / "outbox"));
  EXPECT_THAT(outbox->Load(Header().update), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(outbox->Drop(Header().update), IsOk());
}

TEST_F(OutboxTest, LoadedBytesOutliveTheDrop) {
  auto outbox = Open();
  const auto payload = Bytes(4096);
  ASSERT_THAT(PutBytes(*outbox, Header(), payload), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const OutboxEntry entry, outbox->Load(Header().update));
  ASSERT_THAT(outbox->Drop(Header().update), IsOk());
  EXPECT_TRUE(std::equal(payload.begin(), payload.end(), entry.payload.bytes().begin()));
}

TEST_F(OutboxTest, RefusesWhatDoesNotFitAndKeepsNothingOfIt) {
  auto outbox = Open(1000);
  ASSERT_THAT(PutBytes(*outbox, Header(1), Bytes(600)), IsOk());
  EXPECT_THAT(PutBytes(*outbox, Header(2), Bytes(401)), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("600 of 1000")));
  EXPECT_FALSE(fs::exists(Entry(2)));
  EXPECT_THAT(PutBytes(*outbox, Header(2), Bytes(400)), IsOk());
}

TEST_F(OutboxTest, RefusesTheSameUpdateTwice) {
  auto outbox = Open();
  ASSERT_THAT(PutBytes(*outbox, Header(), Bytes(10)), IsOk());
  EXPECT_THAT(PutBytes(*outbox, Header(), Bytes(10, 9)), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(outbox->bytes(), 10u);
}

TEST_F(OutboxTest, OneDaemonAtATime) {
  auto outbox = Open();
  EXPECT_THAT(Outbox::Open(folder_, 1000), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another client daemon")));
}

TEST_F(OutboxTest, DamagedPayloadIsSetAsideAtLoadAndNeverReturned) {
  { ASSERT_THAT(PutBytes(*Open(), Header(), Bytes(5000)), IsOk()); }
  FlipByte(Entry() / "payload", 2500);
  auto outbox = Open();
  EXPECT_THAT(outbox->Load(Header().update), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(outbox->Load(Header().update), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(outbox->bytes(), 0u);
  EXPECT_FALSE(fs::exists(Entry()));
  EXPECT_FALSE(fs::is_empty(folder_ / "damaged"));
}

TEST_F(OutboxTest, TruncatedPayloadIsSetAsideAtOpen) {
  { ASSERT_THAT(PutBytes(*Open(), Header(), Bytes(5000)), IsOk()); }
  fs::resize_file(Entry() / "payload", 4999);
  EXPECT_THAT(Open()->Headers(), IsEmpty());
  EXPECT_FALSE(fs::is_empty(folder_ / "damaged"));
}

TEST_F(OutboxTest, EveryFlippedByteOfAHeaderIsNoticed) {
  { ASSERT_THAT(PutBytes(*Open(), Header(), Bytes(64)), IsOk()); }
  const auto size = static_cast<int>(fs::file_size(Entry() / "header"));
  const fs::path copy = folder_ / "copy";
  fs::copy(Entry(), copy, fs::copy_options::recursive);
  for (int at = 0; at < size; ++at) {
    fs::remove_all(Entry());
    fs::copy(copy, Entry(), fs::copy_options::recursive);
    FlipByte(Entry() / "header", at);
    EXPECT_THAT(Open()->Headers(), IsEmpty()) << "byte " << at;
  }
}

TEST_F(OutboxTest, EntryUnderAnotherNameIsSetAside) {
  { ASSERT_THAT(PutBytes(*Open(), Header(), Bytes(64)), IsOk()); }
  fs::rename(Entry(), folder_ / "outbox" / std::string(32, '0'));
  EXPECT_THAT(Open()->Headers(), IsEmpty());
}

TEST_F(OutboxTest, HalfMadeAndHalfGoneEntriesAreSwept) {
  fs::create_directories(folder_ / "outbox" / ".tmp-1");
  std::ofstream(folder_ / "outbox" / ".tmp-1" / "payload") << "x";
  fs::create_directories(folder_ / "outbox" / ".drop-2");
  auto outbox = Open();
  EXPECT_THAT(outbox->Headers(), IsEmpty());
  EXPECT_TRUE(fs::is_empty(folder_ / "outbox"));
}

#ifdef TRIBUTARY_CRASH_POINTS
// A child process works on the outbox and is killed at a crash point; what a fresh process then finds.
class OutboxCrashTest : public OutboxTest {
 protected:
  // The child is this program again, which CrashChild takes over: a crash point reads its target once per process.
  void KillAt(const std::string& point, bool drop) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::setenv("TRIBUTARY_CRASH", (point + ":1").c_str(), 1);
      ::setenv("OUTBOX_TEST_FOLDER", folder_.c_str(), 1);
      ::setenv("OUTBOX_TEST_DROP", drop ? "1" : "0", 1);
      ::execl("/proc/self/exe", "outbox_crash_child", nullptr);
      ::_exit(127);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "not killed at " << point << ": wait status " << status;
  }
  void ExpectWhole() {
    auto outbox = Open();
    ASSERT_THAT(outbox->Headers(), SizeIs(1));
    EXPECT_THAT(outbox->Load(Header().update), IsOk());
  }
};

// Before any test: what the child of KillAt does instead of running them. Exit code 1: it survived.
class CrashChild : public ::testing::Environment {
 public:
  void SetUp() override {
    const char* folder = std::getenv("OUTBOX_TEST_FOLDER");
    if (folder == nullptr) return;
    const auto outbox = Outbox::Open(folder, 1 << 20);
    if (outbox.ok() && PutBytes(**outbox, Header(), Bytes(5000)).ok() && *std::getenv("OUTBOX_TEST_DROP") == '1') {
      (*outbox)->Drop(Header().update).IgnoreError();
    }
    ::_exit(1);
  }
};
const ::testing::Environment* const kCrashChild = ::testing::AddGlobalTestEnvironment(new CrashChild);

TEST_F(OutboxCrashTest, BeforeTheRenameTheEntryIsAbsent) {
  KillAt("outbox_before_rename", false);
  EXPECT_THAT(Open()->Headers(), IsEmpty());
  EXPECT_TRUE(fs::is_empty(folder_ / "outbox"));
}

TEST_F(OutboxCrashTest, AfterTheRenameTheEntryIsWhole) {
  KillAt("outbox_after_rename", false);
  ExpectWhole();
}

TEST_F(OutboxCrashTest, BeforeTheDropTheEntryIsWhole) {
  KillAt("client_before_outbox_drop", true);
  ExpectWhole();
}
#endif

TEST_F(OutboxTest, SecretIsMadeOnceAndPrivate) {
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string secret, ClientSecret(folder_));
  EXPECT_EQ(secret.size(), 64u);
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string again, ClientSecret(folder_));
  EXPECT_EQ(secret, again);
  struct stat info {};
  ASSERT_EQ(::stat((folder_ / "secret").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(OutboxTest, DamagedSecretIsAnErrorNotANewIdentity) {
  std::ofstream(folder_ / "secret") << "short";
  EXPECT_THAT(ClientSecret(folder_), StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace tributary::client
