#include "aggregator/daemon/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "aggregator/coordinator/coordinator.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kThreads = 2;      // scrapes at one time
constexpr size_t kDevicesShown = 1000;  // labels come from clients
constexpr int kJobsKept = 100;      // the newest ones: a label's values must not grow for ever

using Labels = std::vector<prometheus::ClientMetric::Label>;

// Families in the order in which they are first named.
class Families {
 public:
  void Counter(const char* name, const char* help, Labels labels, double value) {
    Metric(name, help, prometheus::MetricType::Counter, std::move(labels)).counter.value = value;
  }
  void Gauge(const char* name, const char* help, Labels labels, double value) {
    Metric(name, help, prometheus::MetricType::Gauge, std::move(labels)).gauge.value = value;
  }
  // A summary without quantiles: how many, and their sum.
  void Summary(const char* name, const char* help, Labels labels, uint64_t count, double sum) {
    prometheus::ClientMetric& metric = Metric(name, help, prometheus::MetricType::Summary, std::move(labels));
    metric.summary.sample_count = count;
    metric.summary.sample_sum = sum;
  }
  std::vector<prometheus::MetricFamily> Take() && { return std::move(all_); }

 private:
  prometheus::ClientMetric& Metric(const char* name, const char* help, prometheus::MetricType type, Labels labels) {
    const auto [at, fresh] = places_.try_emplace(name, all_.size());
    if (fresh) all_.push_back({name, help, type, {}});
    prometheus::ClientMetric& metric = all_[at->second].metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }
  std::vector<prometheus::MetricFamily> all_;
  std::map<std::string, size_t> places_;
};

void AddLane(const v1::LaneCounters& lane, const std::string& prefix, const Labels& labels, Families* out) {
  const auto add = [&](const char* name, const char* help, uint64_t count) { out->Counter((prefix + name).c_str(), help, labels, static_cast<double>(count)); };
  add("_doorbells_total", "Rings, and with SK_MSG records, sent to consumers.", lane.doorbells());
  add("_credits_total", "Rings sent to producers that waited for credit.", lane.credits());
  add("_stalls_total", "Times that a row of pushes found no credit.", lane.stalls());
  add("_late_wakeups_total", "Sleeps that a doorbell should have ended and did not: a defect.", lane.late_wakeups());
}

void AddNode(const v1::Node& node, Families* out) {
  out->Gauge("tributary_node_info", "Always 1; what runs.", {{"software", node.software()}, {"transport", node.transport()}}, 1);
  out->Gauge("tributary_node_start_time_seconds", "Start of the daemon, in seconds since 1970.", {}, static_cast<double>(node.started_us()) * 1e-6);
  out->Gauge("tributary_pool_limit_bytes", "Shared memory for updates and sums, all jobs together.", {}, static_cast<double>(node.pool_bytes()));
  out->Gauge("tributary_pool_used_bytes", "Of that, in use.", {}, static_cast<double>(node.pool_used_bytes()));
  AddLane(node.lanes(), "tributary_lanes", {}, out);
  out->Counter("tributary_lanes_descriptors_total", "Descriptors pushed into lanes, those of partials included.", {}, static_cast<double>(node.lanes().pushed()));
  for (const auto& [outcome, count] : std::map<std::string, uint64_t>(node.verdicts().begin(), node.verdicts().end())) {
    out->Counter("tributary_verdicts_total", "Records that the kernel's verdict program saw, by outcome.", {{"outcome", outcome}}, static_cast<double>(count));
  }
  std::map<std::string, int> roles = {{"cold", 0}, {"parked", 0}, {"range", 0}, {"leaf", 0}, {"middle", 0}, {"top", 0}};
  for (const v1::Worker& worker : node.workers()) ++roles[worker.role()];
  for (const auto& [role, count] : roles) out->Gauge("tributary_workers", "Workers, by their highest role; cold: without a process.", {{"role", role}}, count);
  out->Counter("tributary_worker_starts_total", "Worker processes started because a plan needed them.", {}, static_cast<double>(node.worker_starts()));
  out->Counter("tributary_worker_evictions_total", "Parked worker processes that were ended.", {}, static_cast<double>(node.worker_evictions()));
  for (const v1::Worker& worker : node.workers()) {
    const Labels labels = {{"worker", fmt::format("{}", worker.index())}};
    out->Gauge("tributary_worker_queue_depth", "Updates and partials that wait for the worker or are under way.", labels, worker.queued());
    out->Counter("tributary_worker_updates_folded_total", "Updates that the worker folded, whole or its range of them.", labels, static_cast<double>(worker.folded()));
    out->Counter("tributary_worker_restarts_total", "Processes that were replaced.", labels, worker.restarts());
    out->Gauge("tributary_worker_update_duration_seconds", "E: mean time to fold an update or merge a partial; 0 before the first.", labels, worker.seconds_per_update());
    out->Gauge("tributary_worker_arrivals_per_second", "k: updates given to the worker, over about ten seconds.", labels, worker.updates_per_second());
    for (const v1::Seat& seat : worker.seats()) {
      const Labels place = {{"job", seat.job()}, {"worker", fmt::format("{}", worker.index())}, {"seat", fmt::format("{}", seat.number())}};
      out->Gauge("tributary_lane_queue_depth", "Updates and partials on their way into one seat of a job.", place, seat.queued());
      out->Counter("tributary_lane_descriptors_total", "Descriptors pushed into the seat's lane since it was made.", place, static_cast<double>(seat.pushed()));
      AddLane(seat.lane(), "tributary_lane", place, out);
    }
  }
  for (const v1::NodeBelow& below : node.nodes()) {  // as many as relay_nodes names
    const Labels labels = {{"node", below.name()}};
    out->Gauge("tributary_node_attached", "1: the node below this one has a control stream.", labels, below.attached() ? 1 : 0);
    out->Gauge("tributary_node_clients", "Its clients that train.", labels, static_cast<double>(below.clients()));
    out->Gauge("tributary_node_asked_updates", "Updates that it is to bring for open versions.", labels, static_cast<double>(below.asked()));
  }
  for (const v1::NodeJob& job : node.jobs()) {
    const Labels labels = {{"job", job.job()}};
    if (node.nodes_size() > 0) {
      out->Counter("tributary_node_partials_total", "Partials that nodes below this one brought.", labels, static_cast<double>(job.node_partials()));
    }
    out->Counter("tributary_updates_folded_total", "Updates that are in sums, since the daemon opened the job.", labels, static_cast<double>(job.folded()));
    out->Gauge("tributary_job_slots", "Updates that the job has room for at one time.", labels, static_cast<double>(job.slots()));
    out->Gauge("tributary_job_slots_used", "Of those, in use.", labels, static_cast<double>(job.slots_used()));
    out->Gauge("tributary_job_sums_bytes", "Memory of the job's sums.", labels, static_cast<double>(job.sums_bytes()));
    out->Summary("tributary_commit_duration_seconds", "Server step, hashes and store of a version, by this daemon.", labels, job.commits(), job.commit_seconds());
    if (job.has_capacity()) {
      out->Gauge("tributary_job_capacity_updates", "MC: updates in hand that the node serves such a job without slowing down, as calibrated.", labels, job.capacity());
      out->Gauge("tributary_job_residual_capacity_updates", "RC: what the load of all jobs leaves of it.", labels, job.residual());
      out->Gauge("tributary_job_overload_updates", "Updates of the open round beyond it.", labels, static_cast<double>(job.overloads()));
    }
    if (job.shape() == "tree") {
      out->Counter("tributary_tree_replans_total", "Plans made within rounds.", labels, static_cast<double>(job.replans()));
      out->Gauge("tributary_tree_leaves", "Leaves planned for the open round.", labels, job.leaves());
      out->Counter("tributary_tree_partials_merged_total", "Partials merged.", labels, static_cast<double>(job.partials()));
      out->Counter("tributary_tree_promotions_total", "Roles taken over in place.", labels, static_cast<double>(job.promotions()));
      out->Counter("tributary_tree_process_starts_total", "Processes started for a role.", labels, static_cast<double>(job.process_starts()));
    }
  }
}

void AddJobs(const std::vector<v1::Job>& jobs, Families* out) {
  const size_t first = jobs.size() > kJobsKept ? jobs.size() - kJobsKept : 0;
  for (size_t i = first; i < jobs.size(); ++i) {
    const v1::Job& job = jobs[i];
    const Labels labels = {{"job", job.id()}};
    out->Counter("tributary_updates_committed_total", "Updates in committed versions.", labels, static_cast<double>(job.updates_committed()));
    out->Counter("tributary_versions_committed_total", "Versions after the initial one.", labels, static_cast<double>(job.version()));
    out->Counter("tributary_upload_bytes_total", "Payload taken in.", labels, static_cast<double>(job.bytes_up()));
    out->Counter("tributary_download_bytes_total", "Models handed out.", labels, static_cast<double>(job.bytes_down()));
    for (const auto& [reason, count] : std::map<std::string, uint64_t>(job.updates_rejected().begin(), job.updates_rejected().end())) {
      out->Counter("tributary_updates_refused_total", "Updates refused, by reason.", {{"job", job.id()}, {"reason", reason}}, static_cast<double>(count));
    }
  }
}

// A GPU once, whatever number of clients shares it, as the last of them told.
void AddDevices(const std::vector<v1::Client>& clients, Families* out) {
  std::map<std::string, const v1::DeviceUsage*> devices;
  for (const v1::Client& client : clients) {
    if (client.has_device_usage() && devices.size() < kDevicesShown) devices[client.device_usage().id()] = &client.device_usage();
  }
  for (const auto& [id, usage] : devices) {
    const Labels labels = {{"gpu", id}};
    out->Gauge("tributary_client_gpu_memory_used_bytes", "Memory of a client's GPU that is in use.", labels, static_cast<double>(usage->memory_used_bytes()));
    out->Gauge("tributary_client_gpu_memory_bytes", "Memory of a client's GPU.", labels, static_cast<double>(usage->memory_total_bytes()));
    out->Gauge("tributary_client_gpu_utilisation", "Share of time in which a client's GPU works.", labels, usage->utilisation());
  }
}

class Source final : public prometheus::Collectable {
 public:
  explicit Source(Coordinator* coordinator) : coordinator_(coordinator) {}
  std::vector<prometheus::MetricFamily> Collect() const override {
    Families families;
    AddNode(coordinator_->GetNode(), &families);
    AddJobs(coordinator_->ListJobs(), &families);
    const std::vector<v1::Client> clients = coordinator_->ListClients(/*connected_only=*/true);
    families.Gauge("tributary_clients_connected", "Clients with an open control stream.", {}, static_cast<double>(clients.size()));
    AddDevices(clients, &families);
    return std::move(families).Take();
  }

 private:
  Coordinator* const coordinator_;
};

}  // namespace

MetricsServer::MetricsServer(std::unique_ptr<prometheus::Exposer> exposer, std::shared_ptr<prometheus::Collectable> source, std::string address)
    : source_(std::move(source)), exposer_(std::move(exposer)), address_(std::move(address)) {}

MetricsServer::~MetricsServer() {
  exposer_.reset();  // no scrape any more; then its source
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& host, int port, Coordinator* coordinator) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(fmt::format("{}:{}", host, port), kThreads);
    auto source = std::make_shared<Source>(coordinator);
    exposer->RegisterCollectable(source);
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (ports.empty()) return Unavailable("metrics: {}:{} cannot be listened on", host, port);
    return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(exposer), std::move(source), fmt::format("{}:{}", host, ports.front())));
  } catch (const std::exception& error) {  // CivetException
    return Unavailable("metrics: {}:{} cannot be listened on ({})", host, port, error.what());
  }
}

}  // namespace tributary::aggregator
