# LibTorch from the PyPI wheel that scripts/deps.sh unpacks. Its include folders come last (-idirafter): the wheel ships an
# incomplete protobuf 3.13, which would shadow Debian's 3.21 with -I or -isystem.
if(DEFINED ENV{XDG_CACHE_HOME} AND NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
  set(_trib_cache "$ENV{XDG_CACHE_HOME}")
else()
  set(_trib_cache "$ENV{HOME}/.cache")
endif()
set(TRIBUTARY_LIBTORCH "${_trib_cache}/tributary/libtorch-2.11.0" CACHE PATH "Unpacked LibTorch 2.11.0 (scripts/deps.sh)")
if(NOT EXISTS "${TRIBUTARY_LIBTORCH}/torch/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch 2.11.0 is not at ${TRIBUTARY_LIBTORCH}. Run scripts/deps.sh, or set -DTRIBUTARY_LIBTORCH=DIR.")
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS torch=1)
