#!/usr/bin/env bash
# Installs what Tributary needs on Debian 12: packages by apt-get, LibTorch 2.11.0 from its PyPI wheel into the user's cache, and a small
# Python environment for the tests. Does only what is missing; a second call takes about a second.
#   scripts/deps.sh               all of it; on a machine with an NVIDIA GPU LibTorch comes with its CUDA libraries
#   scripts/deps.sh --cpu|--cuda  LibTorch without or with CUDA, whatever the machine has
#   scripts/deps.sh --no-torch    without LibTorch (enough for the presets dev, asan, tsan: aggregator and CLI)
set -euo pipefail

readonly torch_version=2.11.0
readonly wheel_python=3.11  # any CPython 3.x wheel would do: only its headers and libraries are used, never its Python part
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tributary
readonly cache
readonly torch_dir=$cache/libtorch-$torch_version
readonly venv_dir=$cache/venv
readonly wheels=$cache/wheels

packages=(
  ca-certificates git g++ cmake ninja-build ccache clang clang-tidy pkg-config bpftool libbpf-dev
  protobuf-compiler protobuf-compiler-grpc libgrpc++-dev libprotobuf-dev libabsl-dev
  prometheus-cpp-dev librocksdb-dev libsnappy-dev liblz4-dev libbz2-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  libhwy-dev libeigen3-dev libcli11-dev libyaml-cpp-dev nlohmann-json3-dev libspdlog-dev libfmt-dev libssl-dev libxxhash-dev libisal-dev libzstd-dev
  zlib1g-dev libpcre2-dev
  python3 python3-venv python3-pip unzip util-linux
  dataset-fashion-mnist
)
# What the Python tests import. protobuf and grpcio are not among them: the tests speak to the daemons through the CLI.
readonly python_packages=(numpy==1.26.4 safetensors==0.4.5)

say() { printf 'deps: %s\n' "$*"; }
fail() {
  printf 'deps: %s\n' "$1" >&2
  printf 'deps: remedy: %s\n' "$2" >&2
  exit 1
}

want_torch=1
want_cuda=auto
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) want_cuda=0 ;;
    --cuda) want_cuda=1 ;;
    --no-torch) want_torch=0 ;;
    -h|--help) sed -n '2,6p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) fail "unknown option '$1'" "scripts/deps.sh --help lists the options" ;;
  esac
  shift
done
if [ "$want_cuda" = auto ]; then
  want_cuda=0
  if [ -e /dev/nvidia0 ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; then want_cuda=1; fi
fi

# with_progress LOG WATCHED COMMAND…: runs the command with its output in LOG and prints a line every 15 s: time and size of WATCHED.
with_progress() {
  local log=$1 watched=$2 start=$SECONDS pid status=0
  shift 2
  "$@" >"$log" 2>&1 &
  pid=$!
  local next=$((SECONDS + 15))
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if [ $SECONDS -ge $next ]; then
      say "  … $((SECONDS - start)) s, $(du -sm "$watched" 2>/dev/null | cut -f1) MB on disk so far"
      next=$((SECONDS + 15))
    fi
  done
  wait "$pid" || status=$?
  if [ $status -ne 0 ]; then tail -n 15 "$log" >&2; fi
  return $status
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "needs root to run: $*" "run it as root, or install sudo"
  fi
}

# --- 1. Debian packages -----------------------------------------------------------------------------------------------------------
install_packages() {
  local missing=() installed name
  command -v dpkg-query >/dev/null || fail "this is not a Debian system (no dpkg-query)" \
    "use Debian 12, or install the equivalents of: ${packages[*]}"
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | awk '$2 == "installed" {print $1}') || true
  for name in "${packages[@]}"; do
    grep -qxF -- "$name" <<<"$installed" || missing+=("$name")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    say "Debian packages: all ${#packages[@]} are installed"
    return
  fi
  say "Debian packages: installing ${#missing[@]} (up to 600 MB and 5 minutes): ${missing[*]}"
  local log
  log=$(mktemp)
  with_progress "$log" /var/cache/apt as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update ||
    fail "apt-get update failed (its last lines are above)" "check the network and /etc/apt/sources.list, then run scripts/deps.sh again"
  with_progress "$log" /var/cache/apt as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}" ||
    fail "apt-get install failed (its last lines are above)" "apt-get install -f, then run scripts/deps.sh again; the packages are Debian 12's"
  rm -f "$log"
}

debian_python() {
  if [ -x /usr/bin/python3 ]; then echo /usr/bin/python3; else command -v python3; fi
}

# --- 2. LibTorch ------------------------------------------------------------------------------------------------------------------
# fetch_wheels FOLDER REQUIREMENT… [--no-deps]: PyPI wheels for this machine's processor.
fetch_wheels() {
  local folder=$1
  shift
  mkdir -p "$folder" "$cache/tmp"
  # pip writes to TMPDIR first; /tmp is often too small for the wheel, and the size is watched there.
  with_progress "$cache/pip.log" "$cache/tmp" env TMPDIR="$cache/tmp" "$(debian_python)" -m pip download --disable-pip-version-check --no-input \
    --no-cache-dir --retries 5 --timeout 60 --only-binary=:all: --python-version "$wheel_python" --dest "$folder" "$@"
}

find_torch_wheel() {
  local file
  for file in "$wheels"/torch-"$torch_version"-*.whl; do
    if [ -e "$file" ] && unzip -tqq "$file" 'torch-*/METADATA' >/dev/null 2>&1; then
      echo "$file"
      return 0
    fi
  done
  return 1
}

install_torch() {
  local kind=cpu wheel unpacked free_mb need_mb
  if [ "$want_cuda" = 1 ]; then kind=cuda; fi
  local have=none
  if [ -r "$torch_dir/.complete" ]; then have=$(<"$torch_dir/.complete"); fi
  if [ "$have" = cuda ] || [ "$have" = "$kind" ]; then
    say "LibTorch $torch_version ($have): is at $torch_dir"
    return
  fi
  mkdir -p "$wheels"
  need_mb=1700
  if [ "$kind" = cuda ]; then need_mb=9000; fi
  free_mb=$(df -Pm "$cache" | awk 'NR == 2 {print $4}')
  [ "$free_mb" -ge "$need_mb" ] || fail "LibTorch needs $need_mb MB in $cache, $free_mb MB are free" \
    "free some space, or set XDG_CACHE_HOME to a folder on another disk"

  if ! wheel=$(find_torch_wheel); then
    say "LibTorch $torch_version: downloading the PyPI wheel (530 MB; 1 to 10 minutes)"
    rm -f "$wheels"/torch-*.whl
    fetch_wheels "$wheels" --no-deps "torch==$torch_version" ||
      fail "the download of torch $torch_version failed (pip's last lines are above)" "check the network and pip's index, then run scripts/deps.sh again"
    wheel=$(find_torch_wheel) || fail "pip left no usable torch wheel in $wheels" "remove $wheels and run scripts/deps.sh again"
  else
    say "LibTorch $torch_version: using the wheel already in $wheels"
  fi

  # The wheel says which CUDA wheels belong to it: "cuda-toolkit[cublas,cudart,…]==13.0.2", "nvidia-cudnn-cu13==…", …
  local metadata toolkit requirements=()
  metadata=$(unzip -p "$wheel" 'torch-*.dist-info/METADATA' | tr -d '\r' | sed -n 's/^Requires-Dist: *//p' | sed 's/ *;.*//')
  toolkit=$(sed -n 's/^cuda-toolkit\[.*\]==\(.*\)$/\1/p' <<<"$metadata")
  if [ "$kind" = cuda ]; then
    mapfile -t requirements < <(grep -E '^(cuda-toolkit\[|nvidia-)' <<<"$metadata")
    say "LibTorch $torch_version: downloading its CUDA libraries (2.5 GB; 3 to 30 minutes): ${requirements[*]}"
  elif [ -n "$toolkit" ]; then
    # libtorch_cpu.so itself links libcudart and libcupti; nothing else of CUDA is needed on a CPU machine.
    requirements=("cuda-toolkit[cudart,cupti]==$toolkit")
    say "LibTorch $torch_version: downloading the two small CUDA wheels that libtorch_cpu links (15 MB; seconds)"
  fi
  rm -rf "$wheels/cuda"
  if [ ${#requirements[@]} -gt 0 ]; then
    fetch_wheels "$wheels/cuda" "${requirements[@]}" ||
      fail "the download of ${requirements[*]} failed (pip's last lines are above)" "check the network, then run scripts/deps.sh again"
  fi

  say "LibTorch $torch_version ($kind): unpacking (up to a minute)"
  unpacked=$(mktemp -d "$cache/libtorch.XXXXXX")
  local members=('torch/include/*' 'torch-*.dist-info/*' torch/lib/libc10.so torch/lib/libtorch_cpu.so 'torch/lib/libgomp*'
                 torch/lib/libtorch_global_deps.so)
  if [ "$kind" = cuda ]; then members=('torch/include/*' 'torch-*.dist-info/*' 'torch/lib/*.so*'); fi
  with_progress "$cache/unzip.log" "$unpacked" unzip -qo "$wheel" "${members[@]}" -x 'torch/lib/libtorch_python.so' -d "$unpacked" ||
    fail "unpacking $wheel failed" "remove $wheels and run scripts/deps.sh again (the wheel may be damaged)"
  local file
  for file in "$wheels"/cuda/nvidia_*.whl; do
    [ -e "$file" ] || continue
    with_progress "$cache/unzip.log" "$unpacked" unzip -qo "$file" 'nvidia/*' -d "$unpacked" ||
      fail "unpacking $file failed" "remove $wheels and run scripts/deps.sh again"
  done
  check_libraries "$unpacked/torch/lib/libtorch_cpu.so"
  if [ "$kind" = cuda ]; then check_libraries "$unpacked/torch/lib/libtorch_cuda.so"; fi
  echo "$kind" >"$unpacked/.complete"
  chmod 755 "$unpacked"
  rm -rf "$torch_dir"
  mv "$unpacked" "$torch_dir"
  rm -rf "$wheels" "$cache/tmp" "$cache/pip.log" "$cache/unzip.log"  # 530 MB that nothing needs any more
  say "LibTorch $torch_version ($kind): is at $torch_dir ($(du -sm "$torch_dir" | cut -f1) MB)"
}

check_libraries() {
  local missing
  missing=$(ldd "$1" | awk '/not found/ {print $1}' | grep -v '^libcuda\.so' | sort -u | tr '\n' ' ') || true
  [ -z "$missing" ] || fail "$(basename "$1") still lacks: $missing" \
    "remove $cache/wheels and run scripts/deps.sh again; if it stays so, the wheel's needs have changed and this script must follow"
}

# --- 3. Python environment of the tests -------------------------------------------------------------------------------------------
install_venv() {
  local wanted="${python_packages[*]}"
  if [ -r "$venv_dir/.complete" ] && [ "$(<"$venv_dir/.complete")" = "$wanted" ]; then
    say "Python environment of the tests: is at $venv_dir"
    return
  fi
  say "Python environment of the tests: making $venv_dir with $wanted (20 MB; up to a minute)"
  mkdir -p "$cache"
  rm -rf "$venv_dir"
  with_progress "$cache/venv.log" "$cache" "$(debian_python)" -m venv "$venv_dir" ||
    fail "python3 -m venv failed" "apt-get install python3-venv, then run scripts/deps.sh again"
  with_progress "$cache/venv.log" "$venv_dir" "$venv_dir/bin/pip" install --disable-pip-version-check --no-input --only-binary=:all: \
    "${python_packages[@]}" || fail "pip install of $wanted failed (its last lines are above)" "check the network and pip's index, then run scripts/deps.sh again"
  echo "$wanted" >"$venv_dir/.complete"
  rm -f "$cache/venv.log"
}

install_packages
mkdir -p "$cache"
exec 9>"$cache/deps.lock"
flock -w 1800 9 || fail "another scripts/deps.sh has held $cache/deps.lock for 30 minutes" "end it, then run scripts/deps.sh again"
# A call that was killed halfway leaves its unfinished folder; nobody else can be using it now.
rm -rf "$cache"/libtorch.??????
if [ $want_torch = 1 ]; then install_torch; fi
install_venv
