#include "client/torch/torchscript.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <filesystem>
#include <utility>

#include "client/torch/guard.h"

namespace tributary::client {
namespace {

class ScriptModel : public Model {
 public:
  explicit ScriptModel(torch::jit::Module module) : module_(std::move(module)) {}

  absl::Status Collect(const std::string& path, at::TensorOptions options) {
    const at::ScalarType wanted = c10::typeMetaToScalarType(options.dtype());
    bool trainable = false;
    for (const auto& entry : module_.named_parameters(/*recurse=*/true)) {
      if (!entry.value.is_floating_point()) {
        return InvalidArgument("{}: parameter '{}': expected a floating type, got {}", path, entry.name, c10::toString(entry.value.scalar_type()));
      }
      trainable = trainable || entry.value.requires_grad();
      Convert(entry.value, wanted);
      tensors_.push_back({entry.name, entry.value.requires_grad() ? TensorKind::kTrainable : TensorKind::kBuffer, entry.value, {}});
    }
    for (const auto& entry : module_.named_buffers(/*recurse=*/true)) {
      const bool counter = entry.value.scalar_type() == at::kLong;
      if (!counter && !entry.value.is_floating_point()) {
        return InvalidArgument("{}: buffer '{}': expected a floating type or int64, got {}", path, entry.name,
                               c10::toString(entry.value.scalar_type()));
      }
      if (!counter) Convert(entry.value, wanted);
      tensors_.push_back({entry.name, counter ? TensorKind::kCounter : TensorKind::kBuffer, entry.value, {}});
    }
    if (!trainable) return InvalidArgument("{}: the module has no parameter that requires a gradient: nothing to train", path);
    return absl::OkStatus();
  }

  at::Tensor Forward(const at::Tensor& x, bool training) override {
    // The profiling executor runs a module differently in its first calls than later: equal inputs must give equal bits.
    const torch::jit::GraphOptimizerEnabledGuard unoptimised(false);
    if (module_.is_training() != training) module_.train(training);
    return module_.forward({x}).toTensor();
  }
  std::vector<int64_t> input_shape() const override { return {}; }
  int64_t outputs() const override { return 0; }

 private:
  static void Convert(const at::Tensor& tensor, at::ScalarType wanted) {
    if (tensor.scalar_type() != wanted) tensor.set_data(tensor.detach().to(wanted));
  }
  torch::jit::Module module_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadTorchScript(const std::string& path, at::TensorOptions options) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return NotFound("TorchScript file '{}': no such file", path);
  std::unique_ptr<ScriptModel> model;
  try {
    model = std::make_unique<ScriptModel>(torch::jit::load(path, options.device()));
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const std::exception& failure) {
    return InvalidArgument("'{}' is not a TorchScript file: {}", path, FirstLine(failure.what()));
  }
  TRIB_RETURN_IF_ERROR(model->Collect(path, options));
  return model;
}

}  // namespace tributary::client
