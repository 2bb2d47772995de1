// The privatise kernels against EncodeUpdate: equal bytes, not nearly equal ones.
#include "client/cuda/privatise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "client/core/random.h"
#include "client/core/update_pipeline.h"
#include "common/update_codec.h"
#include "tests/support/gpu.h"

namespace tributary::client {
namespace {

using ::tributary::testing::GpuMissing;
using ::tributary::testing::IsOk;
using ::tributary::testing::OnDevice;
using ::tributary::testing::ToDevice;
using ::tributary::testing::ToHost;

static_assert(kCodeBlock == kQuantBlock);

struct Case {
  size_t elements;
  CodeFormat format;
  NoiseWords noise;
  double clip;
};

Codec CodecOf(CodeFormat format) {
  switch (format) {
    case CodeFormat::kF32:
      return Codec::kPlain;
    case CodeFormat::kBf16:
      return Codec::kBf16;
    case CodeFormat::kInt8:
      return Codec::kInt8;
    case CodeFormat::kInt4:
      return Codec::kInt4;
  }
  return Codec::kTopK;
}

constexpr PhiloxStream kNoiseStream{.seed = 0x123456789abcdef0, .client = 77, .version = 5, .stage = RandomStage::kNoise};
constexpr PhiloxStream kRounding{.seed = 0x123456789abcdef0, .client = 77, .version = 5, .stage = RandomStage::kRounding};
constexpr double kDeviation = 0.004;

ChaChaKey Key() {
  ChaChaKey key;
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::byte>(17 * i + 3);
  return key;
}

struct Weights {
  std::vector<float> fresh, loaded;
};

// Weights around 0.1 that training has moved by about 0.01; some not at all, and one block of subnormal changes.
Weights Draw(size_t elements, uint64_t seed) {
  CounterRandom random(seed);
  Weights weights{std::vector<float>(elements), std::vector<float>(elements)};
  for (size_t i = 0; i < elements; ++i) {
    weights.loaded[i] = static_cast<float>(0.2 * random.Uniform() - 0.1);
    weights.fresh[i] = i % 7 == 3 ? weights.loaded[i] : static_cast<float>(weights.loaded[i] + 0.02 * random.Uniform() - 0.01);
    if (i / kCodeBlock == 1) weights.loaded[i] = 0, weights.fresh[i] = static_cast<float>(random.Uniform()) * 1e-37F;
  }
  return weights;
}

LargeBytes Expected(const Case& c, const Weights& weights, double* norm) {
  auto layout = TensorLayout::Create({{.name = "w", .shape = {static_cast<int64_t>(c.elements)}, .dtype = DType::kF32}});
  EXPECT_THAT(layout, IsOk());
  LargeBytes flat(c.elements * sizeof(float));
  for (size_t i = 0; i < c.elements; ++i) {
    const float delta = weights.fresh[i] - weights.loaded[i];
    std::memcpy(flat.data() + i * sizeof(float), &delta, sizeof(float));
  }
  PipelineOptions options;
  options.encoding = UpdateEncoding::Of(CodecOf(c.format), 0, *layout);
  options.clip = c.clip;
  options.rounding = kRounding;
  std::unique_ptr<RandomWords> words;
  if (c.noise != NoiseWords::kNone) {
    words = c.noise == NoiseWords::kPhilox ? MakePhiloxSource(kNoiseStream) : MakeChaChaSource(Key());
    options.noise = words.get();
    options.noise_stddev = kDeviation;
  }
  auto encoded = EncodeUpdate(options, std::move(flat), {});
  EXPECT_THAT(encoded, IsOk());
  *norm = encoded->norm;
  return std::move(encoded->bytes);
}

// The kernels' result, encoded in `parts` launches.
struct Encoded {
  std::vector<std::byte> bytes;
  double sum = 0;
  uint32_t failed = 0;
};

Encoded OnGpu(const Case& c, const Weights& weights, size_t parts, PhiloxStream rounding = kRounding) {
  const auto fresh = ToDevice(weights.fresh), loaded = ToDevice(weights.loaded);
  const auto scratch = OnDevice<double>(ScratchDoubles(c.elements));
  const size_t bytes = CodeBytes(c.format, c.elements);
  const auto out = OnDevice<std::byte>(bytes);
  const auto failed = OnDevice<uint32_t>(1, 0);
  PrivatiseWork work{.fresh = fresh.get(), .loaded = loaded.get(), .elements = c.elements, .clip = c.clip, .noise = c.noise};
  work.noise_stddev = kDeviation;
  work.noise_stream = kNoiseStream;
  const ChaChaKey key = Key();
  std::memcpy(work.noise_key, key.data(), key.size());
  work.rounding = rounding;
  work.format = c.format;
  work.out = out.get();
  work.scratch = scratch.get();
  work.failed = failed.get();
  EXPECT_EQ(LaunchNorm(work, nullptr), cudaSuccess);
  const size_t tiles = (c.elements + kCodeTile - 1) / kCodeTile;
  for (size_t part = 0; part < parts; ++part) {
    const size_t first = tiles * part / parts;
    EXPECT_EQ(LaunchEncode(work, first, tiles * (part + 1) / parts - first, nullptr), cudaSuccess);
  }
  Encoded result{ToHost(out, bytes), 0, ToHost(failed, 1)[0]};
  result.sum = ToHost(scratch, ScratchDoubles(c.elements))[NormIndex(c.elements)];
  return result;
}

void ExpectEqualBytes(const Case& c, const LargeBytes& expected, const std::vector<std::byte>& got) {
  ASSERT_EQ(got.size(), expected.size());
  size_t different = 0, first = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] != expected[i] && different++ == 0) first = i;
  }
  EXPECT_EQ(different, 0u) << c.elements << " elements, format " << static_cast<int>(c.format) << ", noise " << static_cast<int>(c.noise) << ", clip "
                           << c.clip << ": the first of them at byte " << first << ", expected " << static_cast<int>(expected[first]) << ", got "
                           << static_cast<int>(got[first]);
}

constexpr CodeFormat kFormats[] = {CodeFormat::kF32, CodeFormat::kBf16, CodeFormat::kInt8, CodeFormat::kInt4};
constexpr NoiseWords kNoises[] = {NoiseWords::kNone, NoiseWords::kPhilox, NoiseWords::kChaCha20};

TEST(CudaPrivatiseTest, GivesTheProcessorsBytesForEveryFormatNoiseClipAndLength) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  for (const size_t elements : {size_t{1}, size_t{3}, size_t{255}, size_t{256}, size_t{257}, size_t{511}, size_t{512}, size_t{513}, size_t{262'147},
                                size_t{1'000'003}}) {
    const Weights weights = Draw(elements, elements);
    for (const CodeFormat format : kFormats) {
      for (const NoiseWords noise : kNoises) {
        for (const double clip : {0.0, 0.001, 1000.0}) {
          const Case c{elements, format, noise, clip};
          double norm = 0;
          const LargeBytes expected = Expected(c, weights, &norm);
          const Encoded got = OnGpu(c, weights, 1);
          ExpectEqualBytes(c, expected, got.bytes);
          EXPECT_EQ(got.failed, 0u);
          const bool untouched = noise == NoiseWords::kNone && clip == 0 && format == CodeFormat::kF32;  // then EncodeUpdate takes no norm
          EXPECT_EQ(untouched ? 0 : std::sqrt(got.sum), norm);
        }
      }
    }
  }
}

// Three levels of sums, and grids that go round more than once.
TEST(CudaPrivatiseTest, GivesTheProcessorsBytesForLargeUpdatesInParts) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const size_t elements = 20'000'001;
  const Weights weights = Draw(elements, 9);
  for (const CodeFormat format : kFormats) {
    const Case c{elements, format, NoiseWords::kPhilox, 2.0};
    double norm = 0;
    const LargeBytes expected = Expected(c, weights, &norm);
    for (const size_t parts : {1, 7}) {
      const Encoded got = OnGpu(c, weights, parts);
      ExpectEqualBytes(c, expected, got.bytes);
      EXPECT_EQ(std::sqrt(got.sum), norm);
    }
  }
}

// The comparison can fail: one bit of the rounding's seed changes codes.
TEST(CudaPrivatiseTest, OtherSeedsGiveOtherBytes) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const Case c{100'000, CodeFormat::kInt8, NoiseWords::kPhilox, 1.0};
  const Weights weights = Draw(c.elements, 4);
  PhiloxStream other = kRounding;
  other.seed ^= 1;
  EXPECT_NE(OnGpu(c, weights, 1).bytes, OnGpu(c, weights, 1, other).bytes);
}

TEST(CudaPrivatiseTest, FindsWhatIsNotFinite) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const Case c{3000, CodeFormat::kInt8, NoiseWords::kNone, 1.0};
    Weights weights = Draw(c.elements, 5);
    weights.fresh[2999] = bad;
    EXPECT_FALSE(std::isfinite(OnGpu(c, weights, 1).sum)) << bad;
  }
  Weights weights = Draw(600, 6);
  weights.fresh[300] = std::numeric_limits<float>::max();
  weights.loaded[300] = 0;
  const Case no_clip{600, CodeFormat::kInt4, NoiseWords::kNone, 0.0};
  EXPECT_EQ(OnGpu(no_clip, weights, 1).failed, 0u) << "the largest float is finite";
}

TEST(CudaPrivatiseTest, RefusesWhatItsCommentsExclude) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const auto weights = OnDevice<float>(64);
  const auto scratch = OnDevice<double>(4);
  PrivatiseWork work{.fresh = weights.get() + 1, .elements = 8, .scratch = scratch.get()};
  EXPECT_EQ(LaunchNorm(work, nullptr), cudaErrorInvalidValue) << "weights that are not aligned";
  work.fresh = weights.get();
  EXPECT_EQ(LaunchEncode(work, 0, 1, nullptr), cudaErrorInvalidValue) << "nowhere to write to";
  work.out = reinterpret_cast<std::byte*>(weights.get());
  EXPECT_EQ(LaunchEncode(work, 1, 1, nullptr), cudaErrorInvalidValue) << "a tile that there is not";
  EXPECT_EQ(LaunchEncode(work, 0, 0, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace tributary::client
