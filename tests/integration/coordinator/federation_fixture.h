// A coordinator with a real store and real workers, and clients that are a few lines of test code each.
#pragma once

#include <absl/synchronization/mutex.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "aggregator/coordinator/coordinator.h"
#include "common/clock.h"
#include "common/safetensors.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {

// Keeps every message of one control stream.
class RecordingSink final : public ClientSink {
 public:
  void Send(v1::ServerMessage message) override;
  void Close(const absl::Status& status) override;
  // The first message from `from` on that satisfies `wanted`; waits at most 20 s. `from` moves behind it.
  std::optional<v1::ServerMessage> Await(const std::function<bool(const v1::ServerMessage&)>& wanted, size_t* from);
  bool AwaitClosed();
  size_t Count(const std::function<bool(const v1::ServerMessage&)>& wanted);

 private:
  absl::Mutex mutex_;
  std::vector<v1::ServerMessage> messages_;
  bool closed_ = false;
};

class FederationTest : public ::testing::Test {
 protected:
  struct Upload {
    UpdateHeader header;
    std::vector<std::byte> bytes;
  };
  struct TestClient {
    std::string name;
    std::shared_ptr<RecordingSink> sink;
    uint64_t session = 0;
    size_t read = 0;
  };

  void SetUp() override;
  void TearDown() override;
  void Start();
  void Stop();                       // as a crash would: nothing is drained
  // `model`: the job's key of this name; whatever it says, the tensors are layout_'s.
  std::string Submit(const std::string& extra_yaml, int cohort = 3, int versions = 1, const std::string& model = "{tensors: model.safetensors}");
  TestClient Attach(const std::string& name, const std::vector<v1::UpdateKey>& outbox = {}, bool trains = true, bool evaluates = false);
  v1::TrainTask AwaitTask(TestClient& client);
  // An update with every trainable element = `value`, the buffer = `value`, the counter = `count`.
  Upload MakeUpdate(const TestClient& client, const v1::TrainTask& task, float value, double weight = 1, int64_t count = 1);
  // Of values that the caller gives, in their layout.
  static Upload UploadOf(const TestClient& client, const v1::TrainTask& task, const TensorLayout& layout, std::vector<std::byte> bytes, double weight);
  absl::Status Send(const Upload& upload);           // admit, copy, accept; ACCEPTED or COMMITTED is OK
  v1::UpdateStatus Query(const Upload& upload);
  v1::UpdateKey Key(const Upload& upload);
  void AwaitState(const std::string& job, v1::JobState state);
  bool Until(const std::function<bool()>& condition);
  // Element `index` of tensor `name` of a version.
  float Value(const std::string& job, const std::string& name, size_t index, uint64_t version);

  static constexpr int64_t kWeights = 40'000;        // more than one block
  std::filesystem::path dir_;
  BootClock clock_;
  CoordinatorOptions options_;
  TensorLayout layout_;
  std::unique_ptr<Coordinator> coordinator_;
};

}  // namespace tributary::aggregator
