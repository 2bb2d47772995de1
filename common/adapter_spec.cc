#include "common/adapter_spec.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "common/yaml_section.h"

namespace tributary {
namespace {

constexpr int64_t kMaxRank = 4096;
constexpr int64_t kMaxVersions = 1'000'000'000;
constexpr int64_t kAdaLoraRank = 12;  // PEFT's init_r

// A list of ranks, or one.
void ReadRank(YamlReader& map, AdapterSpec* spec) {
  const auto in_range = [](int64_t rank) { return rank >= 1 && rank <= kMaxRank; };
  if (!map.Has("rank") || map.IsScalar("rank")) {
    map.Int("rank", &spec->rank);
    if (!in_range(spec->rank)) map.Fail("rank", fmt::format("expected 1 to {}, got {}", kMaxRank, spec->rank));
    return;
  }
  std::vector<std::string> texts;
  map.StringList("rank", &texts);
  for (const std::string& text : texts) {
    int64_t rank = 0;
    if (!absl::SimpleAtoi(text, &rank) || !in_range(rank)) map.Fail("rank", fmt::format("expected integers from 1 to {}, got '{}'", kMaxRank, text));
    spec->client_ranks.push_back(rank);
  }
  if (texts.empty()) map.Fail("rank", "expected a rank, or a list of one for each client, got an empty list");
  if (!texts.empty()) spec->rank = *std::max_element(spec->client_ranks.begin(), spec->client_ranks.end());
}

void ReadAdaLora(YamlSection& map, const AdapterSpec& adapter, AdaLoraSpec* spec) {
  const auto in_unit = [](double v) { return v > 0 && v < 1; };
  map.Int("target_rank", &spec->target_rank, 1, kMaxRank);
  if (spec->target_rank > adapter.rank) map.Fail("target_rank", fmt::format("expected at most rank = {}, got {}", adapter.rank, spec->target_rank));
  map.Int("init_versions", &spec->init_versions, 0, kMaxVersions);
  map.Int("final_versions", &spec->final_versions, 0, kMaxVersions);
  map.Int("interval", &spec->interval, 1, kMaxVersions);
  map.reader().Bool("regrow", &spec->regrow);
  map.Double("beta1", &spec->beta1, "in (0, 1)", in_unit);
  map.Double("beta2", &spec->beta2, "in (0, 1)", in_unit);
  map.Double("orthogonal", &spec->orthogonal, "in [0, 1e6]", [](double v) { return v >= 0 && v <= 1e6; });
}

}  // namespace

double AdapterSpec::Scale() const {
  const auto r = static_cast<double>(rank);
  if (triplets()) return alpha / (r + 1e-5);
  return alpha / (rank_stabilised ? std::sqrt(r) : r);
}

absl::StatusOr<int64_t> AdapterSpec::RankOf(int64_t client) const {
  if (client_ranks.empty()) return rank;
  const auto index = static_cast<size_t>(client);
  if (index >= client_ranks.size()) return InvalidArgument("model.adapter: rank has {} values, client {} has none", client_ranks.size(), client);
  return client_ranks[index];
}

void ReadAdapter(YamlReader& top, std::string_view key, AdapterSpec* spec) {
  bool present = false;
  YamlReader map = top.Map(key, &present);
  if (!present) return;
  YamlSection section(map);
  spec->kind = "lora";
  section.Choice("kind", &spec->kind, {"lora", "adalora"});
  if (spec->triplets()) spec->rank = kAdaLoraRank;
  ReadRank(map, spec);
  map.Double("alpha", &spec->alpha);
  if (!(spec->alpha > 0 && spec->alpha <= 1e6)) map.Fail("alpha", fmt::format("expected a number in (0, 1e6], got {}", spec->alpha));
  map.StringList("targets", &spec->targets, YamlReader::kRequired);
  if (map.Has("targets") && spec->targets.empty()) map.Fail("targets", "expected names of linear layers, got an empty list");
  for (const std::string& target : spec->targets) {
    const bool plain = std::all_of(target.begin(), target.end(), [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-'; });
    if (target.empty() || !plain) map.Fail("targets", fmt::format("expected names of linear layers, got '{}'", target));
  }
  map.Double("dropout", &spec->dropout);
  if (!(spec->dropout >= 0 && spec->dropout < 1)) map.Fail("dropout", fmt::format("expected a number in [0, 1), got {}", spec->dropout));
  if (spec->triplets()) {
    ReadAdaLora(section, *spec, &spec->adalora);
  } else {
    map.Bool("rank_stabilised", &spec->rank_stabilised);
  }
}

std::string CanonicalAdapter(const AdapterSpec& spec) {
  std::string targets;
  for (const std::string& target : spec.targets) targets += (targets.empty() ? "\"" : ", \"") + target + "\"";
  const std::string rank = spec.client_ranks.empty() ? fmt::format("{}", spec.rank) : fmt::format("[{}]", fmt::join(spec.client_ranks, ", "));
  const std::string common = fmt::format("kind: {}, rank: {}, alpha: {}, targets: [{}], dropout: {}", spec.kind, rank, spec.alpha, targets, spec.dropout);
  if (!spec.triplets()) return fmt::format("{{{}, rank_stabilised: {}}}", common, spec.rank_stabilised);
  const AdaLoraSpec& own = spec.adalora;
  return fmt::format("{{{}, target_rank: {}, init_versions: {}, final_versions: {}, interval: {}, regrow: {}, beta1: {}, beta2: {}, orthogonal: {}}}", common, own.target_rank,
                     own.init_versions, own.final_versions, own.interval, own.regrow, own.beta1, own.beta2, own.orthogonal);
}

}  // namespace tributary
