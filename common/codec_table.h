// The codecs that a job can name (`codec:`), with what an element costs: what CodecOf accepts and `tributary codecs` prints.
// Threads: constant.
#pragma once

#include <span>
#include <string_view>

#include "common/update_codec.h"

namespace tributary {

struct CodecInfo {
  std::string_view name;   // as a job has it
  Codec codec;
  double bits;             // of an element, shares of scales included; topk: of a kept element
  std::string_view help;
  std::string_view source;
};
std::span<const CodecInfo> Codecs();

}  // namespace tributary
