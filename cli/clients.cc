#include <fmt/format.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_json.h"

namespace tributary::cli {
namespace {

struct ClientFlags {
  std::string client;
  bool connected = false;
};

nlohmann::json UsageJson(const v1::Client& c) {
  if (!c.has_device_usage()) return nullptr;
  const v1::DeviceUsage& usage = c.device_usage();
  return {{"id", usage.id()}, {"memory_used_bytes", usage.memory_used_bytes()}, {"memory_total_bytes", usage.memory_total_bytes()},
          {"utilisation", NumberOrNull(usage.utilisation())}};
}

nlohmann::json ClientJson(const v1::Client& c) {
  return {{"id", c.id()},
          {"connected", c.connected()},
          {"device", c.device()},
          {"device_usage", UsageJson(c)},
          {"phase", c.phase()},
          {"job", c.job()},
          {"progress", NumberOrNull(c.progress())},
          {"connected_us", c.connected_us()},
          {"last_seen_us", c.last_seen_us()},
          {"examples", c.examples()},
          {"updates_committed", c.updates_committed()},
          {"trains", c.trains()},
          {"evaluates", c.evaluates()},
          {"software", c.software()},
          {"last_decline", c.last_decline()}};
}

int List(const Context& context, const ClientFlags& flags) {
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  v1::ListClientsRequest request;
  request.set_connected_only(flags.connected);
  const auto response = client->Call(&v1::Admin::Stub::ListClients, request);
  if (!response.ok()) return ReportError(context, response.status());
  if (context.json) {
    nlohmann::json clients = nlohmann::json::array();
    for (const v1::Client& c : response->clients()) clients.push_back(ClientJson(c));
    PrintJson({{"clients", clients}});
    return kDone;
  }
  fmt::print("{:<28} {:<9} {:<12} {:<28} {:<16} {:>8}  {}\n", "ID", "CONNECTED", "PHASE", "JOB", "DEVICE", "UPDATES", "LAST SEEN");
  for (const v1::Client& c : response->clients()) {
    fmt::print("{:<28} {:<9} {:<12} {:<28} {:<16} {:>8}  {}\n", c.id(), c.connected() ? "yes" : "no", Printable(c.phase()), c.job(), Printable(c.device()),
               c.updates_committed(), HumanTime(c.last_seen_us()));
  }
  return kDone;
}

int Show(const Context& context, const ClientFlags& flags) {
  auto client = Client::Connect(context.server);
  if (!client.ok()) return ReportError(context, client.status());
  v1::ListClientsRequest request;
  request.set_client(flags.client);
  const auto response = client->Call(&v1::Admin::Stub::ListClients, request);
  if (!response.ok()) return ReportError(context, response.status());
  for (const v1::Client& c : response->clients()) {
    if (c.id() != flags.client) continue;
    if (context.json) {
      PrintJson(ClientJson(c));
      return kDone;
    }
    fmt::print("client     {}\nconnected  {} (since {})\nlast seen  {}\ndevice     {}\nphase      {}{}\nexamples   {}\nupdates    {} committed\n"
               "software   {}\n",
               c.id(), c.connected() ? "yes" : "no", HumanTime(c.connected_us()), HumanTime(c.last_seen_us()), Printable(c.device()), Printable(c.phase()),
               c.job().empty() ? "" : " for " + c.job(), c.examples(), c.updates_committed(), Printable(c.software()));
    if (const v1::DeviceUsage& usage = c.device_usage(); c.has_device_usage()) {
      constexpr double kMiB = 1 << 20;
      fmt::print("gpu        {:.0f} of {:.0f} MiB used, busy {:.0f} %\n", static_cast<double>(usage.memory_used_bytes()) / kMiB,
                 static_cast<double>(usage.memory_total_bytes()) / kMiB, 100 * usage.utilisation());
    }
    if (!c.last_decline().empty()) fmt::print("declined   {}\n", Printable(c.last_decline()));
    return kDone;
  }
  return ReportError(context, NotFound("no client '{}' has ever attached to {}", flags.client, context.server), "tributary clients ls");
}

}  // namespace

void AddClientsCommands(CLI::App& app, Context& context) {
  auto flags = std::make_shared<ClientFlags>();
  CLI::App* clients = app.add_subcommand("clients", "Who is connected, doing what, with which device");
  clients->require_subcommand(1);
  clients->footer("Example:\n  tributary clients ls --connected");
  CLI::App* ls = clients->add_subcommand("ls", "All clients that ever attached");
  ls->add_flag("--connected", flags->connected, "Only those attached now");
  ls->footer("Example:\n  tributary clients ls --json");
  ls->callback([&context, flags] { context.action = [&context, flags] { return List(context, *flags); }; });
  CLI::App* show = clients->add_subcommand("show", "One client");
  show->add_option("CLIENT", flags->client, "Its id")->required();
  show->footer("Example:\n  tributary clients show hospital-7");
  show->callback([&context, flags] { context.action = [&context, flags] { return Show(context, *flags); }; });
}

}  // namespace tributary::cli
