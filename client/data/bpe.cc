#include "client/data/bpe.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace tributary::client {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kMaxToken = 1u << 24;     // examples hold tokens as floats
constexpr size_t kLongestWord = 1u << 26;     // bytes; each takes about 50 while they are merged
constexpr size_t kLongestKeptWord = 64;
constexpr size_t kMostKeptWords = 1u << 17;

// GPT-2's, which a ByteLevel with use_regex stands for.
constexpr char kByteLevelPattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A vocabulary is text in which each character stands for a byte: printable ones for themselves, the others, in order, for U+0100 and up.
std::unordered_map<uint32_t, uint8_t> BytesOfCharacters() {
  std::unordered_map<uint32_t, uint8_t> bytes;
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    bytes[printable ? b : next++] = static_cast<uint8_t>(b);
  }
  return bytes;
}

// nullopt: a character that stands for no byte. `text` is valid UTF-8 (JSON's parser has seen to that), of at most two bytes a character if it is one of ours.
std::optional<std::string> BytesOf(std::string_view text, const std::unordered_map<uint32_t, uint8_t>& bytes) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    uint32_t character = lead;
    if (lead >= 0x80) {
      if ((lead & 0xE0) != 0xC0 || i + 1 >= text.size()) return std::nullopt;
      character = (lead & 0x1Fu) << 6 | (static_cast<uint8_t>(text[i + 1]) & 0x3Fu);
    }
    i += lead >= 0x80 ? 2 : 1;
    const auto byte = bytes.find(character);
    if (byte == bytes.end()) return std::nullopt;
    out.push_back(static_cast<char>(byte->second));
  }
  return out;
}

struct PcreDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

struct Merge {
  uint32_t rank, token;
};
struct PairHash {
  size_t operator()(const std::pair<uint32_t, uint32_t>& pair) const { return std::hash<uint64_t>()(uint64_t{pair.first} << 32 | pair.second); }
};

}  // namespace

struct BpeTokenizer::State {
  std::string origin;
  std::unordered_map<std::string, uint32_t> tokens;  // by their bytes
  std::array<int64_t, 256> of_byte{};                // -1: none
  std::unordered_map<std::pair<uint32_t, uint32_t>, Merge, PairHash> merges;
  uint32_t vocabulary = 0;
  bool whole_words = false;  // ignore_merges: a word that is a token is that token
  bool leading_space = false;
  std::unique_ptr<pcre2_code, PcreDeleter> pattern;  // null: a text is one word
  std::unique_ptr<pcre2_match_data, PcreDeleter> match;
  std::unordered_map<std::string, std::vector<uint32_t>> kept;

  absl::Status ReadModel(const Json& model);
  absl::Status ReadWords(const Json& pre_tokenizer);
  absl::Status Compile(const std::string& expression);
  absl::Status AppendWord(std::string_view word, std::vector<uint32_t>* out);
  absl::StatusOr<std::vector<uint32_t>> Merged(std::string_view word) const;

  template <typename... Arguments>
  absl::Status Fail(fmt::format_string<Arguments...> format, Arguments&&... arguments) const {
    return InvalidArgument("{}: {}", origin, fmt::format(format, std::forward<Arguments>(arguments)...));
  }
};

namespace {

// Absent and null are the same there.
bool Has(const Json& map, const char* key) { return map.is_object() && map.contains(key) && !map[key].is_null(); }
bool IsTrue(const Json& map, const char* key) { return Has(map, key) && map[key] == true; }
std::string TypeOf(const Json& map) { return Has(map, "type") && map["type"].is_string() ? map["type"].get<std::string>() : ""; }

}  // namespace

absl::Status BpeTokenizer::State::ReadModel(const Json& model) {
  if (TypeOf(model) != "BPE") return Fail("model.type: expected BPE, got '{}'", TypeOf(model));
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    if (Has(model, key) && model[key] != "" && model[key] != 0) return Fail("model.{}: expected none, got {}", key, model[key].dump());
  }
  if (IsTrue(model, "byte_fallback")) return Fail("model.byte_fallback: expected a vocabulary of bytes, as ByteLevel's; a SentencePiece model cannot be read");
  whole_words = IsTrue(model, "ignore_merges");
  if (!Has(model, "vocab") || !model["vocab"].is_object()) return Fail("model.vocab: expected a map from text to numbers");
  const std::unordered_map<uint32_t, uint8_t> bytes = BytesOfCharacters();
  std::unordered_map<std::string, uint32_t> numbers;  // as the merges name them
  for (const auto& [text, number] : model["vocab"].items()) {
    if (!number.is_number_unsigned() || number.get<uint64_t>() >= kMaxToken) {
      return Fail("model.vocab: token '{}': expected a number from 0 to {}, got {}", text, kMaxToken - 1, number.dump());
    }
    const auto token = number.get<uint32_t>();
    vocabulary = std::max(vocabulary, token + 1);
    numbers[text] = token;
    // Others are special tokens' names.
    if (std::optional<std::string> of = BytesOf(text, bytes)) tokens[*std::move(of)] = token;
  }
  of_byte.fill(-1);
  for (const auto& [text, token] : tokens) {
    if (text.size() == 1) of_byte[static_cast<uint8_t>(text[0])] = token;
  }
  if (!Has(model, "merges") || !model["merges"].is_array()) return Fail("model.merges: expected a list");
  uint32_t rank = 0;
  for (const Json& merge : model["merges"]) {
    std::string left, right;  // "left right", or [left, right]
    if (merge.is_string()) {
      const auto text = merge.get<std::string>();
      const size_t space = text.find(' ');
      if (space != std::string::npos) left = text.substr(0, space), right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>(), right = merge[1].get<std::string>();
    }
    const auto a = numbers.find(left), b = numbers.find(right), both = numbers.find(left + right);
    if (a == numbers.end() || b == numbers.end() || both == numbers.end()) return Fail("model.merges: merge {}: expected two tokens whose union is one, got {}", rank, merge.dump());
    merges.emplace(std::pair(a->second, b->second), Merge{.rank = rank, .token = both->second});
    ++rank;
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::State::Compile(const std::string& expression) {
  int error = 0;
  size_t at = 0;
  // Of text that is no UTF-8 the rest is still cut into words.
  pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &at, nullptr));
  if (pattern == nullptr) {
    unsigned char message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return Fail("pre_tokenizer: the expression is wrong at {}: {}", at, reinterpret_cast<const char*>(message));
  }
  pcre2_jit_compile(pattern.get(), PCRE2_JIT_COMPLETE);  // where there is none, matching is slower
  match.reset(pcre2_match_data_create_from_pattern(pattern.get(), nullptr));
  return absl::OkStatus();
}

absl::Status BpeTokenizer::State::ReadWords(const Json& pre_tokenizer) {
  const bool sequence = TypeOf(pre_tokenizer) == "Sequence";
  std::vector<Json> steps;
  if (sequence && Has(pre_tokenizer, "pretokenizers") && pre_tokenizer["pretokenizers"].is_array()) {
    for (const Json& step : pre_tokenizer["pretokenizers"]) steps.push_back(step);
  } else {
    steps.push_back(pre_tokenizer);
  }
  const bool split = steps.size() == 2 && TypeOf(steps[0]) == "Split";
  if (steps.size() != (split ? 2 : 1) || TypeOf(steps.back()) != "ByteLevel") {
    return Fail("pre_tokenizer: expected ByteLevel, or Split and then ByteLevel, got {}", pre_tokenizer.dump());
  }
  const Json& bytes = steps.back();
  const bool own_pattern = !Has(bytes, "use_regex") || IsTrue(bytes, "use_regex");  // true where the file does not say
  leading_space = IsTrue(bytes, "add_prefix_space");
  if (!split) return own_pattern ? Compile(kByteLevelPattern) : absl::OkStatus();
  if (own_pattern || leading_space) return Fail("pre_tokenizer: ByteLevel behind Split: expected use_regex and add_prefix_space to be false");
  const bool isolated = Has(steps[0], "behavior") && steps[0]["behavior"] == "Isolated" && !IsTrue(steps[0], "invert");
  if (!isolated || !Has(steps[0], "pattern") || !Has(steps[0]["pattern"], "Regex") || !steps[0]["pattern"]["Regex"].is_string()) {
    return Fail("pre_tokenizer: Split: expected a Regex with behavior Isolated, got {}", steps[0].dump());
  }
  return Compile(steps[0]["pattern"]["Regex"].get<std::string>());
}

// The pair of lowest rank first, of equal ones the leftmost, until none is left: as if all were looked at anew after each merge.
absl::StatusOr<std::vector<uint32_t>> BpeTokenizer::State::Merged(std::string_view word) const {
  if (word.size() > kLongestWord) {
    return ResourceExhausted("{}: a word of {} bytes, over the limit of {}: a pre_tokenizer with an expression would cut the text, or use smaller files", origin, word.size(), kLongestWord);
  }
  constexpr size_t kNone = SIZE_MAX;
  struct Symbol {
    uint32_t token;
    size_t previous, next;
    bool gone = false;
  };
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (size_t i = 0; i < word.size(); ++i) {
    const int64_t token = of_byte[static_cast<uint8_t>(word[i])];
    if (token < 0) return Fail("the vocabulary has no token for byte 0x{:02X}, which is in the text", static_cast<uint8_t>(word[i]));
    symbols.push_back({.token = static_cast<uint32_t>(token), .previous = i == 0 ? kNone : i - 1, .next = i + 1 == word.size() ? kNone : i + 1});
  }
  using Candidate = std::tuple<uint32_t, size_t, uint32_t, uint32_t>;  // rank, place, and the tokens that were there
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](size_t at) {
    if (at == kNone || symbols[at].next == kNone) return;
    const std::pair pair(symbols[at].token, symbols[symbols[at].next].token);
    if (const auto merge = merges.find(pair); merge != merges.end()) candidates.emplace(merge->second.rank, at, pair.first, pair.second);
  };
  for (size_t i = 0; i < symbols.size(); ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, at, left, right] = candidates.top();
    candidates.pop();
    Symbol& symbol = symbols[at];
    if (symbol.gone || symbol.token != left || symbol.next == kNone || symbols[symbol.next].token != right) continue;
    symbol.token = merges.at({left, right}).token;
    symbols[symbol.next].gone = true;
    symbol.next = symbols[symbol.next].next;
    if (symbol.next != kNone) symbols[symbol.next].previous = at;
    consider(at);
    consider(symbol.previous);
  }
  std::vector<uint32_t> out;
  for (size_t at = 0; at != kNone && !symbols.empty(); at = symbols[at].next) out.push_back(symbols[at].token);
  return out;
}

absl::Status BpeTokenizer::State::AppendWord(std::string_view word, std::vector<uint32_t>* out) {
  std::string key(word);
  if (whole_words) {
    if (const auto token = tokens.find(key); token != tokens.end()) {
      out->push_back(token->second);
      return absl::OkStatus();
    }
  }
  const auto known = kept.find(key);
  if (known != kept.end()) {
    out->insert(out->end(), known->second.begin(), known->second.end());
    return absl::OkStatus();
  }
  TRIB_ASSIGN_OR_RETURN(std::vector<uint32_t> merged, Merged(word));
  out->insert(out->end(), merged.begin(), merged.end());
  if (word.size() <= kLongestKeptWord && kept.size() < kMostKeptWords) kept.emplace(std::move(key), std::move(merged));
  return absl::OkStatus();
}

BpeTokenizer::BpeTokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
BpeTokenizer::~BpeTokenizer() = default;
BpeTokenizer::BpeTokenizer(BpeTokenizer&&) noexcept = default;
BpeTokenizer& BpeTokenizer::operator=(BpeTokenizer&&) noexcept = default;

absl::StatusOr<BpeTokenizer> BpeTokenizer::Parse(std::string_view json, const std::string& origin) {
  auto state = std::make_unique<State>();
  state->origin = origin;
  const Json file = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!file.is_object() || !Has(file, "model")) return state->Fail("expected a tokenizer.json with a model");
  if (Has(file, "normalizer")) return state->Fail("normalizer: expected none, got {}", TypeOf(file["normalizer"]));
  if (!Has(file, "pre_tokenizer")) return state->Fail("pre_tokenizer: expected ByteLevel, got none");
  TRIB_RETURN_IF_ERROR(state->ReadModel(file["model"]));
  TRIB_RETURN_IF_ERROR(state->ReadWords(file["pre_tokenizer"]));
  if (Has(file, "added_tokens") && file["added_tokens"].is_array()) {
    for (const Json& token : file["added_tokens"]) {
      if (!Has(token, "id") || !token["id"].is_number_unsigned() || token["id"].get<uint64_t>() >= kMaxToken) {
        return state->Fail("added_tokens: expected numbers below {} as id, got {}", kMaxToken, token.dump());
      }
      state->vocabulary = std::max(state->vocabulary, token["id"].get<uint32_t>() + 1);
    }
  }
  return BpeTokenizer(std::move(state));
}

uint32_t BpeTokenizer::vocabulary() const { return state_->vocabulary; }

absl::StatusOr<std::vector<uint32_t>> BpeTokenizer::Encode(std::string_view text) {
  State& state = *state_;
  std::string spaced;
  if (state.leading_space && !text.empty() && text[0] != ' ') {
    spaced = " ";
    spaced += text;
    text = spaced;
  }
  std::vector<uint32_t> out;
  if (state.pattern == nullptr) {
    TRIB_RETURN_IF_ERROR(state.AppendWord(text, &out));
    return out;
  }
  // Words are the matches, and what lies between them.
  size_t at = 0, searched = 0;
  while (searched <= text.size()) {
    const int found = pcre2_match(state.pattern.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), searched, 0, state.match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) return state.Fail("pre_tokenizer: the expression cannot be matched at byte {}: PCRE2's error {}", searched, found);
    const size_t* const span = pcre2_get_ovector_pointer(state.match.get());
    if (span[1] == span[0]) {
      do ++searched;  // nothing was matched: on to the next character
      while (searched < text.size() && (static_cast<uint8_t>(text[searched]) & 0xC0) == 0x80);
      continue;
    }
    if (span[0] > at) TRIB_RETURN_IF_ERROR(state.AppendWord(text.substr(at, span[0] - at), &out));
    TRIB_RETURN_IF_ERROR(state.AppendWord(text.substr(span[0], span[1] - span[0]), &out));
    at = searched = span[1];
  }
  if (at < text.size()) TRIB_RETURN_IF_ERROR(state.AppendWord(text.substr(at), &out));
  return out;
}

}  // namespace tributary::client
