// Nothing of libc10_cuda or libtorch_cuda is linked, here or elsewhere: the same program runs with LibTorch for the CPU. Streams and the allocator are
// reached through the interfaces that libc10 has for all devices, which those libraries fill in when they are loaded.
#include "client/torch/device_graph.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#ifdef TRIBUTARY_CUDA
#include <c10/core/Allocator.h>
#include <c10/cuda/CUDACachingAllocator.h>  // and with it CUDA's runtime

#include <atomic>

#include "client/torch/device_stream.h"
#endif

namespace tributary::client {

StreamScope::StreamScope(c10::Device device, std::optional<c10::Stream>* stream) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  if (!*stream) *stream = guard.getStreamFromGlobalPool(device);
  const c10::Stream before = guard.getStream(device);
  guard.synchronizeStream(before);
  guard.exchangeStream(**stream);
  before_ = before;
}

StreamScope::~StreamScope() {
  if (!before_) return;
  const c10::impl::VirtualGuardImpl guard(before_->device_type());
  try {
    guard.synchronizeStream(guard.exchangeStream(*before_));
  } catch (const c10::Error&) {
    // An error of what ran in the scope: it comes up again at the next call, where somebody can be told.
  }
}

void WaitFor(c10::Device device) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

#ifdef TRIBUTARY_CUDA

namespace {

using c10::cuda::CUDACachingAllocator::CUDAAllocator;

CUDAAllocator* AllocatorOf(c10::Device device) { return static_cast<CUDAAllocator*>(c10::GetAllocator(device.type())); }

// LibTorch numbers its own pools from 1 upwards.
c10::MempoolId_t NextPoolId() {
  static std::atomic<uint64_t> next{uint64_t{1} << 62};
  return {next++, 0};
}

}  // namespace

struct GraphPool {
  c10::Device device;
  c10::MempoolId_t id = NextPoolId();
};

std::shared_ptr<GraphPool> MakeGraphPool(c10::Device device) { return std::make_shared<GraphPool>(GraphPool{device}); }

namespace {

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(std::shared_ptr<GraphPool> pool, const std::function<void()>& body) : pool_(std::move(pool)) {
    const c10::Device device = pool_->device;
    const c10::impl::VirtualGuardImpl guard(device.type());
    const c10::Stream stream = guard.getStream(device);
    stream_ = StreamOf(device);
    guard.synchronizeStream(stream);
    CUDAAllocator* const allocator = AllocatorOf(device);
    // Each beginAllocateToPool holds the pool until its releasePool.
    allocator->beginAllocateToPool(device.index(), pool_->id, [recorded = stream_](cudaStream_t other) { return other == recorded; });
    bool routed = true;
    cudaGraph_t graph = nullptr;
    try {
      // Other threads of this process go on with CUDA meanwhile: only this one's calls are watched.
      CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "CUDA graph: begin");
      body();
      CheckCuda(cudaStreamEndCapture(stream_, &graph), "CUDA graph: end");
      routed = false;
      allocator->endAllocateToPool(device.index(), pool_->id);
      CheckCuda(cudaGraphInstantiate(&executable_, graph, 0), "CUDA graph: instantiate");
      cudaGraphDestroy(graph);
    } catch (...) {
      cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
      if (cudaStreamIsCapturing(stream_, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) cudaStreamEndCapture(stream_, &graph);
      if (routed) allocator->endAllocateToPool(device.index(), pool_->id);
      if (graph != nullptr) cudaGraphDestroy(graph);
      static_cast<void>(cudaGetLastError());
      allocator->releasePool(device.index(), pool_->id);
      throw;
    }
  }
  ~CudaGraph() override {
    cudaGraphExecDestroy(executable_);
    try {
      AllocatorOf(pool_->device)->releasePool(pool_->device.index(), pool_->id);
    } catch (const c10::Error&) {
      // The memory stays with the pool.
    }
  }
  void Replay() override { CheckCuda(cudaGraphLaunch(executable_, stream_), "CUDA graph: launch"); }

 private:
  std::shared_ptr<GraphPool> pool_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

bool DeviceGraph::CanRecord(c10::Device device) { return device.is_cuda(); }

std::unique_ptr<DeviceGraph> DeviceGraph::Record(std::shared_ptr<GraphPool> pool, const std::function<void()>& body) {
  return std::make_unique<CudaGraph>(std::move(pool), body);
}

#else

struct GraphPool {};

std::shared_ptr<GraphPool> MakeGraphPool(c10::Device) { return nullptr; }

bool DeviceGraph::CanRecord(c10::Device) { return false; }

std::unique_ptr<DeviceGraph> DeviceGraph::Record(std::shared_ptr<GraphPool>, const std::function<void()>&) {
  TORCH_CHECK(false, "CUDA graphs: this build has no CUDA");
  return nullptr;
}

#endif

}  // namespace tributary::client
