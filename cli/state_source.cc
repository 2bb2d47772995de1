#include "cli/state_source.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>

#include "aggregator/state/state_store.h"
#include "cli/client.h"
#include "common/digest.h"
#include "common/job_spec.h"
#include "proto/codec.h"

namespace tributary::cli {
namespace {

struct JobName {
  std::string id;
  std::string name;
};

// An exact id or name wins over a beginning; "" is the only job.
absl::StatusOr<std::string> ResolveJob(const std::vector<JobName>& jobs, const std::string& wanted, const std::string& where) {
  if (wanted.empty() && jobs.empty()) return NotFound("{} has no job", where);
  std::vector<std::string> exact, begins;
  for (const JobName& job : jobs) {
    if (job.id == wanted) return job.id;
    if (job.name == wanted) exact.push_back(job.id);
    if (job.id.starts_with(wanted) || job.name.starts_with(wanted)) begins.push_back(job.id);
  }
  const std::vector<std::string>& matches = exact.empty() ? begins : exact;
  if (matches.size() == 1) return matches[0];
  if (matches.empty()) return NotFound("job '{}': {} has no such job", wanted, where);
  std::vector<std::string> shown(matches.begin(), matches.begin() + static_cast<ptrdiff_t>(std::min<size_t>(matches.size(), 8)));
  return InvalidArgument("{} has {} jobs that {}: {}{}; name one", where, matches.size(),
                         wanted.empty() ? "could be meant" : fmt::format("'{}' could mean", wanted), absl::StrJoin(shown, ", "),
                         matches.size() > shown.size() ? ", …" : "");
}

// The hash chain over the versions of a list, as far as rows tell.
void CheckChain(const std::string& id, const std::vector<v1::VersionInfo>& versions, std::vector<std::string>* findings) {
  for (size_t i = 1; i < versions.size(); ++i) {
    const v1::VersionInfo& before = versions[i - 1];
    const v1::VersionInfo& now = versions[i];
    if (now.version() != before.version() + 1) {
      findings->push_back(fmt::format("job '{}' version {}: the version before it is {}", id, now.version(), before.version()));
    } else if (now.parent_sha256() != before.sha256()) {
      findings->push_back(fmt::format("job '{}' version {}: names the parent {}, the version before it is {}", id, now.version(),
                                      now.parent_sha256(), before.sha256()));
    }
  }
}

class StoreSource final : public StateSource {
 public:
  StoreSource(std::unique_ptr<aggregator::StateStore> store, std::string dir) : store_(std::move(store)), dir_(std::move(dir)) {}

  absl::StatusOr<std::string> Resolve(const std::string& job) override {
    TRIB_ASSIGN_OR_RETURN(const auto rows, store_->ListJobs());
    std::vector<JobName> names;
    for (const v1::JobRow& row : rows) {
      const auto spec = ParseJobSpec(row.spec_yaml(), row.id());
      names.push_back({row.id(), spec.ok() ? spec->name : row.id()});
    }
    return ResolveJob(names, job, fmt::format("the store '{}'", dir_));
  }

  absl::StatusOr<std::vector<v1::VersionInfo>> List(const std::string& id) override {
    TRIB_ASSIGN_OR_RETURN(auto rows, store_->ListVersions(id));
    TRIB_ASSIGN_OR_RETURN(const auto metrics, store_->ListMetrics(id));
    std::vector<v1::VersionInfo> versions;
    for (v1::VersionRow& row : rows) versions.push_back(WithMetrics(std::move(*row.mutable_info()), metrics));
    return versions;
  }

  absl::StatusOr<v1::VersionInfo> Get(const std::string& id, std::optional<uint64_t> version) override {
    if (!version) {
      TRIB_ASSIGN_OR_RETURN(version, store_->LatestVersion(id));
    }
    TRIB_ASSIGN_OR_RETURN(auto row, store_->GetVersion(id, *version));
    TRIB_ASSIGN_OR_RETURN(const auto metrics, store_->ListMetrics(id));
    TRIB_ASSIGN_OR_RETURN(const auto job, store_->GetJob(id));
    v1::VersionInfo info = WithMetrics(std::move(*row.mutable_info()), metrics);
    *info.mutable_layout() = job.layout();
    TRIB_ASSIGN_OR_RETURN(const uint64_t latest, store_->LatestVersion(id));
    if (info.version() == latest) {
      TRIB_ASSIGN_OR_RETURN(auto clients, store_->ListClientState(id));
      for (v1::ClientStateRow& client : clients) *info.add_clients() = std::move(*client.mutable_participation());
    }
    return info;
  }

  absl::StatusOr<JobSpec> Spec(const std::string& id) override {
    TRIB_ASSIGN_OR_RETURN(const auto job, store_->GetJob(id));
    return ParseJobSpec(job.spec_yaml(), id);
  }

  absl::StatusOr<std::string> Export(const std::string& id, uint64_t version, bool strategy_state) override {
    if (strategy_state) return ExportStrategyState(id, version);
    TRIB_ASSIGN_OR_RETURN(const auto row, store_->GetVersion(id, version));
    TRIB_ASSIGN_OR_RETURN(const auto job, store_->GetJob(id));
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, LayoutFromProto(job.layout()));
    if (layout.total_bytes() != row.info().bytes()) {
      return DataLoss("job '{}' version {}: {} bytes are stored, its layout has {}", id, version, row.info().bytes(), layout.total_bytes());
    }
    std::vector<std::byte> flat(layout.total_bytes());
    TRIB_RETURN_IF_ERROR(store_->ReadTensors(id, version, flat, /*verify=*/true));
    return SerializeSafetensors(layout, flat, Metadata(row.info()));
  }

  absl::StatusOr<std::vector<std::string>> Verify(const std::string& id, const std::function<void(const std::string&)>& progress) override {
    TRIB_ASSIGN_OR_RETURN(auto findings, store_->Verify(progress));
    if (!id.empty()) {
      std::erase_if(findings, [&](const std::string& finding) { return !absl::StrContains(finding, fmt::format("job '{}'", id)); });
    }
    return findings;
  }

 private:
  // What the aggregator writes into its exports too.
  static std::map<std::string, std::string> Metadata(const v1::VersionInfo& info) {
    return {{"tributary.job", info.job()}, {"tributary.version", fmt::format("{}", info.version())}, {"tributary.sha256", info.sha256()}};
  }

  static v1::VersionInfo WithMetrics(v1::VersionInfo info, const std::vector<v1::Metric>& metrics) {
    info.clear_metrics();
    for (const v1::Metric& metric : metrics) {
      if (metric.version() == info.version()) *info.add_metrics() = metric;
    }
    return info;
  }

  absl::StatusOr<std::string> ExportStrategyState(const std::string& id, uint64_t version) {
    TRIB_ASSIGN_OR_RETURN(const auto row, store_->GetVersion(id, version));
    TRIB_ASSIGN_OR_RETURN(const auto vectors, store_->ReadStrategyState(id, version));
    std::vector<TensorSpec> specs;
    std::vector<std::byte> flat;
    for (const aggregator::NamedVector& vector : vectors) {
      specs.push_back({.name = vector.name,
                       .shape = {static_cast<int64_t>(vector.values.size())},
                       .dtype = DType::kF64,
                       .kind = TensorKind::kTrainable});
      const auto bytes = std::as_bytes(std::span(vector.values));
      flat.insert(flat.end(), bytes.begin(), bytes.end());
    }
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, TensorLayout::Create(std::move(specs)));
    return SerializeSafetensors(layout, flat, Metadata(row.info()));
  }

  std::unique_ptr<aggregator::StateStore> store_;
  std::string dir_;
};

class ServerSource final : public StateSource {
 public:
  explicit ServerSource(Client client, std::string server) : client_(std::move(client)), server_(std::move(server)) {}

  absl::StatusOr<std::string> Resolve(const std::string& job) override {
    if (!job.empty()) {
      v1::GetJobRequest request;
      request.set_job(job);
      TRIB_ASSIGN_OR_RETURN(const v1::Job found, client_.Call(&v1::Admin::Stub::GetJob, request));
      return found.id();
    }
    TRIB_ASSIGN_OR_RETURN(const auto jobs, client_.Call(&v1::Admin::Stub::ListJobs, v1::ListJobsRequest()));
    std::vector<JobName> names;
    for (const v1::Job& found : jobs.jobs()) names.push_back({found.id(), found.name()});
    return ResolveJob(names, job, fmt::format("the aggregator at {}", server_));
  }

  absl::StatusOr<std::vector<v1::VersionInfo>> List(const std::string& id) override {
    v1::ListVersionsRequest request;
    request.set_job(id);
    grpc::ClientContext context;
    const auto reader = client_.stub().ListVersions(&context, request);
    std::vector<v1::VersionInfo> versions;
    v1::VersionInfo version;
    while (reader->Read(&version)) versions.push_back(std::move(version));
    const grpc::Status status = reader->Finish();
    if (!status.ok()) return Client::FromGrpc(status);
    return versions;
  }

  absl::StatusOr<v1::VersionInfo> Get(const std::string& id, std::optional<uint64_t> version) override {
    v1::GetVersionRequest request;
    request.set_job(id);
    request.set_latest(!version);
    request.set_version(version.value_or(0));
    return client_.Call(&v1::Admin::Stub::GetVersion, request);
  }

  absl::StatusOr<JobSpec> Spec(const std::string& id) override {
    v1::GetJobRequest request;
    request.set_job(id);
    TRIB_ASSIGN_OR_RETURN(const v1::Job job, client_.Call(&v1::Admin::Stub::GetJob, request));
    return ParseJobSpec(job.spec_yaml(), id);
  }

  absl::StatusOr<std::string> Export(const std::string& id, uint64_t version, bool strategy_state) override {
    v1::GetVersionRequest request;
    request.set_job(id);
    request.set_version(version);
    request.set_strategy_state(strategy_state);
    grpc::ClientContext context;
    const auto reader = client_.stub().ExportVersion(&context, request);
    std::string file;
    v1::ExportChunk chunk;
    uint64_t total = 0;
    bool too_long = false;
    while (reader->Read(&chunk)) {
      if (chunk.total_bytes() != 0) total = chunk.total_bytes();
      file += chunk.safetensors();
      if (file.size() > total) {
        too_long = true;
        context.TryCancel();
        break;
      }
    }
    const grpc::Status status = reader->Finish();
    if (too_long || (status.ok() && file.size() != total)) {
      return DataLoss("job '{}' version {}: expected a file of {} bytes, got {}", id, version, total, file.size());
    }
    if (!status.ok()) return Client::FromGrpc(status);
    return file;
  }

  absl::StatusOr<std::vector<std::string>> Verify(const std::string& id, const std::function<void(const std::string&)>& progress) override {
    std::vector<std::string> ids = {id};
    if (id.empty()) {
      ids.clear();
      TRIB_ASSIGN_OR_RETURN(const auto jobs, client_.Call(&v1::Admin::Stub::ListJobs, v1::ListJobsRequest()));
      for (const v1::Job& job : jobs.jobs()) ids.push_back(job.id());
    }
    std::vector<std::string> findings;
    for (const std::string& job : ids) {
      TRIB_ASSIGN_OR_RETURN(const auto versions, List(job));
      CheckChain(job, versions, &findings);
      for (const v1::VersionInfo& info : versions) {
        const std::string what = fmt::format("job '{}' version {}", job, info.version());
        progress(what);
        const auto got = ExportedHash(job, info.version());
        if (absl::IsUnavailable(got.status())) return got.status();
        if (!got.ok()) {
          findings.push_back(fmt::format("{}: {}", what, MessageOf(got.status())));
        } else if (*got != info.sha256()) {
          findings.push_back(fmt::format("{}: expected SHA-256 {}, got {}", what, info.sha256(), *got));
        }
      }
    }
    return findings;
  }

 private:
  // SHA-256 of the flat form of a version as the server sends it.
  absl::StatusOr<std::string> ExportedHash(const std::string& job, uint64_t version) {
    TRIB_ASSIGN_OR_RETURN(const std::string file, Export(job, version, false));
    TRIB_ASSIGN_OR_RETURN(const v1::VersionInfo info, Get(job, version));
    TRIB_ASSIGN_OR_RETURN(const TensorLayout layout, LayoutFromProto(info.layout()));
    TRIB_ASSIGN_OR_RETURN(const SafetensorsView view, ParseSafetensors(std::as_bytes(std::span(file))));
    TRIB_ASSIGN_OR_RETURN(const auto flat, ToFlat(view, layout));
    return Sha256Hex(flat);
  }

  Client client_;
  std::string server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StateSource>> OpenStoreSource(const std::string& dir) {
  TRIB_ASSIGN_OR_RETURN(auto store, aggregator::StateStore::Open({.dir = dir, .mode = aggregator::StateStore::Mode::kReadOnly}));
  return std::unique_ptr<StateSource>(std::make_unique<StoreSource>(std::move(store), dir));
}

absl::StatusOr<std::unique_ptr<StateSource>> ConnectSource(const std::string& server) {
  TRIB_ASSIGN_OR_RETURN(Client client, Client::Connect(server));
  return std::unique_ptr<StateSource>(std::make_unique<ServerSource>(std::move(client), server));
}

}  // namespace tributary::cli
