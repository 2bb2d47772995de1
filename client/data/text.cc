// Text as tokens: the bytes it is, or what a byte-pair encoding makes of it (bpe.h). Example k of a file is its tokens [W·k, W·(k+1)); what is left at the end
// is not used. An example's label is the number of its file in name order, so that every partition works (dirichlet over languages, say).
#include <optional>
#include <utility>

#include "client/data/bpe.h"
#include "client/data/loaders.h"
#include "common/digest.h"
#include "common/file.h"

namespace tributary::client {
namespace {

constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;

absl::StatusOr<BpeTokenizer> ReadTokenizer(const DataSpec& spec) {
  TRIB_ASSIGN_OR_RETURN(const std::string json, ReadFile(spec.tokenizer, kMaxTokenizerBytes));
  if (!spec.tokenizer_sha256.empty()) {
    const std::string got = Sha256Hex(std::as_bytes(std::span(json)));
    if (got != spec.tokenizer_sha256) {
      return InvalidArgument("{}: expected the file whose SHA-256 is {} (data.tokenizer_sha256), got {}: all clients of a job must have the same tokens", spec.tokenizer,
                             spec.tokenizer_sha256, got);
    }
  }
  return BpeTokenizer::Parse(json, spec.tokenizer);
}

template <typename Token>
absl::StatusOr<Examples> Windows(std::span<const Token> tokens, size_t window, const char* unit, int64_t label, const std::string& origin) {
  const size_t count = tokens.size() / window;
  if (count == 0) return InvalidArgument("{}: expected at least one window of {} {}, got {} {}", origin, window, unit, tokens.size(), unit);
  if (count * window > kMaxDataBytes / sizeof(float)) {
    return ResourceExhausted("{}: {} {} take {} bytes as examples, over the limit of {}", origin, tokens.size(), unit, tokens.size() * sizeof(float), kMaxDataBytes);
  }
  Examples examples;
  examples.example_shape = {static_cast<int64_t>(window)};
  examples.labels.assign(count, label);
  examples.x.reserve(count * window);
  for (size_t i = 0; i < count * window; ++i) examples.x.push_back(static_cast<float>(tokens[i]));
  return examples;
}

}  // namespace

absl::StatusOr<LoadedData> LoadText(const DataSpec& spec, Split split) {
  TRIB_ASSIGN_OR_RETURN(const SourceFiles source, FindFiles(spec, split, ".txt"));
  std::optional<BpeTokenizer> tokenizer;
  if (!spec.tokenizer.empty()) {
    TRIB_ASSIGN_OR_RETURN(tokenizer, ReadTokenizer(spec));
  }
  const auto window = static_cast<size_t>(spec.window);
  Examples all;
  std::vector<std::vector<uint32_t>> files;
  for (size_t f = 0; f < source.files.size(); ++f) {
    const std::string origin = source.files[f].string();
    TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(source.files[f], kMaxDataBytes / sizeof(float)));
    Examples part;
    if (tokenizer) {
      const absl::StatusOr<std::vector<uint32_t>> tokens = tokenizer->Encode(text);
      if (!tokens.ok()) return Annotate(tokens.status(), origin);
      TRIB_ASSIGN_OR_RETURN(part, Windows<uint32_t>(*tokens, window, "tokens", static_cast<int64_t>(f), origin));
    } else {
      const std::span<const unsigned char> bytes(reinterpret_cast<const unsigned char*>(text.data()), text.size());
      TRIB_ASSIGN_OR_RETURN(part, Windows(bytes, window, "bytes", static_cast<int64_t>(f), origin));
    }
    TRIB_RETURN_IF_ERROR(AppendExamples(origin, std::move(part), all, files));
  }
  return FinishLoad(spec, split, source.hold_out, std::move(all), std::move(files));
}

}  // namespace tributary::client
