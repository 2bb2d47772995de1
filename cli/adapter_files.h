// Adapter files as other programs have them, for `tributary aggregate` and `tributary state export --peft`.
// Threads: pure but for the files written. Errors: INVALID_ARGUMENT naming the tensor, those of writing.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "common/adapter_layout.h"
#include "common/job_spec.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace tributary::cli {

// A file of lora_A and lora_B (fedsb: lora_R) tensors as the model that `mode` has: what the mode freezes becomes buffers, residuals begin at 0
// where the file has none.
absl::StatusOr<FlatModel> AsAdapterModel(AdapterMode mode, const FlatModel& file);

// An update from a file of the changes of all tensors that train. rolora: the half that moves in version 1, B; a change of A is refused.
absl::StatusOr<std::vector<std::byte>> ReadAdapterUpdate(AdapterMode mode, const TensorLayout& model, const SafetensorsView& file);

// adapter_config.json and adapter_model.safetensors of a job's version, PEFT's layout, into `folder` (made if need be). fedsb: B·R stands for B. flora, fedex:
// besides them base_delta.safetensors, what is to be added to the layers' weights (<layer>.weight). The names of the files written.
absl::StatusOr<std::vector<std::string>> WritePeft(const std::filesystem::path& folder, const JobSpec& job, const FlatModel& model);

}  // namespace tributary::cli
