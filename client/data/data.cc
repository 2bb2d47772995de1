#include "client/data/data.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <system_error>
#include <utility>

#include "client/core/random.h"
#include "client/data/loaders.h"
#include "common/suggest.h"

namespace tributary::client {

#define TRIB_DATASET(name, loader, help) absl::StatusOr<LoadedData> loader(const DataSpec&, Split);
#include "client/data/datasets.def"
#undef TRIB_DATASET

namespace {

constexpr DatasetEntry kEntries[] = {
#define TRIB_DATASET(name, loader, help) {name, help},
#include "client/data/datasets.def"
#undef TRIB_DATASET
};

constexpr DatasetLoader kLoaders[] = {
#define TRIB_DATASET(name, loader, help) loader,
#include "client/data/datasets.def"
#undef TRIB_DATASET
};

constexpr uint64_t kHoldOutStream = 0x686f6c64;  // apart from the streams of Partition, which uses the same seed

std::string KeyOf(const DataSpec& spec, Split split) {
  return fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}", spec.source, spec.path, spec.label, spec.window, spec.tokenizer, spec.tokenizer_sha256, spec.seed,
                     split == Split::kTrain ? "train" : "test");
}

// Rows `chosen` of `all`.
Examples TakeRows(const Examples& all, const std::vector<uint32_t>& chosen) {
  Examples part;
  part.example_shape = all.example_shape;
  const size_t elements = all.example_elements();
  part.x.reserve(chosen.size() * elements);
  for (uint32_t row : chosen) {
    const auto begin = all.x.begin() + static_cast<std::ptrdiff_t>(row * elements);
    part.x.insert(part.x.end(), begin, begin + static_cast<std::ptrdiff_t>(elements));
    if (!all.labels.empty()) part.labels.push_back(all.labels[row]);
    if (!all.targets.empty()) part.targets.push_back(all.targets[row]);
  }
  return part;
}

}  // namespace

std::span<const DatasetEntry> DatasetSources() { return kEntries; }

absl::StatusOr<LoadedData> LoadData(const DataSpec& spec, Split split) {
  std::vector<std::string> names;
  for (size_t i = 0; i < std::size(kEntries); ++i) {
    names.emplace_back(kEntries[i].name);
    if (names.back() == spec.source) return kLoaders[i](spec, split);
  }
  return NotFound("no data source '{}'{}; there are: {}", spec.source, DidYouMean(spec.source, names), fmt::format("{}", fmt::join(names, ", ")));
}

absl::StatusOr<SourceFiles> FindFiles(const DataSpec& spec, Split split, const std::string& extension) {
  namespace fs = std::filesystem;
  if (spec.path.empty()) return InvalidArgument("data source '{}' needs data.path: a {} file or a folder of them", spec.source, extension);
  const fs::path path = spec.path;
  std::error_code error;
  fs::path test;
  SourceFiles found;
  if (fs::is_directory(path, error)) {
    test = path / ("test" + extension);
    for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
      if (at->path().extension() == extension && at->path() != test) found.files.push_back(at->path());
    }
    if (error) return ErrnoStatus(error.value(), "list folder " + path.string());
    std::sort(found.files.begin(), found.files.end());
    if (found.files.empty()) return NotFound("data folder '{}' has no {} files", path.string(), extension);
  } else if (fs::exists(path, error)) {
    test = path.parent_path() / (path.stem().string() + ".test" + extension);
    found.files.push_back(path);
  } else {
    return NotFound("data.path '{}': no such file or folder", path.string());
  }
  found.hold_out = !fs::exists(test, error);
  if (split == Split::kTest && !found.hold_out) found.files = {test};
  return found;
}

absl::Status AppendExamples(const std::string& origin, Examples part, Examples& all, std::vector<std::vector<uint32_t>>& files) {
  const size_t before = all.count();
  if (part.count() == 0) return InvalidArgument("{}: no examples", origin);
  if (before > 0) {
    if (part.example_shape != all.example_shape) {
      return InvalidArgument("{}: examples of shape [{}], the files before it have [{}]", origin,
                             fmt::format("{}", fmt::join(part.example_shape, ", ")), fmt::format("{}", fmt::join(all.example_shape, ", ")));
    }
    if (part.labels.empty() != all.labels.empty()) {
      return InvalidArgument("{}: has {}, the files before it have {}", origin, part.labels.empty() ? "regression targets" : "classes",
                             part.labels.empty() ? "classes" : "regression targets");
    }
  }
  const size_t total = before + part.count();
  if (total > std::numeric_limits<uint32_t>::max() || (all.x.size() + part.x.size()) * sizeof(float) > kMaxDataBytes) {
    return ResourceExhausted("{}: {} examples of {} values so far, over the limit of {} bytes", origin, total, part.example_elements(),
                             kMaxDataBytes);
  }
  std::vector<uint32_t>& rows = files.emplace_back(part.count());
  std::iota(rows.begin(), rows.end(), static_cast<uint32_t>(before));
  if (before == 0) {
    all = std::move(part);
    return absl::OkStatus();
  }
  all.x.insert(all.x.end(), part.x.begin(), part.x.end());
  all.labels.insert(all.labels.end(), part.labels.begin(), part.labels.end());
  all.targets.insert(all.targets.end(), part.targets.begin(), part.targets.end());
  return absl::OkStatus();
}

absl::StatusOr<LoadedData> FinishLoad(const DataSpec& spec, Split split, bool hold_out, Examples all,
                                      std::vector<std::vector<uint32_t>> files) {
  int64_t classes = 0;
  for (int64_t label : all.labels) classes = std::max(classes, label + 1);
  if (hold_out) {
    const size_t count = all.count();
    if (count < 2) return InvalidArgument("data '{}': {} examples, at least 2 are needed to hold one out for testing", spec.path, count);
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0U);
    CounterRandom(static_cast<uint64_t>(spec.seed), kHoldOutStream).Shuffle(order);
    order.resize(std::max<size_t>(1, count / 10));
    std::vector<bool> held(count, false);
    for (uint32_t row : order) held[row] = true;
    // Each file keeps its own rows, renumbered; a file may lose all of them if it is tiny.
    std::vector<uint32_t> chosen;
    for (auto& rows : files) {
      std::vector<uint32_t> kept;
      for (uint32_t row : rows) {
        if (held[row] != (split == Split::kTest)) continue;
        kept.push_back(static_cast<uint32_t>(chosen.size()));
        chosen.push_back(row);
      }
      rows = std::move(kept);
    }
    all = TakeRows(all, chosen);
  }
  all.classes = classes;
  return LoadedData{std::make_shared<const Examples>(std::move(all)), std::move(files)};
}

absl::StatusOr<LoadedData> DataCache::Load(const DataSpec& spec, Split split) {
  const std::string key = KeyOf(spec, split);
  const auto at = loaded_.find(key);
  if (at != loaded_.end()) return at->second;
  TRIB_ASSIGN_OR_RETURN(LoadedData data, LoadData(spec, split));
  loaded_[key] = data;
  return data;
}

absl::StatusOr<Dataset> DataCache::ShardOf(const DataSpec& spec, int64_t shard, int64_t shards) {
  if (shard < 0 || shard >= shards) return InvalidArgument("data: expected a shard from 0 to {}, got {}", shards - 1, shard);
  const absl::MutexLock lock(&mutex_);
  const PartitionSpec& partition = spec.partition;
  const std::string key = fmt::format("{}\n{}\n{:a}\n{}\n{}", KeyOf(spec, Split::kTrain), partition.kind, partition.alpha,
                                      partition.shards_per_client, shards);
  auto at = divided_.find(key);
  if (at == divided_.end()) {
    TRIB_ASSIGN_OR_RETURN(const LoadedData data, Load(spec, Split::kTrain));
    Divided divided;
    divided.examples = data.examples;
    if (partition.kind == "by_file" && !data.files.empty()) {
      if (data.files.size() < static_cast<size_t>(shards)) {
        return InvalidArgument("partition 'by_file': '{}' has {} files for {} clients", spec.path, data.files.size(), shards);
      }
      divided.shards.resize(static_cast<size_t>(shards));
      for (size_t f = 0; f < data.files.size(); ++f) {
        auto& rows = divided.shards[f % static_cast<size_t>(shards)];
        rows.insert(rows.end(), data.files[f].begin(), data.files[f].end());
      }
    } else {
      TRIB_ASSIGN_OR_RETURN(divided.shards, Partition(partition, data.examples->labels, data.examples->count(), shards, spec.seed));
    }
    at = divided_.emplace(key, std::move(divided)).first;
  }
  return Dataset{at->second.examples, at->second.shards[static_cast<size_t>(shard)]};
}

absl::StatusOr<Dataset> DataCache::TestSet(const DataSpec& spec) {
  const absl::MutexLock lock(&mutex_);
  TRIB_ASSIGN_OR_RETURN(const LoadedData data, Load(spec, Split::kTest));
  Dataset set;
  set.all = data.examples;
  set.indices.resize(data.examples->count());
  std::iota(set.indices.begin(), set.indices.end(), 0U);
  return set;
}

}  // namespace tributary::client
