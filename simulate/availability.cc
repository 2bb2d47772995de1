#include "simulate/availability.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/core/random.h"
#include "common/file.h"

namespace tributary::simulate {
namespace {

using client::CounterRandom;
using client::MixSeeds;

constexpr uint64_t kAvailabilityStream = 0x61766169;

class Everybody final : public Availability {
 public:
  explicit Everybody(int64_t clients) : all_(static_cast<size_t>(clients)) { std::iota(all_.begin(), all_.end(), 0U); }
  std::span<const uint32_t> NextRound() override { return all_; }
  std::vector<double> Shares() const override { return std::vector<double>(all_.size(), 1.0); }

 private:
  std::vector<uint32_t> all_;
};

class FixedSize final : public Availability {
 public:
  FixedSize(size_t size, int64_t clients, uint64_t seed) : size_(size), seed_(seed), order_(static_cast<size_t>(clients)) {
    std::iota(order_.begin(), order_.end(), 0U);
  }
  std::span<const uint32_t> NextRound() override {
    CounterRandom random(MixSeeds(seed_, round_++), kAvailabilityStream);
    for (size_t i = 0; i < size_; ++i) std::swap(order_[i], order_[i + random.Below(order_.size() - i)]);
    present_.assign(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(size_));
    std::sort(present_.begin(), present_.end());
    return present_;
  }
  std::vector<double> Shares() const override {
    return std::vector<double>(order_.size(), static_cast<double>(size_) / static_cast<double>(order_.size()));
  }

 private:
  const size_t size_;
  const uint64_t seed_;
  uint64_t round_ = 0;
  std::vector<uint32_t> order_, present_;
};

class Bernoulli final : public Availability {
 public:
  Bernoulli(std::vector<double> p, uint64_t seed) : p_(std::move(p)), seed_(seed) {}
  std::span<const uint32_t> NextRound() override {
    CounterRandom random(MixSeeds(seed_, round_++), kAvailabilityStream);
    present_.clear();
    for (uint32_t i = 0; i < p_.size(); ++i) {
      if (random.Uniform() < p_[i]) present_.push_back(i);
    }
    return present_;
  }
  std::vector<double> Shares() const override { return p_; }

 private:
  const std::vector<double> p_;
  const uint64_t seed_;
  uint64_t round_ = 0;
  std::vector<uint32_t> present_;
};

class Markov final : public Availability {
 public:
  Markov(std::vector<double> p, double max_transition, uint64_t seed) : p_(std::move(p)), seed_(seed), on_(p_.size()) {
    for (const double p_i : p_) {
      double enter = max_transition, leave = max_transition * (1 / p_i - 1);
      if (leave > 1) {
        enter /= leave;
        leave = 1;
      }
      enter_.push_back(enter);
      leave_.push_back(leave);
    }
  }
  std::span<const uint32_t> NextRound() override {
    CounterRandom random(MixSeeds(seed_, round_), kAvailabilityStream);
    present_.clear();
    for (uint32_t i = 0; i < p_.size(); ++i) {
      const double u = random.Uniform();
      on_[i] = round_ == 0 ? u < p_[i] : on_[i] ? u >= leave_[i] : u < enter_[i];
      if (on_[i]) present_.push_back(i);
    }
    ++round_;
    return present_;
  }
  std::vector<double> Shares() const override { return p_; }

 private:
  const std::vector<double> p_;
  const uint64_t seed_;
  std::vector<double> enter_, leave_;
  std::vector<char> on_;
  uint64_t round_ = 0;
  std::vector<uint32_t> present_;
};

class Cyclic final : public Availability {
 public:
  Cyclic(const std::vector<double>& p, int64_t period, uint64_t seed) : period_(static_cast<uint64_t>(period)) {
    CounterRandom random(seed, kAvailabilityStream);
    for (const double p_i : p) {
      active_.push_back(static_cast<uint64_t>(std::max<int64_t>(1, std::llround(static_cast<double>(period) * p_i))));
      phase_.push_back(random.Below(period_));
    }
  }
  std::span<const uint32_t> NextRound() override {
    present_.clear();
    for (uint32_t i = 0; i < active_.size(); ++i) {
      if ((round_ + phase_[i]) % period_ < active_[i]) present_.push_back(i);
    }
    ++round_;
    return present_;
  }
  std::vector<double> Shares() const override {
    std::vector<double> shares;
    for (const uint64_t active : active_) shares.push_back(static_cast<double>(active) / static_cast<double>(period_));
    return shares;
  }

 private:
  const uint64_t period_;
  std::vector<uint64_t> active_, phase_;
  uint64_t round_ = 0;
  std::vector<uint32_t> present_;
};

class Trace final : public Availability {
 public:
  Trace(std::vector<std::vector<uint32_t>> rounds, int64_t clients, bool repeat) : rounds_(std::move(rounds)), clients_(clients), repeat_(repeat) {}
  std::span<const uint32_t> NextRound() override {
    const size_t index = round_++;
    if (index >= rounds_.size() && !repeat_) return {};
    return rounds_[index % rounds_.size()];
  }
  std::vector<double> Shares() const override {
    std::vector<double> shares(static_cast<size_t>(clients_));
    for (const auto& round : rounds_) {
      for (const uint32_t client : round) shares[client] += 1 / static_cast<double>(rounds_.size());
    }
    return shares;
  }

 private:
  const std::vector<std::vector<uint32_t>> rounds_;
  const int64_t clients_;
  const bool repeat_;
  size_t round_ = 0;
};

absl::StatusOr<std::vector<std::vector<uint32_t>>> RoundsOfBits(const std::vector<std::string>& bits, int64_t clients, const std::string& key) {
  if (static_cast<int64_t>(bits.size()) != clients) return InvalidArgument("{}: expected a text for each of {} clients, got {}", key, clients, bits.size());
  std::vector<std::vector<uint32_t>> rounds(bits[0].size());
  for (uint32_t i = 0; i < bits.size(); ++i) {
    if (bits[i].size() != rounds.size() || bits[i].find_first_not_of("01") != std::string::npos) {
      return InvalidArgument("{}: client {}: expected {} digits 0 or 1 as client 0 has, got '{}'", key, i, rounds.size(), bits[i]);
    }
    for (size_t r = 0; r < rounds.size(); ++r) {
      if (bits[i][r] == '1') rounds[r].push_back(i);
    }
  }
  return rounds;
}

absl::StatusOr<std::vector<std::vector<uint32_t>>> RoundsOf(const ParticipationSpec& spec, int64_t clients) {
  if (!spec.bits.empty()) return RoundsOfBits(spec.bits, clients, "simulate.participation.bits");
  if (!spec.file.empty()) {
    TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(spec.file, size_t{1} << 30));
    std::vector<std::string> bits;
    for (const auto line : absl::StrSplit(text, '\n')) {
      const std::string stripped(absl::StripAsciiWhitespace(line));
      if (!stripped.empty()) bits.push_back(stripped);
    }
    return RoundsOfBits(bits, clients, spec.file);
  }
  std::vector<std::vector<uint32_t>> rounds;
  for (const auto& listed : spec.rounds) {
    std::vector<uint32_t>& round = rounds.emplace_back();
    for (const int64_t client : listed) {
      if (client >= clients) return InvalidArgument("simulate.participation.rounds: expected clients 0 to {}, got {}", clients - 1, client);
      round.push_back(static_cast<uint32_t>(client));
    }
    std::sort(round.begin(), round.end());
    round.erase(std::unique(round.begin(), round.end()), round.end());
  }
  return rounds;
}

}  // namespace

absl::StatusOr<std::vector<double>> ForEachClient(const std::vector<double>& values, int64_t clients, std::string_view key) {
  if (values.size() == 1) return std::vector<double>(static_cast<size_t>(clients), values[0]);
  if (static_cast<int64_t>(values.size()) == clients) return values;
  return InvalidArgument("{}: expected one number, or one for each of {} clients, got {}", key, clients, values.size());
}

absl::StatusOr<std::unique_ptr<Availability>> Availability::Make(const ParticipationSpec& spec, int64_t clients, uint64_t seed) {
  if (spec.kind == "all") return std::make_unique<Everybody>(clients);
  if (spec.kind == "fixed") {
    if (spec.size > clients) return InvalidArgument("simulate.participation.size: expected at most {} clients, got {}", clients, spec.size);
    return std::make_unique<FixedSize>(static_cast<size_t>(spec.size), clients, seed);
  }
  if (spec.kind == "trace") {
    TRIB_ASSIGN_OR_RETURN(auto rounds, RoundsOf(spec, clients));
    return std::make_unique<Trace>(std::move(rounds), clients, spec.repeat);
  }
  TRIB_ASSIGN_OR_RETURN(std::vector<double> p, ForEachClient(spec.p, clients, "simulate.participation.p"));
  if (spec.kind == "bernoulli") return std::make_unique<Bernoulli>(std::move(p), seed);
  if (spec.kind == "markov") return std::make_unique<Markov>(std::move(p), spec.max_transition, seed);
  return std::make_unique<Cyclic>(p, spec.period, seed);
}

}  // namespace tributary::simulate
