// One block of the int8 and int4 codes (common/update_codec.h): its scale, and every element rounded to code ⌊q + u⌋, u uniform over the
// 2^16 numbers (2h + 1)·2^−17: on average without bias, and what is a multiple of the scale stays that. q is x/scale for 127 levels; for 7 it
// is x·f, f = 7/max|x| rounded toward 0, which is no further from x/scale than u makes up for, and fewer operations. h is 16
// bits of a random word: element e of a block has word e mod 128 of the block's 128, its lower half the first 128 elements, its upper half the
// others; the sum is rounded as q + (1 + u) once. One form for every x86-64 and forms for wider vectors, chosen at run time; all give the same
// bits, those of the formula element by element (IEEE 754 leaves no choice to +, ·, ÷ and ⌊⌋). Threads: pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/philox.h"
#include "common/update_codec.h"

namespace tributary::client {

// `x`: kQuantBlock finite elements, those past the vector's end 0. `first`: the number of the first, a multiple of kQuantBlock. `levels`: 127
// or 7. Writes codes in [-levels, levels], all 0 where every element is; returns the scale max|x| / levels.
float QuantiseBlock(std::span<const float, kQuantBlock> x, uint64_t first, int levels, const PhiloxStream& rounding,
                    std::span<int8_t, kQuantBlock> codes);

// The forms that this processor can run, the plainest first; QuantiseBlock takes the last. For tests that they agree.
using QuantiseForm = float (*)(const float* x, uint64_t first, int levels, const PhiloxStream& rounding, int8_t* codes);
std::vector<QuantiseForm> QuantiseForms();

}  // namespace tributary::client
