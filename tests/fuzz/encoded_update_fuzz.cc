// Any bytes as an encoded update: refused with a status, or what the fold makes of it agrees with decoding it by plain loops.
// Byte 0: codec; byte 1: elements (and buffers: every 7th of them); byte 2: kept; the rest is the update, cut or padded to its size.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "aggregator/core/coded_kernels.h"
#include "aggregator/core/kernels_reference.h"
#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tributary;
  using namespace tributary::aggregator;
  if (size < 3) return 0;
  UpdateEncoding encoding;
  encoding.codec = static_cast<Codec>(data[0] % 6);
  encoding.trainable = size_t{data[1]} * 3;
  encoding.floats = encoding.trainable + data[1] % 7;
  encoding.counters = data[1] % 2;
  encoding.kept = encoding.codec == Codec::kTopK ? std::min<size_t>(data[2], encoding.trainable) : 0;
  std::vector<std::byte> update(encoding.total_bytes());
  if (!update.empty()) std::memcpy(update.data(), data + 3, std::min(update.size(), size - 3));
  const absl::StatusOr<ScanResult> scan = CheckEncoded(encoding, update);
  if (!scan.ok()) {
    TRIB_CHECK(absl::IsInvalidArgument(scan.status()), "{}", scan.status().ToString());
    return 0;
  }
  if (!scan->finite) return 0;
  std::vector<float> decoded(encoding.floats);
  DecodeRange(encoding, update.data(), 0, decoded);
  std::vector<double> got(encoding.floats), expected(encoding.floats);
  const std::byte* pointer = update.data();
  const auto* plain = reinterpret_cast<const std::byte*>(decoded.data());
  const double weight = 0.75;
  const bool folded = FoldCoded(got.data(), {.encoding = &encoding, .first = 0, .count = encoding.floats}, {&pointer, 1}, &weight, true);
  const bool reference = reference::FoldF32(expected.data(), &plain, &weight, 1, encoding.floats, true);
  TRIB_CHECK(folded && reference, "finite values times {} are not finite", weight);
  TRIB_CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(double)) == 0, "codec {}", data[0] % 6);
  return 0;
}
