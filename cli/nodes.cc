#include <fmt/format.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_json.h"

namespace tributary::cli {
namespace {

nlohmann::json NodeJson(const v1::Node& node) {
  nlohmann::json workers = nlohmann::json::array();
  for (const v1::Worker& w : node.workers()) {
    workers.push_back({{"index", w.index()}, {"pid", w.pid()}, {"folded", w.folded()}, {"queued", w.queued()}, {"restarts", w.restarts()}});
  }
  return {{"address", node.address()},
          {"software", node.software()},
          {"started_us", node.started_us()},
          {"epoch", node.epoch()},
          {"transport", node.transport()},
          {"transport_reason", node.transport_reason()},
          {"workers", workers},
          {"pool_bytes", node.pool_bytes()},
          {"pool_used_bytes", node.pool_used_bytes()},
          {"store", node.store()}};
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
  for (const v1::Worker& w : node->workers()) {
    fmt::print("worker {:<3} pid {}, {} updates folded, {} queued, {} restarts\n", w.index(), w.pid(), w.folded(), w.queued(), w.restarts());
  }
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
  CLI::App* show = nodes->add_subcommand("show", "The node in full");
  show->footer("Example:\n  tributary nodes show --json");
  show->callback([&context] { context.action = [&context] { return ShowNode(context, false); }; });
}

}  // namespace tributary::cli
