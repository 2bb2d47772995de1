// Small jobs and data sets for the learner's tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "client/core/random.h"
#include "client/torch/learner.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {

inline JobSpec ZooJob(const std::string& zoo, ParamMap params = {}) {
  JobSpec spec;
  spec.name = "test";
  spec.model.zoo = zoo;
  spec.model.params = std::move(params);
  spec.seed = 11;
  return spec;
}

// `count` examples of `shape` ~ N(0, 1) with labels 0 … classes−1 in turn, each shifted by its class so that it can be learnt.
inline Dataset Classes(size_t count, std::vector<int64_t> shape, int64_t classes, uint64_t seed = 3) {
  auto all = std::make_shared<Examples>();
  all->example_shape = std::move(shape);
  all->classes = classes;
  CounterRandom random(seed);
  for (size_t i = 0; i < count; ++i) {
    all->labels.push_back(static_cast<int64_t>(i) % classes);
    for (size_t e = 0; e < all->example_elements(); ++e) {
      all->x.push_back(static_cast<float>(random.Normal() + (static_cast<int64_t>(e) % classes == all->labels.back() ? 1.0 : 0.0)));
    }
  }
  Dataset data;
  data.all = std::move(all);
  data.indices.resize(count);
  std::iota(data.indices.begin(), data.indices.end(), 0U);
  return data;
}

// `count` sequences of `length` tokens for a language model: sequence s counts up in steps of 1 + s mod 3, mod 7.
inline Dataset Tokens(size_t count, int64_t length) {
  auto all = std::make_shared<Examples>();
  all->example_shape = {length};
  all->classes = 1;
  all->labels.assign(count, 0);
  for (size_t s = 0; s < count; ++s) {
    for (size_t i = 0; i < static_cast<size_t>(length); ++i) all->x.push_back(static_cast<float>((i * (1 + s % 3) + s) % 7));
  }
  Dataset data;
  data.all = std::move(all);
  data.indices.resize(count);
  std::iota(data.indices.begin(), data.indices.end(), 0U);
  return data;
}

template <typename T>
std::vector<T> Floats(std::span<const std::byte> flat, size_t count) {
  std::vector<T> values(count);
  std::memcpy(values.data(), flat.data(), count * sizeof(T));
  return values;
}

inline std::unique_ptr<Learner> CpuLearner() {
  auto learner = MakeTorchLearner({.device = "cpu", .threads = 1});
  EXPECT_TRUE(learner.ok()) << learner.status();
  return *std::move(learner);
}

inline TrainRequest RequestFor(const JobSpec& spec, const FlatModel& model, uint64_t seed = 1) {
  TrainRequest request;
  request.spec = &spec;
  request.layout = &model.layout;
  request.artifact_path = spec.model.torchscript;
  request.model = model.bytes;
  request.seed = seed;
  request.client = "client";
  return request;
}

// The model after an update: trainable old + Δ, the rest as the update has it. T is the layout's floating type.
template <typename T>
FlatModel Applied(const FlatModel& model, std::span<const std::byte> update) {
  FlatModel next = model;
  // What the server owns is in no update.
  const size_t floats = model.layout.summed_count() * sizeof(T);
  std::copy_n(update.begin(), floats, next.bytes.begin());
  std::copy(update.begin() + static_cast<std::ptrdiff_t>(floats), update.end(), next.bytes.begin() + static_cast<std::ptrdiff_t>(model.layout.float_bytes()));
  for (size_t i = 0; i < model.layout.trainable_count(); ++i) {
    T before;
    T delta;
    std::memcpy(&before, model.bytes.data() + i * sizeof(T), sizeof(T));
    std::memcpy(&delta, update.data() + i * sizeof(T), sizeof(T));
    before += delta;
    std::memcpy(next.bytes.data() + i * sizeof(T), &before, sizeof(T));
  }
  return next;
}

}  // namespace tributary::client
