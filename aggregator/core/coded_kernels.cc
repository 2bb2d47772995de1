#include "aggregator/core/coded_kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "aggregator/core/coded_kernels.cc"
#include <hwy/foreach_target.h>  // compiles the rest of this file once per instruction set
#include <hwy/highway.h>

#include "aggregator/core/kernels_per_target.inc"

HWY_BEFORE_NAMESPACE();
namespace tributary::aggregator {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// How one element of each codec lies in memory, and how Lanes(d) of them become doubles. `scale` is the block's; 1-byte tags are int4's
// two halves of a byte.
struct Bf16Code { uint16_t code; };
struct F16Code { uint16_t code; };
struct Int8Code { int8_t code; };
struct Int4Low { uint8_t code; };
struct Int4High { uint8_t code; };

template <typename T>
HWY_INLINE float DecodeOne(const uint8_t* from, float scale);
template <>
HWY_INLINE float DecodeOne<Bf16Code>(const uint8_t* from, float) {
  return Bf16ToFloat(ReadAt<uint16_t>(reinterpret_cast<const std::byte*>(from), 0));
}
template <>
HWY_INLINE float DecodeOne<F16Code>(const uint8_t* from, float) {
  return F16ToFloat(ReadAt<uint16_t>(reinterpret_cast<const std::byte*>(from), 0));
}
template <>
HWY_INLINE float DecodeOne<Int8Code>(const uint8_t* from, float scale) {
  return scale * static_cast<float>(static_cast<int8_t>(*from));
}
template <>
HWY_INLINE float DecodeOne<Int4Low>(const uint8_t* from, float scale) {
  return scale * static_cast<float>(static_cast<int8_t>(*from << 4) / 16);
}
template <>
HWY_INLINE float DecodeOne<Int4High>(const uint8_t* from, float scale) {
  return scale * static_cast<float>(static_cast<int8_t>(*from & 0xF0) / 16);
}

#if HWY_TARGET == HWY_SCALAR
template <typename T>
HWY_INLINE F64 Decode(F64Tag d, const uint8_t* from, float scale) {
  return hn::Set(d, static_cast<double>(DecodeOne<T>(from, scale)));
}
#else
using F32Tag = hn::Rebind<float, F64Tag>;
using U32Tag = hn::Rebind<uint32_t, F64Tag>;
using I32Tag = hn::Rebind<int32_t, F64Tag>;

HWY_INLINE hn::Vec<U32Tag> LoadHalves(const uint8_t* from) {
  const hn::Rebind<uint16_t, F64Tag> d16;
  const hn::Repartition<uint8_t, decltype(d16)> d8;
  return hn::PromoteTo(U32Tag(), hn::BitCast(d16, hn::LoadU(d8, from)));
}
HWY_INLINE hn::Vec<I32Tag> LoadBytes(const uint8_t* from) {
  const hn::Rebind<uint8_t, F64Tag> d8;
  return hn::PromoteTo(I32Tag(), hn::LoadU(d8, from));
}
HWY_INLINE F64 Scaled(F64Tag d, hn::Vec<I32Tag> codes, float scale) {
  const F32Tag d32;
  return hn::PromoteTo(d, hn::Mul(hn::Set(d32, scale), hn::ConvertTo(d32, codes)));
}

template <typename T>
HWY_INLINE F64 Decode(F64Tag d, const uint8_t* from, float scale);
template <>
HWY_INLINE F64 Decode<Bf16Code>(F64Tag d, const uint8_t* from, float) {
  return hn::PromoteTo(d, hn::BitCast(F32Tag(), hn::ShiftLeft<16>(LoadHalves(from))));
}
// In hardware where there is an instruction for it. Codes whose exponent is infinity's become infinities and NaNs here, numbers from 2^16 on
// in the scalar form: nobody folds them, and both are refused.
template <>
HWY_INLINE F64 Decode<F16Code>(F64Tag d, const uint8_t* from, float) {
  const hn::Rebind<hwy::float16_t, F64Tag> d16;
  const hn::Repartition<uint8_t, decltype(d16)> d8;
  return hn::PromoteTo(d, hn::PromoteTo(F32Tag(), hn::BitCast(d16, hn::LoadU(d8, from))));
}
template <>
HWY_INLINE F64 Decode<Int8Code>(F64Tag d, const uint8_t* from, float scale) {
  const hn::Rebind<int8_t, F64Tag> d8;
  return Scaled(d, hn::PromoteTo(I32Tag(), hn::BitCast(d8, hn::LoadU(hn::Rebind<uint8_t, F64Tag>(), from))), scale);
}
template <>
HWY_INLINE F64 Decode<Int4Low>(F64Tag d, const uint8_t* from, float scale) {
  return Scaled(d, hn::ShiftRight<28>(hn::ShiftLeft<28>(LoadBytes(from))), scale);
}
template <>
HWY_INLINE F64 Decode<Int4High>(F64Tag d, const uint8_t* from, float scale) {
  return Scaled(d, hn::ShiftRight<28>(hn::ShiftLeft<24>(LoadBytes(from))), scale);
}
#endif

// The Reader (kernels_per_target.inc) of elements whose codes follow each other from codes[j] on, under one scale an update.
template <typename T>
struct Codes {
  const uint8_t* const* codes;
  const float* scales;
  HWY_INLINE F64 Lanes(F64Tag d, size_t j, size_t i) const { return Decode<T>(d, codes[j] + i * sizeof(T), scales[j]); }
  HWY_INLINE double One(size_t j, size_t i) const { return static_cast<double>(DecodeOne<T>(codes[j] + i * sizeof(T), scales[j])); }
};

#define TRIB_RUNS(Name, Code)                                                                                                               \
  bool Fold##Name(double* acc, const uint8_t* const* codes, const float* scales, const double* w, size_t k, size_t n, bool first) {          \
    return FoldLoop(acc, Codes<Code>{codes, scales}, w, k, n, first);                                                                       \
  }                                                                                                                                         \
  bool FoldFixed##Name(int64_t* acc, const uint8_t* const* codes, const float* scales, const double* w, size_t k, size_t n, bool first) {    \
    return FoldFixedLoop(acc, Codes<Code>{codes, scales}, w, k, n, first);                                                                  \
  }                                                                                                                                         \
  ScanResult Scan##Name(const uint8_t* const* codes, const float* scales, size_t n) { return ScanLoop(Codes<Code>{codes, scales}, n); }
TRIB_RUNS(Bf16, Bf16Code)
TRIB_RUNS(F16, F16Code)
TRIB_RUNS(Int8, Int8Code)
TRIB_RUNS(Int4Low, Int4Low)
TRIB_RUNS(Int4High, Int4High)
#undef TRIB_RUNS

}  // namespace HWY_NAMESPACE
}  // namespace tributary::aggregator
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tributary::aggregator {
#define TRIB_EXPORT_RUNS(Name) \
  HWY_EXPORT(Fold##Name);      \
  HWY_EXPORT(FoldFixed##Name); \
  HWY_EXPORT(Scan##Name);
TRIB_EXPORT_RUNS(Bf16)
TRIB_EXPORT_RUNS(F16)
TRIB_EXPORT_RUNS(Int8)
TRIB_EXPORT_RUNS(Int4Low)
TRIB_EXPORT_RUNS(Int4High)
#undef TRIB_EXPORT_RUNS

namespace {

// A stretch of elements with one scale an update and codes one after the other.
struct Run {
  std::array<const uint8_t*, kMaxFoldUpdates> codes{};
  std::array<float, kMaxFoldUpdates> scales{};
  size_t count = 0;
  bool high = false;  // int4: the high halves
};

// The run that begins at trainable element `at`, of at most `limit` elements. For the codecs that have codes: bf16, f16, int8, int4.
void FindRun(const UpdateEncoding& encoding, size_t at, size_t limit, std::span<const std::byte* const> updates, Run* run) {
  const bool scaled = encoding.codec == Codec::kInt8 || encoding.codec == Codec::kInt4;
  const size_t scales_bytes = scaled ? encoding.blocks() * sizeof(float) : 0;
  size_t offset = 0;  // of the run's first code
  switch (encoding.codec) {
    case Codec::kInt8:
      run->count = kQuantBlock - at % kQuantBlock;
      offset = scales_bytes + at;
      break;
    case Codec::kInt4:
      run->count = kQuantHalf - at % kQuantHalf;
      run->high = at % kQuantBlock >= kQuantHalf;
      offset = scales_bytes + at / kQuantBlock * kQuantHalf + at % kQuantHalf;
      break;
    default:
      run->count = limit;
      offset = at * sizeof(uint16_t);
      break;
  }
  run->count = std::min(run->count, limit);
  for (size_t j = 0; j < updates.size(); ++j) {
    run->codes[j] = reinterpret_cast<const uint8_t*>(updates[j]) + offset;
    run->scales[j] = scaled ? ReadAt<float>(updates[j], at / kQuantBlock) : 1.0F;
  }
}

// `call` with the kernel for the run's codes: Fold…, FoldFixed… or Scan….
#define TRIB_CALL_RUN(Kernel)                                                                                       \
  switch (codec) {                                                                                                  \
    case Codec::kBf16:                                                                                              \
      return call(HWY_DYNAMIC_DISPATCH(Kernel##Bf16));                                                              \
    case Codec::kF16:                                                                                               \
      return call(HWY_DYNAMIC_DISPATCH(Kernel##F16));                                                               \
    case Codec::kInt8:                                                                                              \
      return call(HWY_DYNAMIC_DISPATCH(Kernel##Int8));                                                              \
    default:                                                                                                        \
      return run.high ? call(HWY_DYNAMIC_DISPATCH(Kernel##Int4High)) : call(HWY_DYNAMIC_DISPATCH(Kernel##Int4Low)); \
  }

bool Fold(double* acc, Codec codec, const Run& run, const double* weights, size_t k, bool fresh) {
  const auto call = [&](auto kernel) { return kernel(acc, run.codes.data(), run.scales.data(), weights, k, run.count, fresh); };
  TRIB_CALL_RUN(Fold)
}

bool Fold(int64_t* acc, Codec codec, const Run& run, const double* weights, size_t k, bool fresh) {
  const auto call = [&](auto kernel) { return kernel(acc, run.codes.data(), run.scales.data(), weights, k, run.count, fresh); };
  TRIB_CALL_RUN(FoldFixed)
}

ScanResult ScanRun(Codec codec, const Run& run) {
  const auto call = [&](auto kernel) { return kernel(run.codes.data(), run.scales.data(), run.count); };
  TRIB_CALL_RUN(Scan)
}
#undef TRIB_CALL_RUN

bool FoldPlain(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool fresh) {
  return FoldF32(acc, xs, weights, k, n, fresh);
}
bool FoldPlain(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool fresh) {
  return FoldFixedF32(acc, xs, weights, k, n, fresh);
}

bool AddSparse(double* acc, double weight, float value) {
  *acc += weight * static_cast<double>(value);
  return std::isfinite(*acc);
}
bool AddSparse(int64_t* acc, double weight, float value) { return AddFixed(weight * static_cast<double>(value) * kFixedPointScale, acc); }

// The first kept element at or after `element`.
size_t FirstKept(const std::byte* indices, size_t kept, size_t element) {
  size_t low = 0, high = kept;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (ReadAt<uint32_t>(indices, middle) < element) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename Acc>
bool FoldSparse(Acc* acc, const UpdateEncoding& encoding, size_t first, size_t count, std::span<const std::byte* const> updates,
                const double* weights, bool fresh) {
  if (fresh) std::fill_n(acc, count, Acc{0});
  bool ok = true;
  for (size_t j = 0; j < updates.size(); ++j) {
    const std::byte* values = updates[j] + encoding.kept * sizeof(uint32_t);
    for (size_t i = FirstKept(updates[j], encoding.kept, first); i < encoding.kept; ++i) {
      const size_t index = ReadAt<uint32_t>(updates[j], i);
      if (index >= first + count) break;
      ok = AddSparse(acc + (index - first), weights[j], ReadAt<float>(values, i)) && ok;
    }
  }
  return ok;
}

template <typename Acc>
bool FoldTrainable(Acc* acc, const UpdateEncoding& encoding, size_t first, size_t count, std::span<const std::byte* const> updates,
                   const double* weights, bool fresh) {
  const size_t k = updates.size();
  if (encoding.codec == Codec::kTopK) return FoldSparse(acc, encoding, first, count, updates, weights, fresh);
  std::array<const std::byte*, kMaxFoldUpdates> plain{};
  if (encoding.codec == Codec::kPlain) {
    for (size_t j = 0; j < k; ++j) plain[j] = updates[j] + first * sizeof(float);
    return FoldPlain(acc, plain.data(), weights, k, count, fresh);
  }
  bool ok = true;
  Run run;
  for (size_t done = 0; done < count; done += run.count) {
    FindRun(encoding, first + done, count - done, updates, &run);
    ok = Fold(acc + done, encoding.codec, run, weights, k, fresh) && ok;
  }
  return ok;
}

template <typename Acc>
bool FoldRange(Acc* acc, const CodedRange& range, std::span<const std::byte* const> updates, const double* weights, bool fresh) {
  const UpdateEncoding& encoding = *range.encoding;
  TRIB_CHECK(encoding.dtype == DType::kF32 && updates.size() <= kMaxFoldUpdates && range.first + range.count <= encoding.floats,
             "{} updates, elements {}+{} of {}", updates.size(), range.first, range.count, encoding.floats);
  const size_t coded = range.first < encoding.trainable ? std::min(range.count, encoding.trainable - range.first) : 0;
  bool ok = coded == 0 || FoldTrainable(acc, encoding, range.first, coded, updates, weights, fresh);
  if (coded == range.count) return ok;
  std::array<const std::byte*, kMaxFoldUpdates> buffers{};
  for (size_t j = 0; j < updates.size(); ++j) {
    buffers[j] = updates[j] + encoding.buffers_offset() + (range.first + coded - encoding.trainable) * sizeof(float);
  }
  return FoldPlain(acc + coded, buffers.data(), weights, updates.size(), range.count - coded, fresh) && ok;
}

absl::Status CheckInt4(std::span<const std::byte> codes) {
  const auto outside = [](std::byte pair) { return (pair & std::byte{0x0F}) == std::byte{0x08} || (pair & std::byte{0xF0}) == std::byte{0x80}; };
  constexpr size_t kPiece = 4096;  // looked at as a whole first, without a branch for each byte
  for (size_t first = 0; first < codes.size(); first += kPiece) {
    const std::span<const std::byte> piece = codes.subspan(first, std::min(kPiece, codes.size() - first));
    bool any = false;
    for (const std::byte pair : piece) any |= outside(pair);
    if (!any) continue;
    const auto at = std::find_if(piece.begin(), piece.end(), outside) - piece.begin();
    return InvalidArgument("int4: byte {}: expected codes in [-7, 7], got -8", first + static_cast<size_t>(at));
  }
  return absl::OkStatus();
}

absl::Status CheckCodes(const UpdateEncoding& encoding, const std::byte* update) {
  if (encoding.codec == Codec::kTopK) {
    for (size_t i = 0; i < encoding.kept; ++i) {
      const uint32_t index = ReadAt<uint32_t>(update, i);
      if (index >= encoding.trainable) return InvalidArgument("topk: entry {}: expected an element below {}, got {}", i, encoding.trainable, index);
      if (i > 0 && index <= ReadAt<uint32_t>(update, i - 1)) return InvalidArgument("topk: entry {}: element {} does not follow the one before it", i, index);
    }
    return absl::OkStatus();
  }
  if (encoding.codec != Codec::kInt8 && encoding.codec != Codec::kInt4) return absl::OkStatus();
  for (size_t block = 0; block < encoding.blocks(); ++block) {
    const float scale = ReadAt<float>(update, block);
    if (!(scale >= 0 && std::isfinite(scale))) return InvalidArgument("block {}: expected a finite scale of at least 0, got {}", block, scale);
  }
  const std::byte* codes = update + encoding.blocks() * sizeof(float);
  if (encoding.codec == Codec::kInt8) {
    const void* outside = std::memchr(codes, 0x80, encoding.trainable);
    if (outside == nullptr) return absl::OkStatus();
    return InvalidArgument("int8: element {}: expected a code in [-127, 127], got -128", static_cast<const std::byte*>(outside) - codes);
  }
  return CheckInt4(std::span(codes, encoding.blocks() * kQuantHalf));
}

// Of the trainable elements. What top-k leaves out is 0.
ScanResult ScanTrainable(const UpdateEncoding& encoding, const std::byte* update) {
  if (encoding.codec == Codec::kTopK) return Scan({update + encoding.kept * sizeof(uint32_t), encoding.kept * sizeof(float)}, DType::kF32);
  ScanResult result;
  Run run;
  for (size_t at = 0; at < encoding.trainable; at += run.count) {
    FindRun(encoding, at, encoding.trainable - at, {&update, 1}, &run);
    const ScanResult part = ScanRun(encoding.codec, run);
    if (!part.finite) return part;
    result.sum_squares += part.sum_squares;
    result.max_abs = std::fmax(result.max_abs, part.max_abs);
  }
  // Decoding makes numbers from 2^16 on of the codes whose exponent is infinity's.
  if (encoding.codec == Codec::kF16 && result.max_abs >= 65536.0) return {.finite = false, .sum_squares = 0, .max_abs = 0};
  return result;
}

}  // namespace

bool FoldCoded(double* acc, const CodedRange& range, std::span<const std::byte* const> updates, const double* weights, bool fresh) {
  return FoldRange(acc, range, updates, weights, fresh);
}
bool FoldCodedFixed(int64_t* acc, const CodedRange& range, std::span<const std::byte* const> updates, const double* weights, bool fresh) {
  return FoldRange(acc, range, updates, weights, fresh);
}

absl::StatusOr<ScanResult> CheckEncoded(const UpdateEncoding& encoding, std::span<const std::byte> update) {
  TRIB_CHECK(update.size() == encoding.total_bytes(), "{} bytes of {}", update.size(), encoding.total_bytes());
  if (encoding.codec == Codec::kPlain) return Scan(update.first(encoding.counters_offset()), encoding.dtype);
  TRIB_RETURN_IF_ERROR(CheckCodes(encoding, update.data()));
  const ScanResult trainable = ScanTrainable(encoding, update.data());
  const ScanResult buffers = Scan(update.subspan(encoding.buffers_offset(), encoding.counters_offset() - encoding.buffers_offset()), DType::kF32);
  if (!trainable.finite || !buffers.finite) return ScanResult{.finite = false, .sum_squares = 0, .max_abs = 0};
  return ScanResult{.finite = true,
                    .sum_squares = trainable.sum_squares + buffers.sum_squares,
                    .max_abs = std::fmax(trainable.max_abs, buffers.max_abs)};
}

absl::StatusOr<ScanResult> ScanUpdate(const UpdateEncoding& encoding, std::span<const std::byte> update) {
  if (encoding.codec != Codec::kPlain) return CheckEncoded(encoding, update);
  return Scan(update.first(encoding.counters_offset()), encoding.dtype);
}

double TrainableSquares(const UpdateEncoding& encoding, std::span<const std::byte> update, const ScanResult& scan) {
  if (encoding.floats == encoding.trainable) return scan.sum_squares;
  if (encoding.codec == Codec::kPlain) return Scan(update.first(encoding.trainable_bytes()), encoding.dtype).sum_squares;
  const size_t buffers = encoding.buffers_offset();
  return std::max(0.0, scan.sum_squares - Scan(update.subspan(buffers, encoding.counters_offset() - buffers), encoding.dtype).sum_squares);
}

}  // namespace tributary::aggregator
#endif  // HWY_ONCE
