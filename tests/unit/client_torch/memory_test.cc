// A device without memory: LibTorch's CPU allocator replaced by one that refuses blocks above a limit, as a GPU's does when it is full.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::StatusIs;

class NarrowAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK_WITH(OutOfMemoryError, bytes <= limit, "CUDA out of memory. Tried to allocate ", bytes, " bytes");
    return whole_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return whole_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { whole_->copy_data(to, from, bytes); }

  static NarrowAllocator& Installed() {
    static NarrowAllocator* const allocator = [] {
      auto* made = new NarrowAllocator;  // LibTorch keeps it to the end of the process
      c10::SetCPUAllocator(made, /*priority=*/1);
      return made;
    }();
    return *allocator;
  }

  size_t limit = std::numeric_limits<size_t>::max();

 private:
  c10::Allocator* const whole_ = c10::GetCPUAllocator();
};

class DeviceMemoryTest : public ::testing::Test {
 protected:
  DeviceMemoryTest() {
    spec_.local.batch = 64;  // whose activations are 64 × 4096 floats, 1 MiB; the weights of a layer are 80 KiB
    spec_.local.epochs = 2;
    spec_.local.lr = 0.01;
  }
  ~DeviceMemoryTest() override { NarrowAllocator::Installed().limit = std::numeric_limits<size_t>::max(); }

  JobSpec spec_ = ZooJob("mlp", {{"input", "5"}, {"classes", "3"}, {"hidden", "4096"}});
  const Dataset data_ = Classes(150, {5}, 3);
};

TEST_F(DeviceMemoryTest, TriesMinibatchesInHalvesOnce) {
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec_));
  const auto learner = CpuLearner();
  NarrowAllocator::Installed().limit = 700 << 10;
  const auto narrow = learner->Train(RequestFor(spec_, model), &data_);
  NarrowAllocator::Installed().limit = std::numeric_limits<size_t>::max();
  ASSERT_THAT(narrow, testing::IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult wide, learner->Train(RequestFor(spec_, model), &data_));
  EXPECT_EQ(narrow->metrics.at("train_steps"), wide.metrics.at("train_steps"));
  EXPECT_NEAR(narrow->metrics.at("train_loss"), wide.metrics.at("train_loss"), 1e-5);
  const size_t count = model.layout.float_count();
  const std::vector<float> a = Floats<float>(narrow->update, count), b = Floats<float>(wide.update, count);
  for (size_t i = 0; i < count; ++i) ASSERT_NEAR(a[i], b[i], 1e-6) << i;  // the mean of two means
}

TEST_F(DeviceMemoryTest, SaysWhatDoesNotFitAndTrainsWhatDoesLater) {
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec_));
  const auto learner = CpuLearner();
  NarrowAllocator::Installed().limit = 300 << 10;
  EXPECT_THAT(learner->Train(RequestFor(spec_, model), &data_),
              StatusIs(StatusCode::kResourceExhausted, ::testing::AllOf(HasSubstr("minibatches of 64 do not fit, nor do halves"), HasSubstr("out of memory"))));
  spec_.local.batch = 16;
  EXPECT_THAT(learner->Train(RequestFor(spec_, model), &data_), testing::IsOk());
}

TEST_F(DeviceMemoryTest, ACohortThatDoesNotFitIsTrainedInParts) {
  spec_.local.batch = 8;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec_));
  auto made = MakeTorchLearner({.device = "cpu", .threads = 1, .cohort = 8});
  ASSERT_THAT(made, testing::IsOk());
  std::vector<CohortMember> members;
  for (size_t i = 0; i < 8; ++i) members.push_back({RequestFor(spec_, model, i), &data_});
  NarrowAllocator::Installed().limit = 700 << 10;  // parameters are 147 KiB a client
  const auto results = (*made)->TrainCohort(members);
  NarrowAllocator::Installed().limit = std::numeric_limits<size_t>::max();
  const auto alone = CpuLearner();
  for (size_t i = 0; i < members.size(); ++i) {
    ASSERT_THAT(results[i], testing::IsOk());
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, alone->Train(members[i].request, members[i].data));
    const std::vector<float> a = Floats<float>(results[i]->update, model.layout.float_count()), b = Floats<float>(expected.update, model.layout.float_count());
    for (size_t k = 0; k < a.size(); ++k) ASSERT_NEAR(a[k], b[k], 1e-6) << "client " << i << ", element " << k;
  }
}

}  // namespace
}  // namespace tributary::client
