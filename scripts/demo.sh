#!/usr/bin/env bash
# From a fresh clone to a finished federation: dependencies, build, then ten clients with non-IID shares of Fashion-MNIST train a CNN
# with FedAvg on this machine.
#   scripts/demo.sh [--out DIR] [options of `tributary run`]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
case ${1:-} in -h|--help) sed -n '2,4p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac
echo "1/3 dependencies (first time: Debian packages and LibTorch, about 600 MB to download)"
scripts/deps.sh
echo "2/3 build (first time: about 10 minutes on two cores; later runs: seconds)"
cmake --preset release >/dev/null
cmake --build --preset release --target tributary tributary-simulate tributary-aggregator tributary-worker tributary-client
echo "3/3 federation: examples/fashion-fedavg.yaml, 10 clients, Dirichlet 0.3"
exec build/release/bin/tributary run examples/fashion-fedavg.yaml --clients 10 "$@"
