// Any bytes as a tokenizer.json: refused with a status, or it gives every text at most a token a byte, each below its vocabulary.
#include <cstdint>
#include <string>
#include <string_view>

#include "client/data/bpe.h"
#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tributary::client::BpeTokenizer;
  auto tokenizer = BpeTokenizer::Parse(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!tokenizer.ok()) {
    TRIB_CHECK(tokenizer.status().code() == absl::StatusCode::kInvalidArgument, "{}", tokenizer.status().ToString());
    return 0;
  }
  std::string bytes;
  for (int b = 0; b < 256; ++b) bytes.push_back(static_cast<char>(b));
  for (const std::string& text : {std::string(), std::string("abba ab\n  a"), bytes}) {
    const auto tokens = tokenizer->Encode(text);
    if (!tokens.ok()) {
      TRIB_CHECK(tokens.status().code() == absl::StatusCode::kInvalidArgument, "{}", tokens.status().ToString());
      continue;
    }
    TRIB_CHECK(tokens->size() <= text.size() + 1, "{} tokens of {} bytes", tokens->size(), text.size());
    for (const uint32_t token : *tokens) TRIB_CHECK(token < tokenizer->vocabulary(), "token {} of {}", token, tokenizer->vocabulary());
  }
  return 0;
}
