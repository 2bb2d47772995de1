#!/usr/bin/env bash
# Builds the gRPC of Debian 12 with ThreadSanitizer, into the user's cache: 20 to 40 minutes on two cores, once. The tsan preset loads it in
# place of Debian's, which is not instrumented: what passes through it from thread to thread looks like a race. For that preset only.
#   scripts/tsan_grpc.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
readonly version=1.51.1  # the source package that Debian 12 builds its libraries from
readonly sha256=b55696fb249669744de3e71acc54a9382bea0dce7cd5ba379b356b12b82d4229
readonly url=http://deb.debian.org/debian/pool/main/g/grpc/grpc_$version.orig.tar.gz
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tributary
readonly into=$cache/grpc-$version-tsan
say() { printf 'tsan_grpc: %s\n' "$*"; }

case ${1:-} in
  "") ;;
  *) sed -n '2,4p' "$0" | sed 's/^# \{0,1\}//'; exit $(( ${#1} > 0 && ${#1} < 7 ? 0 : 2 )) ;;
esac
if [ -e "$into/.complete" ]; then
  say "is at $into"
  exit 0
fi
work=$cache/grpc-$version-build
mkdir -p "$work"
archive=$work/source.tar.gz
if ! sha256sum --check --status <<<"$sha256  $archive" 2>/dev/null; then
  say "downloading gRPC $version's source (9 MB) from deb.debian.org"
  python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' "$url" "$archive"
  sha256sum --check --quiet <<<"$sha256  $archive"
fi
tar -xzf "$archive" -C "$work" --strip-components=1
# Definitions that only its tests generate code from; it would download them from GitHub where it finds no such folders.
mkdir -p "$work"/third_party/{envoy-api,googleapis,opencensus-proto/src,xds}
flags="-O1 -g1 -fsanitize=thread -fno-omit-frame-pointer -w"
g++ -std=c++17 $flags -fPIC -c "$root/tests/support/tsan_mutex.cc" -o "$work/tsan_mutex.o"
wraps=$work/tsan_mutex.o
while read -r symbol; do wraps+=" -Wl,--wrap=$symbol"; done \
  < <(sed -n 's/^[a-z]* REAL(\(_Z[A-Za-z0-9_]*\)).*/\1/p' "$root/tests/support/tsan_mutex.cc")
protoc=$(find /usr/lib -name 'libprotoc.so*' | sort | head -n 1)
# CMAKE_SYSTEM_NAME: "cross-compiling" takes Debian's protoc plugin instead of building one.
cmake -S "$work" -B "$work/build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_STANDARD=17 \
  -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" -DCMAKE_SHARED_LINKER_FLAGS="$wraps" -DBUILD_SHARED_LIBS=ON \
  -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
  -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' -DgRPC_BUILD_TESTS=OFF -DgRPC_BUILD_CSHARP_EXT=OFF \
  -DgRPC_{ABSL,CARES,PROTOBUF,RE2,SSL,ZLIB}_PROVIDER=package -DProtobuf_PROTOC_LIBRARY="$protoc" >"$work/configure.log" 2>&1 ||
  { tail -n 20 "$work/configure.log" >&2; exit 1; }
say "compiling some 850 files, once; the compiler's progress:"
ninja -C "$work/build" grpc++ grpc++_reflection
mkdir -p "$into"
cp -a "$work"/build/lib{gpr,grpc,grpc++,grpc++_reflection,upb,address_sorting}.so* "$into/"
touch "$into/.complete"
rm -rf "$work"
say "is at $into"
