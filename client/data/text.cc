// Text as the bytes it is: example k of a file is its bytes [128·k, 128·(k+1)), each a token from 0 to 255; what is left at the end
// is not used. An example's label is the number of its file in name order, so that every partition works (dirichlet over languages, say).
#include <utility>

#include "client/data/loaders.h"
#include "common/file.h"

namespace tributary::client {
namespace {

constexpr size_t kWindow = 128;  // bytes of an example: `input` of the language models

absl::StatusOr<Examples> Windows(const std::string& text, int64_t label, const std::string& origin) {
  const size_t count = text.size() / kWindow;
  if (count == 0) return InvalidArgument("{}: expected at least one window of {} bytes, got {} bytes", origin, kWindow, text.size());
  if (count * kWindow > kMaxDataBytes / sizeof(float)) {
    return ResourceExhausted("{}: {} bytes take {} as examples, over the limit of {}", origin, text.size(), text.size() * sizeof(float), kMaxDataBytes);
  }
  Examples examples;
  examples.example_shape = {static_cast<int64_t>(kWindow)};
  examples.labels.assign(count, label);
  examples.x.reserve(count * kWindow);
  for (size_t i = 0; i < count * kWindow; ++i) examples.x.push_back(static_cast<float>(static_cast<unsigned char>(text[i])));
  return examples;
}

}  // namespace

absl::StatusOr<LoadedData> LoadText(const DataSpec& spec, Split split) {
  TRIB_ASSIGN_OR_RETURN(const SourceFiles source, FindFiles(spec, split, ".txt"));
  Examples all;
  std::vector<std::vector<uint32_t>> files;
  for (size_t f = 0; f < source.files.size(); ++f) {
    const std::string origin = source.files[f].string();
    TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(source.files[f], kMaxDataBytes / sizeof(float)));
    TRIB_ASSIGN_OR_RETURN(Examples part, Windows(text, static_cast<int64_t>(f), origin));
    TRIB_RETURN_IF_ERROR(AppendExamples(origin, std::move(part), all, files));
  }
  return FinishLoad(spec, split, source.hold_out, std::move(all), std::move(files));
}

}  // namespace tributary::client
