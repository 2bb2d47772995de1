// From a trained update to the bytes that travel: Δ (+ error feedback) → clip → noise → codec, algorithms.md §13.1.
//
// Every stage is a filter over the flat vector of trainable elements. What a stage does to an element depends on the element's number
// and on numbers taken over the whole vector, never on how it is cut into pieces: pieces of 1 element and of 2^20 give equal bytes.
// The norm is a sum in double in the order of tree_sum.h. Clip: Δ·min(1, C/‖Δ‖₂), guarded at norm 0. Noise: + stddev·N(0, 1). Codecs:
// update_codec.h; int8 and int4 round to code ⌊x/scale + u⌋ (quantise.h) with u uniform in [0, 1), so E[decoded] = x and the variance is at most scale²/4.
// The GPU's kernels (client/cuda/privatise.h) give the same bytes.
// topk is biased: what it drops comes back as `residual`, to be added to the next update (error feedback, Seide et al. 2014; Stich et
// al. 2018). The residual is taken after the clip. Buffers and counters pass unchanged.
// Sources: DP-FedAvg (McMahan et al. 2018) for the flat clip; QSGD (Alistarh et al. 2017) for stochastic rounding.
//
// Errors: INVALID_ARGUMENT naming the stage: a value that is not finite, one out of f16's range, a residual of another size.
// Threads: a call is pure but for the noise source.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/large_bytes.h"
#include "common/philox.h"
#include "common/random_words.h"
#include "common/status.h"
#include "common/update_codec.h"

namespace tributary::client {

struct PipelineOptions {
  UpdateEncoding encoding{};
  double clip = 0;                        // C; 0: no clipping
  double noise_stddev = 0;                // absolute; 0: none
  RandomWords* noise = nullptr;           // required with noise_stddev > 0; borrowed for the call
  PhiloxStream rounding{};                // of int8 and int4
  size_t piece_elements = 64 * 1024;      // how much is worked on at a time: cache, nothing else
};

struct EncodedUpdate {
  LargeBytes bytes;                       // encoding.total_bytes()
  std::vector<float> residual;            // topk: trainable elements; empty otherwise
  double norm = 0;                        // ‖Δ + e‖₂, before the clip; 0 if no stage has anything to do: the bytes are as they came
};

// `flat`: the update as the learner gave it (tensor_layout.h); its memory may be reused for the result. `feedback`: the residual of this
// client's last counted update; empty: none.
absl::StatusOr<EncodedUpdate> EncodeUpdate(const PipelineOptions& options, LargeBytes flat, std::span<const float> feedback);

}  // namespace tributary::client
