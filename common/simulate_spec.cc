#include "common/simulate_spec.h"

#include <absl/strings/numbers.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "common/suggest.h"

namespace tributary {
namespace {

const std::vector<std::string> kParticipation = {"all", "fixed", "bernoulli", "markov", "cyclic", "trace"};
const std::vector<std::string> kDelays = {"zero", "fixed", "exponential", "uniform", "half_normal", "linear_spread", "trace"};
constexpr int64_t kMaxClients = 1'000'000;
constexpr int64_t kMaxPeriod = 1'000'000'000;
constexpr double kMaxSeconds = 1e9;

struct Range {
  std::string_view text;
  std::function<bool(double)> holds;
};

const Range kShare = {"in (0, 1]", [](double v) { return v > 0 && v <= 1; }};
const Range kSeconds = {"in (0, 1e9]", [](double v) { return v > 0 && v <= kMaxSeconds; }};
const Range kSecondsOrNone = {"in [0, 1e9]", [](double v) { return v >= 0 && v <= kMaxSeconds; }};
const Range kNotNegative = {">= 0", [](double v) { return v >= 0; }};

// One map; every kind-bound key is read by a function that refuses it with another kind.
class Block {
 public:
  Block(YamlReader map, std::string* kind, const std::vector<std::string>& kinds) : map_(std::move(map)), kind_(kind) {
    map_.String("kind", kind);
    if (map_.Has("kind") && std::find(kinds.begin(), kinds.end(), *kind) == kinds.end()) {
      map_.Fail("kind", fmt::format("expected one of {}, got '{}'{}", fmt::join(kinds, ", "), *kind, DidYouMean(*kind, kinds)));
    }
  }
  YamlReader& map() { return map_; }

  // Whether `key` is given; an error if it is with another kind than `kinds`, or is missing although required.
  bool Given(std::string_view key, const std::vector<std::string>& kinds, bool required) {
    const bool fits = std::find(kinds.begin(), kinds.end(), *kind_) != kinds.end();
    if (map_.Has(key) && !fits) map_.Fail(key, fmt::format("only for kind {}, not {}", fmt::join(kinds, ", "), *kind_));
    if (!map_.Has(key) && fits && required) map_.Fail("kind", fmt::format("kind {} needs {}", *kind_, key));
    return map_.Has(key);
  }

  void Numbers(std::string_view key, const std::vector<std::string>& kinds, bool required, const Range& range, std::vector<double>* out) {
    std::vector<std::string> texts;
    if (map_.IsScalar(key)) {
      map_.String(key, &texts.emplace_back());
    } else {
      map_.StringList(key, &texts);
    }
    if (!Given(key, kinds, required)) return;
    std::vector<double> values;
    for (const std::string& text : texts) {
      double value = 0;
      if (!absl::SimpleAtod(text, &value) || !std::isfinite(value) || !range.holds(value)) {
        map_.Fail(key, fmt::format("expected numbers {}, got '{}'", range.text, text));
        return;
      }
      values.push_back(value);
    }
    if (values.empty()) map_.Fail(key, "expected a number, or a list of one for each client, got an empty list");
    *out = std::move(values);
  }

  void Number(std::string_view key, const std::vector<std::string>& kinds, const Range& range, double* out) {
    map_.Double(key, out);
    if (Given(key, kinds, false) && !range.holds(*out)) map_.Fail(key, fmt::format("expected a number {}, got {}", range.text, *out));
  }

  void Whole(std::string_view key, const std::vector<std::string>& kinds, bool required, int64_t most, int64_t* out) {
    map_.Int(key, out);
    if (Given(key, kinds, required) && (*out < 1 || *out > most)) map_.Fail(key, fmt::format("expected 1 to {}, got {}", most, *out));
  }

 private:
  YamlReader map_;
  std::string* kind_;
};

void ReadParticipation(YamlReader map, ParticipationSpec* spec) {
  Block block(std::move(map), &spec->kind, kParticipation);
  block.Whole("size", {"fixed"}, true, kMaxClients, &spec->size);
  block.Numbers("p", {"bernoulli", "markov", "cyclic"}, true, kShare, &spec->p);
  block.Number("max_transition", {"markov"}, kShare, &spec->max_transition);
  block.Whole("period", {"cyclic"}, false, kMaxPeriod, &spec->period);
  block.map().IntLists("rounds", &spec->rounds);
  block.map().StringList("bits", &spec->bits);
  block.map().String("file", &spec->file);
  block.map().Bool("repeat", &spec->repeat);
  int sources = 0;
  for (const std::string_view key : {"rounds", "bits", "file"}) sources += block.Given(key, {"trace"}, false);
  block.Given("repeat", {"trace"}, false);
  if (spec->kind == "trace" && sources != 1) block.map().Fail("kind", fmt::format("trace needs exactly one of rounds, bits and file, got {}", sources));
  for (const std::vector<int64_t>& round : spec->rounds) {
    for (const int64_t client : round) {
      if (client < 0 || client >= kMaxClients) block.map().Fail("rounds", fmt::format("expected clients from 0, got {}", client));
    }
  }
  for (const std::string& text : spec->bits) {
    if (text.empty() || text.find_first_not_of("01") != std::string::npos) {
      block.map().Fail("bits", fmt::format("expected texts of 0 and 1, got '{}'", text));
    }
  }
}

void ReadDelay(YamlReader map, DelaySpec* spec) {
  Block block(std::move(map), &spec->kind, kDelays);
  block.Numbers("seconds", {"fixed"}, true, kSecondsOrNone, &spec->seconds);
  block.Numbers("mean", {"exponential"}, true, kSeconds, &spec->mean);
  block.Numbers("low", {"uniform"}, true, kSecondsOrNone, &spec->low);
  block.Numbers("high", {"uniform"}, true, kSeconds, &spec->high);
  block.Numbers("sd", {"half_normal"}, false, kSeconds, &spec->sd);
  block.Number("slowest", {"linear_spread"}, kSeconds, &spec->slowest);
  block.Number("spread", {"linear_spread"}, {"in [0, 1)", [](double v) { return v >= 0 && v < 1; }}, &spec->spread);
  block.map().String("file", &spec->file);
  block.map().String("events", &spec->events);
  int sources = 0;
  for (const std::string_view key : {"file", "events"}) sources += block.Given(key, {"trace"}, false);
  if (spec->kind == "trace" && sources != 1) block.map().Fail("kind", fmt::format("trace needs exactly one of file and events, got {}", sources));
  if (spec->kind == "half_normal" && spec->sd.empty()) spec->sd = {1.0};
  const size_t pairs = std::min(spec->low.size(), spec->high.size());
  for (size_t i = 0; i < std::max(spec->low.size(), spec->high.size()) && pairs > 0; ++i) {
    const double low = spec->low[spec->low.size() == 1 ? 0 : std::min(i, spec->low.size() - 1)];
    const double high = spec->high[spec->high.size() == 1 ? 0 : std::min(i, spec->high.size() - 1)];
    if (low > high) block.map().Fail("low", fmt::format("expected low <= high, got {} and {}", low, high));
  }
}

std::string ListOf(const std::vector<double>& values) {
  return values.size() == 1 ? fmt::format("{}", values[0]) : fmt::format("[{}]", fmt::join(values, ", "));
}

std::string QuotedText(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted.push_back('\\');
    quoted.push_back(c);
  }
  return quoted + "\"";
}

// "key: value" pairs as one flow map.
class Flow {
 public:
  void Add(std::string_view key, const std::string& value) { text_ += fmt::format("{}{}: {}", text_.empty() ? "" : ", ", key, value); }
  void Add(std::string_view key, const std::vector<double>& values) {
    if (!values.empty()) Add(key, ListOf(values));
  }
  std::string Done() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

std::string CanonicalParticipation(const ParticipationSpec& spec) {
  Flow flow;
  flow.Add("kind", spec.kind);
  if (spec.kind == "fixed") flow.Add("size", fmt::format("{}", spec.size));
  flow.Add("p", spec.p);
  if (spec.kind == "markov") flow.Add("max_transition", fmt::format("{}", spec.max_transition));
  if (spec.kind == "cyclic") flow.Add("period", fmt::format("{}", spec.period));
  if (!spec.rounds.empty()) {
    std::string rounds;
    for (const auto& round : spec.rounds) rounds += fmt::format("{}[{}]", rounds.empty() ? "" : ", ", fmt::join(round, ", "));
    flow.Add("rounds", "[" + rounds + "]");
  }
  if (!spec.bits.empty()) {
    std::string bits;
    for (const std::string& text : spec.bits) bits += (bits.empty() ? "" : ", ") + QuotedText(text);
    flow.Add("bits", "[" + bits + "]");
  }
  if (!spec.file.empty()) flow.Add("file", QuotedText(spec.file));
  if (spec.kind == "trace") flow.Add("repeat", spec.repeat ? "true" : "false");
  return flow.Done();
}

std::string CanonicalDelay(const DelaySpec& spec) {
  Flow flow;
  flow.Add("kind", spec.kind);
  flow.Add("seconds", spec.seconds);
  flow.Add("mean", spec.mean);
  flow.Add("low", spec.low);
  flow.Add("high", spec.high);
  flow.Add("sd", spec.sd);
  if (spec.kind == "linear_spread") {
    flow.Add("slowest", fmt::format("{}", spec.slowest));
    flow.Add("spread", fmt::format("{}", spec.spread));
  }
  if (!spec.file.empty()) flow.Add("file", QuotedText(spec.file));
  if (!spec.events.empty()) flow.Add("events", QuotedText(spec.events));
  return flow.Done();
}

}  // namespace

void ReadSimulate(YamlReader& top, std::string_view key, SimulateSpec* spec) {
  YamlReader map = top.Map(key);
  ReadParticipation(map.Map("participation"), &spec->participation);
  ReadDelay(map.Map("delay"), &spec->delay);
  map.Double("gradient_noise", &spec->gradient_noise);
  if (spec->gradient_noise < 0) map.Fail("gradient_noise", fmt::format("expected a number >= 0, got {}", spec->gradient_noise));
  YamlReader channel = map.Map("channel");
  channel.Double("uplink_var", &spec->channel.uplink_var);
  channel.Double("downlink_var", &spec->channel.downlink_var);
  channel.Double("snr_db", &spec->channel.snr_db);
  spec->channel.has_snr = channel.Has("snr_db");
  for (const std::string_view variance : {"uplink_var", "downlink_var"}) {
    const double value = variance == "uplink_var" ? spec->channel.uplink_var : spec->channel.downlink_var;
    if (!kNotNegative.holds(value)) channel.Fail(variance, fmt::format("expected a number {}, got {}", kNotNegative.text, value));
    if (channel.Has(variance) && spec->channel.has_snr) channel.Fail(variance, "give either variances or snr_db, not both");
  }
}

std::string CanonicalSimulate(const SimulateSpec& spec) {
  if (spec == SimulateSpec{}) return "{}";
  Flow flow;
  flow.Add("participation", CanonicalParticipation(spec.participation));
  flow.Add("delay", CanonicalDelay(spec.delay));
  flow.Add("gradient_noise", fmt::format("{}", spec.gradient_noise));
  if (spec.channel != ChannelSpec{}) {
    Flow channel;
    if (spec.channel.has_snr) {
      channel.Add("snr_db", fmt::format("{}", spec.channel.snr_db));
    } else {
      channel.Add("uplink_var", fmt::format("{}", spec.channel.uplink_var));
      channel.Add("downlink_var", fmt::format("{}", spec.channel.downlink_var));
    }
    flow.Add("channel", channel.Done());
  }
  return flow.Done();
}

}  // namespace tributary
