// `tributary simulate`: a job on a virtual clock in this process (simulate/simulation.h). Analytic models train here; models of LibTorch's
// zoo need the program `tributary-simulate` beside this one, which is the same command with LibTorch linked: `tributary` starts it then,
// so that its other commands load no LibTorch.
// Threads: single-threaded.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "cli/command.h"
#include "client/core/learner.h"
#include "common/job_spec.h"
#include "common/safetensors.h"

namespace tributary::cli {

// What LibTorch gives. Empty functions: not linked.
struct ZooSeam {
  std::function<absl::StatusOr<std::unique_ptr<client::Learner>>(const std::string& device)> make_learner;
  std::function<absl::StatusOr<FlatModel>(const JobSpec&)> initial_model;
};

void AddSimulateCommand(CLI::App& app, Context& context, ZooSeam seam = {});

}  // namespace tributary::cli
