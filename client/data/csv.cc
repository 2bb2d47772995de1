#include "client/data/csv.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "client/data/loaders.h"
#include "common/file.h"
#include "common/suggest.h"

namespace tributary::client {
namespace {

constexpr int64_t kMaxClass = 1'000'000;  // a larger "class" is an id or a price; one-hot outputs of that size help nobody

class CsvReader {
 public:
  CsvReader(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {
    if (text_.substr(0, 3) == "\xef\xbb\xbf") at_ = 3;  // byte order mark of spreadsheet programs
  }

  int64_t line() const { return row_line_; }

  // The next row that is not blank into `fields`; false at the end of the text.
  absl::StatusOr<bool> Next(std::vector<std::string>& fields) {
    while (at_ < text_.size() && (text_[at_] == '\n' || text_[at_] == '\r')) line_ += text_[at_++] == '\n' ? 1 : 0;
    if (at_ >= text_.size()) return false;
    fields.clear();
    row_line_ = line_;
    while (true) {
      std::string field;
      if (at_ < text_.size() && text_[at_] == '"') {
        TRIB_RETURN_IF_ERROR(ReadQuoted(field, fields.size() + 1));
      } else {
        const size_t end = std::min(text_.find_first_of(",\r\n", at_), text_.size());
        field = std::string(text_.substr(at_, end - at_));
        if (field.find('"') != std::string::npos) {
          return InvalidArgument("{}:{}:{}: a quote in the middle of an unquoted field", origin_, row_line_, fields.size() + 1);
        }
        at_ = end;
      }
      fields.push_back(std::move(field));
      if (at_ >= text_.size()) return true;
      if (text_[at_] == ',') {
        ++at_;
        continue;
      }
      if (text_[at_] == '\r') ++at_;
      if (at_ < text_.size() && text_[at_] == '\n') {
        ++at_;
        ++line_;
      }
      return true;
    }
  }

 private:
  absl::Status ReadQuoted(std::string& field, size_t column) {
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] != '"') {
        line_ += text_[at_] == '\n' ? 1 : 0;
        field += text_[at_];
      } else if (at_ + 1 < text_.size() && text_[at_ + 1] == '"') {
        field += text_[++at_];
      } else {
        ++at_;
        if (at_ < text_.size() && text_[at_] != ',' && text_[at_] != '\r' && text_[at_] != '\n') {
          return InvalidArgument("{}:{}:{}: expected ',' or the line's end after the closing quote", origin_, row_line_, column);
        }
        return absl::OkStatus();
      }
    }
    return InvalidArgument("{}:{}:{}: the quoted field does not end", origin_, row_line_, column);
  }

  std::string_view text_;
  const std::string& origin_;
  size_t at_ = 0;
  int64_t line_ = 1;
  int64_t row_line_ = 1;
};

bool IsNumber(const std::string& field) {
  double value = 0;
  return absl::SimpleAtod(field, &value);
}

// A class: digits only (and blanks around them).
bool IsClass(const std::string& field, int64_t& value) {
  const size_t begin = field.find_first_not_of(" \t");
  if (begin == std::string::npos) return false;
  const std::string digits = field.substr(begin, field.find_last_not_of(" \t") + 1 - begin);
  return digits.find_first_not_of("0123456789") == std::string::npos && absl::SimpleAtoi(digits, &value) && value <= kMaxClass;
}

}  // namespace

absl::StatusOr<Examples> ParseCsv(std::string_view text, const std::string& label, const std::string& origin) {
  CsvReader reader(text, origin);
  std::vector<std::string> fields;
  TRIB_ASSIGN_OR_RETURN(bool more, reader.Next(fields));
  if (!more) return InvalidArgument("{}: the file has no rows", origin);
  const size_t columns = fields.size();
  if (columns < 2) return InvalidArgument("{}:{}: expected at least 2 columns (a feature and a label), got {}", origin, reader.line(), columns);

  size_t label_column = columns - 1;
  const bool header = !std::all_of(fields.begin(), fields.end(), IsNumber);
  if (!label.empty()) {
    if (!header) return InvalidArgument("{}:1: data.label is '{}', but the file has no header row", origin, label);
    const auto at = std::find(fields.begin(), fields.end(), label);
    if (at == fields.end()) {
      return InvalidArgument("{}:{}: no column '{}'{}; there are: {}", origin, reader.line(), label, DidYouMean(label, fields),
                             fmt::format("{}", fmt::join(fields, ", ")));
    }
    label_column = static_cast<size_t>(at - fields.begin());
  }
  if (header) {
    TRIB_ASSIGN_OR_RETURN(more, reader.Next(fields));
  }

  Examples result;
  result.example_shape = {static_cast<int64_t>(columns - 1)};
  bool all_classes = true;
  while (more) {
    if (fields.size() != columns) {
      return InvalidArgument("{}:{}:{}: expected {} fields as in the first row, got {}", origin, reader.line(),
                             std::min(fields.size(), columns) + 1, columns, fields.size());
    }
    for (size_t c = 0; c < columns; ++c) {
      double value = 0;
      if (!absl::SimpleAtod(fields[c], &value) || !std::isfinite(value) || std::abs(value) > std::numeric_limits<float>::max()) {
        return InvalidArgument("{}:{}:{}: expected a finite number, got '{}'", origin, reader.line(), c + 1, fields[c].substr(0, 64));
      }
      if (c != label_column) {
        result.x.push_back(static_cast<float>(value));
        continue;
      }
      result.targets.push_back(static_cast<float>(value));
      int64_t index = 0;
      all_classes = all_classes && IsClass(fields[c], index);
      if (all_classes) result.labels.push_back(index);
    }
    TRIB_ASSIGN_OR_RETURN(more, reader.Next(fields));
  }
  if (result.targets.empty()) return InvalidArgument("{}: a header but no rows", origin);
  if (all_classes) {
    result.targets.clear();
  } else {
    result.labels.clear();
  }
  return result;
}

absl::StatusOr<LoadedData> LoadCsv(const DataSpec& spec, Split split) {
  TRIB_ASSIGN_OR_RETURN(const SourceFiles source, FindFiles(spec, split, ".csv"));
  Examples all;
  std::vector<std::vector<uint32_t>> files;
  for (const auto& path : source.files) {
    TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxDataBytes));
    TRIB_ASSIGN_OR_RETURN(Examples part, ParseCsv(text, spec.label, path.string()));
    TRIB_RETURN_IF_ERROR(AppendExamples(path.string(), std::move(part), all, files));
  }
  return FinishLoad(spec, split, source.hold_out, std::move(all), std::move(files));
}

}  // namespace tributary::client
