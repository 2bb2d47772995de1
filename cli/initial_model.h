// What a submission carries besides its YAML: the initial tensors as a safetensors file's bytes, and the TorchScript file's bytes.
// Zoo and TorchScript models are initialised by the sibling program tributary-client, the only one with LibTorch.
// Threads: single-threaded. Errors: NOT_FOUND for a missing file, INVALID_ARGUMENT for a bad one (names it), FAILED_PRECONDITION when
// this installation has no LibTorch.
#pragma once

#include <filesystem>
#include <string>

#include "cli/client.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::cli {

struct Submission {
  std::string spec_yaml;       // canonical
  std::string tensors;
  std::string artifact;
  std::string artifact_sha256;
};

absl::StatusOr<Submission> PrepareSubmission(const std::filesystem::path& job_file);
// Streams it; the job's id and the server's warnings.
absl::StatusOr<v1::SubmitJobResponse> Submit(Client& client, const Submission& submission);

}  // namespace tributary::cli
