// A job as the CLI shows it: the JSON of `run --json` and `jobs show --json` (design.md §6), one-line summaries, tables. Pure.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "tributary/v1/admin.pb.h"

namespace tributary::cli {

nlohmann::json PrivacyJson(const v1::PrivacySpend& spend);
nlohmann::json JobJson(const v1::Job& job);
std::string JobStateName(v1::JobState state);   // "queued", "running", "done", "failed", "cancelled"
bool JobEnded(v1::JobState state);

// The newest metric, or nullptr.
const v1::Metric* LatestMetric(const v1::Job& job);
// "version 12/50 · clients 7/10 · accuracy 0.853 · 3.2 updates/s · waiting for …"
std::string ProgressLine(const v1::Job& job);
// Several lines for people: state, version, updates, refusals by reason, bytes, waiting for.
std::string JobText(const v1::Job& job);
// "1.2 MiB"
std::string HumanBytes(uint64_t bytes);
// "2026-11-25 02:30:11" in local time; "-" for 0.
std::string HumanTime(int64_t micros);
// NaN and infinities have no JSON form: null.
nlohmann::json NumberOrNull(double value);

}  // namespace tributary::cli
