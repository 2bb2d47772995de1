#include "proto/moe_codec.h"

#include <functional>
#include <limits>

#include "proto/codec.h"
#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kMeaningless = absl::StatusCode::kInvalidArgument;
const double kNotANumber = std::numeric_limits<double>::quiet_NaN();

MoeStats Good() {
  return {{.counts = {3, 7, 0}, .prob_sum = {2.5, 6, 1.5}, .square_sum = 4.25, .tokens = 10}, {.counts = {10, 0}, .prob_sum = {9, 1}, .square_sum = 8.2, .tokens = 10}};
}

TEST(MoeCodecTest, CarriesStatisticsAndLoadsBothWays) {
  TRIB_ASSERT_OK_AND_ASSIGN(const MoeStats back, MoeStatsFromProto(MoeStatsToProto(Good())));
  EXPECT_EQ(back, Good());
  MoeStats counting = Good();
  counting[0].margins = {1, 9, 10, 0, 4, 6};
  counting[1].margins = std::vector<int64_t>(2 * 256, 10);
  TRIB_ASSERT_OK_AND_ASSIGN(const MoeStats margins, MoeStatsFromProto(MoeStatsToProto(counting)));
  EXPECT_EQ(margins, counting);
  const GlobalMoe load{.step = 4, .layers = {{.share = {.25, .75}, .tokens = 1000}}};
  TRIB_ASSERT_OK_AND_ASSIGN(const GlobalMoe same, GlobalMoeFromProto(GlobalMoeToProto(load)));
  EXPECT_EQ(same, load);
  EXPECT_TRUE(MoeStatsFromProto({})->empty());
}

TEST(MoeCodecTest, RefusesStatisticsThatNoTrainingCanHave) {
  const auto with = [](const std::function<void(v1::MoeLayerStats*)>& change) {
    v1::BeginUploadRequest request;
    *request.mutable_key() = KeyToProto("job-0a1b2c", 7, UpdateId{1, 2});
    request.set_layout(std::string(64, 'a'));
    request.set_codec("f32");
    request.set_bytes(4096);
    request.set_xxh3_128(std::string(16, 'x'));
    request.set_weight(12.5);
    *request.mutable_moe() = MoeStatsToProto(Good());
    change(request.mutable_moe()->mutable_layers(1));
    return UploadFromProto(request).status();
  };
  EXPECT_THAT(with([](v1::MoeLayerStats*) {}), IsOk());
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->clear_counts(); }), StatusIs(kMeaningless, HasSubstr("layer 1: expected 1 to 1024 experts, got 0")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->add_counts(1); }), StatusIs(kMeaningless, HasSubstr("prob_sum: expected 3 numbers, got 2")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_counts(0, 11); }), StatusIs(kMeaningless, HasSubstr("an expert cannot serve 11 of 10 tokens")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_counts(0, ~uint64_t{0}); }), StatusIs(kMeaningless, HasSubstr("cannot serve 18446744073709551615")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_tokens(uint64_t{1} << 60); }), StatusIs(kMeaningless, HasSubstr("at most 2^53")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_prob_sum(0, kNotANumber); }), StatusIs(kMeaningless, HasSubstr("got nan")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_prob_sum(0, -0.5); }), StatusIs(kMeaningless, HasSubstr("got -0.5")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_prob_sum(0, 10.5); }), StatusIs(kMeaningless, HasSubstr("prob_sum: expected 0 to 10.0")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->add_margins(3); }), StatusIs(kMeaningless, HasSubstr("at most 256 bins for each of 2 experts, got 1 counts")));
  const auto margins = [](uint64_t count, int times) {
    return [=](v1::MoeLayerStats* l) {
      for (int i = 0; i < times; ++i) l->add_margins(count);
    };
  };
  EXPECT_THAT(with(margins(10, 2 * 32)), IsOk());
  EXPECT_THAT(with(margins(10, 2 * 257)), StatusIs(kMeaningless, HasSubstr("got 514 counts")));
  EXPECT_THAT(with(margins(11, 2 * 32)), StatusIs(kMeaningless, HasSubstr("a bin cannot have 11 of 10 tokens")));
  EXPECT_THAT(with(margins(~uint64_t{0}, 2)), StatusIs(kMeaningless, HasSubstr("a bin cannot have 18446744073709551615")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_square_sum(-1); }), StatusIs(kMeaningless, HasSubstr("square_sum")));
  EXPECT_THAT(with([](v1::MoeLayerStats* l) { l->set_square_sum(kNotANumber); }), StatusIs(kMeaningless, HasSubstr("square_sum")));
  v1::MoeStats many;
  for (int i = 0; i < kMaxMoeLayers + 1; ++i) many.add_layers()->add_counts(0);
  EXPECT_THAT(MoeStatsFromProto(many), StatusIs(kMeaningless, HasSubstr("at most 1024 layers, got 1025")));
  v1::GlobalMoe load;
  load.add_layers()->add_share(kNotANumber);
  EXPECT_THAT(GlobalMoeFromProto(load), StatusIs(kMeaningless, HasSubstr("share: expected 0 to 1, got nan")));
}

}  // namespace
}  // namespace tributary
