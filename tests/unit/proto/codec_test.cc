#include "proto/codec.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const double kNaN = std::numeric_limits<double>::quiet_NaN();
const double kInf = std::numeric_limits<double>::infinity();

v1::BeginUploadRequest GoodUpload() {
  v1::BeginUploadRequest request;
  *request.mutable_key() = KeyToProto("job-0a1b2c", 7, UpdateId{1, 2});
  request.set_version(3);
  request.set_layout(std::string(64, 'a'));
  request.set_codec("f32");
  request.set_bytes(4096);
  request.set_xxh3_128(std::string(16, 'x'));
  request.set_weight(12.5);
  request.set_examples(100);
  (*request.mutable_metrics())["train/loss"] = 0.5;
  return request;
}

TEST(CodecTest, CarriesALayoutBothWays) {
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout layout,
                            TensorLayout::Create({{"conv.weight", {8, 1, 3, 3}, DType::kF32, TensorKind::kTrainable},
                                                  {"bn.mean", {8}, DType::kF32, TensorKind::kBuffer},
                                                  {"bias", {4}, DType::kF32, TensorKind::kServerOwned},
                                                  {"bn.seen", {}, DType::kI64, TensorKind::kCounter}}));
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout back, LayoutFromProto(LayoutToProto(layout)));
  EXPECT_TRUE(back == layout);
  EXPECT_EQ(back.Fingerprint(), layout.Fingerprint());
}

TEST(CodecTest, RefusesLayoutsThatLie) {
  const auto with = [](const std::function<void(v1::TensorSpec*)>& change) {
    v1::TensorLayout message;
    v1::TensorSpec* spec = message.add_tensors();
    spec->set_name("w");
    spec->set_dtype(v1::DTYPE_F32);
    spec->set_kind(v1::TENSOR_KIND_TRAINABLE);
    spec->add_shape(2);
    change(spec);
    return LayoutFromProto(message);
  };
  EXPECT_THAT(with([](v1::TensorSpec*) {}), IsOk());
  EXPECT_THAT(with([](v1::TensorSpec* s) { s->set_dtype(v1::DTYPE_UNSPECIFIED); }), StatusIs(kInvalid, HasSubstr("dtype")));
  EXPECT_THAT(with([](v1::TensorSpec* s) { s->set_dtype(static_cast<v1::DType>(77)); }), StatusIs(kInvalid, HasSubstr("77")));
  EXPECT_THAT(with([](v1::TensorSpec* s) { s->set_kind(static_cast<v1::TensorKind>(9)); }), StatusIs(kInvalid, HasSubstr("kind")));
  EXPECT_THAT(with([](v1::TensorSpec* s) { s->set_kind(v1::TENSOR_KIND_COUNTER); }), StatusIs(kInvalid));
  EXPECT_THAT(with([](v1::TensorSpec* s) { s->set_name(""); }), StatusIs(kInvalid));
  EXPECT_THAT(with([](v1::TensorSpec* s) { s->add_shape(-1); }), StatusIs(kInvalid));
  EXPECT_THAT(with([](v1::TensorSpec* s) { for (int i = 0; i < 4; ++i) s->add_shape(1ll << 40); }), StatusIs(kInvalid));
  EXPECT_THAT(with([](v1::TensorSpec* s) { for (int i = 0; i < 65; ++i) s->add_shape(1); }), StatusIs(kInvalid, HasSubstr("64")));
}

TEST(CodecTest, TakesAGoodUploadHeader) {
  TRIB_ASSERT_OK_AND_ASSIGN(const CheckedUpload upload, UploadFromProto(GoodUpload()));
  EXPECT_EQ(upload.key.job, "job-0a1b2c");
  EXPECT_EQ(upload.key.task, 7u);
  EXPECT_EQ(upload.key.update, (UpdateId{1, 2}));
  EXPECT_EQ(upload.bytes, 4096u);
  EXPECT_EQ(upload.weight, 12.5);
  EXPECT_EQ(upload.metrics.at("train/loss"), 0.5);
}

TEST(CodecTest, RefusesUploadHeadersNamingTheField) {
  using Change = std::function<void(v1::BeginUploadRequest*)>;
  const std::vector<std::pair<std::string, Change>> rows = {
      {"job", [](auto* r) { r->clear_key(); }},
      {"job", [](auto* r) { r->mutable_key()->set_job("a/b"); }},
      {"job", [](auto* r) { r->mutable_key()->set_job(std::string(129, 'a')); }},
      {"task", [](auto* r) { r->mutable_key()->set_task(0); }},
      {"update_id", [](auto* r) { r->mutable_key()->set_update_id(std::string(15, 'a')); }},
      {"update_id", [](auto* r) { r->mutable_key()->set_update_id(""); }},
      {"update_id", [](auto* r) { r->mutable_key()->set_update_id(std::string(17, 'a')); }},
      {"layout", [](auto* r) { r->set_layout(std::string(63, 'a')); }},
      {"layout", [](auto* r) { r->set_layout(std::string(64, 'G')); }},
      {"codec", [](auto* r) { r->set_codec(""); }},
      {"codec", [](auto* r) { r->set_codec("f32\n"); }},
      {"bytes", [](auto* r) { r->set_bytes(0); }},
      {"bytes", [](auto* r) { r->set_bytes(1ull << 63); }},
      {"bytes", [](auto* r) { r->set_bytes((1ull << 40) + 1); }},
      {"xxh3_128", [](auto* r) { r->set_xxh3_128("short"); }},
      {"weight", [](auto* r) { r->set_weight(0); }},
      {"weight", [](auto* r) { r->set_weight(-1); }},
      {"weight", [](auto* r) { r->set_weight(1e300); }},
      {"weight", [](auto* r) { r->set_weight(1e-300); }},
      {"weight", [](auto* r) { r->set_weight(kNaN); }},
      {"weight", [](auto* r) { r->set_weight(kInf); }},
      {"examples", [](auto* r) { r->set_examples(~0ull); }},
      {"metric", [](auto* r) { (*r->mutable_metrics())["x"] = kNaN; }},
      {"metric", [](auto* r) { (*r->mutable_metrics())["x"] = -kInf; }},
      {"metric", [](auto* r) { (*r->mutable_metrics())[""] = 1; }},
      {"metric", [](auto* r) { (*r->mutable_metrics())["a b"] = 1; }},
      {"metric", [](auto* r) { (*r->mutable_metrics())[std::string(65, 'a')] = 1; }},
      {"scalar 'x'", [](auto* r) { (*r->mutable_scalars())["x"] = kNaN; }},
      {"scalar 'x'", [](auto* r) { (*r->mutable_scalars())["x"] = kInf; }},
      {"scalar", [](auto* r) { (*r->mutable_scalars())["a b"] = 1; }},
      {"scalars", [](auto* r) { for (int i = 0; i < 17; ++i) (*r->mutable_scalars())["s" + std::to_string(i)] = 1; }},
      {"metrics", [](auto* r) { for (int i = 0; i < 64; ++i) (*r->mutable_metrics())["m" + std::to_string(i)] = 1; }},
  };
  for (const auto& row : rows) {
    v1::BeginUploadRequest request = GoodUpload();
    row.second(&request);
    EXPECT_THAT(UploadFromProto(request), StatusIs(kInvalid, HasSubstr(row.first))) << request.ShortDebugString();
  }
}

TEST(CodecTest, ChecksHello) {
  v1::Hello hello;
  EXPECT_THAT(CheckHello(hello), IsOk());
  hello.set_device("cuda:0 NVIDIA H200");
  for (int i = 0; i < 10'000; ++i) *hello.add_outbox() = KeyToProto("job-0a1b2c", 1 + i, UpdateId{1, 2});
  EXPECT_THAT(CheckHello(hello), IsOk());
  v1::Hello changed = hello;
  *changed.add_outbox() = KeyToProto("job-0a1b2c", 1, UpdateId{1, 2});
  EXPECT_THAT(CheckHello(changed), StatusIs(kInvalid, HasSubstr("10001")));
  changed = hello;
  changed.mutable_outbox(17)->set_update_id("x");
  EXPECT_THAT(CheckHello(changed), StatusIs(kInvalid, HasSubstr("outbox[17]")));
  changed = hello;
  changed.set_device(std::string(257, 'a'));
  EXPECT_THAT(CheckHello(changed), StatusIs(kInvalid, HasSubstr("device")));
  const std::vector<std::string> bad_utf8 = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "a\x80"};
  for (const std::string& text : bad_utf8) {
    changed = hello;
    changed.set_software(text);
    EXPECT_THAT(CheckHello(changed), StatusIs(kInvalid, HasSubstr("UTF-8")));
  }
  hello.set_software("größe → 大 🙂");
  EXPECT_THAT(CheckHello(hello), IsOk());
}

TEST(CodecTest, ChecksEveryControlMessage) {
  v1::ClientMessage message;
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid));
  message.mutable_heartbeat()->set_progress(0.5f);
  EXPECT_THAT(CheckClientMessage(message), IsOk());
  message.mutable_heartbeat()->set_progress(std::nanf(""));
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("progress")));
  message.mutable_heartbeat()->set_progress(1.5f);
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid));
  message.mutable_heartbeat()->set_progress(0);
  v1::DeviceUsage& device = *message.mutable_heartbeat()->mutable_device();
  device.set_id("GPU-5c1a");
  device.set_memory_used_bytes(3);
  device.set_memory_total_bytes(4);
  device.set_utilisation(0.5f);
  EXPECT_THAT(CheckClientMessage(message), IsOk());
  device.set_utilisation(std::nanf(""));
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("heartbeat.device.utilisation")));
  device.set_utilisation(1);
  device.set_memory_used_bytes(5);
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("5 bytes used of 4")));
  device.set_memory_used_bytes(4);
  device.set_id("GPU\n");
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("heartbeat.device.id")));
  message.mutable_heartbeat()->clear_device();
  message.mutable_heartbeat()->set_phase(static_cast<v1::ClientPhase>(99));
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("99")));
  message.mutable_declined()->set_job("job-0a1b2c");
  message.mutable_declined()->set_reason(std::string(1025, 'x'));
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("reason")));
  v1::EvaluationReport* report = message.mutable_evaluation();
  report->set_job("job-0a1b2c");
  report->set_loss(kNaN);
  report->set_accuracy(kNaN);
  EXPECT_THAT(CheckClientMessage(message), IsOk());
  report->set_accuracy(1.01);
  EXPECT_THAT(CheckClientMessage(message), StatusIs(kInvalid, HasSubstr("accuracy")));
}

TEST(CodecTest, ChecksQueriesFetchesAndSecrets) {
  v1::QueryUpdateRequest query;
  for (int i = 0; i < 10'001; ++i) *query.add_keys() = KeyToProto("job-0a1b2c", 1 + i, UpdateId{1, 2});
  EXPECT_THAT(CheckQuery(query), StatusIs(kInvalid, HasSubstr("10001")));
  v1::FetchModelRequest fetch;
  EXPECT_THAT(CheckFetch(fetch), StatusIs(kInvalid, HasSubstr("job")));
  fetch.set_job("job-0a1b2c");
  EXPECT_THAT(CheckFetch(fetch), IsOk());
  EXPECT_THAT(CheckSecret(std::string(64, 'a')), IsOk());
  EXPECT_THAT(CheckSecret(std::string(31, 'a')), StatusIs(kInvalid));
  EXPECT_THAT(CheckSecret(std::string(64, 'A')), StatusIs(kInvalid));
}

}  // namespace
}  // namespace tributary
