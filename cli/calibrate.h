// `nodes calibrate`, apart from the other commands of its group: it alone starts workers.
// Threads: single-threaded, as command.h.
#pragma once

#include "cli/command.h"

namespace tributary::cli {

void AddCalibrateCommand(CLI::App& nodes, Context& context);

}  // namespace tributary::cli
