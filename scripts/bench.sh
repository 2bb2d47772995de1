#!/usr/bin/env bash
# Benchmarks. `round` and `dataplane` print one JSON document on stdout.
#   scripts/bench.sh round K SIZE_MB ROUNDS [options of tests/bench/round_bench.py]   a round of K clients that return SIZE_MB MiB
#   scripts/bench.sh kernels | ingress | worker                                       micro benchmarks; kernels takes google-benchmark's flags,
#                                                                                     worker also t4|t4b|t11|t18|t19|recovery [RUNS] [MIB]
#   scripts/bench.sh codecs [K] [ELEMENTS] [ROUNDS]                                   GB/s of decoded floats per codec beside f32, one JSON document
#   scripts/bench.sh upload [options of tests/bench/upload_bench.py]                   a large update that leaves while it is stored beside one that
#                                                                                     is kept first, over shaped networks, one JSON document (root)
#   scripts/bench.sh simulate [--runs N] [--quick] [--only cnn|quadratic]              clients trained a second beside Flower's and pfl's simulations:
#                                                                                     a table and a JSON document; $TRIBUTARY_SIMULATION_PEERS is the
#                                                                                     Python that has them (tests/bench/simulate_peers/requirements.txt)
#   scripts/bench.sh transport [--only T1,T6] [--runs N]                              SK_MSG and lanes: T1 T1b T6 T7 T12 T14 T16 (root)
#   scripts/bench.sh dataplane [T1 … T20] [--runs N] [--quick] [--out DIR]             the data plane's acceptance measurements, judged: a table
#                                                                                     in DIR (build/dataplane-DATE) and a JSON document
#   scripts/bench.sh dataplane ladder [--runs N] [--quick] [--out DIR]                 the four switches one after another on three nodes (root):
#                                                                                     a table, JSON and a chart in DIR (build/ladder)
#   scripts/bench.sh planner [T4|T8|T8b|T10|T10b|sweep|ladder ...] [--seeds N]        the control plane, one JSON line a measurement
#   scripts/bench.sh kills [KILLS [MIB]]                                               kill -9 at named points: KILLS (5) at each of the workers', and
#                                                                                     8 x KILLS of the daemon; MIB (44.8) an update; a dev build
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
name=${1:-}
usage() { sed -n '2,19p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
[ -n "$name" ] || usage
shift
build=${TRIBUTARY_BUILD:-$root/build/release}
# Builds what it needs by itself, which is little of the product.
if [ "$name" = dataplane ] && [ "${1:-}" = ladder ]; then
  shift
  [ -f "$build/build.ninja" ] || "$root/scripts/deps.sh" >&2
  [ -f "$build/build.ninja" ] || (cd "$root" && cmake --preset release) >&2
  cmake --build "$build" --target tributary-aggregator tributary-worker tributary trib-scripted-client >&2
  exec python3 "$root/tests/bench/nodes_rig.py" "$build/bin" ladder --out "$root/build/ladder" "$@"
fi
if [ "$name" = dataplane ]; then
  [ -f "$build/build.ninja" ] || "$root/scripts/deps.sh" >&2
  exec python3 "$root/tests/bench/dataplane_bench.py" --build "$build" --dev-build "${TRIBUTARY_DEV_BUILD:-$root/build/dev}" "$@"
fi
# Crash points are in debug builds only.
if [ "$name" = kills ]; then
  kills=${1:-5} mib=${2:-44.8} dev=${TRIBUTARY_DEV_BUILD:-$root/build/dev}
  [ -f "$dev/build.ninja" ] || (cd "$root" && cmake --preset dev) >&2
  cmake --build "$dev" --target dataplane_crash_test tributary-aggregator tributary trib-scripted-client >&2
  for transport in ring skmsg skmsg-inline; do
    POOL_TRANSPORT=$transport TRIBUTARY_KILLS=$kills TRIBUTARY_KILL_MIB=$mib "$dev/tests/dataplane_crash_test" --gtest_filter='WorkerKillPoints*'
  done
  exec python3 "$root/tests/e2e/chaos/daemon_recovery_test.py" "$dev/bin" --kills $((8 * kills)) --mib "$mib"
fi
if [ ! -x "$build/bin/tributary-aggregator" ] || [ ! -x "$build/bin/trib-scripted-client" ]; then
  "$root/scripts/deps.sh" >&2
  (cd "$root" && cmake --preset release && cmake --build --preset release) >&2
fi
case $name in
  round)
    [ $# -ge 3 ] || usage
    exec python3 "$root/tests/bench/round_bench.py" "$@" --bin "$build/bin" ;;
  upload)
    exec python3 "$root/tests/bench/upload_bench.py" --bin "$build/bin" "$@" ;;
  simulate)
    cmake --build "$build" --target tributary tributary-simulate >&2
    exec python3 "$root/tests/bench/simulate_bench.py" --bin "$build/bin" "$@" ;;
  codecs|kernels|ingress|worker|planner|transport)
    [ "$name" != worker ] || set -- "$build/bin/tributary-worker" "$@"
    cmake --build "$build" --target "${name}_bench" >&2
    TRIBUTARY_REVISION=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
    export TRIBUTARY_REVISION
    exec "$build/tests/${name}_bench" "$@" ;;
  *) usage ;;
esac
