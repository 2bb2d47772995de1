// A target that intentionally fails, to test the fuzzing itself: three mutations away from its corpus lies a planted abort.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The corpus has "stay inside": an input that still begins so but is longer, with another byte in the middle, is only made by
  // mutation.
  if (size > 11 && data[0] == 's' && data[1] == 't' && data[5] != 'i') std::abort();
  return 0;
}
