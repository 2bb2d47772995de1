// What the rigs of dataplane_rigs share: printing a measurement as one JSON line (dataplane_bench.py judges it), processor time, loopback
// sockets, an update's bytes as gRPC hands them to ingress, and one node of the product: pool, workers, one job.
// Errors: a rig cannot go on without its world; OrDie ends the process with the reason. Threads: as said at each piece.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <grpcpp/support/byte_buffer.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/reducer.h"
#include "aggregator/store/object_pool.h"
#include "common/check.h"
#include "common/unique_fd.h"

namespace tributary::bench {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  TRIB_CHECK(value.ok(), "{}", value.status().ToString());
  return *std::move(value);
}
inline void OrDie(const absl::Status& status) { TRIB_CHECK(status.ok(), "{}", status.ToString()); }

struct RigOptions {
  std::string worker_program;  // tributary-worker
  std::string self;            // this program, to run parts of itself elsewhere
  int runs = 5;
  bool quick = false;          // smaller: to see that a rig works, not to be quoted
};

// Elements of the update sizes of dataplane.md §13.
inline constexpr size_t kSmallModel = 11'200'000;  // S, 44.8 MB
inline constexpr size_t kLargeModel = 58'300'000;  // L, 233 MB

struct RunsOf {
  std::string arm;
  std::vector<double> runs = {};
};
// A line with both arms; dataplane_bench.py knows the threshold of (id, what). A line it has none for is for the record.
void PrintLine(const std::string& id, const std::string& what, const std::string& metric, const RunsOf* baseline, const RunsOf& ours,
               nlohmann::json more = nlohmann::json::object());
// For the runner: why this id was not measured here.
void PrintSkipped(const std::string& id, const std::string& reason);

double MonotonicSeconds();
double CpuSeconds();            // of this process, all threads
double CpuSecondsOf(pid_t pid); // of another one's main thread

// Both ends of a loopback TCP connection.
struct TcpPair {
  UniqueFd client, server;
  static TcpPair Make();
};
// A listener on 127.0.0.1 (or `address`), port 0: any.
UniqueFd Listen(const std::string& address, uint16_t port, uint16_t* bound);
UniqueFd ConnectTo(const std::string& address, uint16_t port, absl::Duration patience);
void SendAll(int fd, std::span<const std::byte> bytes);
// False: the other end has closed before the first byte.
bool ReceiveAll(int fd, std::span<std::byte> out);

// Bytes of an update of `elements` floats.
std::vector<std::byte> MakePayload(size_t elements);
// The payload as chunks of 256 KiB, each as gRPC gives it to ingress; refers to `payload`.
std::vector<grpc::ByteBuffer> AsChunks(std::span<const std::byte> payload);
// Ingress's decode pass: each chunk parsed, copied to its place, CRC32C checked in the same pass. `digest_and_scan`: and the rest of what an
// upload goes through: XXH3-128, CRCs combined, floats scanned (upload_table.cc).
void CopyIn(std::span<const grpc::ByteBuffer> chunks, std::span<std::byte> destination, bool digest_and_scan = false);

// What a worker does with an update that came by socket: the product's kernel over accumulators that exist already. One thread.
class LocalSums {
 public:
  explicit LocalSums(size_t elements);
  void Fold(const std::byte* update);

 private:
  std::vector<double> acc_;
  std::unique_ptr<aggregator::Reducer> reducer_;
  bool fresh_ = true;
};

// One node: object pool, worker processes, one job. Threads: methods are safe from any thread, except BeginRound and WaitFolded (one).
class RigNode {
 public:
  struct Options {
    std::string worker_program;
    uint32_t workers = 1;
    size_t elements = 0;
    size_t slots = 0;
    aggregator::PoolHierarchy hierarchy = {};
  };
  explicit RigNode(const Options& options);
  ~RigNode();

  // Waits for a slot.
  aggregator::WritableObject Reserve();
  // Publishes with weight 1 and queues for folding.
  void Fold(aggregator::WritableObject object);
  aggregator::ObjectKey Publish(aggregator::WritableObject object);
  void Fold(const aggregator::ObjectKey& key);
  void BeginRound(int updates);
  void WaitFolded(int updates);
  void ReadSums();
  int folded();

  std::vector<pid_t> WorkerPids() const;
  double WorkerCpuSeconds() const;
  aggregator::ObjectPool& objects() { return *objects_; }
  const TensorLayout& layout() const { return layout_; }

 private:
  static constexpr uint32_t kJob = 1;
  const Options options_;
  TensorLayout layout_;
  std::unique_ptr<aggregator::ObjectPool> objects_;
  absl::Mutex mutex_;
  int folded_ = 0;  // under mutex_
  uint32_t round_ = 0;
  std::unique_ptr<aggregator::WorkerPool> pool_;
};

// ---- the rigs; each prints its lines ----
void RunT2(const RigOptions& options);    // T2 and T2b
void RunT3(const RigOptions& options);
void RunT3b(const RigOptions& options);
void RunT5(const RigOptions& options);
void RunT17(const RigOptions& options);
void RunT20(const RigOptions& options);
// The part of T20 that runs in a network namespace of its own: `server|client ARM ADDRESS FILE`.
int RunT20Part(const std::vector<std::string>& args);

}  // namespace tributary::bench
