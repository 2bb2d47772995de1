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
template <>
HWY_INLINE F64 Decode<F16Code>(F64Tag d, const uint8_t* from, float) {
  const U32Tag du;
  const F32Tag d32;
  const auto code = LoadHalves(from);
  const auto magnitude = hn::Mul(hn::BitCast(d32, hn::ShiftLeft<13>(hn::And(code, hn::Set(du, 0x7FFFu)))), hn::Set(d32, 0x1p112F));
  const auto sign = hn::ShiftLeft<16>(hn::And(code, hn::Set(du, 0x8000u)));
  return hn::PromoteTo(d, hn::BitCast(d32, hn::Or(hn::BitCast(du, magnitude), sign)));
}
template <>
HWY_INLINE F64 Decode<Int8Code>(F64Tag d, const uint8_t* from, float scale) {
  return Scaled(d, hn::ShiftRight<24>(hn::ShiftLeft<24>(LoadBytes(from))), scale);
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

// n elements whose codes follow each other from codes[j] on, under one scale an update.
template <typename T>
HWY_INLINE bool FoldRun(double* HWY_RESTRICT acc, const uint8_t* const* codes, const float* scales, const double* weights, size_t k, size_t n,
                        bool first) {
  const F64Tag d;
  const size_t lanes = hn::Lanes(d);
  F64 poison = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    F64 a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
    if (!first) {
      a0 = hn::LoadU(d, acc + i);
      a1 = hn::LoadU(d, acc + i + lanes);
      a2 = hn::LoadU(d, acc + i + 2 * lanes);
      a3 = hn::LoadU(d, acc + i + 3 * lanes);
    }
    for (size_t j = 0; j < k; ++j) {
      const F64 w = hn::Set(d, weights[j]);
      const float scale = scales[j];
      const uint8_t* x = codes[j] + i * sizeof(T);
      a0 = hn::Add(a0, hn::Mul(w, Decode<T>(d, x, scale)));
      a1 = hn::Add(a1, hn::Mul(w, Decode<T>(d, x + lanes * sizeof(T), scale)));
      a2 = hn::Add(a2, hn::Mul(w, Decode<T>(d, x + 2 * lanes * sizeof(T), scale)));
      a3 = hn::Add(a3, hn::Mul(w, Decode<T>(d, x + 3 * lanes * sizeof(T), scale)));
    }
    hn::StoreU(a0, d, acc + i);
    hn::StoreU(a1, d, acc + i + lanes);
    hn::StoreU(a2, d, acc + i + 2 * lanes);
    hn::StoreU(a3, d, acc + i + 3 * lanes);
    poison = hn::Add(poison, hn::Add(hn::Add(hn::Sub(a0, a0), hn::Sub(a1, a1)), hn::Add(hn::Sub(a2, a2), hn::Sub(a3, a3))));
  }
  bool finite = hn::AllFalse(d, hn::IsNaN(poison));
  for (; i < n; ++i) {
    double a = first ? 0.0 : acc[i];
    for (size_t j = 0; j < k; ++j) a += weights[j] * static_cast<double>(DecodeOne<T>(codes[j] + i * sizeof(T), scales[j]));
    acc[i] = a;
    finite = finite && std::isfinite(a);
  }
  return finite;
}

template <typename T>
HWY_INLINE bool FoldFixedRun(int64_t* HWY_RESTRICT acc, const uint8_t* const* codes, const float* scales, const double* weights, size_t k,
                             size_t n, bool first) {
  const F64Tag d;
  const I64Tag di;
  const size_t lanes = hn::Lanes(d);
  const F64 unit = hn::Set(d, kFixedPointScale);
  const F64 limit = hn::Set(d, static_cast<double>(kFixedPointBound));
  const I64 bound = hn::Set(di, kFixedPointBound);
  auto in_range = hn::Eq(hn::Zero(d), hn::Zero(d));
  I64 left_range = hn::Zero(di);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    I64 a = first ? hn::Zero(di) : hn::LoadU(di, acc + i);
    for (size_t j = 0; j < k; ++j) {
      const F64 scaled = hn::Mul(hn::Mul(hn::Set(d, weights[j]), Decode<T>(d, codes[j] + i * sizeof(T), scales[j])), unit);
      in_range = hn::And(in_range, hn::Lt(hn::Abs(scaled), limit));
      a = hn::Add(a, RoundToInteger(scaled));
      left_range = hn::Or(left_range, hn::Add(a, bound));
    }
    hn::StoreU(a, di, acc + i);
  }
  bool ok = hn::AllTrue(d, in_range) && hn::AllFalse(di, hn::Lt(left_range, hn::Zero(di)));
  for (; i < n; ++i) {
    int64_t a = first ? 0 : acc[i];
    for (size_t j = 0; j < k && ok; ++j) {
      ok = AddFixed(weights[j] * static_cast<double>(DecodeOne<T>(codes[j] + i * sizeof(T), scales[j])) * kFixedPointScale, &a);
    }
    acc[i] = a;
  }
  return ok;
}

#define TRIB_RUNS(Name, Code)                                                                                                               \
  bool Fold##Name(double* acc, const uint8_t* const* codes, const float* scales, const double* w, size_t k, size_t n, bool first) {          \
    return FoldRun<Code>(acc, codes, scales, w, k, n, first);                                                                               \
  }                                                                                                                                         \
  bool FoldFixed##Name(int64_t* acc, const uint8_t* const* codes, const float* scales, const double* w, size_t k, size_t n, bool first) {    \
    return FoldFixedRun<Code>(acc, codes, scales, w, k, n, first);                                                                          \
  }
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
HWY_EXPORT(FoldBf16);
HWY_EXPORT(FoldF16);
HWY_EXPORT(FoldInt8);
HWY_EXPORT(FoldInt4Low);
HWY_EXPORT(FoldInt4High);
HWY_EXPORT(FoldFixedBf16);
HWY_EXPORT(FoldFixedF16);
HWY_EXPORT(FoldFixedInt8);
HWY_EXPORT(FoldFixedInt4Low);
HWY_EXPORT(FoldFixedInt4High);

namespace {

// A stretch of elements with one scale an update and codes one after the other.
struct Run {
  std::array<const uint8_t*, kMaxFoldUpdates> codes{};
  std::array<float, kMaxFoldUpdates> scales{};
  size_t count = 0;
  bool high = false;  // int4: the high halves
};

bool Fold(double* acc, Codec codec, const Run& run, const double* weights, size_t k, bool fresh) {
  const auto call = [&](auto kernel) { return kernel(acc, run.codes.data(), run.scales.data(), weights, k, run.count, fresh); };
  switch (codec) {
    case Codec::kBf16:
      return call(HWY_DYNAMIC_DISPATCH(FoldBf16));
    case Codec::kF16:
      return call(HWY_DYNAMIC_DISPATCH(FoldF16));
    case Codec::kInt8:
      return call(HWY_DYNAMIC_DISPATCH(FoldInt8));
    default:
      return run.high ? call(HWY_DYNAMIC_DISPATCH(FoldInt4High)) : call(HWY_DYNAMIC_DISPATCH(FoldInt4Low));
  }
}

bool Fold(int64_t* acc, Codec codec, const Run& run, const double* weights, size_t k, bool fresh) {
  const auto call = [&](auto kernel) { return kernel(acc, run.codes.data(), run.scales.data(), weights, k, run.count, fresh); };
  switch (codec) {
    case Codec::kBf16:
      return call(HWY_DYNAMIC_DISPATCH(FoldFixedBf16));
    case Codec::kF16:
      return call(HWY_DYNAMIC_DISPATCH(FoldFixedF16));
    case Codec::kInt8:
      return call(HWY_DYNAMIC_DISPATCH(FoldFixedInt8));
    default:
      return run.high ? call(HWY_DYNAMIC_DISPATCH(FoldFixedInt4High)) : call(HWY_DYNAMIC_DISPATCH(FoldFixedInt4Low));
  }
}

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
  const bool scaled = encoding.codec == Codec::kInt8 || encoding.codec == Codec::kInt4;
  const size_t scales_bytes = scaled ? encoding.blocks() * sizeof(float) : 0;
  bool ok = true;
  for (size_t done = 0; done < count;) {
    const size_t at = first + done;
    Run run;
    size_t offset = 0;  // of the run's first code
    switch (encoding.codec) {
      case Codec::kInt8:
        run.count = kQuantBlock - at % kQuantBlock;
        offset = scales_bytes + at;
        break;
      case Codec::kInt4:
        run.count = kQuantHalf - at % kQuantHalf;
        run.high = at % kQuantBlock >= kQuantHalf;
        offset = scales_bytes + at / kQuantBlock * kQuantHalf + at % kQuantHalf;
        break;
      default:
        run.count = count;
        offset = at * sizeof(uint16_t);
        break;
    }
    run.count = std::min(run.count, count - done);
    for (size_t j = 0; j < k; ++j) {
      run.codes[j] = reinterpret_cast<const uint8_t*>(updates[j]) + offset;
      run.scales[j] = scaled ? ReadAt<float>(updates[j], at / kQuantBlock) : 1.0F;
    }
    ok = Fold(acc + done, encoding.codec, run, weights, k, fresh) && ok;
    done += run.count;
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
    for (size_t i = 0; i < encoding.trainable; ++i) {
      if (codes[i] == std::byte{0x80}) return InvalidArgument("int8: element {}: expected a code in [-127, 127], got -128", i);
    }
    return absl::OkStatus();
  }
  for (size_t i = 0; i < encoding.blocks() * kQuantHalf; ++i) {
    if ((codes[i] & std::byte{0x0F}) == std::byte{0x08} || (codes[i] & std::byte{0xF0}) == std::byte{0x80}) {
      return InvalidArgument("int4: byte {}: expected codes in [-7, 7], got -8", i);
    }
  }
  return absl::OkStatus();
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
  std::array<float, 4096> decoded;
  ScanResult result;
  for (size_t first = 0; first < encoding.floats; first += decoded.size()) {
    const std::span<float> piece = std::span(decoded).first(std::min(decoded.size(), encoding.floats - first));
    DecodeRange(encoding, update.data(), first, piece);
    ScanResult part = Scan(std::as_bytes(piece), DType::kF32);
    // F16ToFloat makes numbers from 2^16 on of the codes whose exponent is infinity's.
    if (encoding.codec == Codec::kF16 && first < encoding.trainable) {
      const std::span<float> coded = piece.first(std::min(piece.size(), encoding.trainable - first));
      part.finite = part.finite && std::all_of(coded.begin(), coded.end(), [](float x) { return std::abs(x) < 65536.0F; });
    }
    if (!part.finite) return ScanResult{.finite = false, .sum_squares = 0, .max_abs = 0};
    result.sum_squares += part.sum_squares;
    result.max_abs = std::fmax(result.max_abs, part.max_abs);
  }
  return result;
}

}  // namespace tributary::aggregator
#endif  // HWY_ONCE
