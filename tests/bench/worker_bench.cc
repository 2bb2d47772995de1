// What pool + lane + worker process cost on top of the kernel: K updates of S MiB folded by W workers, against FoldBlock in this
// process over the same objects. Both read the same shared pages and write fp64 accumulators that exist already.
//   worker_bench WORKER_PROGRAM [K=8] [MIB=44] [ROUNDS=7]
//   worker_bench WORKER_PROGRAM t4|t4b|t11|t18|t19|recovery [RUNS=5] [MIB=42.72]     see hierarchy_bench.h
// Prints one line per arm: median milliseconds of ROUNDS and GB/s of update bytes. The process arm includes nothing but Fold() of
// K published objects until the last `folded`.
#include <absl/strings/numbers.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <vector>

#include "aggregator/store/object_pool.h"
#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/kernels.h"
#include "tests/bench/hierarchy_bench.h"

namespace {

using namespace tributary;
using namespace tributary::aggregator;

constexpr uint32_t kJob = 1;

void Die(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", MessageOf(status).c_str());
  std::exit(1);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<ObjectKey> PublishAll(ObjectPool& objects, int count, size_t bytes) {
  std::vector<ObjectKey> keys;
  for (int k = 0; k < count; ++k) {
    auto object = objects.Reserve(bytes);
    Die(object.status());
    auto* floats = reinterpret_cast<float*>(object->payload().data());
    for (size_t i = 0; i < bytes / 4; ++i) floats[i] = static_cast<float>((i + static_cast<size_t>(k)) % 1000) * 0.001f;
    object->header().weight = 1 + k;
    keys.push_back(objects.Publish(*std::move(object)));
  }
  return keys;
}

void Print(const char* arm, double ms, double bytes) { std::printf("%-22s %8.1f ms  %6.2f GB/s\n", arm, ms, bytes / ms / 1e6); }

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2 && !std::isdigit(static_cast<unsigned char>(argv[2][0]))) {
    HierarchyBench bench{.worker_program = argv[1]};
    const bool numbers = (argc <= 3 || absl::SimpleAtoi(argv[3], &bench.runs)) && (argc <= 4 || absl::SimpleAtod(argv[4], &bench.mib));
    const int result = numbers && bench.runs > 0 && bench.mib > 0 ? RunHierarchyBench(argv[2], bench) : 2;
    if (result == 2) std::fprintf(stderr, "worker_bench WORKER_PROGRAM t4|t4b|t11|t18|t19|recovery [RUNS] [MIB]\n");
    return result;
  }
  int updates = 8, mib = 44, rounds = 7;
  if (argc < 2 || (argc > 2 && !absl::SimpleAtoi(argv[2], &updates)) || (argc > 3 && !absl::SimpleAtoi(argv[3], &mib)) ||
      (argc > 4 && !absl::SimpleAtoi(argv[4], &rounds)) || updates < 1 || mib < 1 || rounds < 1) {
    std::fprintf(stderr, "worker_bench WORKER_PROGRAM [K] [MIB] [ROUNDS]\n");
    return 2;
  }
  const size_t elements = static_cast<size_t>(mib) << 18;
  const double bytes = static_cast<double>(elements) * 4 * updates;
  auto layout = TensorLayout::Create({{"w", {static_cast<int64_t>(elements)}, DType::kF32, TensorKind::kTrainable}});
  Die(layout.status());
  const ObjectPool::Options pool_options{.pool_id = 1,
                                         .slot_payload_bytes = layout->total_bytes(),
                                         .pool_bytes = static_cast<size_t>(updates) * SlotBytes(layout->total_bytes()),
                                         .domain = 0};
  {
    auto objects = ObjectPool::Create(pool_options);
    Die(objects.status());
    std::vector<UpdateView> views;
    for (const ObjectKey& key : PublishAll(**objects, updates, layout->total_bytes())) {
      views.push_back({(*objects)->Read(key)->data(), static_cast<double>(views.size() + 1)});
    }
    const auto reducer = MakeMeanReducer(DType::kF32, Arithmetic::kFloat64);
    std::vector<double> acc(elements);
    std::vector<double> times;
    for (int round = 0; round < rounds; ++round) {
      const absl::Time start = absl::Now();
      for (size_t first = 0; first < elements; first += kBlockElements) {
        const size_t count = std::min(kBlockElements, elements - first);
        if (!reducer->FoldBlock(reinterpret_cast<std::byte*>(acc.data() + first), first, count, views, true)) return 1;
      }
      times.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
    }
    Print("kernel, this process", Median(times), bytes);
  }
  for (const uint32_t workers : {1u, 2u}) {
    auto objects = ObjectPool::Create(pool_options);
    Die(objects.status());
    absl::Mutex mutex;
    int folded = 0;
    WorkerPool::Callbacks callbacks;
    callbacks.folded = [&](uint32_t, const UpdateId&) {
      absl::MutexLock lock(&mutex);
      ++folded;
    };
    callbacks.lost = [](uint32_t, const std::string& reason) { Die(Internal("lost: {}", reason)); };
    auto pool = WorkerPool::Start({.worker_program = argv[1], .workers = workers}, callbacks);
    Die(pool.status());
    Die((*pool)->OpenJob({.job = kJob, .strategy = "fedavg", .layout = *layout, .arithmetic = Arithmetic::kFloat64}, objects->get()));
    std::vector<double> times;
    for (int round = 0; round < rounds; ++round) {
      const std::vector<ObjectKey> keys = PublishAll(**objects, updates, layout->total_bytes());
      Die((*pool)->BeginRound(kJob, static_cast<uint32_t>(round + 1)));
      const absl::Time start = absl::Now();
      for (const ObjectKey& key : keys) Die((*pool)->Fold(kJob, RandomUpdateId(), key));
      {
        absl::MutexLock lock(&mutex);
        const auto all = [&] { return folded == updates; };
        mutex.Await(absl::Condition(&all));
        folded = 0;
      }
      times.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
    }
    pool->reset();
    Print(workers == 1 ? "pool+lane, 1 worker" : "pool+lane, 2 workers", Median(times), bytes);
  }
  return 0;
}
