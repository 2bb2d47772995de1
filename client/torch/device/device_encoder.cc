#include "client/torch/device/device_encoder.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "client/cuda/cuda_status.h"
#include "client/cuda/device_memory.h"
#include "client/cuda/fold.h"
#include "client/cuda/privatise.h"

namespace tributary::client {
namespace {

constexpr size_t kPartTiles = 2048;  // 4 MiB of Δ: copies at full speed, and a short first wait
constexpr size_t kSlotBytes = kPartTiles * kCodeTile * sizeof(float);
constexpr size_t kSlots = 2;
constexpr size_t kPieceBytes = size_t{1} << 20;  // of sums

CodeFormat FormatOf(Codec codec) {
  switch (codec) {
    case Codec::kBf16:
      return CodeFormat::kBf16;
    case Codec::kInt8:
      return CodeFormat::kInt8;
    case Codec::kInt4:
      return CodeFormat::kInt4;
    default:
      return CodeFormat::kF32;
  }
}

// A stream and the buffers that bring codes to the host; two updates have one each at a time.
struct Workspace {
  struct DestroyStream {
    void operator()(CUstream_st* stream) const { cudaStreamDestroy(stream); }
  };
  struct DestroyEvent {
    void operator()(CUevent_st* event) const { cudaEventDestroy(event); }
  };
  int device = 0;
  std::unique_ptr<CUstream_st, DestroyStream> stream;
  std::array<PinnedArray<std::byte>, kSlots> slots;
  std::array<std::unique_ptr<CUevent_st, DestroyEvent>, kSlots> copied;
  PinnedArray<double> sum;
  PinnedArray<uint32_t> failed;
  DeviceArray<double> sums;    // of Fold; or integers of the same size
  size_t sums_elements = 0;

  static absl::StatusOr<std::unique_ptr<Workspace>> Make(int device) {
    auto made = std::make_unique<Workspace>();
    made->device = device;
    cudaStream_t stream = nullptr;
    TRIB_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream for updates");
    made->stream.reset(stream);
    for (size_t s = 0; s < kSlots; ++s) {
      TRIB_ASSIGN_OR_RETURN(made->slots[s], MakePinnedArray<std::byte>(kSlotBytes));
      cudaEvent_t event = nullptr;
      TRIB_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "an event for updates");
      made->copied[s].reset(event);
    }
    TRIB_ASSIGN_OR_RETURN(made->sum, MakePinnedArray<double>(1));
    TRIB_ASSIGN_OR_RETURN(made->failed, MakePinnedArray<uint32_t>(1));
    return made;
  }
};

// Workspaces that nobody uses now. There are never more than threads that store updates at one time.
class Workspaces {
 public:
  absl::StatusOr<std::unique_ptr<Workspace>> Take(int device) {
    {
      absl::MutexLock lock(&mutex_);
      for (auto at = free_.begin(); at != free_.end(); ++at) {
        if ((*at)->device != device) continue;
        std::unique_ptr<Workspace> taken = std::move(*at);
        free_.erase(at);
        return taken;
      }
    }
    return Workspace::Make(device);
  }
  void Give(std::unique_ptr<Workspace> workspace) {
    absl::MutexLock lock(&mutex_);
    free_.push_back(std::move(workspace));
  }
  // Never destroyed: CUDA may be gone by then.
  static Workspaces& All() {
    static auto* const all = new Workspaces;
    return *all;
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_ ABSL_GUARDED_BY(mutex_);
};

// Memory for one update, ordered on its stream.
class StreamMemory {
 public:
  static absl::StatusOr<StreamMemory> Make(size_t bytes, cudaStream_t stream) {
    StreamMemory memory;
    memory.stream_ = stream;
    TRIB_RETURN_IF_CUDA_ERROR(cudaMallocAsync(&memory.at_, std::max<size_t>(1, bytes), stream), "{} bytes of device memory for an update", bytes);
    return memory;
  }
  StreamMemory(StreamMemory&& other) noexcept : at_(std::exchange(other.at_, nullptr)), stream_(other.stream_) {}
  StreamMemory& operator=(StreamMemory&&) = delete;
  ~StreamMemory() {
    if (at_ != nullptr) cudaFreeAsync(at_, stream_);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(at_);
  }

 private:
  StreamMemory() = default;
  void* at_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

// Bytes [first, last) of the result, and the tiles that are encoded before they are copied.
struct Part {
  size_t first = 0, last = 0;
  size_t first_tile = 0, tiles = 0;
};

class UpdateOnDevice final : public DeviceUpdate {
 public:
  UpdateOnDevice(int device, std::shared_ptr<const void> holder, const float* delta, size_t elements, LargeBytes rest, double max_abs)
      : device_(device), holder_(std::move(holder)), delta_(delta), elements_(elements), rest_(std::move(rest)), max_abs_(max_abs) {}

  size_t flat_bytes() const override { return elements_ * sizeof(float) + rest_.size(); }
  double max_abs() const override { return max_abs_; }

  absl::StatusOr<double> Encode(const UpdatePlan& plan, const Sink& sink) override {
    const PipelineOptions& options = plan.options;
    const UpdateEncoding& encoding = options.encoding;
    if (!DeviceEncodes(encoding) || encoding.trainable != elements_) {
      return Internal("an update of {} elements on the device, its encoding is for {} and not made there", elements_, encoding.trainable);
    }
    TRIB_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_), "device {}", device_);
    TRIB_ASSIGN_OR_RETURN(std::unique_ptr<Workspace> workspace, Workspaces::All().Take(device_));
    absl::StatusOr<double> norm = EncodeWith(*workspace, plan, sink);
    // Nothing of this update may still be under way in buffers that the next one gets.
    TRIB_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(workspace->stream.get()), "the end of an update");
    Workspaces::All().Give(std::move(workspace));
    return norm;
  }

  absl::StatusOr<bool> Fold(std::span<const DeviceTerm> terms, bool first, std::span<double> sums) override { return FoldInto(terms, first, sums, LaunchFold); }
  absl::StatusOr<bool> FoldFixed(std::span<const DeviceTerm> terms, bool first, std::span<int64_t> sums) override {
    return FoldInto(terms, first, sums, LaunchFoldFixed);
  }

 private:
  template <typename Sum>
  absl::StatusOr<bool> FoldInto(std::span<const DeviceTerm> terms, bool first, std::span<Sum> sums, cudaError_t (*launch)(const FoldWork&, Sum*, cudaStream_t)) const {
    static_assert(sizeof(Sum) == sizeof(double));
    std::vector<FoldTerm> folded;
    for (const DeviceTerm& term : terms) {
      const auto* const update = dynamic_cast<const UpdateOnDevice*>(term.update);
      if (update == nullptr || update->device_ != device_) return InvalidArgument("updates to be folded are not all on device {}", device_);
      if (update->elements_ != sums.size() || !update->rest_.empty()) {
        return InvalidArgument("an update to be folded has {} elements and {} further bytes: expected {} and none", update->elements_, update->rest_.size(), sums.size());
      }
      folded.push_back({.delta = update->delta_, .weight = term.weight});
    }
    TRIB_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_), "device {}", device_);
    TRIB_ASSIGN_OR_RETURN(std::unique_ptr<Workspace> workspace, Workspaces::All().Take(device_));
    const absl::StatusOr<bool> ok = FoldWith(*workspace, folded, first, sums, launch);
    TRIB_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(workspace->stream.get()), "the end of a sum of updates");
    Workspaces::All().Give(std::move(workspace));
    return ok;
  }

  // Through the pinned buffers in turn, to memory that is not pinned: while one piece is moved on, the next comes. Then the stream is idle.
  static absl::Status ToHost(Workspace& workspace, const std::byte* from, std::span<std::byte> to) {
    cudaStream_t const stream = workspace.stream.get();
    for (size_t piece = 0, at = 0; at < to.size() + kPieceBytes; ++piece, at += kPieceBytes) {
      if (at < to.size()) {
        const size_t slot = piece % kSlots, count = std::min(kPieceBytes, to.size() - at);
        TRIB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(workspace.slots[slot].get(), from + at, count, cudaMemcpyDeviceToHost, stream), "sums of updates");
        TRIB_RETURN_IF_CUDA_ERROR(cudaEventRecord(workspace.copied[slot].get(), stream), "sums of updates");
      }
      if (piece == 0) continue;
      const size_t before = at - kPieceBytes, slot = (piece - 1) % kSlots;
      TRIB_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(workspace.copied[slot].get()), "sums of updates");
      std::memcpy(to.data() + before, workspace.slots[slot].get(), std::min(kPieceBytes, to.size() - before));
    }
    return absl::OkStatus();
  }

  template <typename Sum>
  static absl::StatusOr<bool> FoldWith(Workspace& workspace, std::span<const FoldTerm> terms, bool first, std::span<Sum> sums,
                                       cudaError_t (*launch)(const FoldWork&, Sum*, cudaStream_t)) {
    cudaStream_t const stream = workspace.stream.get();
    if (workspace.sums_elements < sums.size()) {
      workspace.sums_elements = 0;
      TRIB_ASSIGN_OR_RETURN(workspace.sums, MakeDeviceArray<double>(sums.size()));
      workspace.sums_elements = sums.size();
    }
    auto* const on_device = reinterpret_cast<Sum*>(workspace.sums.get());
    if (!first) TRIB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(on_device, sums.data(), sums.size_bytes(), cudaMemcpyHostToDevice, stream), "sums of updates");
    TRIB_ASSIGN_OR_RETURN(const StreamMemory failed, StreamMemory::Make(sizeof(uint32_t), stream));
    TRIB_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(failed.as<uint32_t>(), 0, sizeof(uint32_t), stream), "a sum of updates");
    for (size_t done = 0; done < terms.size(); done += kMaxFoldTerms) {
      const FoldWork work{.terms = terms.subspan(done, std::min(kMaxFoldTerms, terms.size() - done)), .elements = sums.size(), .first = first && done == 0,
                          .failed = failed.as<uint32_t>()};
      TRIB_RETURN_IF_CUDA_ERROR(launch(work, on_device, stream), "a sum of {} updates", terms.size());
    }
    TRIB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(workspace.failed.get(), failed.as<uint32_t>(), sizeof(uint32_t), cudaMemcpyDeviceToHost, stream), "a sum of updates");
    TRIB_RETURN_IF_ERROR(ToHost(workspace, reinterpret_cast<const std::byte*>(on_device), std::as_writable_bytes(sums)));
    return workspace.failed[0] == 0;
  }

  absl::StatusOr<double> EncodeWith(Workspace& workspace, const UpdatePlan& plan, const Sink& sink) const {
    const PipelineOptions& options = plan.options;
    const UpdateEncoding& encoding = options.encoding;
    cudaStream_t const stream = workspace.stream.get();
    PrivatiseWork work{.fresh = delta_, .loaded = nullptr, .elements = elements_, .clip = options.clip};
    work.format = FormatOf(encoding.codec);
    work.rounding = options.rounding;
    if (options.noise_stddev > 0) {
      work.noise = plan.noise_key ? NoiseWords::kChaCha20 : NoiseWords::kPhilox;
      work.noise_stddev = options.noise_stddev;
      work.noise_stream = plan.noise_stream;
      if (plan.noise_key) std::memcpy(work.noise_key, plan.noise_key->data(), plan.noise_key->size());
    }
    TRIB_ASSIGN_OR_RETURN(const StreamMemory out, StreamMemory::Make(CodeBytes(work.format, elements_), stream));
    TRIB_ASSIGN_OR_RETURN(const StreamMemory scratch, StreamMemory::Make(ScratchDoubles(elements_) * sizeof(double), stream));
    TRIB_ASSIGN_OR_RETURN(const StreamMemory failed, StreamMemory::Make(sizeof(uint32_t), stream));
    work.out = out.as<std::byte>();
    work.scratch = scratch.as<double>();
    work.failed = failed.as<uint32_t>();
    TRIB_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(work.failed, 0, sizeof(uint32_t), stream), "an update");
    const bool untouched = encoding.codec == Codec::kPlain && options.clip == 0 && options.noise_stddev == 0;  // EncodeUpdate takes no norm then
    if (!untouched) {
      TRIB_RETURN_IF_CUDA_ERROR(LaunchNorm(work, stream), "the norm of an update");
      TRIB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(workspace.sum.get(), work.scratch + NormIndex(elements_), sizeof(double), cudaMemcpyDeviceToHost, stream), "a norm");
      TRIB_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream), "the norm of an update");
      if (!std::isfinite(workspace.sum[0])) return InvalidArgument("the update is not finite");
    }
    TRIB_RETURN_IF_ERROR(Parts(workspace, work, sink));
    TRIB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(workspace.failed.get(), work.failed, sizeof(uint32_t), cudaMemcpyDeviceToHost, stream), "an update");
    TRIB_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream), "an update");
    if (workspace.failed[0] != 0) return InvalidArgument("the update is not finite once its noise is added");
    if (!rest_.empty()) TRIB_RETURN_IF_ERROR(sink(encoding.buffers_offset(), rest_));
    return untouched ? 0.0 : std::sqrt(workspace.sum[0]);
  }

  // Part after part in the order of the bytes: one is given to the sink while the next is made and copied.
  absl::Status Parts(Workspace& workspace, const PrivatiseWork& work, const Sink& sink) const {
    cudaStream_t const stream = workspace.stream.get();
    const std::vector<Part> parts = PartsOf(work.format);
    const auto give = [&](size_t p) -> absl::Status {
      const size_t slot = p % kSlots;
      TRIB_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(workspace.copied[slot].get()), "part {} of an update", p);
      return sink(parts[p].first, {workspace.slots[slot].get(), parts[p].last - parts[p].first});
    };
    for (size_t p = 0; p < parts.size(); ++p) {
      if (p >= kSlots) TRIB_RETURN_IF_ERROR(give(p - kSlots));
      const Part& part = parts[p];
      const size_t slot = p % kSlots;
      if (part.tiles > 0) TRIB_RETURN_IF_CUDA_ERROR(LaunchEncode(work, part.first_tile, part.tiles, stream), "part {} of an update", p);
      TRIB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(workspace.slots[slot].get(), work.out + part.first, part.last - part.first, cudaMemcpyDeviceToHost, stream),
                                "part {} of an update", p);
      TRIB_RETURN_IF_CUDA_ERROR(cudaEventRecord(workspace.copied[slot].get(), stream), "part {} of an update", p);
    }
    for (size_t p = parts.size() > kSlots ? parts.size() - kSlots : 0; p < parts.size(); ++p) TRIB_RETURN_IF_ERROR(give(p));
    return absl::OkStatus();
  }

  // Of f32 and bf16 each with the tiles whose codes it is. Of int8 and int4 the scales come first, each part of them with the tiles whose scales
  // it is; then all codes are there.
  std::vector<Part> PartsOf(CodeFormat format) const {
    const size_t tiles = (elements_ + kCodeTile - 1) / kCodeTile;
    const bool scaled = format == CodeFormat::kInt8 || format == CodeFormat::kInt4;
    const size_t element_bytes = format == CodeFormat::kBf16 ? 2 : 4;
    std::vector<Part> parts;
    for (size_t tile = 0; tile < tiles; tile += kPartTiles) {
      const size_t count = std::min(kPartTiles, tiles - tile);
      const size_t first = tile * kCodeTile, last = std::min(elements_, (tile + count) * kCodeTile);
      if (scaled) {
        parts.push_back({first / kCodeBlock * sizeof(float), (last + kCodeBlock - 1) / kCodeBlock * sizeof(float), tile, count});
      } else {
        parts.push_back({first * element_bytes, last * element_bytes, tile, count});
      }
    }
    if (!scaled || parts.empty()) return parts;
    const size_t end = CodeBytes(format, elements_);
    for (size_t at = parts.back().last; at < end; at += kSlotBytes) parts.push_back({at, std::min(end, at + kSlotBytes), 0, 0});
    return parts;
  }

  const int device_;
  const std::shared_ptr<const void> holder_;
  const float* const delta_;
  const size_t elements_;
  const LargeBytes rest_;
  const double max_abs_;
};

}  // namespace

std::unique_ptr<DeviceUpdate> MakeDeviceUpdate(int device, std::shared_ptr<const void> holder, const float* delta, size_t elements, LargeBytes rest,
                                               double max_abs) {
  return std::make_unique<UpdateOnDevice>(device, std::move(holder), delta, elements, std::move(rest), max_abs);
}

}  // namespace tributary::client
