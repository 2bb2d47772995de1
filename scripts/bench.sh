#!/usr/bin/env bash
# Benchmarks. `round` prints one JSON document on stdout.
#   scripts/bench.sh round K SIZE_MB ROUNDS [options of tests/bench/round_bench.py]   a round of K clients that return SIZE_MB MiB
#   scripts/bench.sh kernels | ingress | worker                                       micro benchmarks; kernels takes google-benchmark's flags
#   scripts/bench.sh transport [--only T1,T6] [--runs N]                              SK_MSG and lanes: T1 T1b T6 T7 T12 T14 T16, one JSON line each (root)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
name=${1:-}
usage() { sed -n '2,5p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
[ -n "$name" ] || usage
shift
build=${TRIBUTARY_BUILD:-$root/build/release}
if [ ! -x "$build/bin/tributary-aggregator" ] || [ ! -x "$build/bin/trib-scripted-client" ]; then
  "$root/scripts/deps.sh" >&2
  (cd "$root" && cmake --preset release && cmake --build --preset release) >&2
fi
case $name in
  round)
    [ $# -ge 3 ] || usage
    exec python3 "$root/tests/bench/round_bench.py" "$@" --bin "$build/bin" ;;
  kernels|ingress|worker|transport)
    [ "$name" != worker ] || set -- "$build/bin/tributary-worker" "$@"
    cmake --build "$build" --target "${name}_bench" >&2
    TRIBUTARY_REVISION=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
    export TRIBUTARY_REVISION
    exec "$build/tests/${name}_bench" "$@" ;;
  *) usage ;;
esac
