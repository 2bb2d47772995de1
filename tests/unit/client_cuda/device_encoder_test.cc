// An update on the GPU against the same Δ through MakeUpdate: equal bytes, whatever the job's privacy and codec.
#include "client/torch/device/device_encoder.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "aggregator/core/kernels_reference.h"
#include "client/core/private_update.h"
#include "client/core/random.h"
#include "tests/support/gpu.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using ::tributary::testing::GpuMissing;
using ::tributary::testing::StatusIs;
using ::tributary::testing::ToDevice;

constexpr size_t kBuffers = 5;

struct UpdateCase {
  const char* name;
  const char* codec;
  NoisePlacement placement;
  double clip;              // 0: no privacy
  double noise_multiplier;
  bool secret;              // noise from a key
};
std::ostream& operator<<(std::ostream& out, const UpdateCase& c) { return out << c.name; }

TensorLayout LayoutOf(size_t elements) {
  auto layout = TensorLayout::Create({{.name = "w", .shape = {static_cast<int64_t>(elements)}, .dtype = DType::kF32},
                                      {.name = "b", .shape = {kBuffers}, .dtype = DType::kF32, .kind = TensorKind::kBuffer},
                                      {.name = "n", .shape = {}, .dtype = DType::kI64, .kind = TensorKind::kCounter}});
  EXPECT_THAT(layout, testing::IsOk());
  return *layout;
}

JobSpec JobOf(const UpdateCase& c) {
  JobSpec spec;
  spec.name = "test";
  spec.codec = c.codec;
  spec.cohort.size = 4;
  spec.privacy.enabled = c.clip > 0;
  spec.privacy.placement = c.placement;
  spec.privacy.clip = c.clip;
  spec.privacy.noise_multiplier = c.noise_multiplier;
  spec.privacy.insecure_seed = !c.secret;
  return spec;
}

LargeBytes FlatUpdate(const TensorLayout& layout) {
  LargeBytes flat(layout.total_bytes());
  CounterRandom random(layout.trainable_count());
  for (size_t i = 0; i < layout.float_count(); ++i) {
    const auto value = static_cast<float>(0.02 * random.Uniform() - 0.01);
    std::memcpy(flat.data() + i * sizeof(float), &value, sizeof(float));
  }
  const int64_t batches = 7;
  std::memcpy(flat.data() + layout.float_bytes(), &batches, sizeof(batches));
  return flat;
}

class DeviceEncoderTest : public ::testing::TestWithParam<UpdateCase> {};

TEST_P(DeviceEncoderTest, GivesTheProcessorsBytesInParts) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const JobSpec spec = JobOf(GetParam());
  for (const size_t elements : {size_t{1}, size_t{513}, size_t{100'003}, size_t{9'000'001}}) {  // one part, and three with a rest
    const TensorLayout layout = LayoutOf(elements);
    UpdateRequest request{.spec = &spec, .encoding = spec.Encoding(layout), .client = "client-3", .version = 6, .clip = 0, .noise_key = {}, .feedback = {}};
    if (GetParam().secret) {
      ChaChaKey key;
      for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::byte>(13 * i + 5);
      request.noise_key = key;
    }
    const LargeBytes flat = FlatUpdate(layout);
    std::map<std::string, double> scalars;
    TRIB_ASSERT_OK_AND_ASSIGN(const EncodedUpdate expected, MakeUpdate(request, flat, &scalars));

    std::vector<float> delta(elements);
    std::memcpy(delta.data(), flat.data(), elements * sizeof(float));
    const std::shared_ptr<float[]> on_device = ToDevice(delta);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const LargeBytes rest(flat.begin() + static_cast<std::ptrdiff_t>(elements * sizeof(float)), flat.end());
    const auto update = MakeDeviceUpdate(0, on_device, on_device.get(), elements, rest, 0.01);
    EXPECT_EQ(update->flat_bytes(), flat.size());
    for (int again = 0; again < 2; ++again) {  // the second time in used buffers
      std::vector<std::byte> got(expected.bytes.size(), std::byte{0xA5});
      size_t given = 0;
      const UpdatePlan plan = PlanUpdate(request);
      TRIB_ASSERT_OK_AND_ASSIGN(const double norm, update->Encode(plan, [&](size_t at, std::span<const std::byte> part) -> absl::Status {
        EXPECT_LE(at + part.size(), got.size());
        std::memcpy(got.data() + at, part.data(), part.size());
        given += part.size();
        return absl::OkStatus();
      }));
      EXPECT_EQ(given, got.size());
      EXPECT_EQ(norm, expected.norm);
      EXPECT_EQ(std::memcmp(got.data(), expected.bytes.data(), got.size()), 0) << elements << " elements";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Jobs, DeviceEncoderTest,
                         ::testing::Values(UpdateCase{"Plain", "f32", NoisePlacement::kCentral, 0, 0, false}, UpdateCase{"Bf16", "bf16", NoisePlacement::kCentral, 0, 0, false},
                                           UpdateCase{"Int8", "int8", NoisePlacement::kCentral, 0, 0, false}, UpdateCase{"Int4", "int4", NoisePlacement::kCentral, 0, 0, false},
                                           UpdateCase{"PlainClipped", "f32", NoisePlacement::kCentral, 0.3, 1, false},
                                           UpdateCase{"Int8Distributed", "int8", NoisePlacement::kDistributed, 0.3, 1, true},
                                           UpdateCase{"Int8DistributedInsecure", "int8", NoisePlacement::kDistributed, 0.3, 1, false},
                                           UpdateCase{"Int4Local", "int4", NoisePlacement::kLocal, 0.3, 0.5, true}, UpdateCase{"PlainLocal", "f32", NoisePlacement::kLocal, 0.3, 0.5, true}),
                         [](const auto& info) { return std::string(info.param.name); });

// Sums of updates on the device, in two folds, against those of the processor: equal bits, whatever the number of launches.
template <typename Sum, typename OnDevice, typename OnHost>
void ExpectEqualSums(const OnDevice& on_device, const OnHost& on_host, double largest) {
  for (const size_t count : {size_t{1}, size_t{17}, size_t{300}}) {
    const size_t elements = 100'003;
    std::vector<std::vector<float>> deltas(count, std::vector<float>(elements));
    std::vector<std::unique_ptr<DeviceUpdate>> updates;
    std::vector<DeviceTerm> terms;
    std::vector<const std::byte*> bytes;
    std::vector<double> weights;
    CounterRandom random(count);
    for (std::vector<float>& delta : deltas) {
      for (float& value : delta) value = static_cast<float>(largest * random.Normal());
      const std::shared_ptr<float[]> there = ToDevice(delta);
      updates.push_back(MakeDeviceUpdate(0, there, there.get(), elements, {}, 1));
      weights.push_back(random.Uniform() + 0.1);
      terms.push_back({updates.back().get(), weights.back()});
      bytes.push_back(reinterpret_cast<const std::byte*>(delta.data()));
    }
    std::vector<Sum> expected(elements), got(elements);
    const size_t half = count / 2;
    bool ok = true;
    if (half > 0) {
      EXPECT_TRUE(on_host(expected.data(), bytes.data(), weights.data(), half, elements, true));
      TRIB_ASSERT_OK_AND_ASSIGN(ok, on_device(*updates[0], std::span(terms).first(half), true, std::span(got)));
      EXPECT_TRUE(ok);
    }
    EXPECT_TRUE(on_host(expected.data(), bytes.data() + half, weights.data() + half, count - half, elements, half == 0));
    TRIB_ASSERT_OK_AND_ASSIGN(ok, on_device(*updates[0], std::span(terms).subspan(half), half == 0, std::span(got)));
    EXPECT_TRUE(ok);
    EXPECT_EQ(got, expected) << count << " updates";
  }
}

const auto kOnDevice = [](DeviceUpdate& update, std::span<const DeviceTerm> terms, bool first, auto sums) {
  if constexpr (std::is_same_v<decltype(sums), std::span<double>>) {
    return update.Fold(terms, first, sums);
  } else {
    return update.FoldFixed(terms, first, sums);
  }
};

TEST(DeviceFoldTest, GivesTheProcessorsSums) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  ExpectEqualSums<double>(kOnDevice, reference::FoldF32, 1);
  ExpectEqualSums<int64_t>(kOnDevice, reference::FoldFixedF32, 1e3);
}

TEST(DeviceFoldTest, TellsOfSumsOutOfRangeAndRefusesStrangers) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const auto update = [](float value, size_t elements, LargeBytes rest) {
    const std::shared_ptr<float[]> there = ToDevice(std::vector<float>(elements, value));
    return MakeDeviceUpdate(0, there, there.get(), elements, std::move(rest), value);
  };
  const auto a = update(3e38F, 4, {}), b = update(1, 5, {}), c = update(1, 4, LargeBytes(8));
  std::vector<double> sums(4);
  std::vector<int64_t> fixed(4);
  const DeviceTerm heavy{a.get(), 1e300};
  const DeviceTerm plain{a.get(), 1};
  TRIB_ASSERT_OK_AND_ASSIGN(bool in_range, a->Fold({&heavy, 1}, true, sums));
  EXPECT_FALSE(in_range);
  TRIB_ASSERT_OK_AND_ASSIGN(in_range, a->Fold({&plain, 1}, true, sums));
  EXPECT_TRUE(in_range);
  TRIB_ASSERT_OK_AND_ASSIGN(in_range, a->FoldFixed({&plain, 1}, true, fixed));
  EXPECT_FALSE(in_range);
  for (DeviceUpdate* const other : {b.get(), c.get()}) {
    const std::vector<DeviceTerm> terms = {plain, {other, 1}};
    EXPECT_THAT(a->Fold(terms, true, sums), StatusIs(StatusCode::kInvalidArgument, HasSubstr("to be folded")));
  }
}

TEST(DeviceEncoderErrorsTest, NamesWhatIsNotFiniteAndPassesTheSinksErrorOn) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const JobSpec spec = JobOf({"", "int8", NoisePlacement::kCentral, 0, 0, false});
  const TensorLayout layout = LayoutOf(3000);
  const UpdateRequest request{.spec = &spec, .encoding = spec.Encoding(layout), .client = "c", .version = 0, .clip = 0, .noise_key = {}, .feedback = {}};
  std::vector<float> delta(3000, 0.5F);
  const LargeBytes rest(kBuffers * sizeof(float) + 8);
  const auto encode = [&](const DeviceUpdate::Sink& sink) {
    const std::shared_ptr<float[]> on_device = ToDevice(delta);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return MakeDeviceUpdate(0, on_device, on_device.get(), delta.size(), rest, 0.5)->Encode(PlanUpdate(request), sink).status();
  };
  EXPECT_THAT(encode([](size_t, std::span<const std::byte>) { return ResourceExhausted("the disk is full"); }),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("disk is full")));
  delta[2999] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(encode([](size_t, std::span<const std::byte>) { return absl::OkStatus(); }), StatusIs(StatusCode::kInvalidArgument, HasSubstr("not finite")));
}

}  // namespace
}  // namespace tributary::client
