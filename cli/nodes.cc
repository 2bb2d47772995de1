#include <fmt/format.h>

#include <map>
#include <set>

#include "cli/calibrate.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_json.h"

namespace tributary::cli {
namespace {

nlohmann::json LaneJson(const v1::LaneCounters& lane) {
  return {{"doorbells", lane.doorbells()},       {"credits", lane.credits()}, {"stalls", lane.stalls()},
          {"late_wakeups", lane.late_wakeups()}, {"pushed", lane.pushed()},   {"released", lane.released()}};
}

nlohmann::json SeatJson(const v1::Seat& seat) {
  nlohmann::json out = {{"job", seat.job()},
                        {"seat", seat.number()},
                        {"role", seat.role()},
                        {"queued", seat.queued()},
                        {"taken", seat.taken()},
                        {"goal", nullptr},
                        {"partials_taken", seat.partials_taken()},
                        {"partials_goal", seat.partials_goal()},
                        {"parent", nullptr},
                        {"pushed", seat.pushed()},
                        {"lane", LaneJson(seat.lane())}};
  if (seat.has_goal()) out["goal"] = seat.goal();
  if (seat.has_parent()) out["parent"] = seat.parent();
  return out;
}

nlohmann::json NodeJobJson(const v1::NodeJob& job) {
  nlohmann::json out = {{"job", job.job()},
                        {"shape", job.shape()},
                        {"timing", job.timing()},
                        {"plan", job.plan()},
                        {"leaves", job.leaves()},
                        {"max_leaves", job.max_leaves()},
                        {"load", nullptr},
                        {"planned_load", nullptr},
                        {"slots_used", job.slots_used()},
                        {"slots", job.slots()},
                        {"slot_bytes", job.slot_bytes()},
                        {"sums_bytes", job.sums_bytes()},
                        {"folded", job.folded()},
                        {"promotions", job.promotions()},
                        {"partials", job.partials()},
                        {"process_starts", job.process_starts()},
                        {"node_partials", job.node_partials()},
                        {"replans", job.replans()},
                        {"capacity", nullptr},
                        {"residual", nullptr},
                        {"overloads", job.overloads()},
                        {"commits", job.commits()},
                        {"commit_seconds", job.commit_seconds()}};
  if (job.has_capacity()) out["capacity"] = job.capacity();
  if (job.has_residual()) out["residual"] = job.residual();
  if (job.has_load()) out["load"] = job.load();
  if (job.has_planned_load()) out["planned_load"] = job.planned_load();
  return out;
}

nlohmann::json NodeJson(const v1::Node& node) {
  nlohmann::json workers = nlohmann::json::array();
  for (const v1::Worker& w : node.workers()) {
    nlohmann::json seats = nlohmann::json::array();
    for (const v1::Seat& seat : w.seats()) seats.push_back(SeatJson(seat));
    workers.push_back({{"index", w.index()},
                       {"pid", w.pid()},
                       {"folded", w.folded()},
                       {"queued", w.queued()},
                       {"restarts", w.restarts()},
                       {"role", w.role()},
                       {"seconds_per_update", w.seconds_per_update()},
                       {"updates_per_second", w.updates_per_second()},
                       {"load", w.load()},
                       {"parked_seconds", w.parked_seconds()},
                       {"seats", seats}});
  }
  nlohmann::json jobs = nlohmann::json::array();
  for (const v1::NodeJob& job : node.jobs()) jobs.push_back(NodeJobJson(job));
  nlohmann::json below = nlohmann::json::array();
  for (const v1::NodeBelow& other : node.nodes()) {
    below.push_back({{"name", other.name()}, {"attached", other.attached()}, {"epoch", other.epoch()}, {"capacity", other.capacity()},
                     {"clients", other.clients()}, {"asked", other.asked()}});
  }
  return {{"address", node.address()},
          {"upstream", node.upstream()},
          {"nodes", below},
          {"metrics", node.metrics()},
          {"software", node.software()},
          {"started_us", node.started_us()},
          {"epoch", node.epoch()},
          {"transport", node.transport()},
          {"transport_reason", node.transport_reason()},
          {"lanes", LaneJson(node.lanes())},
          {"verdicts", std::map<std::string, uint64_t>(node.verdicts().begin(), node.verdicts().end())},
          {"worker_starts", node.worker_starts()},
          {"worker_evictions", node.worker_evictions()},
          {"workers", workers},
          {"jobs", jobs},
          {"pool_bytes", node.pool_bytes()},
          {"pool_used_bytes", node.pool_used_bytes()},
          {"store", node.store()}};
}

// A seat and, below it, those whose partials it merges.
void PrintSeat(const v1::Node& node, const v1::Worker& worker, const v1::Seat& seat, size_t depth, std::set<const v1::Seat*>* shown) {
  if (!shown->insert(&seat).second) return;
  if (seat.role() == "parked" && seat.taken() == 0) return;  // takes no part in this round
  const std::string indent(2 + 2 * depth, ' ');
  std::string inputs = fmt::format("updates {}/{}", seat.taken(), seat.has_goal() ? fmt::format("{}", seat.goal()) : "?");
  if (seat.partials_goal() > 0) inputs += fmt::format(", partials {}/{}", seat.partials_taken(), seat.partials_goal());
  const v1::LaneCounters& lane = seat.lane();
  fmt::print("{}{:<7} worker {:<3} {}, {} queued; lane: {} pushed, {} doorbells, {} stalls, {} late\n", indent, Printable(seat.role()), worker.index(),
             inputs, seat.queued(), lane.pushed(), lane.doorbells(), lane.stalls(), lane.late_wakeups());
  for (const v1::Worker& other : node.workers()) {
    for (const v1::Seat& child : other.seats()) {
      if (child.job() == seat.job() && child.has_parent() && child.parent() == seat.number()) PrintSeat(node, other, child, depth + 1, shown);
    }
  }
}

void PrintWorkersAndTrees(const v1::Node& node) {
  fmt::print("\n{:>6} {:>8} {:<7} {:>6} {:>9} {:>9} {:>7} {:>9} {:>8}\n", "WORKER", "PID", "ROLE", "QUEUE", "E ms", "k 1/s", "Q", "FOLDED", "RESTARTS");
  for (const v1::Worker& w : node.workers()) {
    fmt::print("{:>6} {:>8} {:<7} {:>6} {:>9.3f} {:>9.2f} {:>7.3f} {:>9} {:>8}\n", w.index(), w.pid(), Printable(w.role()), w.queued(),
               w.seconds_per_update() * 1e3, w.updates_per_second(), w.load(), w.folded(), w.restarts());
  }
  if (!node.upstream().empty()) fmt::print("\nbelow the node at {}\n", Printable(node.upstream()));
  for (const v1::NodeBelow& other : node.nodes()) {
    fmt::print("\nnode {}: {}, capacity {:.0f} updates, {} clients, asked for {} updates\n", Printable(other.name()), other.attached() ? "attached" : "away",
               other.capacity(), other.clients(), other.asked());
  }
  for (const v1::NodeJob& job : node.jobs()) {
    std::string leaves = job.shape() == "tree" ? fmt::format(" of {} out of {} leaves", job.leaves(), job.max_leaves()) : "";
    std::string load = job.has_load() ? fmt::format("Q {:.2f}", job.load()) : "Q unknown";
    if (job.has_planned_load()) load += fmt::format(", planned for {:.2f}", job.planned_load());
    if (job.replans() > 0) load += fmt::format(", planned anew {} times", job.replans());
    if (job.has_capacity()) load += fmt::format("; capacity {:.1f}, {:.1f} left, {} updates beyond it", job.capacity(), job.residual(), job.overloads());
    fmt::print("\njob {}: {}{}, plan {}, timing {}; {}; slots {} of {}, sums {}\n", Printable(job.job()), Printable(job.shape()), leaves,
               Printable(job.plan()), Printable(job.timing()), load, job.slots_used(), job.slots(), HumanBytes(job.sums_bytes()));
    std::set<const v1::Seat*> shown;
    for (const v1::Worker& worker : node.workers()) {
      for (const v1::Seat& seat : worker.seats()) {
        if (seat.job() == job.job() && !seat.has_parent()) PrintSeat(node, worker, seat, 0, &shown);
      }
    }
  }
}

int ShowNode(const Context& context, bool list) {
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  const auto node = client->Call(&v1::Admin::Stub::GetNode, v1::GetNodeRequest());
  if (!node.ok()) return ReportError(context, node.status());
  if (context.json) {
    PrintJson(list ? nlohmann::json{{"nodes", {NodeJson(*node)}}} : NodeJson(*node));
    return kDone;
  }
  if (list) {
    fmt::print("{:<24} {:<10} {:>7} {:>22}  {}\n", "ADDRESS", "TRANSPORT", "WORKERS", "POOL", "STARTED");
    fmt::print("{:<24} {:<10} {:>7} {:>22}  {}\n", node->address(), node->transport(), node->workers_size(),
               HumanBytes(node->pool_used_bytes()) + " / " + HumanBytes(node->pool_bytes()), HumanTime(node->started_us()));
    return kDone;
  }
  fmt::print("node       {} (start {} of its store)\nsoftware   {}\nstarted    {}\ntransport  {} ({})\npool       {} of {}\nstore      {}\n",
             node->address(), node->epoch(), node->software(), HumanTime(node->started_us()), node->transport(), node->transport_reason(),
             HumanBytes(node->pool_used_bytes()), HumanBytes(node->pool_bytes()), node->store());
  int cold = 0, parked = 0;
  for (const v1::Worker& worker : node->workers()) {
    cold += worker.role() == "cold";
    parked += worker.role() == "parked";
  }
  fmt::print("workers    {} at work, {} warm (parked), {} cold; {} started and {} ended by plans\n", node->workers_size() - parked - cold, parked, cold,
             node->worker_starts(), node->worker_evictions());
  fmt::print("lanes      {} descriptors, {} doorbells, {} credits, {} stalls, {} late wake-ups\n", node->lanes().pushed(), node->lanes().doorbells(),
             node->lanes().credits(), node->lanes().stalls(), node->lanes().late_wakeups());
  if (!node->verdicts().empty()) {
    const std::map<std::string, uint64_t> verdicts(node->verdicts().begin(), node->verdicts().end());
    std::string text;
    for (const auto& [name, count] : verdicts) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", Printable(name), count);
    fmt::print("verdicts   {}\n", text);
  }
  if (!node->metrics().empty()) fmt::print("metrics    http://{}/metrics\n", Printable(node->metrics()));
  PrintWorkersAndTrees(*node);
  return kDone;
}

}  // namespace

void AddNodesCommands(CLI::App& app, Context& context) {
  CLI::App* nodes = app.add_subcommand("nodes", "The aggregator's node: workers, transport, memory");
  nodes->require_subcommand(1);
  nodes->footer("Example:\n  tributary nodes show");
  CLI::App* ls = nodes->add_subcommand("ls", "Nodes in one line each");
  ls->footer("Example:\n  tributary nodes ls --json");
  ls->callback([&context] { context.action = [&context] { return ShowNode(context, true); }; });
  CLI::App* show = nodes->add_subcommand("show", "The node in full: workers, and each job's tree");
  show->footer("Example:\n  tributary nodes show --json");
  show->callback([&context] { context.action = [&context] { return ShowNode(context, false); }; });
  AddCalibrateCommand(*nodes, context);
}

}  // namespace tributary::cli
