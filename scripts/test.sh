#!/usr/bin/env bash
# Builds and runs every test: unit, integration, e2e, fuzz corpora, tidy. Installs what is missing first.
#   scripts/test.sh            one build with LibTorch and crash points, arithmetic optimised as in a release, with nvcc also CUDA, and all tests
#   scripts/test.sh asan|tsan  the same suite under a sanitizer
#   scripts/test.sh gates      the gates of the algorithms at their full length (optimised build; minutes)
#   scripts/test.sh transports the debug suite once more with every aggregator on skmsg, on skmsg-inline, and on ring as a plain user
# TRIBUTARY_REQUIRE=bpf,mount,root (what .ci/run sets): tests that need eBPF, a mount or root fail instead of being skipped where they find none.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
start=$SECONDS
step() { printf '\n== %s (%d s so far)\n' "$1" $((SECONDS - start)); }

case ${1:-} in
  asan|tsan)
    scripts/deps.sh
    step "configure and build: $1"
    if [ "$1" = tsan ]; then scripts/tsan_grpc.sh; fi
    cmake --preset "$1" >/dev/null
    cmake --build --preset "$1"
    step "test: $1"
    exec ctest --preset "$1" -j "$(nproc)" -LE 'torch|tidy' ;;
  gates)
    scripts/deps.sh
    step "configure and build: release"
    cmake --preset release >/dev/null
    cmake --build --preset release --target tributary
    step "test: gates"
    TRIBUTARY_GATES=full exec ctest --preset release -L gate --verbose ;;
  transports)
    scripts/deps.sh --no-torch
    step "configure and build: dev"
    cmake --preset dev >/dev/null
    cmake --build --preset dev
    # A plain user runs the last part: he must be able to read the checkout and the Python environment of the tests.
    as_plain=(setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs)
    python=$(sed -n 's/^_\{0,1\}Python3_EXECUTABLE:[A-Z]*=//p' build/dev/CMakeCache.txt)
    if ! "${as_plain[@]}" test -x "$python" || ! "${as_plain[@]}" test -r "$root/CMakeLists.txt"; then
      echo "test.sh: user 65534 cannot read $root or run $python: his part of the tests needs both; remedy: chmod o+x on the folders above them" >&2
      exit 1
    fi
    for transport in skmsg skmsg-inline; do
      step "test: aggregators on $transport"
      TRIBUTARY_TRANSPORT=$transport ctest --preset dev -j "$(nproc)" -L 'e2e|integration'
    done
    step "test: as a plain user, without a capability"
    # ctest writes its log into a folder of his.
    plain=$(mktemp -d)
    printf 'subdirs("%s/build/dev")\n' "$root" >"$plain/CTestTestfile.cmake"
    chown -R 65534:65534 "$plain"
    (cd "$plain" && "${as_plain[@]}" \
      env -u TRIBUTARY_REQUIRE HOME="$plain" ctest --output-on-failure -j "$(nproc)" -L 'unit|e2e|integration')
    rm -rf "$plain"
    step "all tests passed"
    exit 0 ;;
  "") ;;
  *) sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
esac

step "dependencies"
scripts/deps.sh
# Where there is nvcc, with all that runs on a GPU: compiled everywhere, its tests run where there is a GPU too.
cuda=OFF
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  cuda=ON
elif [[ ,${TRIBUTARY_REQUIRE:-}, == *,nvcc,* ]]; then
  echo "test.sh: TRIBUTARY_REQUIRE has nvcc, and there is none: install the CUDA toolkit 13" >&2
  exit 1
fi
step "configure and build: dev-torch, CUDA $cuda"
cmake --preset dev-torch -DTRIBUTARY_CUDA=$cuda >/dev/null
cmake --build --preset dev-torch
step "test: dev-torch"
ctest --preset dev-torch -LE gpu -j "$((2 * $(nproc)))"  # tests wait for processes about as much as they compute
if [ $cuda = OFF ]; then
  echo "test.sh: no nvcc here: what runs on a GPU was not compiled"
elif nvidia-smi -L >/dev/null 2>&1; then
  step "test: dev-torch on a GPU"
  ctest --preset dev-torch -L gpu
else
  echo "test.sh: no GPU here: what runs on one was compiled and its tests linked, not run"
fi
step "all tests passed"
