# LibTorch from the PyPI wheel that scripts/deps.sh unpacks, as the interface target trib_torch. Only client/torch (and its tests) link it.
#
# Its include folders come last (-idirafter): the wheel ships an incomplete protobuf 3.13, which would shadow Debian's 3.21 with -I or
# -isystem (what the wheel's own imported target would use). Headers found so count as system headers: no warnings from them.
if(DEFINED ENV{XDG_CACHE_HOME} AND NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
  set(_trib_cache "$ENV{XDG_CACHE_HOME}")
else()
  set(_trib_cache "$ENV{HOME}/.cache")
endif()
set(TRIBUTARY_LIBTORCH "${_trib_cache}/tributary/libtorch-2.11.0" CACHE PATH "Unpacked LibTorch 2.11.0 (scripts/deps.sh)")
set(_trib_torch "${TRIBUTARY_LIBTORCH}/torch")
if(NOT EXISTS "${_trib_torch}/lib/libtorch_cpu.so" OR NOT EXISTS "${_trib_torch}/include/torch/headeronly/version.h")
  message(FATAL_ERROR "LibTorch 2.11.0 is not at ${TRIBUTARY_LIBTORCH}. Run scripts/deps.sh, or set -DTRIBUTARY_LIBTORCH=DIR.")
endif()
foreach(_part MAJOR=2 MINOR=11)
  string(REPLACE "=" " " _line "${_part}")
  file(STRINGS "${_trib_torch}/include/torch/headeronly/version.h" _found REGEX "^#define TORCH_VERSION_${_line}$")
  if(NOT _found)
    message(FATAL_ERROR "${TRIBUTARY_LIBTORCH} is not LibTorch 2.11. Run scripts/deps.sh, or correct -DTRIBUTARY_LIBTORCH.")
  endif()
endforeach()
# Debian's libraries use the cxx11 ABI of std::string; a LibTorch built without it would fail at link time with long messages.
file(STRINGS "${_trib_torch}/lib/libc10.so" _trib_torch_abi REGEX "St7__cxx1112basic_string" LIMIT_COUNT 1)
if(NOT _trib_torch_abi)
  message(FATAL_ERROR "${_trib_torch}/lib/libc10.so was built without the cxx11 ABI; Tributary needs the PyPI wheel of torch 2.11.0.")
endif()

add_library(trib_torch INTERFACE)
target_compile_options(trib_torch INTERFACE
  "SHELL:-idirafter ${_trib_torch}/include" "SHELL:-idirafter ${_trib_torch}/include/torch/csrc/api/include")
target_link_libraries(trib_torch INTERFACE "${_trib_torch}/lib/libtorch_cpu.so" "${_trib_torch}/lib/libc10.so")
target_link_options(trib_torch INTERFACE "LINKER:-rpath,${_trib_torch}/lib")
if(EXISTS "${_trib_torch}/lib/libtorch_cuda.so")
  # Nothing refers to these by symbol: they register their kernels when they are loaded.
  target_link_libraries(trib_torch INTERFACE
    "-Wl,--push-state,--no-as-needed" "${_trib_torch}/lib/libtorch_cuda.so" "${_trib_torch}/lib/libc10_cuda.so" "-Wl,--pop-state")
endif()

# Two torch files at once need up to 3 GB: as many compile at a time as the machine has 4 GB. (ninja begins them when all else is done: one at a
# time, they were a quarter of a whole build, with one processor at work.)
cmake_host_system_information(RESULT _trib_memory QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR _trib_torch_jobs "${_trib_memory} / 4000 + 1")
set_property(GLOBAL APPEND PROPERTY JOB_POOLS torch=${_trib_torch_jobs})

# trib_use_torch(TARGET): its files may include LibTorch; what links TARGET sees the libraries, not the headers.
function(trib_use_torch name)
  target_link_libraries(${name} PRIVATE trib_torch)
  set_target_properties(${name} PROPERTIES JOB_POOL_COMPILE torch)
endfunction()
