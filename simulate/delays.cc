#include "simulate/delays.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>

#include "client/core/random.h"
#include "common/file.h"
#include "simulate/availability.h"

namespace tributary::simulate {
namespace {

using client::CounterRandom;
using client::MixSeeds;

constexpr uint64_t kDelayStream = 0x64656c61;
constexpr double kNanosecondsPerSecond = 1e9;

int64_t ToNanoseconds(double seconds) { return std::llround(seconds * kNanosecondsPerSecond); }

// Σ_{k≥0} P(T > kΔ), the survival function falling to 0.
template <typename Survival>
double SumOfSurvival(double interval_s, Survival survival) {
  double sum = 0;
  for (uint64_t k = 0; k < 100'000'000; ++k) {
    const double p = survival(static_cast<double>(k) * interval_s);
    sum += p;
    if (p < 1e-18) break;
  }
  return std::max(1.0, sum);
}

// The same whole duration each time.
class Constant final : public Delays {
 public:
  explicit Constant(const std::vector<double>& seconds) {
    for (const double s : seconds) ns_.push_back(ToNanoseconds(s));
  }
  std::optional<int64_t> Nanoseconds(uint32_t client, uint64_t, int64_t) const override { return ns_[client]; }
  std::optional<double> MeanIntervals(uint32_t client, double interval_s) const override {
    const int64_t interval = ToNanoseconds(interval_s);
    return static_cast<double>(std::max<int64_t>(1, (ns_[client] + interval - 1) / interval));
  }
  std::optional<double> MeanSeconds(uint32_t client) const override { return static_cast<double>(ns_[client]) / kNanosecondsPerSecond; }

 private:
  std::vector<int64_t> ns_;
};

class Random : public Delays {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  std::optional<int64_t> Nanoseconds(uint32_t client, uint64_t k, int64_t) const override {
    CounterRandom random(MixSeeds(MixSeeds(seed_, client), k), kDelayStream);
    return std::max<int64_t>(1, ToNanoseconds(Seconds(client, random)));
  }

 private:
  virtual double Seconds(uint32_t client, CounterRandom& random) const = 0;
  const uint64_t seed_;
};

class Exponential final : public Random {
 public:
  Exponential(std::vector<double> mean, uint64_t seed) : Random(seed), mean_(std::move(mean)) {}
  std::optional<double> MeanIntervals(uint32_t client, double interval_s) const override { return 1 / -std::expm1(-interval_s / mean_[client]); }
  std::optional<double> MeanSeconds(uint32_t client) const override { return mean_[client]; }

 private:
  double Seconds(uint32_t client, CounterRandom& random) const override { return -mean_[client] * std::log1p(-random.Uniform()); }
  const std::vector<double> mean_;
};

class Uniform final : public Random {
 public:
  Uniform(std::vector<double> low, std::vector<double> high, uint64_t seed) : Random(seed), low_(std::move(low)), high_(std::move(high)) {}
  std::optional<double> MeanIntervals(uint32_t client, double interval_s) const override {
    const double low = low_[client], high = high_[client];
    return SumOfSurvival(interval_s, [&](double t) {
      return high == low ? (t < high ? 1.0 : 0.0) : std::clamp((high - t) / (high - low), 0.0, 1.0);
    });
  }
  std::optional<double> MeanSeconds(uint32_t client) const override { return 0.5 * (low_[client] + high_[client]); }

 private:
  double Seconds(uint32_t client, CounterRandom& random) const override {
    return low_[client] + (high_[client] - low_[client]) * random.Uniform();
  }
  const std::vector<double> low_, high_;
};

class HalfNormal final : public Random {
 public:
  HalfNormal(std::vector<double> sd, uint64_t seed) : Random(seed), sd_(std::move(sd)) {}
  std::optional<double> MeanIntervals(uint32_t client, double interval_s) const override {
    return SumOfSurvival(interval_s, [&](double t) { return std::erfc(t / (sd_[client] * std::sqrt(2.0))); });
  }
  std::optional<double> MeanSeconds(uint32_t client) const override { return sd_[client] * std::sqrt(2 / M_PI); }

 private:
  double Seconds(uint32_t client, CounterRandom& random) const override { return std::fabs(sd_[client] * random.Normal()); }
  const std::vector<double> sd_;
};

// Rows "client,start_s,seconds": a task issued at or after start_s, and before the client's next row, takes so long.
class FromFile final : public Delays {
 public:
  struct Row {
    int64_t start_ns = 0;
    int64_t ns = 0;
  };
  explicit FromFile(std::vector<std::vector<Row>> rows) : rows_(std::move(rows)) {}
  std::optional<int64_t> Nanoseconds(uint32_t client, uint64_t, int64_t now_ns) const override {
    const std::vector<Row>& rows = rows_[client];
    const auto after = std::upper_bound(rows.begin(), rows.end(), now_ns, [](int64_t now, const Row& row) { return now < row.start_ns; });
    if (after == rows.begin()) return rows.empty() ? std::nullopt : std::optional<int64_t>(rows[0].start_ns - now_ns + rows[0].ns);
    return std::prev(after)->ns;
  }
  std::optional<double> MeanIntervals(uint32_t, double) const override { return std::nullopt; }
  std::optional<double> MeanSeconds(uint32_t) const override { return std::nullopt; }

 private:
  const std::vector<std::vector<Row>> rows_;
};

absl::StatusOr<std::unique_ptr<Delays>> ReadDelayFile(const std::string& path, int64_t clients) {
  TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, size_t{1} << 30));
  std::vector<std::vector<FromFile::Row>> rows(static_cast<size_t>(clients));
  int64_t number = 0;
  for (const auto line : absl::StrSplit(text, '\n')) {
    ++number;
    const std::string stripped(absl::StripAsciiWhitespace(line));
    if (stripped.empty() || (number == 1 && stripped == "client,start_s,seconds")) continue;
    const std::vector<std::string> fields = absl::StrSplit(stripped, ',');
    int64_t client = 0;
    double start = 0, seconds = 0;
    if (fields.size() != 3 || !absl::SimpleAtoi(fields[0], &client) || client < 0 || client >= clients || !absl::SimpleAtod(fields[1], &start) ||
        !absl::SimpleAtod(fields[2], &seconds) || !(start >= 0 && start < 1e9) || !(seconds >= 0 && seconds < 1e9)) {
      return InvalidArgument("{}:{}: expected client,start_s,seconds with a client from 0 to {}, got '{}'", path, number, clients - 1, stripped);
    }
    rows[static_cast<size_t>(client)].push_back({ToNanoseconds(start), ToNanoseconds(seconds)});
  }
  for (auto& list : rows) std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.start_ns < b.start_ns; });
  return std::make_unique<FromFile>(std::move(rows));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Delays>> Delays::Make(const DelaySpec& spec, int64_t clients, uint64_t seed) {
  if (spec.kind == "zero" || !spec.events.empty()) return std::make_unique<Constant>(std::vector<double>(static_cast<size_t>(clients), 0.0));
  if (spec.kind == "fixed") {
    TRIB_ASSIGN_OR_RETURN(const std::vector<double> seconds, ForEachClient(spec.seconds, clients, "simulate.delay.seconds"));
    return std::make_unique<Constant>(seconds);
  }
  if (spec.kind == "linear_spread") {
    std::vector<double> seconds;
    for (int64_t i = 0; i < clients; ++i) {
      const double place = clients == 1 ? 0 : static_cast<double>(i) / static_cast<double>(clients - 1);
      seconds.push_back(spec.slowest * (1 - spec.spread * place));
    }
    return std::make_unique<Constant>(seconds);
  }
  if (spec.kind == "exponential") {
    TRIB_ASSIGN_OR_RETURN(std::vector<double> mean, ForEachClient(spec.mean, clients, "simulate.delay.mean"));
    return std::make_unique<Exponential>(std::move(mean), seed);
  }
  if (spec.kind == "uniform") {
    TRIB_ASSIGN_OR_RETURN(std::vector<double> low, ForEachClient(spec.low, clients, "simulate.delay.low"));
    TRIB_ASSIGN_OR_RETURN(std::vector<double> high, ForEachClient(spec.high, clients, "simulate.delay.high"));
    return std::make_unique<Uniform>(std::move(low), std::move(high), seed);
  }
  if (spec.kind == "half_normal") {
    TRIB_ASSIGN_OR_RETURN(std::vector<double> sd, ForEachClient(spec.sd, clients, "simulate.delay.sd"));
    return std::make_unique<HalfNormal>(std::move(sd), seed);
  }
  return ReadDelayFile(spec.file, clients);
}

absl::StatusOr<std::vector<TraceEvent>> ParseTraceEvents(const std::string& text, int64_t clients) {
  std::vector<TraceEvent> events;
  for (const auto word : absl::StrSplit(text, absl::ByAnyChar(" \t,"), absl::SkipEmpty())) {
    const std::string one(word);
    int64_t client = 0;
    if ((one[0] != 'D' && one[0] != 'U') || !absl::SimpleAtoi(one.substr(1), &client) || client < 0 || client >= clients) {
      return InvalidArgument("simulate.delay.events: expected D or U and a client from 0 to {}, got '{}'", clients - 1, one);
    }
    events.push_back({one[0] == 'D', static_cast<uint32_t>(client)});
  }
  if (events.empty()) return InvalidArgument("simulate.delay.events: expected events such as 'D0 U0', got none");
  return events;
}

}  // namespace tributary::simulate
