// What a GPU does for a training step, recorded once and repeated without the processor (CUDA graphs). Built with CUDA only
// (TRIBUTARY_CUDA); elsewhere, and on the CPU, CanRecord() is false and steps are launched one operation at a time.
//
//   StreamScope scope(device);            // everything on a stream of our own: the default one cannot be recorded
//   body();                               // once as it is: libraries choose their algorithms and take their memory
//   auto graph = DeviceGraph::Record(device, pool, body);
//   graph->Replay();                      // reads and writes the memory that body did: inputs are copied into the same tensors before
//
// body must do the same operations each time, wait for nothing, draw no random numbers, and leave its results in tensors that existed before.
// Threads: a graph and its pool belong to one thread at a time. Errors: LibTorch's exceptions (Guarded()); CUDA's as c10::Error.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <functional>
#include <memory>
#include <optional>

namespace tributary::client {

// Makes a stream of LibTorch's pool the current one of `device` for this thread until the scope ends; nothing on the CPU. Work begun before on
// the stream that was current is waited for, and so is work of the scope when it ends.
class StreamScope {
 public:
  // The stream of an earlier scope, or one from the pool. Tensors made in one scope may be used in the next: their memory goes with the stream.
  StreamScope(c10::Device device, std::optional<c10::Stream>* stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  std::optional<c10::Stream> before_;
};

// Until everything that was begun on the device's current stream is done; nothing on the CPU.
void WaitFor(c10::Device device);

// Memory that graphs of one owner share, as they never run side by side. It is free again when the pool and all its graphs are gone.
struct GraphPool;
std::shared_ptr<GraphPool> MakeGraphPool(c10::Device device);

class DeviceGraph {
 public:
  static bool CanRecord(c10::Device device);
  static std::unique_ptr<DeviceGraph> Record(std::shared_ptr<GraphPool> pool, const std::function<void()>& body);
  virtual ~DeviceGraph() = default;
  virtual void Replay() = 0;
};

}  // namespace tributary::client
