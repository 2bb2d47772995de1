// Byte pairs against the numbers of the Python package `tokenizers` (tests/golden/bpe.py), and tokenizer.json files that must be refused.
#include "client/data/bpe.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "common/file.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;
using Json = nlohmann::json;

Json Cases() {
  const auto text = ReadFile(TRIB_GOLDEN_DIR "/bpe.json");
  return Json::parse(*text);
}

TEST(BpeTest, GivesTheNumbersOfThePythonPackage) {
  size_t texts = 0;
  for (const Json& c : Cases()) {
    TRIB_ASSERT_OK_AND_ASSIGN(BpeTokenizer tokenizer, BpeTokenizer::Parse(c["tokenizer"].dump(), c["name"]));
    EXPECT_EQ(tokenizer.vocabulary(), c["vocabulary"]);
    for (int time = 0; time < 2; ++time) {  // the second from the words that are kept
      for (const Json& text : c["texts"]) {
        const auto tokens = tokenizer.Encode(text["text"].get<std::string>());
        ASSERT_THAT(tokens, IsOk());
        EXPECT_EQ(*tokens, text["tokens"].get<std::vector<uint32_t>>()) << c["name"] << ": " << text["text"];
        ++texts;
      }
    }
  }
  EXPECT_EQ(texts, 2u * 4 * 12);
}

TEST(BpeTest, LongWordsAndBytesThatAreNoTextTakeTheirTime) {
  for (const Json& c : Cases()) {
    TRIB_ASSERT_OK_AND_ASSIGN(BpeTokenizer tokenizer, BpeTokenizer::Parse(c["tokenizer"].dump(), c["name"]));
    const Json& byte_tokens = c["tokenizer"]["model"]["vocab"];
    std::string bytes;
    for (int b = 255; b >= 128; --b) bytes.push_back(static_cast<char>(b));  // no UTF-8
    const auto odd = tokenizer.Encode("Q" + bytes);
    ASSERT_THAT(odd, IsOk());
    EXPECT_EQ(odd->size(), 129 + (c["name"] == "prefix"));
    EXPECT_EQ(odd->back(), byte_tokens["\u0122"].get<uint32_t>()) << "byte 0x80";
    // Half a million bytes in one word: minutes, were each merge a look at all of them.
    std::string word;
    for (int i = 0; i < 250'000; ++i) word += i % 3 == 0 ? "ab" : "an";
    ASSERT_THAT(tokenizer.Encode(word), IsOk());
    ASSERT_THAT(tokenizer.Encode(std::string(500'000, ' ') + "x"), IsOk());
  }
}

TEST(BpeTest, WhatItDoesNotKnowIsRefusedByName) {
  const Json good = Cases()[0]["tokenizer"];
  struct Wrong {
    const char* pointer;
    Json value;
    const char* message;
  };
  const std::vector<Wrong> wrongs = {
      {"/model/type", "Unigram", "model.type: expected BPE, got 'Unigram'"},
      {"/model/dropout", 0.1, "model.dropout: expected none, got 0.1"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"/model/byte_fallback", true, "model.byte_fallback"},
      {"/model/vocab", Json::array(), "model.vocab: expected a map"},
      {"/model/vocab/a", -1, "token 'a': expected a number"},
      {"/model/vocab/a", 1 << 24, "token 'a': expected a number"},
      {"/model/merges", "a b", "model.merges: expected a list"},
      {"/model/merges/3", "a", "merge 3: expected two tokens"},
      {"/model/merges/3", Json::array({"zzz", "a"}), "merge 3: expected two tokens"},
      {"/normalizer", Json{{"type", "NFC"}}, "normalizer: expected none, got NFC"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer: expected ByteLevel, got none"},
      {"/pre_tokenizer", Json{{"type", "Metaspace"}}, "pre_tokenizer: expected ByteLevel, or Split"},
      {"/added_tokens/0/id", "x", "added_tokens"},
      {"/model", nullptr, "expected a tokenizer.json"},
  };
  EXPECT_THAT(BpeTokenizer::Parse(good.dump(), "t.json"), IsOk());
  for (const Wrong& wrong : wrongs) {
    Json file = good;
    file[Json::json_pointer(wrong.pointer)] = wrong.value;
    EXPECT_THAT(BpeTokenizer::Parse(file.dump(), "t.json").status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string("t.json: ")))) << wrong.pointer;
    EXPECT_THAT(BpeTokenizer::Parse(file.dump(), "t.json").status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(wrong.message))) << wrong.pointer;
  }
  Json split = Cases()[2]["tokenizer"];
  split["/pre_tokenizer/pretokenizers/0/pattern/Regex"_json_pointer] = "(";
  EXPECT_THAT(BpeTokenizer::Parse(split.dump(), "t.json").status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the expression is wrong at 1")));
  split = Cases()[2]["tokenizer"];
  split["/pre_tokenizer/pretokenizers/0/behavior"_json_pointer] = "Removed";
  EXPECT_THAT(BpeTokenizer::Parse(split.dump(), "t.json").status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("behavior Isolated")));
  for (const std::string text : {"", "[]", "{\"model\": ", "\xff", "{\"model\": {\"type\": \"BPE\"}, \"pre_tokenizer\": {}}"}) {
    EXPECT_THAT(BpeTokenizer::Parse(text, "t.json").status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("t.json"))) << text;
  }
}

TEST(BpeTest, AByteWithoutATokenIsSaid) {
  const std::string json = R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "pre_tokenizer": {"type": "ByteLevel"}})";
  TRIB_ASSERT_OK_AND_ASSIGN(BpeTokenizer tokenizer, BpeTokenizer::Parse(json, "t.json"));
  const auto tokens = tokenizer.Encode("abba");
  ASSERT_THAT(tokens, IsOk());
  EXPECT_EQ(*tokens, (std::vector<uint32_t>{2, 1, 0}));
  EXPECT_THAT(tokenizer.Encode("ab c").status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no token for byte 0x20")));
}

}  // namespace
}  // namespace tributary::client
