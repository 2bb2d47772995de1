// Byte-level byte-pair encoding: text becomes the numbers that a `tokenizer.json` of the Python package `tokenizers` gives it, as GPT-2's, Llama 3's and
// their kin are published. Source: Sennrich et al., ACL 2016, §3.2 (merges); Radford et al. 2019, §2.2 (over bytes).
//
// Read of the file: model (type BPE: vocab, merges, ignore_merges), pre_tokenizer (ByteLevel, or Split by a regular expression and then ByteLevel). What would
// change the numbers and is not known here (normalizers, dropout, other models and pre-tokenizers, prefixes and suffixes of words) is refused by name. Not done: what is put around a
// text (post_processor), and the special tokens' names as more than text: a client's text cannot bring a control token.
// Threads: thread-compatible (words are kept). Errors: INVALID_ARGUMENT as "origin: …".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace tributary::client {

class BpeTokenizer {
 public:
  // `json`: the file's text.
  static absl::StatusOr<BpeTokenizer> Parse(std::string_view json, const std::string& origin);
  ~BpeTokenizer();
  BpeTokenizer(BpeTokenizer&&) noexcept;
  BpeTokenizer& operator=(BpeTokenizer&&) noexcept;

  // The model's `vocabulary` must be at least this: the largest number plus one, special tokens' too.
  uint32_t vocabulary() const;
  // INVALID_ARGUMENT: a byte that the vocabulary has no token for; RESOURCE_EXHAUSTED: a word over 64 MiB.
  absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view text);

 private:
  struct State;
  explicit BpeTokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tributary::client
