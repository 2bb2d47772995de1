// The real program on loopback TCP pairs: what arrives where, what is counted, what it costs.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <random>
#include <set>
#include <thread>

#include "tests/integration/transport/sticky_drop.h"
#include "tests/integration/transport/transport_rig.h"


namespace tributary::aggregator {
namespace {

using tributary::testing::IsOk;
using ebpf::VerdictCounts;

// Two members of domain 1 and one of domain 2, on a program of their own.
class VerdictTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TRIB_REQUIRE_OR_SKIP("bpf", BpfMissing());
    program = ebpf::LoadVerdictProgram().value();
    anchors = Anchors::Create(program.get()).value();
    alice = anchors->Add(1, 1).value();
    bob = anchors->Add(2, 1).value();
    stranger = anchors->Add(3, 2).value();
    ASSERT_THAT(anchors->Declare(4, 1), IsOk());  // cold
    before = program->Counts().value();
  }
  static tb_desc Record(uint32_t src, uint32_t dst, uint32_t number = 0) {
    return {.dst = dst, .src = src, .key_hi = number, .key_lo = ~uint64_t{number}, .round = number, .kind = TB_KIND_UPDATE, .lane = 0};
  }
  // Sends until it is taken, reading the daemon's ends meanwhile, as the daemon does.
  void SendBytes(const Anchors::Anchor& from, const void* bytes, size_t size) {
    while (true) {
      const ssize_t sent = ::send(from.worker_end.get(), bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent == static_cast<ssize_t>(size)) return;
      ASSERT_TRUE(sent < 0 && errno == EAGAIN) << "send of " << size << " gave " << sent << ": " << std::strerror(errno);
      Collect();
    }
  }
  void Send(const Anchors::Anchor& from, const tb_desc& record) { SendBytes(from, &record, sizeof(record)); }
  void Collect() {
    Anchors::Incoming some = anchors->Read(absl::Now());
    for (const auto& letter : some.letters) letters.push_back(letter);
    for (const auto& offender : some.offenders) offenders.push_back(offender);
  }
  void CollectUntil(const std::function<bool()>& enough) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!enough() && absl::Now() < deadline) Collect();
    ASSERT_TRUE(enough());
  }
  // Bytes that lie in a member's socket.
  static std::vector<std::byte> Received(const Anchors::Anchor& at) {
    std::vector<std::byte> bytes(1 << 20);
    size_t held = 0;
    ssize_t count = 0;
    while ((count = ::recv(at.worker_end.get(), bytes.data() + held, bytes.size() - held, MSG_DONTWAIT)) > 0) held += static_cast<size_t>(count);
    bytes.resize(held);
    return bytes;
  }
  uint64_t Moved(tb_verdict verdict) { return program->Counts().value()[verdict] - before[verdict]; }

  std::unique_ptr<ebpf::VerdictProgram> program;
  std::unique_ptr<Anchors> anchors;
  Anchors::Anchor alice, bob, stranger;
  VerdictCounts before{};
  std::vector<Anchors::DeadLetter> letters;
  std::vector<Anchors::Offender> offenders;
};

TEST_F(VerdictTest, ThreeRecordsInOneReadAreThreeDescriptors) {
  auto sender = SkMsgEndpoint::Create(std::move(alice.worker_end), 1, TransportKind::kSkMsgInline).value();
  for (uint32_t i = 0; i < 3; ++i) ASSERT_EQ(sender->Send(Record(1, 2, i)), SkMsgEndpoint::SendResult::kSent);
  // The trap is real: one read, 96 bytes.
  std::array<tb_desc, 8> peeked;
  ASSERT_EQ(::recv(bob.worker_end.get(), peeked.data(), sizeof(peeked), MSG_PEEK | MSG_DONTWAIT), 96);
  auto receiver = SkMsgEndpoint::Create(std::move(bob.worker_end), 2, TransportKind::kSkMsgInline).value();
  receiver->Drain();
  EXPECT_EQ(receiver->counters().received, 3u);
  EXPECT_EQ(Moved(TB_VERDICT_OK), 3u);
}

// Needs no program: the endpoint reads a byte stream, and here the stream is cut on purpose.
TEST(SkMsgEndpointTest, ARecordThatComesInTwoReadsIsOneDescriptor) {
  AnchorPair pair = MakeAnchorPair().value();
  auto receiver = SkMsgEndpoint::Create(std::move(pair.worker_end), 2, TransportKind::kSkMsgInline).value();
  std::array<std::byte, 3 * sizeof(tb_desc)> bytes{};
  size_t at = 0;
  const std::array<std::pair<size_t, uint64_t>, 4> cuts = {{{10, 0}, {22, 1}, {33, 2}, {31, 3}}};  // {bytes, records whole after them}
  for (const auto& [size, whole] : cuts) {
    ASSERT_EQ(::send(pair.daemon_end.get(), bytes.data() + at, size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
    at += size;
    pollfd entry{receiver->wait_fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&entry, 1, 5000), 1);
    receiver->Drain();
    EXPECT_EQ(receiver->counters().received, whole);
  }
}

TEST_F(VerdictTest, EachOutcomeArrivesWhereItShouldAndMovesItsOwnCounterOnly) {
  ASSERT_THAT(anchors->DeclareRemote(5, 1), IsOk());
  ASSERT_THAT(anchors->Add(6, 1).status(), IsOk());  // its worker end is closed at once: a dead worker
  Anchors::Anchor paused = anchors->Add(7, 1).value();
  ASSERT_THAT(anchors->Pause(7), IsOk());
  const std::array<std::pair<tb_desc, tb_verdict>, 7> sends = {{{Record(1, 2), TB_VERDICT_OK},
                                                               {Record(1, 4), TB_VERDICT_DEAD},
                                                               {Record(1, 6), TB_VERDICT_DEAD},
                                                               {Record(1, 99), TB_VERDICT_NO_ROUTE},
                                                               {Record(1, 3), TB_VERDICT_DOMAIN},
                                                               {Record(1, 5), TB_VERDICT_REMOTE},
                                                               {Record(1, 7), TB_VERDICT_PAUSED}}};
  for (const auto& [record, verdict] : sends) {
    const VerdictCounts then = program->Counts().value();
    const size_t letters_then = letters.size();
    Send(alice, record);
    const VerdictCounts now = program->Counts().value();
    for (uint32_t i = 0; i < TB_VERDICTS; ++i) {
      EXPECT_EQ(now[i] - then[i], i == verdict ? 1u : 0u) << "to " << record.dst << ", counter " << ebpf::NameOf(static_cast<tb_verdict>(i));
    }
    if (verdict == TB_VERDICT_OK) continue;
    CollectUntil([&] { return letters.size() > letters_then; });
    EXPECT_EQ(letters.back().source, 1u);
    EXPECT_EQ(std::memcmp(&letters.back().desc, &record, sizeof(record)), 0);
  }
  EXPECT_EQ(letters.size(), sends.size() - 1);
  EXPECT_EQ(Received(bob).size(), sizeof(tb_desc));
  EXPECT_TRUE(Received(paused).empty());
  EXPECT_TRUE(Received(stranger).empty());
}

TEST_F(VerdictTest, ASocketWithoutIdentitySpeaksForNobody) {
  AnchorPair pair = MakeAnchorPair().value();
  ASSERT_THAT(program->InsertSocket(8, pair.worker_end.get()), IsOk());
  const tb_desc record = Record(1, 2);
  ASSERT_EQ(::send(pair.worker_end.get(), &record, sizeof(record), MSG_NOSIGNAL), 32);
  EXPECT_EQ(Moved(TB_VERDICT_NO_IDENT), 1u);
  EXPECT_TRUE(Received(bob).empty());
}

TEST_F(VerdictTest, SendersThatPreemptEachOtherLoseNoCount) {
  constexpr uint32_t kThreads = 6, kEach = 20'000;
  std::vector<Anchors::Anchor> senders;
  for (uint32_t i = 0; i < kThreads; ++i) senders.push_back(anchors->Add(100 + i, 1).value());
  {
    std::vector<std::jthread> threads;
    for (uint32_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (uint32_t n = 0; n < kEach; ++n) {
          const tb_desc record = Record(100 + i, 2, n);
          ASSERT_EQ(::send(senders[i].worker_end.get(), &record, sizeof(record), MSG_NOSIGNAL), 32);
        }
      });
    }
    threads.emplace_back([&] {  // keeps the kernel's memory small
      std::vector<std::byte> buffer(1 << 16);
      for (size_t bytes = 0; bytes < size_t{32} * kThreads * kEach;) {
        const ssize_t count = ::recv(bob.worker_end.get(), buffer.data(), buffer.size(), 0);
        ASSERT_GT(count, 0);
        bytes += static_cast<size_t>(count);
      }
    });
  }
  EXPECT_EQ(Moved(TB_VERDICT_OK), uint64_t{kThreads} * kEach);
}

// T12 ----------------------------------------------------------------------------------------------------------------------------

TEST_F(VerdictTest, IsolationOfAHundredThousandOfEachKindOfWrongRecord) {
  constexpr uint32_t kCount = 100'000;
  for (uint32_t i = 0; i < kCount; ++i) {
    Send(alice, Record(1, 3, i));    // another domain
    Send(alice, Record(2, 2, i));    // another's name
    Send(alice, Record(1, 99, i));   // unknown
    if (i % 64 == 0) Collect();
  }
  EXPECT_EQ(Moved(TB_VERDICT_DOMAIN), kCount);
  EXPECT_EQ(Moved(TB_VERDICT_FORGED), kCount);
  EXPECT_EQ(Moved(TB_VERDICT_NO_ROUTE), kCount);
  CollectUntil([&] { return letters.size() >= 2 * kCount && anchors->forged_letters() >= kCount; });
  EXPECT_EQ(letters.size(), size_t{2} * kCount) << "the forged ones are no letters";
  EXPECT_EQ(anchors->forged_letters(), kCount);
  EXPECT_TRUE(offenders.empty()) << "these are whole records: the framing holds";

  std::mt19937 random(12);
  std::array<tb_desc, 4> many;
  for (uint32_t i = 0; i < kCount; ++i) {
    for (tb_desc& record : many) record = Record(1, 2, i);
    SendBytes(alice, many.data(), 1 + random() % 31);                      // short
    SendBytes(alice, many.data(), 33 + random() % 31);                     // long
    SendBytes(alice, many.data(), sizeof(tb_desc) * (2 + random() % 3));   // joined
    if (i % 64 == 0) Collect();
  }
  EXPECT_EQ(Moved(TB_VERDICT_BAD_SIZE), uint64_t{3} * kCount);
  EXPECT_EQ(Moved(TB_VERDICT_OK), 0u);
  EXPECT_EQ(Moved(TB_VERDICT_DEAD), 0u);
  EXPECT_TRUE(Received(bob).empty());
  EXPECT_TRUE(Received(stranger).empty());

  // The offender, and nobody else, gets a new anchor and goes on.
  CollectUntil([&] { return !offenders.empty(); });
  ASSERT_EQ(offenders.size(), 1u);
  EXPECT_EQ(offenders[0].id, 1u);
  Anchors::Anchor fresh = anchors->Recycle(1).value();
  EXPECT_GT(fresh.epoch, alice.epoch);
  Send(fresh, Record(1, 2, 7));
  EXPECT_EQ(Received(bob).size(), sizeof(tb_desc));
  Send(bob, Record(2, 1, 8));
  EXPECT_EQ(Received(fresh).size(), sizeof(tb_desc));
  // The old socket is outside the program now, and its connection is closed.
  const tb_desc late = Record(1, 2, 9);
  ::send(alice.worker_end.get(), &late, sizeof(late), MSG_DONTWAIT | MSG_NOSIGNAL);
  EXPECT_TRUE(Received(bob).empty());
}

// T14 ----------------------------------------------------------------------------------------------------------------------------

TEST_F(VerdictTest, StickyDropPoisonsTheWrongProgramsSenderAndNotOurs) {
  constexpr int kSends = 1000;
  const auto ok_sends = [](int fd, const tb_desc& record) {
    int ok = 0;
    for (int i = 0; i < kSends; ++i) ok += ::send(fd, &record, sizeof(record), MSG_DONTWAIT | MSG_NOSIGNAL) == 32 ? 1 : 0;
    return ok;
  };
  Send(alice, Record(1, 4));  // nobody there
  EXPECT_EQ(ok_sends(alice.worker_end.get(), Record(1, 2)), kSends);
  EXPECT_EQ(Received(bob).size(), size_t{32} * kSends);

  TRIB_ASSERT_OK_AND_ASSIGN(auto sticky, tributary::testing::StickyDrop::Load());
  AnchorPair from = MakeAnchorPair().value(), to = MakeAnchorPair().value();
  ASSERT_THAT(sticky->Insert(1, from.worker_end.get()), IsOk());
  ASSERT_THAT(sticky->Insert(2, to.worker_end.get()), IsOk());
  EXPECT_EQ(ok_sends(from.worker_end.get(), Record(1, 2)), kSends) << "it redirects while its targets live";
  const tb_desc dead = Record(1, 4);
  ::send(from.worker_end.get(), &dead, sizeof(dead), MSG_DONTWAIT | MSG_NOSIGNAL);
  EXPECT_EQ(ok_sends(from.worker_end.get(), Record(1, 2)), 0) << "if this kernel is not sticky any more, say so in the notes";
}

// An older version's maps have other sizes: nobody who used them can be served, so they go, and the note says so.
TEST_F(VerdictTest, PinsOfAnotherShapeAreReplacedAndTheReasonIsKept) {
  TemporaryFolder folder;
  const std::filesystem::path pins = folder.path / "bpf";
  const bool pinned = ebpf::LoadVerdictProgram({.pin_folder = pins}).value()->Facts()->pinned;
  TRIB_REQUIRE_OR_SKIP("bpf", pinned ? "" : "no bpffs may be mounted here");
  ASSERT_TRUE(std::filesystem::remove(pins / "tb_cnt"));
  const UniqueFd older(bpf_map_create(BPF_MAP_TYPE_PERCPU_ARRAY, "tb_cnt", sizeof(uint32_t), sizeof(uint64_t), TB_VERDICTS - 1, nullptr));
  ASSERT_TRUE(older.valid());
  ASSERT_EQ(bpf_obj_pin(older.get(), (pins / "tb_cnt").c_str()), 0);
  auto loaded = ebpf::LoadVerdictProgram({.pin_folder = pins}).value();
  const ebpf::ProgramFacts facts = loaded->Facts().value();
  EXPECT_FALSE(facts.adopted);
  EXPECT_TRUE(facts.pinned);
  EXPECT_THAT(facts.pin_note, ::testing::HasSubstr("older pins were replaced"));
  EXPECT_EQ(loaded->Counts().value(), VerdictCounts{});
  ASSERT_THAT(loaded->Unpin(), IsOk());
}

// T16, F15 -----------------------------------------------------------------------------------------------------------------------

TEST_F(VerdictTest, BudgetOfInstructionsAndTimeIsKept) {
  const ebpf::ProgramFacts facts = program->Facts().value();
  RecordProperty("verified_instructions", static_cast<int>(facts.verified_instructions));
  EXPECT_GT(facts.verified_instructions, 50u);
  EXPECT_LE(facts.verified_instructions, 400u);
  const UniqueFd stats(bpf_enable_stats(BPF_STATS_RUN_TIME));
  ASSERT_TRUE(stats.valid()) << "BPF run-time statistics need CAP_SYS_ADMIN";
  // The best of several batches: on a shared machine single runs are interrupted.
  uint64_t best_ns = ~uint64_t{0};
  for (int batch = 0; batch < 8; ++batch) {
    constexpr int kRuns = 5'000;
    const ebpf::ProgramFacts start = program->Facts().value();
    for (int i = 0; i < kRuns; ++i) {
      Send(alice, Record(1, 2));
      if (i % 256 == 255) Received(bob);
    }
    const ebpf::ProgramFacts end = program->Facts().value();
    ASSERT_GE(end.run_count - start.run_count, static_cast<uint64_t>(kRuns));
    best_ns = std::min(best_ns, (end.run_ns - start.run_ns) / (end.run_count - start.run_count));
  }
  RecordProperty("ns_per_run", static_cast<int>(best_ns));
  std::printf("%u verified instructions, %llu ns a run\n", facts.verified_instructions, static_cast<unsigned long long>(best_ns));
  EXPECT_LE(best_ns, 600u);
}

TEST(VerdictObjectTest, CallsOnlyTheHelpersItNeedsAndTracesNothing) {
  bpf_object* const object = bpf_object__open_file(VERDICT_OBJECT, nullptr);
  ASSERT_NE(object, nullptr) << VERDICT_OBJECT;
  std::set<int32_t> helpers;
  int programs = 0;
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, object) {
    ++programs;
    const bpf_insn* const instructions = bpf_program__insns(program);
    for (size_t i = 0; i < bpf_program__insn_cnt(program); ++i) {
      if (instructions[i].code == (BPF_JMP | BPF_CALL) && instructions[i].src_reg == 0) helpers.insert(instructions[i].imm);
    }
  }
  bpf_object__close(object);
  EXPECT_EQ(programs, 1);
  const std::set<int32_t> expected = {BPF_FUNC_map_lookup_elem, BPF_FUNC_msg_redirect_hash, BPF_FUNC_sk_storage_get};
  EXPECT_EQ(helpers, expected) << "above all neither trace_printk (" << BPF_FUNC_trace_printk << ") nor perf or ring buffer output";
}

}  // namespace
}  // namespace tributary::aggregator
