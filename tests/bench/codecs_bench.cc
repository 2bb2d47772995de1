// Accumulation of K encoded updates of a ResNet-18's size into fp64 sums, per codec, beside plain f32 in the same run: GB/s of *decoded*
// floats (4 bytes an element an update), one thread, blocks of kBlockElements. Arms take turns; the median of the rounds counts.
// `codecs_bench [K] [ELEMENTS] [ROUNDS]` prints one JSON document.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "aggregator/core/coded_kernels.h"
#include "client/core/random.h"
#include "client/core/update_pipeline.h"

namespace tributary::aggregator {
namespace {

struct Arm {
  std::string name;
  UpdateEncoding encoding;
  std::vector<LargeBytes> updates;
  std::vector<double> fold_s, check_s;
};

double Seconds(const std::chrono::steady_clock::time_point& begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Main(int argc, char** argv) {
  const size_t k = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 8;
  const size_t elements = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 11'000'000;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 9;
  if (k < 1 || k > kMaxFoldUpdates || elements < 1 || rounds < 1) {
    fmt::print(stderr, "usage: codecs_bench [K 1 to {}] [ELEMENTS] [ROUNDS]\n", kMaxFoldUpdates);
    return 2;
  }
  const TensorLayout layout = *TensorLayout::Create({{.name = "w", .shape = {static_cast<int64_t>(elements)}}});
  LargeBytes flat(layout.total_bytes());
  client::CounterRandom random(7);
  for (size_t i = 0; i < elements; ++i) {
    const auto x = static_cast<float>(0.02 * (random.Uniform() - 0.5));
    std::memcpy(flat.data() + i * sizeof(float), &x, sizeof(float));
  }
  std::vector<Arm> arms;
  for (const auto& [name, codec] : {std::pair("f32", Codec::kPlain), std::pair("bf16", Codec::kBf16), std::pair("f16", Codec::kF16),
                                    std::pair("int8", Codec::kInt8), std::pair("int4", Codec::kInt4), std::pair("topk", Codec::kTopK)}) {
    Arm& arm = arms.emplace_back();
    arm.name = name;
    arm.encoding = UpdateEncoding::Of(codec, 0.01, layout);
    const auto encoded = client::EncodeUpdate({.encoding = arm.encoding, .rounding = {.seed = 1, .stage = RandomStage::kRounding}}, LargeBytes(flat), {});
    if (!encoded.ok()) {
      fmt::print(stderr, "{}: {}\n", name, MessageOf(encoded.status()));
      return 1;
    }
    arm.updates.assign(k, encoded->bytes);
  }
  std::vector<double> acc(elements), weights(k, 0.25);
  for (int round = 0; round < rounds; ++round) {
    for (Arm& arm : arms) {
      std::vector<const std::byte*> updates;
      for (const LargeBytes& update : arm.updates) updates.push_back(update.data());
      auto begin = std::chrono::steady_clock::now();
      bool ok = true;
      for (size_t first = 0; first < elements; first += kBlockElements) {
        const CodedRange range{.encoding = &arm.encoding, .first = first, .count = std::min(kBlockElements, elements - first)};
        ok = FoldCoded(acc.data() + first, range, updates, weights.data(), true) && ok;
      }
      arm.fold_s.push_back(Seconds(begin));
      begin = std::chrono::steady_clock::now();
      ok = CheckEncoded(arm.encoding, arm.updates[0]).ok() && ok;
      arm.check_s.push_back(Seconds(begin));
      if (!ok) {
        fmt::print(stderr, "{}: a sum is not finite\n", arm.name);
        return 1;
      }
    }
  }
  nlohmann::json codecs = nlohmann::json::object();
  const double decoded_gb = static_cast<double>(elements * k * sizeof(float)) * 1e-9;
  for (const Arm& arm : arms) {
    const double seconds = Median(arm.fold_s);
    codecs[arm.name] = {{"fold_gb_per_s_decoded", decoded_gb / seconds},
                        {"against_f32", Median(arms[0].fold_s) / seconds},
                        {"check_gb_per_s_decoded", decoded_gb / static_cast<double>(k) / Median(arm.check_s)},
                        {"bytes", arm.encoding.total_bytes()},
                        {"times_smaller", static_cast<double>(flat.size()) / static_cast<double>(arm.encoding.total_bytes())}};
  }
  fmt::print("{}\n", nlohmann::json{{"benchmark", "codecs"}, {"k", k}, {"elements", elements}, {"rounds", rounds}, {"codecs", codecs}}.dump(2));
  return 0;
}

}  // namespace
}  // namespace tributary::aggregator

int main(int argc, char** argv) { return tributary::aggregator::Main(argc, argv); }
