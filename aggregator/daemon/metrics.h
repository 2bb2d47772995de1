// Prometheus text of the node on http://HOST:PORT/metrics: the same figures as `tributary nodes show` and `tributary jobs ls`, read
// from the coordinator at each scrape; nothing is counted twice to be shown twice.
// The only file pair that includes prometheus-cpp, whose exceptions end here.
// Threads: safe; scrapes run on threads of the HTTP server.
#pragma once

#include <memory>
#include <string>

#include "common/status.h"

namespace prometheus {
class Collectable;
class Exposer;
}  // namespace prometheus

namespace tributary::aggregator {

class Coordinator;

class MetricsServer {
 public:
  // Serves until destroyed. `coordinator` must outlive it. UNAVAILABLE when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& host, int port, Coordinator* coordinator);
  ~MetricsServer();
  const std::string& address() const { return address_; }  // HOST:PORT, the port that the system chose for 0

 private:
  MetricsServer(std::unique_ptr<prometheus::Exposer> exposer, std::shared_ptr<prometheus::Collectable> source, std::string address);
  std::shared_ptr<prometheus::Collectable> source_;  // shared: the exposer keeps a weak pointer
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string address_;
};

}  // namespace tributary::aggregator
