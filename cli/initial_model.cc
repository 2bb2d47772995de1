#include "cli/initial_model.h"

#include <algorithm>

#include "client/core/consensus_check.h"
#include "client/data/analytic_files.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/ids.h"
#include "common/process.h"
#include "common/safetensors.h"
#include "proto/local_call.h"

namespace tributary::cli {
namespace {

constexpr size_t kPartBytes = 1 << 20;

absl::StatusOr<FileSource> OpenTensors(const std::string& path) {
  TRIB_ASSIGN_OR_RETURN(FileSource file, FileSource::Open(path));
  // Checked here as well as on the server: the message can name the file.
  const auto view = ReadSafetensorsHeader(file);
  if (!view.ok()) return Annotate(view.status(), path);
  const auto layout = LayoutOf(*view);
  if (!layout.ok()) return Annotate(layout.status(), path);
  return file;
}

// Runs `tributary-client init-model`, which knows the models.
absl::StatusOr<FileSource> InitialiseModel(const std::filesystem::path& job_file) {
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
  absl::StatusOr<FileSource> tensors = [&]() -> absl::StatusOr<FileSource> {
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
    return FileSource::Open(folder / "model.safetensors");
  }();
  std::error_code ignored;  // an open file outlives its name
  std::filesystem::remove_all(folder, ignored);
  return tensors;
}

// The parts of a file as messages; `set` puts one into the request. False: the server has hung up.
template <typename Set>
absl::StatusOr<bool> Stream(const FileSource& file, grpc::ClientWriter<v1::SubmitJobRequest>& stream, Set set) {
  bool open = true;
  TRIB_RETURN_IF_ERROR(ForEachPiece(file, kPartBytes, [&](std::span<const std::byte> piece) {
    if (!open) return absl::OkStatus();
    v1::SubmitJobRequest request;
    set(request, std::string(reinterpret_cast<const char*>(piece.data()), piece.size()));
    open = stream.Write(request);
    return absl::OkStatus();
  }));
  return open;
}

v1::SubmitHeader HeaderOf(const Submission& submission) {
  v1::SubmitHeader header;
  header.set_spec_yaml(submission.spec_yaml);
  header.set_tensors_bytes(submission.tensors.size());
  if (submission.artifact) header.set_artifact_bytes(submission.artifact->size());
  header.set_artifact_sha256(submission.artifact_sha256);
  return header;
}

absl::StatusOr<v1::SubmitJobResponse> SubmitOverGrpc(Client& client, const Submission& submission) {
  grpc::ClientContext context;
  v1::SubmitJobResponse response;
  const auto stream = client.stub().SubmitJob(&context, &response);
  v1::SubmitJobRequest request;
  *request.mutable_header() = HeaderOf(submission);
  absl::StatusOr<bool> open = stream->Write(request);
  if (*open) open = Stream(submission.tensors, *stream, [](v1::SubmitJobRequest& r, std::string part) { r.set_tensors(std::move(part)); });
  if (open.ok() && *open && submission.artifact) {
    open = Stream(*submission.artifact, *stream, [](v1::SubmitJobRequest& r, std::string part) { r.set_artifact(std::move(part)); });
  }
  if (!open.ok()) context.TryCancel();
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  if (!open.ok()) return open.status();
  if (!status.ok()) return Client::FromGrpc(status);
  return response;
}

// nullopt: this aggregator is not to be reached so, it has seen nothing.
std::optional<absl::StatusOr<v1::SubmitJobResponse>> SubmitLocally(Client& client, const Submission& submission) {
  const auto node = client.Call(&v1::Admin::Stub::GetNode, v1::GetNodeRequest());
  if (!node.ok() || !IsLocalAddress(node->local_address())) return std::nullopt;
  const absl::StatusOr<UniqueFd> socket = ConnectLocally(node->local_address());
  if (!socket.ok()) return std::nullopt;
  v1::LocalRequest request;
  *request.mutable_submit()->mutable_header() = HeaderOf(submission);
  if (request.ByteSizeLong() > kMaxLocalRequestBytes) return std::nullopt;
  std::vector<int> fds = {submission.tensors.fd()};
  if (submission.artifact) fds.push_back(submission.artifact->fd());
  // From here on the job may have been accepted, whatever fails: it is not sent a second time. No deadline, as over gRPC: calibrating noise may
  // take the server minutes, and one that dies closes the socket.
  auto reply = AskLocally(socket->get(), request, fds, absl::InfiniteDuration());
  if (!reply.ok()) return reply.status();
  return std::move(*reply->message.mutable_submitted());
}

}  // namespace

absl::StatusOr<Submission> PrepareSubmission(const std::filesystem::path& job_file) {
  TRIB_ASSIGN_OR_RETURN(const JobSpec spec, ReadJobSpec(job_file));
  std::optional<FileSource> artifact;
  std::string artifact_sha256;
  // What clients fetch once, beside the versions.
  if (const std::string& path = spec.model.artifact_path(); !path.empty()) {
    TRIB_ASSIGN_OR_RETURN(artifact, FileSource::Open(path));
    Sha256 sha256;
    TRIB_RETURN_IF_ERROR(ForEachPiece(*artifact, kPartBytes, [&](std::span<const std::byte> piece) {
      sha256.Update(piece);
      return absl::OkStatus();
    }));
    artifact_sha256 = sha256.HexDigest();
  }
  const std::string& file = spec.model.init.empty() ? spec.model.tensors : spec.model.init;
  // A file of adapters says nothing of which of them its mode freezes: only whoever knows the model can tell.
  auto tensors = file.empty() || spec.model.adapter.enabled() ? InitialiseModel(job_file) : OpenTensors(file);
  if (!tensors.ok()) return tensors.status();
  std::vector<std::string> warnings;
  if (client::IsAnalytic(spec)) {
    if (const auto data = client::LoadAnalytic(spec); data.ok()) warnings = client::ConsensusWarnings(spec, (*data)->evaluation->problems);
  }
  return Submission{CanonicalYaml(spec), *std::move(tensors), std::move(artifact), std::move(artifact_sha256), std::move(warnings)};
}

absl::StatusOr<v1::SubmitJobResponse> Submit(Client& client, const Submission& submission) {
  if (auto response = SubmitLocally(client, submission)) return *std::move(response);
  return SubmitOverGrpc(client, submission);
}

}  // namespace tributary::cli
