#include "proto/grpc_status.h"

#include <string>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(GrpcStatusTest, KeepsEveryCodeBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "job 'x': why");
    const grpc::Status wire = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(FromGrpc(wire), status);
  }
  EXPECT_THAT(FromGrpc(ToGrpc(absl::OkStatus())), IsOk());
  EXPECT_THAT(FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(99), "odd")), StatusIs(absl::StatusCode::kUnknown, HasSubstr("odd")));
}

TEST(GrpcStatusTest, CutsLongMessagesBetweenCharacters) {
  std::string text(kMaxStatusMessage - 1, 'a');
  text += "ééé";
  EXPECT_EQ(ToGrpc(absl::InternalError(text)).error_message(), std::string(kMaxStatusMessage - 1, 'a'));
}

TEST(GrpcStatusTest, CarriesARetryDelay) {
  const grpc::Status status = ToGrpc(absl::ResourceExhaustedError("full"), absl::Milliseconds(1500));
  ASSERT_TRUE(RetryDelayOf(status).has_value());
  EXPECT_EQ(*RetryDelayOf(status), absl::Milliseconds(1500));
  EXPECT_FALSE(RetryDelayOf(ToGrpc(absl::ResourceExhaustedError("full"))).has_value());
  EXPECT_FALSE(RetryDelayOf(ToGrpc(absl::ResourceExhaustedError("full"), absl::ZeroDuration())).has_value());
  EXPECT_EQ(*RetryDelayOf(ToGrpc(absl::ResourceExhaustedError("full"), absl::Hours(24))), absl::Hours(1));
}

TEST(GrpcStatusTest, IgnoresDamagedDetails) {
  const std::string good = ToGrpc(absl::ResourceExhaustedError("full"), absl::Milliseconds(1500)).error_details();
  for (size_t cut = 0; cut < good.size(); ++cut) {
    const auto delay = RetryDelayOf({grpc::RESOURCE_EXHAUSTED, "", good.substr(0, cut)});
    EXPECT_FALSE(delay.has_value()) << cut;
  }
  for (size_t at = 0; at < good.size(); ++at) {
    std::string damaged = good;
    damaged[at] = static_cast<char>(damaged[at] ^ 0xff);
    const auto delay = RetryDelayOf({grpc::RESOURCE_EXHAUSTED, "", damaged});
    if (delay.has_value()) {
      EXPECT_GT(*delay, absl::ZeroDuration());
      EXPECT_LE(*delay, absl::Hours(1));
    }
  }
}

}  // namespace
}  // namespace tributary
