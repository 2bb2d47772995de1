# Our targets: warnings as errors, sanitizers, one function per kind. Target names follow folders: aggregator/state is trib_state.
add_library(trib_flags INTERFACE)
# Warnings are errors where the presets say so (CMAKE_COMPILE_WARNING_AS_ERROR): in what we build to test, not in what users build.
target_compile_options(trib_flags INTERFACE -Wall -Wextra -Wpedantic)
# GCC 12 at -O3 sees overlapping copies in `"literal" + std::string` that are none (GCC bug 105329, mended in 13).
target_compile_options(trib_flags INTERFACE $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>)
# Several source files are compiled as one (CMAKE_UNITY_BUILD in the presets): half of the time of a build goes into headers that all of a
# room's files begin with, and into templates that each would instantiate again. So names in unnamed namespaces are distinct within a target.
# GCC takes such a file's types for a header's. `tidy` compiles each file by itself, which shows that each includes what it uses.
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(trib_flags INTERFACE -Wno-subobject-linkage)
endif()
# GCC collects its garbage from 128 MiB on, again and again; our largest files need about 1 GiB, and are compiled in 6 % less time without.
target_compile_options(trib_flags INTERFACE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:--param=ggc-min-heapsize=524288>)
target_include_directories(trib_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(trib_flags INTERFACE Threads::Threads)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(trib_flags INTERFACE -Wthread-safety)
endif()
if(TRIBUTARY_CRASH_POINTS)
  target_compile_definitions(trib_flags INTERFACE TRIBUTARY_CRASH_POINTS=1)
endif()
if(TRIBUTARY_SANITIZER)
  add_compile_options(-fsanitize=${TRIBUTARY_SANITIZER} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${TRIBUTARY_SANITIZER})
endif()
if(TRIBUTARY_SANITIZER STREQUAL "thread")
  # Debian's Abseil is built without TSan: its Mutex has to be explained to it (tests/support/tsan_mutex.cc).
  target_link_libraries(trib_flags INTERFACE trib_tsan_mutex)
  foreach(_symbol 5Mutex4LockEv 5Mutex6UnlockEv 5Mutex7TryLockEv 19ReleasableMutexLock7ReleaseEv 5Mutex5AwaitERKNS0_9ConditionE 5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE
          7CondVar4WaitEPNS0_5MutexE 7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE 7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE)
    # --undefined: also for a program that takes no lock itself, whose Abseil libraries do.
    target_link_options(trib_flags INTERFACE "LINKER:--wrap=_ZN4absl7debian3${_symbol},--undefined=__wrap__ZN4absl7debian3${_symbol}")
  endforeach()
  # Likewise its gRPC, which passes objects between threads by atomics: an instrumented one is loaded in its place where scripts/tsan_grpc.sh
  # has built it.
  if(DEFINED ENV{XDG_CACHE_HOME})
    set(_cache $ENV{XDG_CACHE_HOME})
  else()
    set(_cache $ENV{HOME}/.cache)
  endif()
  set(TRIBUTARY_TSAN_GRPC ${_cache}/tributary/grpc-1.51.1-tsan CACHE PATH "Folder of the gRPC libraries built with ThreadSanitizer")
  if(EXISTS ${TRIBUTARY_TSAN_GRPC}/libgrpc++.so)
    target_link_options(trib_flags INTERFACE "LINKER:-rpath,${TRIBUTARY_TSAN_GRPC}")
  else()
    message(WARNING "no ${TRIBUTARY_TSAN_GRPC}/libgrpc++.so: tests that use gRPC will report races inside it. scripts/tsan_grpc.sh builds it.")
  endif()
endif()

# Half of the compile time of most files goes into headers that nearly all of them begin with, so those are compiled once for all targets of
# a kind: trib_pch for libraries, trib_test_pch for tests, which have GoogleTest's as well. In debug builds. ccache caches all these files (its setting is
# in the presets). Not under clang-tidy, which does not know GCC's format, nor with sanitizers or at -O3: what comes from a precompiled header is no
# system header to GCC 12, whose false warnings about std::string then count.
if(CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT CMAKE_CXX_CLANG_TIDY AND NOT TRIBUTARY_SANITIZER)
  set(TRIBUTARY_SHARED_PCH TRUE)
endif()
function(_trib_precompile name shared)
  if(TRIBUTARY_SHARED_PCH)
    target_precompile_headers(${name} REUSE_FROM ${shared})
  endif()
endfunction()

# trib_library(NAME [HOT] SOURCES a.cc ... DEPS targets ...): a static library whose public headers are its folder's. HOT: what it does, it does
# to every number of a model or of a data set, so that debug builds compile it as a release does.
function(trib_library name)
  cmake_parse_arguments(ARG "HOT" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC trib_flags ${ARG_DEPS})
  if(ARG_HOT AND TRIBUTARY_SHARED_PCH)
    target_compile_options(${name} PRIVATE -O3 -DNDEBUG -U_GLIBCXX_ASSERTIONS)  # the precompiled headers are for -O1
  else()
    _trib_precompile(${name} trib_pch)
  endif()
endfunction()

# trib_program(NAME SOURCES main.cc DEPS targets ...): a program in build/<preset>/bin.
function(trib_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE trib_flags ${ARG_DEPS})
endfunction()

# trib_cold(NAME): what it does, it does once: reading flags, printing. Optimised builds compile it with -O1, in half of the time of -O3.
function(trib_cold name)
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# trib_test(NAME SOURCES a_test.cc ... DEPS targets ... LABELS unit ...): one test program per library, one ctest case per TEST.
function(trib_test name)
  cmake_parse_arguments(ARG "SERIAL" "TIMEOUT;ENVIRONMENT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE trib_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  _trib_precompile(${name} trib_test_pch)
  set(_props LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
  if(ARG_SERIAL)
    list(APPEND _props RUN_SERIAL TRUE)
  endif()
  if(ARG_ENVIRONMENT)
    list(APPEND _props ENVIRONMENT ${ARG_ENVIRONMENT})
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES ${_props})
endfunction()
include(GoogleTest)
