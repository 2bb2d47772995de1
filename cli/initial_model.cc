#include "cli/initial_model.h"

#include <algorithm>

#include "common/digest.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/process.h"
#include "common/safetensors.h"

namespace tributary::cli {
namespace {

constexpr size_t kPartBytes = 1 << 20;

absl::StatusOr<std::string> ReadTensors(const std::string& path) {
  TRIB_ASSIGN_OR_RETURN(std::string content, ReadFile(path, TensorLayout::kMaxBytes));
  // Checked here as well as on the server: the message can name the file.
  const auto view = ParseSafetensors(std::as_bytes(std::span(content)));
  if (!view.ok()) return Annotate(view.status(), path);
  const auto layout = LayoutOf(*view);
  if (!layout.ok()) return Annotate(layout.status(), path);
  return content;
}

// Runs `tributary-client init-model`, which knows the models.
absl::StatusOr<std::string> InitialiseModel(const std::filesystem::path& job_file) {
  const std::filesystem::path program = ExecutableDir() / "tributary-client";
  if (!std::filesystem::exists(program)) {
    return FailedPrecondition("{} is missing: a model of the zoo is initialised by tributary-client (build preset 'release', or give "
                              "model.init or model.tensors)", program.string());
  }
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("tributary-init-" + RandomHex(8));
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder));
  SpawnOptions options;
  options.program = program;
  options.args = {"init-model", "--job", job_file.string(), "--out", (folder / "model.safetensors").string()};
  options.stdout_file = folder / "log";
  options.stderr_file = folder / "log.err";
  absl::StatusOr<std::string> tensors = [&]() -> absl::StatusOr<std::string> {
    TRIB_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Spawn(options));
    const auto status = child.Wait(absl::Minutes(5));
    if (!status.ok()) return Internal("initialising the model of {} took more than 5 minutes", job_file.string());
    if (*status != 0) {
      // Its last line, without the prefix that this program will put before it again.
      std::string log = ReadFile(folder / "log.err").value_or("");
      while (!log.empty() && log.back() == '\n') log.pop_back();
      std::string why = log.substr(log.rfind('\n') + 1);  // npos + 1 == 0
      if (why.starts_with("error: ")) why.erase(0, sizeof("error: ") - 1);
      return InvalidArgument("initialising the model of {} failed: {}", job_file.string(), why.empty() ? "no message" : why);
    }
    return ReadFile(folder / "model.safetensors", TensorLayout::kMaxBytes);
  }();
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return tensors;
}

}  // namespace

absl::StatusOr<Submission> PrepareSubmission(const std::filesystem::path& job_file) {
  TRIB_ASSIGN_OR_RETURN(const JobSpec spec, ReadJobSpec(job_file));
  Submission submission;
  submission.spec_yaml = CanonicalYaml(spec);
  if (!spec.model.torchscript.empty()) {
    TRIB_ASSIGN_OR_RETURN(submission.artifact, ReadFile(spec.model.torchscript));
    submission.artifact_sha256 = Sha256Hex(std::as_bytes(std::span(submission.artifact)));
  }
  const std::string& file = spec.model.init.empty() ? spec.model.tensors : spec.model.init;
  auto tensors = file.empty() ? InitialiseModel(job_file) : ReadTensors(file);
  if (!tensors.ok()) return tensors.status();
  submission.tensors = *std::move(tensors);
  return submission;
}

absl::StatusOr<v1::SubmitJobResponse> Submit(Client& client, const Submission& submission) {
  grpc::ClientContext context;
  v1::SubmitJobResponse response;
  const auto stream = client.stub().SubmitJob(&context, &response);
  v1::SubmitJobRequest request;
  v1::SubmitHeader* header = request.mutable_header();
  header->set_spec_yaml(submission.spec_yaml);
  header->set_tensors_bytes(submission.tensors.size());
  header->set_artifact_bytes(submission.artifact.size());
  header->set_artifact_sha256(submission.artifact_sha256);
  bool open = stream->Write(request);
  for (size_t at = 0; open && at < submission.tensors.size(); at += kPartBytes) {
    request.set_tensors(submission.tensors.substr(at, kPartBytes));
    open = stream->Write(request);
  }
  for (size_t at = 0; open && at < submission.artifact.size(); at += kPartBytes) {
    request.set_artifact(submission.artifact.substr(at, kPartBytes));
    open = stream->Write(request);
  }
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return Client::FromGrpc(status);
  return response;
}

}  // namespace tributary::cli
