// Curves as a TensorBoard event file: each record is u64 length, masked CRC32C of it, a TensorBoardEvent, masked CRC32C of that, all
// little-endian; the first says "brain.Event:2". Scalars loss, accuracy, bytes_up, bytes_down; the step is the version.
// Source: TFRecord's format, tensorflow/core/lib/io/record_writer.h. Threads: single-threaded. Errors: the file system's.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/status.h"
#include "tributary/v1/types.pb.h"

namespace tributary::cli {

// Writes `dir`/<job>/events.out.tfevents.0.tributary; the wall time of an event is the metric's seconds. `dir` is made if missing.
absl::Status WriteTensorBoard(const std::filesystem::path& dir, const std::string& job, const std::vector<v1::Metric>& metrics);

}  // namespace tributary::cli
