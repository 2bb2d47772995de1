// What a submission carries besides its YAML: the safetensors file of the initial tensors, and the TorchScript file. Both stay on disk:
// an aggregator on this host, of this user, is handed them as descriptors and reads them itself; to any other they are streamed.
// Zoo and TorchScript models are initialised by the sibling program tributary-client, the only one with LibTorch.
// Threads: single-threaded. Errors: NOT_FOUND for a missing file, INVALID_ARGUMENT for a bad one (names it), FAILED_PRECONDITION when
// this installation has no LibTorch.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/client.h"
#include "common/byte_source.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::cli {

struct Submission {
  std::string spec_yaml;       // canonical
  FileSource tensors;
  std::optional<FileSource> artifact;
  std::string artifact_sha256;
  std::vector<std::string> warnings;  // what the clients' data say of the job, where they are here
};

absl::StatusOr<Submission> PrepareSubmission(const std::filesystem::path& job_file);
// The job's id and the server's warnings.
absl::StatusOr<v1::SubmitJobResponse> Submit(Client& client, const Submission& submission);

}  // namespace tributary::cli
