// Reads the data sources a job can name into Examples and hands out shards of them.
//
// Held-out examples (Split::kTest): fashion-mnist and idx have their own t10k files. For safetensors and csv they are the file
// `test.EXT` of the folder, or `NAME.test.EXT` beside the file `NAME.EXT`; where there is none, 10 % of the examples, drawn by
// data.seed (at least one), are held out of the training split.
// Class or number: a csv label column in which every value is written as an integer >= 0 holds classes, any other holds regression
// targets (write 3.0, not 3); in safetensors an integer y holds classes, a floating y targets.
// Threads: LoadData is safe from any thread; DataCache is too.
// Errors: NOT_FOUND (source, file), INVALID_ARGUMENT (content; names file and place), RESOURCE_EXHAUSTED (over 4 GiB of examples).
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/core/dataset.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

enum class Split { kTrain, kTest };

struct LoadedData {
  std::shared_ptr<const Examples> examples;
  // The examples of each file, in the files' name order; for partition by_file. Empty: the source has no files to divide by.
  std::vector<std::vector<uint32_t>> files;
};

// Everything of one split. NOT_FOUND for an unknown source, with the known ones.
absl::StatusOr<LoadedData> LoadData(const DataSpec& spec, Split split);

// Shards and test sets for the identities of one daemon. Each source is read once; all its shards share the examples.
class DataCache {
 public:
  // Shard `shard` of `shards` of the training split. by_file gives shard k the files k, k + shards, …; there must be at least one.
  // INVALID_ARGUMENT: shard outside [0, shards), and Partition's errors.
  absl::StatusOr<Dataset> ShardOf(const DataSpec& spec, int64_t shard, int64_t shards);
  // All held-out examples.
  absl::StatusOr<Dataset> TestSet(const DataSpec& spec);

 private:
  struct Divided {
    std::shared_ptr<const Examples> examples;
    std::vector<std::vector<uint32_t>> shards;
  };
  absl::StatusOr<LoadedData> Load(const DataSpec& spec, Split split) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;  // held while a file is read: a second identity waits for the same data instead of reading it again
  std::map<std::string, LoadedData> loaded_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Divided> divided_ ABSL_GUARDED_BY(mutex_);
};

struct DatasetEntry {
  const char* name;
  const char* help;
};
std::span<const DatasetEntry> DatasetSources();

}  // namespace tributary::client
