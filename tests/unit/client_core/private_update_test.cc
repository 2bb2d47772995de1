#include "client/core/private_update.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>

#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using tributary::testing::IsOk;

class PrivateUpdateTest : public ::testing::Test {
 protected:
  PrivateUpdateTest() {
    layout_ = *TensorLayout::Create({{.name = "w", .shape = {4}}});
    spec_.name = "job";
    spec_.cohort.size = 9;
    spec_.seed = 5;
    spec_.privacy = {.enabled = true, .clip = 1, .noise_multiplier = 0.5, .delta = 1e-5, .insecure_seed = true};
    request_ = {.spec = &spec_, .encoding = spec_.Encoding(layout_), .client = "a", .version = 3};
  }
  // What is sent of (3, 0, 4, 0), whose norm is 5.
  std::vector<float> Sent() {
    const float values[4] = {3, 0, 4, 0};
    LargeBytes flat(sizeof(values));
    std::memcpy(flat.data(), values, sizeof(values));
    scalars_.clear();
    absl::StatusOr<EncodedUpdate> made = MakeUpdate(request_, std::move(flat), &scalars_);
    EXPECT_THAT(made, IsOk());
    std::vector<float> sent(4);
    std::memcpy(sent.data(), made->bytes.data(), sizeof(values));
    return sent;
  }

  TensorLayout layout_;
  JobSpec spec_;
  UpdateRequest request_;
  std::map<std::string, double> scalars_;
};

TEST_F(PrivateUpdateTest, CentralClipsAndAddsNothing) {
  const std::vector<float> sent = Sent();
  EXPECT_FLOAT_EQ(sent[0], 0.6F);
  EXPECT_EQ(sent[1], 0);
  EXPECT_FLOAT_EQ(sent[2], 0.8F);
  EXPECT_FALSE(NeedsNoiseKey(spec_));
  EXPECT_TRUE(scalars_.empty());
}

TEST_F(PrivateUpdateTest, TheClipOfTheVersionReplacesTheJobs) {
  request_.clip = 2.5;
  EXPECT_FLOAT_EQ(Sent()[0], 1.5F);
}

TEST_F(PrivateUpdateTest, AdaptiveClippingSaysWhetherTheNormWasWithin) {
  spec_.privacy.adaptive.enabled = true;
  Sent();
  EXPECT_EQ(scalars_, (std::map<std::string, double>{{kWithinClip, 0}}));
  request_.clip = 5;
  Sent();
  EXPECT_EQ(scalars_, (std::map<std::string, double>{{kWithinClip, 1}}));
}

TEST_F(PrivateUpdateTest, LeavesEarlyUnlessItHasNoiseOrItsHeaderWaitsForTheNorm) {
  EXPECT_TRUE(MayLeaveEarly(spec_));  // central
  spec_.privacy.adaptive.enabled = true;
  EXPECT_FALSE(MayLeaveEarly(spec_));
  spec_.privacy.adaptive.enabled = false;
  for (const NoisePlacement noisy : {NoisePlacement::kLocal, NoisePlacement::kDistributed}) {
    spec_.privacy.placement = noisy;
    EXPECT_FALSE(MayLeaveEarly(spec_));
  }
  spec_.privacy.enabled = false;
  EXPECT_TRUE(MayLeaveEarly(spec_));
}

// Shares of variance: what nine of them add up to is what one adds under local noise.
TEST_F(PrivateUpdateTest, DistributedNoiseIsAShareOfLocalNoise) {
  spec_.privacy.placement = NoisePlacement::kLocal;
  const std::vector<float> local = Sent();
  spec_.privacy.placement = NoisePlacement::kDistributed;
  const std::vector<float> share = Sent();
  for (const size_t i : {1, 3}) {
    EXPECT_NE(local[i], 0);
    EXPECT_NEAR(local[i], 3 * share[i], 1e-6) << "the same draw, a third of it";
  }
}

TEST_F(PrivateUpdateTest, NoiseFollowsTheSeedOnlyWhereTheJobSaysSo) {
  spec_.privacy.placement = NoisePlacement::kLocal;
  const std::vector<float> first = Sent();
  EXPECT_EQ(first, Sent());
  request_.repeat = 1;
  EXPECT_NE(first, Sent()) << "a second update from one version has noise of its own";
  request_.repeat = 0;
  spec_.privacy.insecure_seed = false;
  ASSERT_TRUE(NeedsNoiseKey(spec_));
  request_.noise_key = ChaChaKey{};
  EXPECT_NE(first, Sent());
}

}  // namespace
}  // namespace tributary::client
