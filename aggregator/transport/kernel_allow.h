// Kernels on which SK_MSG redirection is tried at all. Below the fix of CVE-2025-38165 (sockmap) a load is not even attempted.
// Source: dataplane.md §5 (publicly reported fix points; to be checked against the kernel change logs at each release).
// Threads: pure functions. Errors: none; a text that is no version is a kernel that is not allowed.
#pragma once

#include <string>
#include <string_view>

namespace tributary::aggregator {

// The stable version behind a running kernel: `release` is uname -r ("6.18.4", "6.1.0-38-amd64"), `version` uname -v. Debian's release
// names an ABI, not the stable version, which stands in its version: "#1 SMP … Debian 6.1.147-1 (2025-08-02)".
std::string StableVersion(std::string_view release, std::string_view version);

// 6.1.y from 142, 6.6.y from 94, 6.12.y from 34, and everything from 6.15.3.
bool KernelAllowed(std::string_view stable_version);

}  // namespace tributary::aggregator
