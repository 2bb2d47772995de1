#include "cli/job_json.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace tributary::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

v1::Job RunningJob() {
  v1::Job job;
  job.set_id("fashion-1a2b3c");
  job.set_name("fashion");
  job.set_state(v1::JOB_STATE_RUNNING);
  job.set_strategy("fedavg");
  job.set_version(12);
  job.set_target_versions(50);
  job.set_updates_committed(120);
  (*job.mutable_updates_rejected())["not finite"] = 2;
  job.set_bytes_up(3 << 20);
  job.set_bytes_down(1536);
  job.set_model_sha256("abc");
  job.set_waiting_for("waiting for 3 more of 10 updates");
  job.set_clients_in(7);
  job.set_clients_expected(10);
  job.set_updates_per_s(3.21);
  job.set_submitted_us(1);
  v1::Metric* metric = job.add_metrics();
  metric->set_version(12);
  metric->set_wall_s(9.5);
  metric->set_loss(0.4);
  metric->set_accuracy(0.8531);
  metric->set_examples(10000);
  metric->set_evaluator("evaluator");
  return job;
}

TEST(JobJsonTest, HasTheKeysOfTheContract) {
  const nlohmann::json json = JobJson(RunningJob());
  for (const char* key : {"id", "name", "state", "strategy", "version", "updates_committed", "updates_rejected", "metrics", "privacy",
                          "bytes_up", "bytes_down", "model_sha256", "waiting_for"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["id"], "fashion-1a2b3c");
  EXPECT_EQ(json["state"], "running");
  EXPECT_EQ(json["version"], 12);
  EXPECT_EQ(json["updates_rejected"], (nlohmann::json{{"not finite", 2}}));
  EXPECT_EQ(json["privacy"], nullptr);
  ASSERT_EQ(json["metrics"].size(), 1u);
  EXPECT_EQ(json["metrics"][0]["version"], 12);
  EXPECT_EQ(json["metrics"][0]["virtual_or_wall_s"], 9.5);
  EXPECT_EQ(json["metrics"][0]["loss"], 0.4);
  EXPECT_EQ(json["metrics"][0]["accuracy"], 0.8531);
  EXPECT_EQ(json["waiting_for"], "waiting for 3 more of 10 updates");
}

TEST(JobJsonTest, AnEmptyJobStillHasItsContainers) {
  const nlohmann::json json = JobJson(v1::Job());
  EXPECT_TRUE(json["metrics"].is_array());
  EXPECT_TRUE(json["updates_rejected"].is_object());
  EXPECT_EQ(json["state"], "unknown");
}

TEST(JobJsonTest, NumbersWithoutAJsonFormAreNull) {
  v1::Job job = RunningJob();
  job.mutable_metrics(0)->set_accuracy(std::nan(""));
  job.mutable_metrics(0)->set_loss(std::numeric_limits<double>::infinity());
  const nlohmann::json parsed = nlohmann::json::parse(JobJson(job).dump());
  EXPECT_TRUE(parsed["metrics"][0]["accuracy"].is_null());
  EXPECT_TRUE(parsed["metrics"][0]["loss"].is_null());
}

TEST(JobJsonTest, EveryStateHasItsName) {
  EXPECT_EQ(JobStateName(v1::JOB_STATE_QUEUED), "queued");
  EXPECT_EQ(JobStateName(v1::JOB_STATE_RUNNING), "running");
  EXPECT_EQ(JobStateName(v1::JOB_STATE_DONE), "done");
  EXPECT_EQ(JobStateName(v1::JOB_STATE_FAILED), "failed");
  EXPECT_EQ(JobStateName(v1::JOB_STATE_CANCELLED), "cancelled");
  EXPECT_FALSE(JobEnded(v1::JOB_STATE_QUEUED));
  EXPECT_FALSE(JobEnded(v1::JOB_STATE_RUNNING));
  EXPECT_TRUE(JobEnded(v1::JOB_STATE_DONE) && JobEnded(v1::JOB_STATE_FAILED) && JobEnded(v1::JOB_STATE_CANCELLED));
}

TEST(ProgressLineTest, SaysWhereARunningJobIs) {
  EXPECT_EQ(ProgressLine(RunningJob()),
            "version 12/50 · clients 7/10 · accuracy 0.853 · 3.2 updates/s · waiting for 3 more of 10 updates");
}

TEST(ProgressLineTest, ShowsLossWhereTheTaskHasNoAccuracy) {
  v1::Job job = RunningJob();
  job.mutable_metrics(0)->set_accuracy(std::nan(""));
  EXPECT_THAT(ProgressLine(job), HasSubstr(" · loss 0.4 · "));
}

TEST(ProgressLineTest, AnEndedJobSaysHowAndCannotMoveTheCursor) {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_FAILED);
  job.set_state_reason("diverged\x1b[2J\n");
  EXPECT_EQ(ProgressLine(job), "version 12/50 · accuracy 0.853 · 3.2 updates/s · failed: diverged?[2J?");
}

TEST(JobTextTest, ListsRefusalsByReason) {
  const std::string text = JobText(RunningJob());
  EXPECT_THAT(text, HasSubstr("version    12 of 50\n"));
  EXPECT_THAT(text, HasSubstr("waiting    waiting for 3 more"));
  EXPECT_THAT(text, HasSubstr("updates    120 committed, 2 refused (not finite)\n"));
  EXPECT_THAT(text, HasSubstr("traffic    3.0 MiB up, 1.5 KiB down\n"));
  EXPECT_THAT(text, Not(HasSubstr("finished")));
}

TEST(LatestMetricTest, IsTheOneOfTheHighestVersion) {
  v1::Job job = RunningJob();
  job.add_metrics()->set_version(3);
  ASSERT_NE(LatestMetric(job), nullptr);
  EXPECT_EQ(LatestMetric(job)->version(), 12u);
  EXPECT_EQ(LatestMetric(v1::Job()), nullptr);
}

TEST(HumanBytesTest, ChoosesTheUnit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(uint64_t{5} << 30), "5.0 GiB");
  EXPECT_EQ(HumanBytes(uint64_t{3} << 50), "3072.0 TiB");
  EXPECT_EQ(HumanTime(0), "-");
}

}  // namespace
}  // namespace tributary::cli
