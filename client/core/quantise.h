// One block of the int8 and int4 codes (common/update_codec.h): its scale, and every element rounded to code ⌊x/scale + u⌋ with u uniform in
// [0, 1) from the words of the elements' quads. One form for every x86-64 and forms for wider vectors, chosen at run time; all give the same
// bits, those of the formula element by element (IEEE 754 leaves no choice to +, ÷ and ⌊⌋). Threads: pure.
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
