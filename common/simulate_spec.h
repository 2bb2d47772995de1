// The `simulate:` block of a job: who takes part, how long training takes, what noise there is. Only `tributary simulate` acts on it;
// a daemon keeps it with the job. Lists hold one value, or one for each client in the order of the data's shards.
// Threads: values. Errors: recorded in the reader with line, column, key, expected and got.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/yaml_reader.h"

namespace tributary {

struct ParticipationSpec {
  std::string kind = "all";       // all | fixed | bernoulli | markov | cyclic | trace
  int64_t size = 0;               // fixed: clients a round, drawn anew
  std::vector<double> p;          // bernoulli, markov, cyclic: share of rounds, in (0, 1]
  double max_transition = 0.05;   // markov: probability of off → on, in (0, 1]
  int64_t period = 100;           // cyclic: rounds
  std::vector<std::vector<int64_t>> rounds;  // trace: the clients of each round
  std::vector<std::string> bits;  // trace: for each client a text of 0 and 1, one digit a round
  std::string file;               // trace: such texts, one line a client
  bool repeat = true;             // trace: begin again at its end; else nobody takes part after it
  bool operator==(const ParticipationSpec&) const = default;
};

struct DelaySpec {
  std::string kind = "zero";      // zero | fixed | exponential | uniform | half_normal | linear_spread | trace
  std::vector<double> seconds;    // fixed
  std::vector<double> mean;       // exponential
  std::vector<double> low, high;  // uniform
  std::vector<double> sd;         // half_normal
  double slowest = 1;             // linear_spread: client i of N takes slowest·(1 − spread·i/(N−1)) seconds
  double spread = 0.8;
  std::string file;               // trace: lines "client,start_s,seconds"
  std::string events;             // trace: "D0 U0 …", downloads and uploads of clients in this order
  bool operator==(const DelaySpec&) const = default;
};

struct ChannelSpec {              // Gaussian noise on what travels, up and down drawn independently
  double uplink_var = 0;          // per coordinate
  double downlink_var = 0;
  bool has_snr = false;           // instead: variance ‖v‖²/d/10^(snr_db/10) of each message v
  double snr_db = 0;
  bool operator==(const ChannelSpec&) const = default;
};

struct SimulateSpec {
  ParticipationSpec participation;
  DelaySpec delay;
  double gradient_noise = 0;      // s: every local gradient gets + N(0, s²I)
  ChannelSpec channel;
  bool operator==(const SimulateSpec&) const = default;
};

// Reads the map at `key`.
void ReadSimulate(YamlReader& top, std::string_view key, SimulateSpec* spec);
// The block in flow style, as ReadSimulate reads it; "{}" for the defaults.
std::string CanonicalSimulate(const SimulateSpec& spec);

}  // namespace tributary
