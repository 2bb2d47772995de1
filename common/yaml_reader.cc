#include "common/yaml_reader.h"

#include <absl/strings/numbers.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <sstream>

#include "common/suggest.h"
#include "common/utf8.h"

namespace tributary {
namespace {

constexpr size_t kMaxText = size_t{1} << 20;
constexpr size_t kMaxDepth = 32;

struct Position {
  int line = 1;
  int column = 1;
};

Position PositionOf(const YAML::Mark& mark) { return {std::max(mark.line, 0) + 1, std::max(mark.column, 0) + 1}; }

// What this reader needs of a document: no tags, no anchors, keys are text.
struct Value {
  enum Type { kNull, kScalar, kList, kMap } type = kNull;
  Position at;
  std::string text;     // kScalar
  bool quoted = false;  // kScalar: '10' is text, 10 a number
  struct Entry;
  std::vector<Value> items;    // kList
  std::vector<Entry> entries;  // kMap, in the document's order

  const Entry* Find(std::string_view key) const;
};
struct Value::Entry {
  std::string key;
  Position at;
  Value value;
};

const Value::Entry* Value::Find(std::string_view key) const {
  for (const Entry& entry : entries) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

std::string Described(const Value& value) {
  switch (value.type) {
    case Value::kNull:
      return "nothing";
    case Value::kList:
      return "a list";
    case Value::kMap:
      return "a map";
    case Value::kScalar:
      break;
  }
  // Long values are cut, at a whole character.
  constexpr size_t kShown = 60;
  std::string shown = value.text;
  if (shown.size() > kShown) {
    size_t end = kShown;
    while (end > 0 && (static_cast<unsigned char>(shown[end]) & 0xc0) == 0x80) --end;
    shown = shown.substr(0, end) + "…";
  }
  return fmt::format("{}'{}'", value.quoted ? "the text " : "", shown);
}

// Thrown by the builder through yaml-cpp, caught in Parse.
struct Refused {
  Position at;
  std::string message;
};

// Builds a Value from the parser's events. Building here instead of with YAML::Load is what lets aliases, depth and duplicate
// keys be refused before they cost anything.
class Builder final : public YAML::EventHandler {
 public:
  Value root;
  bool any = false;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    Value value;
    value.at = PositionOf(mark);
    Add(std::move(value));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused{PositionOf(mark), "aliases (*name) are not allowed; write the value out"};
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, const std::string& text) override {
    CheckTag(mark, tag);
    for (const char c : text) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
        throw Refused{PositionOf(mark), fmt::format("control character 0x{:02x} is not allowed", static_cast<unsigned char>(c))};
      }
    }
    // Escapes such as "\xFF" or "\uD800" can make what the text itself did not have.
    if (!IsUtf8(text)) throw Refused{PositionOf(mark), "expected UTF-8 text"};
    Value value;
    value.type = Value::kScalar;
    value.at = PositionOf(mark);
    value.text = text;
    value.quoted = tag == "!";
    Add(std::move(value));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, YAML::EmitterStyle::value) override {
    Open(mark, tag, Value::kList);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, YAML::EmitterStyle::value) override {
    Open(mark, tag, Value::kMap);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct Frame {
    Value value;
    std::string key;  // of a map: read, its value not yet
    Position key_at;
    bool have_key = false;
  };

  static void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") throw Refused{PositionOf(mark), fmt::format("tag '{}' is not allowed", tag)};
  }

  void Open(const YAML::Mark& mark, const std::string& tag, Value::Type type) {
    CheckTag(mark, tag);
    if (frames_.size() >= kMaxDepth) throw Refused{PositionOf(mark), fmt::format("nested deeper than {} levels", kMaxDepth)};
    if (!frames_.empty() && frames_.back().value.type == Value::kMap && !frames_.back().have_key) {
      throw Refused{PositionOf(mark), "expected a key, got a map or a list"};
    }
    Frame frame;
    frame.value.type = type;
    frame.value.at = PositionOf(mark);
    frames_.push_back(std::move(frame));
  }

  void Close() {
    Value value = std::move(frames_.back().value);
    frames_.pop_back();
    Add(std::move(value));
  }

  void Add(Value value) {
    if (frames_.empty()) {
      root = std::move(value);
      any = true;
      return;
    }
    Frame& top = frames_.back();
    if (top.value.type == Value::kList) {
      top.value.items.push_back(std::move(value));
    } else if (!top.have_key) {
      if (value.type != Value::kScalar) throw Refused{value.at, "expected a key, got " + Described(value)};
      if (const Value::Entry* first = top.value.Find(value.text)) {
        throw Refused{value.at, fmt::format("key '{}' occurs twice (first in line {})", value.text, first->at.line)};
      }
      // Find is linear: bounded so that many keys cost no quadratic time.
      if (top.value.entries.size() >= 1000) throw Refused{value.at, "more than 1000 keys in one map"};
      top.key = std::move(value.text);
      top.key_at = value.at;
      top.have_key = true;
    } else {
      top.have_key = false;
      top.value.entries.push_back({std::move(top.key), top.key_at, std::move(value)});
    }
  }

  std::vector<Frame> frames_;
};

struct Document {
  std::string origin;
  Value root;
  absl::Status error;  // the first
};

}  // namespace

struct YamlReader::Node {
  std::shared_ptr<Document> document;
  const Value* map = nullptr;  // into document->root; nullptr: the map is absent
  std::string prefix;          // "cohort." before this map's keys in messages
  std::vector<std::string> known;
  std::vector<std::string> consumed;
  std::vector<std::shared_ptr<Node>> children;

  bool failed() const { return !document->error.ok(); }

  void FailAt(Position at, std::string_view key, std::string_view message) {
    if (failed()) return;
    document->error = InvalidArgument("{}:{}:{}: {}{}{}{}", document->origin, at.line, at.column, prefix, key,
                                      prefix.empty() && key.empty() ? "" : ": ", message);
  }

  const Value::Entry* Find(std::string_view key) const { return map == nullptr ? nullptr : map->Find(key); }

  // The value at `key`, now consumed; nullptr when absent (an error if it had to be there) or after an error.
  const Value* Take(std::string_view key, Presence presence) {
    if (failed()) return nullptr;
    known.emplace_back(key);
    const Value::Entry* entry = Find(key);
    if (entry == nullptr) {
      if (presence == kRequired) FailAt(map == nullptr ? document->root.at : map->at, key, "required, but missing");
      return nullptr;
    }
    consumed.emplace_back(key);
    return &entry->value;
  }

  const Value* TakeScalar(std::string_view key, Presence presence, std::string_view wanted, bool allow_quoted) {
    const Value* value = Take(key, presence);
    if (value == nullptr) return nullptr;
    if (value->type != Value::kScalar || (value->quoted && !allow_quoted)) {
      FailAt(value->at, key, fmt::format("expected {}, got {}", wanted, Described(*value)));
      return nullptr;
    }
    return value;
  }

  void CheckLeftOver() {
    if (failed()) return;
    if (map != nullptr) {
      for (const Value::Entry& entry : map->entries) {
        if (std::find(consumed.begin(), consumed.end(), entry.key) == consumed.end()) {
          Value shown;
          shown.type = Value::kScalar;
          shown.text = entry.key;
          std::string message = fmt::format("unknown key {}{}", Described(shown), DidYouMean(entry.key, known));
          if (NearestOf(entry.key, known).empty() && !known.empty()) {
            message += "; known:";
            for (size_t i = 0; i < known.size(); ++i) message += (i == 0 ? " " : ", ") + known[i];
          }
          // The map's own path, without the dot.
          const std::string path = prefix.empty() ? "" : prefix.substr(0, prefix.size() - 1) + ": ";
          document->error =
              InvalidArgument("{}:{}:{}: {}{}", document->origin, entry.at.line, entry.at.column, path, message);
          return;
        }
      }
    }
    for (const std::shared_ptr<Node>& child : children) child->CheckLeftOver();
  }

  void TakeScalars(const Value& from, const std::string& path, bool only_rest, std::map<std::string, std::string>* out) {
    for (const Value::Entry& entry : from.entries) {
      if (only_rest && std::find(consumed.begin(), consumed.end(), entry.key) != consumed.end()) continue;
      if (only_rest) consumed.push_back(entry.key);
      if ((only_rest || entry.value.type == Value::kMap) && TakeFlattened(entry, out)) continue;
      if (entry.value.type != Value::kScalar) {
        FailAt(entry.value.at, path + entry.key, fmt::format("expected a single value, got {}", Described(entry.value)));
        return;
      }
      (*out)[entry.key] = entry.value.text;
    }
  }

  // A map of single values as "key.name", a list of them as one text with commas. False, and nothing taken, for anything else.
  static bool TakeFlattened(const Value::Entry& entry, std::map<std::string, std::string>* out) {
    const auto single = [](const Value& value) { return value.type == Value::kScalar; };
    if (entry.value.type == Value::kMap) {
      if (!std::all_of(entry.value.entries.begin(), entry.value.entries.end(), [&](const Value::Entry& e) { return single(e.value); })) return false;
      for (const Value::Entry& inner : entry.value.entries) (*out)[entry.key + "." + inner.key] = inner.value.text;
      return true;
    }
    if (entry.value.type != Value::kList || !std::all_of(entry.value.items.begin(), entry.value.items.end(), single)) return false;
    std::string text;
    for (const Value& item : entry.value.items) text += (text.empty() ? "" : ", ") + item.text;
    (*out)[entry.key] = text;
    return true;
  }
};

YamlReader::YamlReader(std::shared_ptr<Node> node) : node_(std::move(node)) {}

absl::StatusOr<YamlReader> YamlReader::Parse(std::string_view text, std::string origin) {
  if (text.size() > kMaxText) return InvalidArgument("{}: expected at most {} bytes, got {}", origin, kMaxText, text.size());
  // yaml-cpp would guess UTF-16 and UTF-32 from the first bytes.
  if (text.find('\0') != std::string_view::npos || !IsUtf8(text)) return InvalidArgument("{}: expected UTF-8 text", origin);
  auto document = std::make_shared<Document>();
  document->origin = origin;
  Builder builder;
  const auto refuse = [&origin](Position at, std::string_view message) {
    return InvalidArgument("{}:{}:{}: {}", origin, at.line, at.column, message);
  };
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder) || !builder.any) {
      return InvalidArgument("{}: expected a YAML map, got an empty document", origin);
    }
    Builder second;
    if (parser.HandleNextDocument(second)) return refuse(second.root.at, "expected one document, got several");
  } catch (const Refused& refused) {
    return refuse(refused.at, refused.message);
  } catch (const YAML::Exception& error) {
    return refuse(error.mark.is_null() ? Position{} : PositionOf(error.mark), "not valid YAML: " + error.msg);
  } catch (const std::exception& error) {
    return InvalidArgument("{}: not valid YAML: {}", origin, error.what());
  }
  document->root = std::move(builder.root);
  if (document->root.type != Value::kMap) {
    return refuse(document->root.at, fmt::format("expected a map of keys, got {}", Described(document->root)));
  }
  auto node = std::make_shared<Node>();
  node->map = &document->root;
  node->document = std::move(document);
  return YamlReader(std::move(node));
}

void YamlReader::String(std::string_view key, std::string* out, Presence presence) {
  if (const Value* value = node_->TakeScalar(key, presence, "text", true)) *out = value->text;
}

void YamlReader::Bool(std::string_view key, bool* out, Presence presence) {
  const Value* value = node_->TakeScalar(key, presence, "true or false", false);
  if (value == nullptr) return;
  if (value->text != "true" && value->text != "false") {
    node_->FailAt(value->at, key, fmt::format("expected true or false, got {}", Described(*value)));
    return;
  }
  *out = value->text == "true";
}

void YamlReader::Int(std::string_view key, int64_t* out, Presence presence) {
  const Value* value = node_->TakeScalar(key, presence, "an integer", false);
  if (value == nullptr) return;
  int64_t parsed = 0;
  if (!absl::SimpleAtoi(value->text, &parsed)) {
    node_->FailAt(value->at, key, fmt::format("expected an integer, got {}", Described(*value)));
    return;
  }
  *out = parsed;
}

void YamlReader::Double(std::string_view key, double* out, Presence presence) {
  const Value* value = node_->TakeScalar(key, presence, "a number", false);
  if (value == nullptr) return;
  double parsed = 0;
  if (!absl::SimpleAtod(value->text, &parsed) || !std::isfinite(parsed)) {
    node_->FailAt(value->at, key, fmt::format("expected a finite number, got {}", Described(*value)));
    return;
  }
  *out = parsed;
}

void YamlReader::StringList(std::string_view key, std::vector<std::string>* out, Presence presence) {
  const Value* value = node_->Take(key, presence);
  if (value == nullptr) return;
  if (value->type != Value::kList) {
    node_->FailAt(value->at, key, fmt::format("expected a list, got {}", Described(*value)));
    return;
  }
  std::vector<std::string> items;
  for (const Value& item : value->items) {
    if (item.type != Value::kScalar) {
      node_->FailAt(item.at, key, fmt::format("expected a list of texts, got {} in it", Described(item)));
      return;
    }
    items.push_back(item.text);
  }
  *out = std::move(items);
}

void YamlReader::IntLists(std::string_view key, std::vector<std::vector<int64_t>>* out) {
  const Value* value = node_->Take(key, kOptional);
  if (value == nullptr) return;
  std::vector<std::vector<int64_t>> lists;
  const auto refuse = [&](const Value& at) { node_->FailAt(at.at, key, fmt::format("expected a list of lists of integers, got {}", Described(at))); };
  if (value->type != Value::kList) return refuse(*value);
  for (const Value& item : value->items) {
    if (item.type != Value::kList) return refuse(item);
    std::vector<int64_t>& list = lists.emplace_back();
    for (const Value& number : item.items) {
      if (number.type != Value::kScalar || number.quoted || !absl::SimpleAtoi(number.text, &list.emplace_back())) return refuse(number);
    }
  }
  *out = std::move(lists);
}

void YamlReader::Scalars(std::string_view key, std::map<std::string, std::string>* out) {
  const Value* value = node_->Take(key, kOptional);
  if (value == nullptr) return;
  if (value->type != Value::kMap) {
    node_->FailAt(value->at, key, fmt::format("expected a map, got {}", Described(*value)));
    return;
  }
  node_->TakeScalars(*value, std::string(key) + ".", false, out);
}

void YamlReader::RemainingScalars(std::map<std::string, std::string>* out) {
  if (node_->map != nullptr && !node_->failed()) node_->TakeScalars(*node_->map, "", true, out);
}

YamlReader YamlReader::Map(std::string_view key, bool* present) {
  const Value* value = node_->Take(key, kOptional);
  if (value != nullptr && value->type != Value::kMap) {
    node_->FailAt(value->at, key, fmt::format("expected a map, got {}", Described(*value)));
    value = nullptr;
  }
  if (present != nullptr) *present = value != nullptr;
  auto child = std::make_shared<Node>();
  child->document = node_->document;
  child->map = value;
  child->prefix = node_->prefix + std::string(key) + ".";
  node_->children.push_back(child);
  return YamlReader(std::move(child));
}

void YamlReader::Unsupported(std::string_view key) {
  if (const Value::Entry* entry = node_->Find(key)) node_->FailAt(entry->at, key, "not supported yet");
}

bool YamlReader::Has(std::string_view key) const { return node_->Find(key) != nullptr; }

bool YamlReader::IsScalar(std::string_view key) const {
  const Value::Entry* entry = node_->Find(key);
  return entry != nullptr && entry->value.type == Value::kScalar;
}

void YamlReader::Fail(std::string_view key, const std::string& message) {
  const Value::Entry* entry = node_->Find(key);
  const Position at = entry != nullptr ? entry->value.at : node_->map != nullptr ? node_->map->at : node_->document->root.at;
  node_->FailAt(at, key, message);
}

absl::Status YamlReader::Finish() {
  node_->CheckLeftOver();
  return node_->document->error;
}

}  // namespace tributary
