#include "simulate/channel.h"

#include <cmath>
#include <cstring>

#include "client/core/random.h"

namespace tributary::simulate {
namespace {

constexpr uint64_t kDownStream = 0x646f776e;
constexpr uint64_t kUpStream = 0x7570;

template <typename T>
void AddTo(std::span<std::byte> flat, size_t count, const ChannelSpec& spec, double variance, client::CounterRandom random) {
  const auto value = [&](size_t i) {
    T number;
    std::memcpy(&number, flat.data() + i * sizeof(T), sizeof(T));
    return static_cast<double>(number);
  };
  if (spec.has_snr) {
    double squares = 0;
    for (size_t i = 0; i < count; ++i) squares += value(i) * value(i);
    variance = squares / static_cast<double>(count) / std::pow(10.0, spec.snr_db / 10);
  }
  const double deviation = std::sqrt(variance);
  for (size_t i = 0; i < count; ++i) {
    const T noisy = static_cast<T>(value(i) + deviation * random.Normal());
    std::memcpy(flat.data() + i * sizeof(T), &noisy, sizeof(T));
  }
}

}  // namespace

void Channel::Add(std::span<std::byte> flat, double variance, uint64_t stream, uint32_t client, uint64_t version, uint64_t repeat) const {
  using client::MixSeeds;
  const client::CounterRandom random(MixSeeds(MixSeeds(MixSeeds(seed_, client), version), repeat), stream);
  layout_->float_dtype() == DType::kF64 ? AddTo<double>(flat, layout_->trainable_count(), spec_, variance, random)
                                        : AddTo<float>(flat, layout_->trainable_count(), spec_, variance, random);
}

ModelRef Channel::Down(const ModelRef& sent, uint32_t client, uint64_t version, uint64_t repeat, uint64_t part) const {
  if (!spec_.has_snr && spec_.downlink_var == 0) return sent;
  auto noisy = std::make_shared<std::vector<std::byte>>(*sent);
  Add(*noisy, spec_.downlink_var, kDownStream + part, client, version, repeat);
  return noisy;
}

bool Channel::Up(LargeBytes& update, uint32_t client, uint64_t version, uint64_t repeat) const {
  if (!noisy_up()) return false;
  Add(update, spec_.uplink_var, kUpStream, client, version, repeat);
  return true;
}

}  // namespace tributary::simulate
