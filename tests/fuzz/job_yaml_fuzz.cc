// Any bytes as a job: refused with INVALID_ARGUMENT, or read into a spec whose canonical text gives the same spec.
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "common/job_spec.h"
#include "common/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tributary;
  const auto spec = ParseJobSpec(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!spec.ok()) {
    TRIB_CHECK(spec.status().code() == absl::StatusCode::kInvalidArgument, "{}", spec.status().ToString());
    TRIB_CHECK(IsUtf8(MessageOf(spec.status())), "an error message must fit into a protobuf string");
    return 0;
  }
  const std::string canonical = CanonicalYaml(*spec);
  const auto again = ParseJobSpec(canonical, "canonical");
  TRIB_CHECK(again.ok(), "{}\n{}", again.status().ToString(), canonical);
  TRIB_CHECK(*again == *spec, "{}", canonical);
  return 0;
}
