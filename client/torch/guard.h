// The one place where LibTorch's exceptions become Status: c10::OutOfMemoryError and failed allocations RESOURCE_EXHAUSTED, other
// c10::Error and std::exception INTERNAL. No exception leaves client/torch.
//   absl::StatusOr<int> n = Guarded("forward pass", [&]() -> absl::StatusOr<int> { … });
// `body` returns Status or StatusOr; its own errors pass through unchanged.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "common/status.h"

namespace tributary::client {

// First line of LibTorch's message: the rest is a C++ backtrace.
inline std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

// The interpreter of TorchScript puts the error itself last, after a trace of the script.
inline std::string ErrorLine(const std::string& text) {
  const size_t end = text.find_last_not_of(" \n");
  if (end == std::string::npos || text.find("TorchScript interpreter") == std::string::npos) return FirstLine(text);
  const size_t begin = text.rfind('\n', end) + 1;  // npos + 1 == 0: there is one line
  return "TorchScript: " + text.substr(begin, end + 1 - begin);
}

template <typename Body>
auto Guarded(std::string_view what, Body&& body) -> decltype(body()) {
  try {
    return std::forward<Body>(body)();
  } catch (const c10::OutOfMemoryError& error) {
    return ResourceExhausted("{}: {}", what, FirstLine(error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    // The CPU allocator has no exception type of its own.
    if (message.find("DefaultCPUAllocator") != std::string::npos) return ResourceExhausted("{}: {}", what, FirstLine(message));
    return Internal("{}: LibTorch: {}", what, FirstLine(message));
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{}: out of memory", what);
  } catch (const std::exception& error) {
    return Internal("{}: {}", what, ErrorLine(error.what()));
  }
}

}  // namespace tributary::client
