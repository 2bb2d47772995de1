# The BPF part: whether it is built, and one function per program. TRIBUTARY_BPF=AUTO|ON|OFF.
#   AUTO  built if clang (bpf target), bpftool and libbpf >= 1.0 are there; else the stub, and one status line that says what is missing
#   ON    what is missing is a configure error
#   OFF   the stub
# Sets TRIBUTARY_HAVE_BPF. scripts/deps.sh installs what is needed.
set(TRIBUTARY_BPF "AUTO" CACHE STRING "Build the eBPF transports: AUTO, ON or OFF")
set_property(CACHE TRIBUTARY_BPF PROPERTY STRINGS AUTO ON OFF)
if(NOT TRIBUTARY_BPF MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "TRIBUTARY_BPF: expected AUTO, ON or OFF, got '${TRIBUTARY_BPF}'")
endif()

set(TRIBUTARY_HAVE_BPF FALSE)
if(NOT TRIBUTARY_BPF STREQUAL "OFF")
  set(_bpf_missing "")
  find_program(TRIBUTARY_BPF_CLANG NAMES clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14)
  find_program(TRIBUTARY_BPFTOOL bpftool HINTS /usr/sbin /sbin)
  pkg_check_modules(LIBBPF IMPORTED_TARGET libbpf>=1.0)
  if(TRIBUTARY_BPF_CLANG)
    execute_process(COMMAND ${TRIBUTARY_BPF_CLANG} --print-targets OUTPUT_VARIABLE _bpf_targets ERROR_QUIET)
  endif()
  if(NOT _bpf_targets MATCHES "bpf ")
    list(APPEND _bpf_missing "clang with the bpf target")
  endif()
  set(_bpf_tool_works 1)
  if(TRIBUTARY_BPFTOOL)  # elsewhere it is a wrapper that may find no bpftool for the running kernel
    execute_process(COMMAND ${TRIBUTARY_BPFTOOL} version RESULT_VARIABLE _bpf_tool_works OUTPUT_QUIET ERROR_QUIET)
  endif()
  if(NOT _bpf_tool_works EQUAL 0)
    list(APPEND _bpf_missing "bpftool")
  endif()
  if(NOT LIBBPF_FOUND)
    list(APPEND _bpf_missing "libbpf >= 1.0 (libbpf-dev)")
  endif()
  list(JOIN _bpf_missing ", " _bpf_missing)
  if(_bpf_missing STREQUAL "")
    set(TRIBUTARY_HAVE_BPF TRUE)
    message(STATUS "eBPF transports: built (libbpf ${LIBBPF_VERSION})")
  elseif(TRIBUTARY_BPF STREQUAL "ON")
    message(FATAL_ERROR "TRIBUTARY_BPF=ON, missing: ${_bpf_missing}. Run scripts/deps.sh, or set TRIBUTARY_BPF=AUTO.")
  else()
    message(STATUS "eBPF transports: stub only, missing: ${_bpf_missing}")
  endif()
else()
  message(STATUS "eBPF transports: stub only (TRIBUTARY_BPF=OFF)")
endif()

# tributary_bpf_object(NAME SOURCE HEADERS...): compiles SOURCE for BPF and makes its libbpf skeleton. Targets that link the interface
# target NAME_skel may include "NAME.skel.h"; NAME.bpf.o lies beside it. HEADERS (absolute) are what SOURCE includes.
function(tributary_bpf_object name source)
  # UAPI headers include <asm/types.h>, which Debian keeps in a folder per architecture.
  set(_arch_include "/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    set(_arch x86)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    set(_arch arm64)
  else()
    set(_arch ${CMAKE_SYSTEM_PROCESSOR})
  endif()
  set(_out ${CMAKE_CURRENT_BINARY_DIR}/bpf)
  file(MAKE_DIRECTORY ${_out})
  get_filename_component(_source ${source} ABSOLUTE)
  pkg_get_variable(_libbpf_include libbpf includedir)
  # Free-standing: <stdint.h> must be clang's own, glibc's would ask for 32-bit stubs.
  add_custom_command(OUTPUT ${_out}/${name}.bpf.o
    COMMAND ${TRIBUTARY_BPF_CLANG} -g -O2 -Wall -Werror -target bpf -ffreestanding -D__TARGET_ARCH_${_arch}
            -I${CMAKE_SOURCE_DIR} -idirafter ${_libbpf_include} -idirafter ${_arch_include} -c ${_source} -o ${_out}/${name}.bpf.o
    DEPENDS ${_source} ${ARGN}
    COMMENT "Generating BPF object ${name}" VERBATIM)
  add_custom_command(OUTPUT ${_out}/${name}.skel.h
    COMMAND ${TRIBUTARY_BPFTOOL} gen skeleton ${_out}/${name}.bpf.o name ${name}_bpf > ${_out}/${name}.skel.h
    DEPENDS ${_out}/${name}.bpf.o
    COMMENT "Generating BPF skeleton ${name}" VERBATIM)
  add_custom_target(${name}_skel_files DEPENDS ${_out}/${name}.skel.h)
  add_library(${name}_skel INTERFACE)
  target_include_directories(${name}_skel SYSTEM INTERFACE ${_out})
  target_link_libraries(${name}_skel INTERFACE PkgConfig::LIBBPF)
  add_dependencies(${name}_skel ${name}_skel_files)
endfunction()
