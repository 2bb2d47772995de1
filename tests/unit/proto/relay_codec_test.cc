#include "proto/relay_codec.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kRefused = absl::StatusCode::kInvalidArgument;

CheckedPartial GoodPartial() {
  CheckedPartial partial;
  partial.job = "job-0a1b2c";
  partial.version = 4;
  partial.layout = std::string(64, 'a');
  partial.fence = 3;
  partial.node_epoch = 2;
  partial.type = v1::SUMS_TYPE_FIXED40;
  partial.bytes = 64;
  partial.xxh3_128 = std::string(16, 'x');
  partial.contributors = {{"site-0", 7, {1, 2}, 3.5, 100, 0, std::string(16, 'd')}, {"site-1", 8, {3, 4}, 0.25, 10, 0, std::string(16, 'e')}};
  partial.sum_weight = SumOfWeights(partial.contributors);
  partial.contributors_digest = ContributorsDigest(partial.contributors);
  return partial;
}

TEST(RelayCodecTest, CarriesAPartialsHeaderBothWays) {
  TRIB_ASSERT_OK_AND_ASSIGN(const CheckedPartial back, PartialFromProto(PartialToProto(GoodPartial())));
  EXPECT_TRUE(back == GoodPartial());
}

TEST(RelayCodecTest, RefusesHeadersThatLieAndNamesTheField) {
  struct Case {
    const char* field;
    std::function<void(v1::PartialHeader*)> change;
  };
  const std::vector<Case> cases = {
      {"job", [](auto* h) { h->set_job("a/b"); }},
      {"layout", [](auto* h) { h->set_layout("short"); }},
      {"layout", [](auto* h) { h->set_layout(std::string(64, 'Z')); }},
      {"fence", [](auto* h) { h->set_fence(0); }},
      {"node_epoch", [](auto* h) { h->set_node_epoch(0); }},
      {"type", [](auto* h) { h->set_type(v1::SUMS_TYPE_UNSPECIFIED); }},
      {"type", [](auto* h) { h->set_type(static_cast<v1::SumsType>(9)); }},
      {"bytes", [](auto* h) { h->set_bytes(0); }},
      {"bytes", [](auto* h) { h->set_bytes(63); }},
      {"bytes", [](auto* h) { h->set_bytes(uint64_t{1} << 60); }},
      {"xxh3_128", [](auto* h) { h->set_xxh3_128("x"); }},
      {"contributors", [](auto* h) { h->clear_contributors(), h->set_count(0); }},
      {"count", [](auto* h) { h->set_count(3); }},
      {"count", [](auto* h) { h->mutable_contributors()->RemoveLast(); }},
      {"update_digests", [](auto* h) { h->mutable_update_digests()->RemoveLast(); }},
      {"update_digest", [](auto* h) { h->set_update_digests(0, "d"); }},
      {"weight", [](auto* h) { h->mutable_contributors(0)->set_weight(std::nan("")); }},
      {"weight", [](auto* h) { h->mutable_contributors(0)->set_weight(-1); }},
      {"task", [](auto* h) { h->mutable_contributors(0)->set_task(0); }},
      {"listed twice", [](auto* h) { h->mutable_contributors(1)->set_update_id(h->contributors(0).update_id()); }},
      {"listed twice", [](auto* h) { h->mutable_contributors(1)->set_client("site-0"); }},
      {"contributors[1]", [](auto* h) { h->mutable_contributors(1)->set_update_id("short"); }},
      {"examples", [](auto* h) { h->mutable_contributors(1)->set_examples(UINT64_MAX); }},
      {"sum_weight", [](auto* h) { h->set_sum_weight(3.76); }},
      {"sum_weight", [](auto* h) { h->set_sum_weight(std::nan("")); }},
      {"contributors_digest", [](auto* h) { h->set_contributors_digest(std::string(16, '\0')); }},
      // Another update in the list of the same length: only the digest tells.
      {"contributors_digest", [](auto* h) { h->mutable_contributors(1)->set_update_id(std::string(16, 'q')); }},
  };
  for (const Case& c : cases) {
    v1::PartialHeader header = PartialToProto(GoodPartial());
    c.change(&header);
    EXPECT_THAT(PartialFromProto(header), StatusIs(kRefused, HasSubstr(c.field))) << header.ShortDebugString();
  }
}

TEST(RelayCodecTest, TheDigestOfAUnionIsTheSumOfTheDigestsInAnyOrder) {
  const CheckedPartial good = GoodPartial();
  std::vector<CheckedContributor> turned(good.contributors.rbegin(), good.contributors.rend());
  EXPECT_EQ(ContributorsDigest(turned), good.contributors_digest);
  turned.pop_back();
  EXPECT_NE(ContributorsDigest(turned), good.contributors_digest);
  EXPECT_EQ(ContributorsDigest({}), std::string(16, '\0'));
}

v1::PartialChunk Chunk(uint64_t offset, const std::string& bytes) {
  v1::PartialChunk chunk;
  chunk.set_offset(offset);
  chunk.set_bytes(bytes);
  chunk.set_crc32c(Crc32c(std::as_bytes(std::span(bytes.data(), bytes.size()))));
  return chunk;
}

TEST(RelayCodecTest, TakesChunksInOrderOnlyAndAWrongOneChangesNothing) {
  const std::string text = "sixteen bytes ok";
  std::vector<std::byte> sums(text.size());
  PartialReceiver receiver(sums);
  ASSERT_THAT(receiver.Take(Chunk(0, text.substr(0, 6))), IsOk());
  EXPECT_THAT(receiver.Take(Chunk(0, text.substr(0, 6))), StatusIs(kRefused, HasSubstr("offset")));
  EXPECT_THAT(receiver.Take(Chunk(8, text.substr(8))), StatusIs(kRefused, HasSubstr("offset")));
  EXPECT_THAT(receiver.Take(Chunk(6, "")), StatusIs(kRefused, HasSubstr("1 to")));
  EXPECT_THAT(receiver.Take(Chunk(6, text)), StatusIs(kRefused, HasSubstr("pass the end")));
  EXPECT_THAT(receiver.Take(Chunk(6, std::string(kPartialChunkBytes + 1, 'x'))), StatusIs(kRefused, HasSubstr("1 to")));
  v1::PartialChunk damaged = Chunk(6, text.substr(6));
  damaged.set_crc32c(damaged.crc32c() ^ 1);
  EXPECT_THAT(receiver.Take(damaged), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("CRC32C")));
  EXPECT_THAT(receiver.CheckDigest(std::string(16, 'x')), StatusIs(kRefused, HasSubstr("expected 16 bytes, got 6")));
  ASSERT_THAT(receiver.Take(Chunk(6, text.substr(6))), IsOk());
  EXPECT_TRUE(receiver.complete());
  EXPECT_EQ(std::memcmp(sums.data(), text.data(), text.size()), 0);
  EXPECT_THAT(receiver.CheckDigest(Xxh3Digest(sums)), IsOk());
  EXPECT_THAT(receiver.CheckDigest(std::string(16, 'x')), StatusIs(kRefused, HasSubstr("XXH3")));
}

TEST(RelayCodecTest, RefusesSumsThatNoUpdatesCanHave) {
  const auto check = [](double value) {
    const std::vector<double> sums = {1.0, value};
    return CheckSums(std::as_bytes(std::span(sums)), 16, v1::SUMS_TYPE_F64, 1, 0);
  };
  EXPECT_THAT(check(-2.5), IsOk());
  EXPECT_THAT(check(std::nan("")), StatusIs(kRefused, HasSubstr("element 1")));
  EXPECT_THAT(check(-std::numeric_limits<double>::infinity()), StatusIs(kRefused, HasSubstr("element 1")));
  EXPECT_THAT(check(1e301), StatusIs(kRefused, HasSubstr("element 1")));
  const std::vector<int64_t> fixed = {-20, 10, INT64_MIN};
  const auto bytes = std::as_bytes(std::span(fixed));
  EXPECT_THAT(CheckSums(bytes, 16, v1::SUMS_TYPE_FIXED40, 2, 10), IsOk()) << "counters behind the floats are not sums";
  EXPECT_THAT(CheckSums(bytes, 16, v1::SUMS_TYPE_FIXED40, 1, 10), StatusIs(kRefused, HasSubstr("element 0")));
  EXPECT_THAT(CheckSums(bytes, 24, v1::SUMS_TYPE_FIXED40, 2, 10), StatusIs(kRefused, HasSubstr("element 2")));
}

TEST(RelayCodecTest, RefusesControlMessagesOutOfRange) {
  v1::NodeMessage node;
  EXPECT_THAT(CheckNodeMessage(node), StatusIs(kRefused, HasSubstr("neither")));
  node.mutable_hello()->set_capacity(20);
  EXPECT_THAT(CheckNodeMessage(node), StatusIs(kRefused, HasSubstr("epoch")));
  node.mutable_hello()->set_epoch(1);
  EXPECT_THAT(CheckNodeMessage(node), IsOk());
  node.mutable_hello()->set_capacity(std::nan(""));
  EXPECT_THAT(CheckNodeMessage(node), StatusIs(kRefused, HasSubstr("capacity")));
  node.mutable_hello()->set_capacity(1);
  node.mutable_hello()->add_jobs("a b");
  EXPECT_THAT(CheckNodeMessage(node), StatusIs(kRefused, HasSubstr("jobs")));

  v1::TopMessage top;
  EXPECT_THAT(CheckTopMessage(top), StatusIs(kRefused, HasSubstr("none")));
  top.mutable_welcome()->set_fence(1);
  EXPECT_THAT(CheckTopMessage(top), StatusIs(kRefused, HasSubstr("heartbeat")));
  top.mutable_round()->set_job("job-1");
  EXPECT_THAT(CheckTopMessage(top), StatusIs(kRefused, HasSubstr("fence")));
  top.mutable_round()->set_fence(1);
  top.mutable_round()->set_goal(UINT64_MAX);
  EXPECT_THAT(CheckTopMessage(top), StatusIs(kRefused, HasSubstr("goal")));
  top.mutable_ended()->set_job("job-1");
  EXPECT_THAT(CheckTopMessage(top), StatusIs(kRefused, HasSubstr("state")));

  v1::PartialAnswer answer;
  EXPECT_THAT(CheckPartialAnswer(answer), StatusIs(kRefused, HasSubstr("state")));
  answer.set_state(v1::PARTIAL_STATE_SEND);
  EXPECT_THAT(CheckPartialAnswer(answer), StatusIs(kRefused, HasSubstr("chunk_bytes")));
  answer.set_state(v1::PARTIAL_STATE_OVERLAP);
  answer.add_overlap("short");
  EXPECT_THAT(CheckPartialAnswer(answer), StatusIs(kRefused, HasSubstr("overlap")));
}

}  // namespace
}  // namespace tributary
