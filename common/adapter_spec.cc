#include "common/adapter_spec.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

namespace tributary {
namespace {

constexpr int64_t kMaxRank = 4096;

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

}  // namespace

double AdapterSpec::Scale() const {
  const auto r = static_cast<double>(rank);
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
  spec->kind = "lora";
  map.String("kind", &spec->kind);
  if (spec->kind != "lora") map.Fail("kind", fmt::format("expected lora, got '{}'", spec->kind));
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
  map.Bool("rank_stabilised", &spec->rank_stabilised);
}

std::string CanonicalAdapter(const AdapterSpec& spec) {
  std::string targets;
  for (const std::string& target : spec.targets) targets += (targets.empty() ? "\"" : ", \"") + target + "\"";
  const std::string rank = spec.client_ranks.empty() ? fmt::format("{}", spec.rank) : fmt::format("[{}]", fmt::join(spec.client_ranks, ", "));
  return fmt::format("{{kind: {}, rank: {}, alpha: {}, targets: [{}], dropout: {}, rank_stabilised: {}}}", spec.kind, rank, spec.alpha, targets,
                     spec.dropout, spec.rank_stabilised);
}

}  // namespace tributary
