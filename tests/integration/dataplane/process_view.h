// What the kernel says a process holds: the tests' view of memory.
#pragma once

#include <cstdio>
#include <fstream>
#include <string>

#include <fmt/format.h>

namespace tributary::aggregator {

// Private memory in use, bytes: a copy of a payload would be here.
inline size_t PrivateBytes(int pid) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);) {
    unsigned long kib = 0;
    if (std::sscanf(line.c_str(), "RssAnon: %lu kB", &kib) == 1) return size_t{kib} << 10;
  }
  return 0;
}

// Shared memory of ours that a process has mapped: regions whose name ends so ("slab", "objects", "lane", "": any).
struct Mapped {
  size_t writable = 0, read_only = 0;              // regions
  size_t bytes = 0;
};
inline Mapped MappedOf(int pid, const std::string& kind) {
  Mapped mapped;
  std::ifstream maps(fmt::format("/proc/{}/maps", pid));
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:tributary-" + kind) == std::string::npos) continue;
    unsigned long first = 0, last = 0;
    char access[8] = {};
    std::sscanf(line.c_str(), "%lx-%lx %7s", &first, &last, access);
    mapped.bytes += last - first;
    ++(access[1] == 'w' ? mapped.writable : mapped.read_only);
  }
  return mapped;
}

}  // namespace tributary::aggregator
