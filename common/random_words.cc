#include "common/random_words.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/digest.h"
#include "common/normal.h"

namespace tributary {
namespace {

class PhiloxSource final : public RandomWords {
 public:
  explicit PhiloxSource(const PhiloxStream& stream) : stream_(stream) {}
  void Fill(uint64_t first, std::span<PhiloxWords> quads) override {
    for (size_t i = 0; i < quads.size(); ++i) quads[i] = stream_.Quad(first + i);
  }

 private:
  PhiloxStream stream_;
};

class ChaChaSource final : public RandomWords {
 public:
  explicit ChaChaSource(const ChaChaKey& key) : key_(key), context_(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free) {
    TRIB_CHECK(context_ != nullptr);
  }
  void Fill(uint64_t first, std::span<PhiloxWords> quads) override {
    constexpr uint64_t kQuadsPerBlock = 4;
    TRIB_CHECK((first + quads.size()) / kQuadsPerBlock < (uint64_t{1} << 32), "quad {} of a ChaCha20 stream", first);
    if (quads.empty()) return;
    const uint64_t block = first / kQuadsPerBlock;
    std::array<unsigned char, 16> counter_and_nonce{};  // the nonce stays 0: a key serves one vector
    for (int i = 0; i < 4; ++i) counter_and_nonce[i] = static_cast<unsigned char>(block >> (8 * i));
    const size_t skipped = first % kQuadsPerBlock;
    words_.assign(quads.size() + skipped, PhiloxWords{});
    int written = 0;
    auto* bytes = reinterpret_cast<unsigned char*>(words_.data());
    const bool ok = EVP_EncryptInit_ex(context_.get(), EVP_chacha20(), nullptr, reinterpret_cast<const unsigned char*>(key_.data()),
                                       counter_and_nonce.data()) == 1 &&
                    EVP_EncryptUpdate(context_.get(), bytes, &written, bytes, static_cast<int>(words_.size() * sizeof(PhiloxWords))) == 1;
    TRIB_CHECK(ok, "OpenSSL's ChaCha20");
    std::copy(words_.begin() + static_cast<std::ptrdiff_t>(skipped), words_.end(), quads.begin());
  }

 private:
  const ChaChaKey key_;
  std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context_;
  std::vector<PhiloxWords> words_;
};

// The same arithmetic once for every x86-64 and once for those with fused multiply-add in hardware, where it is ten times faster. The
// operations are spelled out, so both give the same bits.
template <typename T>
[[gnu::always_inline]] inline void AddNormalsOf(const PhiloxWords* quads, uint64_t first, double stddev, T* values, size_t count) {
  for (size_t i = 0; i < count;) {
    T normals[4];
    NormalsOf(quads[(first + i) / 4 - first / 4], normals);
    for (size_t lane = (first + i) % 4; lane < 4 && i < count; ++lane, ++i) {
      values[i] = normal_detail::Fma(static_cast<T>(stddev), normals[lane], values[i]);
    }
  }
}

template <typename T>
void AddNormalsAnywhere(const PhiloxWords* quads, uint64_t first, double stddev, T* values, size_t count) {
  AddNormalsOf(quads, first, stddev, values, count);
}

#if defined(__x86_64__)
template <typename T>
[[gnu::target("fma")]] void AddNormalsWithFma(const PhiloxWords* quads, uint64_t first, double stddev, T* values, size_t count) {
  AddNormalsOf(quads, first, stddev, values, count);
}
bool HasFma() { return __builtin_cpu_supports("fma"); }
#endif

template <typename T>
void AddNormalsInPieces(RandomWords& words, uint64_t first, double stddev, std::span<T> values) {
  std::array<PhiloxWords, 256> quads;
  constexpr size_t kPiece = 1020;  // with up to 3 elements before it in its first quad
  for (size_t done = 0; done < values.size();) {
    const size_t count = std::min(kPiece, values.size() - done);
    const uint64_t at = first + done;
    words.Fill(at / 4, std::span(quads).first((at + count - 1) / 4 - at / 4 + 1));
#if defined(__x86_64__)
    if (HasFma()) {
      AddNormalsWithFma(quads.data(), at, stddev, values.data() + done, count);
    } else {
      AddNormalsAnywhere(quads.data(), at, stddev, values.data() + done, count);
    }
#else
    AddNormalsAnywhere(quads.data(), at, stddev, values.data() + done, count);
#endif
    done += count;
  }
}

}  // namespace

std::unique_ptr<RandomWords> MakePhiloxSource(const PhiloxStream& stream) { return std::make_unique<PhiloxSource>(stream); }
std::unique_ptr<RandomWords> MakeChaChaSource(const ChaChaKey& key) { return std::make_unique<ChaChaSource>(key); }

absl::StatusOr<ChaChaKey> SecretKey() {
  ChaChaKey key;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(key.data()), static_cast<int>(key.size())) != 1) {
    return Internal("the operating system gave no random bytes for a key");
  }
  return key;
}

uint32_t ClientNumber(std::string_view client) {
  const std::string digest = Xxh3Digest(std::as_bytes(std::span(client)));
  uint32_t number = 0;
  std::memcpy(&number, digest.data(), sizeof(number));
  return std::max<uint32_t>(1, number);
}

void AddNormals(RandomWords& words, uint64_t first, double stddev, std::span<float> values) {
  AddNormalsInPieces(words, first, stddev, values);
}
void AddNormals(RandomWords& words, uint64_t first, double stddev, std::span<double> values) {
  AddNormalsInPieces(words, first, stddev, values);
}

}  // namespace tributary
