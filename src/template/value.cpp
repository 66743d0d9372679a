#include "template/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "template/pystring.h"

namespace nibble::jinja {
namespace {

constexpr std::size_t kIndexFrom = 17;  // members of a dict

/// Equal keys have equal texts, whatever their type: 1, 1.0 and True are one key in Python.
std::string CanonicalKey(const Value& key) {
  if (key.IsString()) {
    return "s" + std::string(key.Text());
  }
  if (const auto index = key.AsIndex()) {
    return "i" + IntText(*index);
  }
  if (const auto d = key.AsDouble()) {
    if (std::trunc(*d) == *d && std::fabs(*d) < 0x1p100) {
      return "i" + IntText(static_cast<Int>(*d));
    }
    return "f" + FloatRepr(*d);
  }
  if (const SequenceData* const tuple = key.AsListOrTuple()) {
    std::string text = "(";
    for (const Value& item : tuple->items) {
      const std::string part = CanonicalKey(item);
      text += fmt::format("{}:{}", part.size(), part);
    }
    return text;
  }
  return key.IsNone() ? "n" : "u";
}

int DepthOf(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) {
    depth = std::max(depth, item.Depth());
  }
  return depth + 1;
}

constexpr std::int64_t kMaxWeight = std::int64_t{1} << 40;  // sums of two stay far from overflow

std::int64_t WeightOf(const std::vector<Value>& items) {
  std::int64_t weight = 1;
  for (const Value& item : items) {
    weight = std::min(kMaxWeight, weight + item.Weight());
  }
  return weight;
}

tl::unexpected<Error> TooDeep() {
  return TooLarge(fmt::format("a value nests deeper than {}", kMaxValueDepth));
}

tl::unexpected<Error> TemplateError(std::string_view kind, std::string_view what) {
  return Fail(ErrorCode::kCorruptFile, fmt::format("{}: {}", kind, what));
}

/// Writes str(), repr() and json.dumps; all stop at `max_bytes`.
class Printer {
 public:
  explicit Printer(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  Result<std::string> Take() && { return std::move(out_); }

  Result<void> Repr(const Value& value, int depth) {
    if (out_.size() > max_bytes_) {
      return TooLarge(fmt::format("a text grew beyond {} bytes", max_bytes_));
    }
    if (depth > kMaxValueDepth) {
      return TooDeep();  // a namespace that holds itself
    }
    if (value.IsUndefined()) {
      out_ += "Undefined";
    } else if (value.IsNone()) {
      out_ += "None";
    } else if (value.IsBool()) {
      out_ += value.Truthy() ? "True" : "False";
    } else if (value.IsInt()) {
      out_ += IntText(*value.AsIndex());
    } else if (value.IsFloat()) {
      out_ += FloatRepr(*value.AsDouble());
    } else if (value.IsString()) {
      out_ += value.IsMarkup() ? "Markup(" : "";
      AppendRepr(out_, value.Text());
      out_ += value.IsMarkup() ? ")" : "";
    } else if (const SequenceData* const sequence = value.AsSequence()) {
      return ReprSequence(*sequence, depth);
    } else if (const DictData* const dict = value.AsDict()) {
      return ReprDict(*dict, depth);
    } else if (const NamespaceData* const ns = value.AsNamespace()) {
      out_ += "<Namespace {";
      bool first = true;
      for (const auto& [name, member] : ns->members) {
        out_ += first ? "" : ", ";
        first = false;
        AppendRepr(out_, name);
        out_ += ": ";
        NIBBLE_TRY_VOID(Repr(member, depth + 1));
      }
      out_ += "}>";
    } else {
      // Python prints an address here.
      out_ += fmt::format("<{} object>", value.TypeName());
    }
    return {};
  }

  Result<void> Json(const Value& value, const JsonOptions& options, int depth) {
    if (out_.size() > max_bytes_) {
      return TooLarge(fmt::format("a text grew beyond {} bytes", max_bytes_));
    }
    if (value.IsNone()) {
      out_ += "null";
    } else if (value.IsBool()) {
      out_ += value.Truthy() ? "true" : "false";
    } else if (value.IsInt()) {
      out_ += IntText(*value.AsIndex());
    } else if (value.IsFloat()) {
      out_ += json::Dump(json::Value(*value.AsDouble()), {.python_floats = true});
    } else if (value.IsString()) {
      Quoted(value.Text(), options);
    } else if (const SequenceData* const sequence = value.AsListOrTuple()) {
      return JsonList(*sequence, options, depth);
    } else if (const DictData* const dict = value.AsDict()) {
      return JsonDict(*dict, options, depth);
    } else {
      return TypeError(fmt::format("Object of type {} is not JSON serializable", value.TypeName()));
    }
    return {};
  }

 private:
  Result<void> ReprSequence(const SequenceData& sequence, int depth) {
    const char* open = "[";
    const char* close = "]";
    switch (sequence.kind) {
      case SequenceKind::kList:
        break;
      case SequenceKind::kTuple:
        open = "(";
        close = sequence.items.size() == 1 ? ",)" : ")";
        break;
      case SequenceKind::kDictKeys:
        open = "dict_keys([";
        close = "])";
        break;
      case SequenceKind::kDictValues:
        open = "dict_values([";
        close = "])";
        break;
      case SequenceKind::kDictItems:
        open = "dict_items([";
        close = "])";
        break;
      case SequenceKind::kRange:
        out_ += sequence.label;
        return {};
    }
    out_ += open;
    bool first = true;
    for (const Value& item : sequence.items) {
      out_ += first ? "" : ", ";
      first = false;
      NIBBLE_TRY_VOID(Repr(item, depth + 1));
    }
    out_ += close;
    return {};
  }

  Result<void> ReprDict(const DictData& dict, int depth) {
    out_ += '{';
    bool first = true;
    for (const auto& [key, member] : dict.members()) {
      out_ += first ? "" : ", ";
      first = false;
      NIBBLE_TRY_VOID(Repr(key, depth + 1));
      out_ += ": ";
      NIBBLE_TRY_VOID(Repr(member, depth + 1));
    }
    out_ += '}';
    return {};
  }

  void Quoted(std::string_view text, const JsonOptions& options) {
    if (!options.ensure_ascii) {
      json::AppendQuoted(out_, text);
      return;
    }
    std::string quoted;
    json::AppendQuoted(quoted, text);
    for (std::size_t at = 0; at < quoted.size();) {
      const CodePoint point = Decode(quoted, at);
      if (point.value >= 0x10000) {
        const char32_t rest = point.value - 0x10000;
        out_ += fmt::format("\\u{:04x}\\u{:04x}", static_cast<unsigned>(0xD800 + (rest >> 10)),
                            static_cast<unsigned>(0xDC00 + (rest & 0x3FF)));
      } else if (point.value >= 0x7F) {
        out_ += point.value == 0x7F ? "\x7f"
                                    : fmt::format("\\u{:04x}", static_cast<unsigned>(point.value));
      } else {
        out_ += static_cast<char>(point.value);
      }
      at += point.length;
    }
  }

  void Newline(const JsonOptions& options, int depth) {
    if (options.indent) {
      out_ += '\n';
      for (int i = 0; i < depth && out_.size() <= max_bytes_; ++i) {
        out_ += *options.indent;
      }
    }
  }

  Result<void> JsonList(const SequenceData& list, const JsonOptions& options, int depth) {
    out_ += '[';
    bool first = true;
    for (const Value& item : list.items) {
      out_ += first ? "" : options.item_separator;
      first = false;
      Newline(options, depth + 1);
      NIBBLE_TRY_VOID(Json(item, options, depth + 1));
    }
    if (!first) {
      Newline(options, depth);
    }
    out_ += ']';
    return {};
  }

  Result<void> JsonDict(const DictData& dict, const JsonOptions& options, int depth) {
    std::vector<const DictData::Member*> members;
    members.reserve(dict.members().size());
    for (const auto& member : dict.members()) {
      members.push_back(&member);
    }
    if (options.sort_keys) {
      Result<bool> sortable = true;
      std::stable_sort(members.begin(), members.end(), [&](const auto* a, const auto* b) {
        const Result<bool> less = Less(a->first, b->first);
        if (!less) {
          sortable = less;
        }
        return less && *less;
      });
      if (!sortable) {
        return tl::unexpected(sortable.error());
      }
    }
    out_ += '{';
    bool first = true;
    for (const auto* const member : members) {
      out_ += first ? "" : options.item_separator;
      first = false;
      Newline(options, depth + 1);
      const Value& key = member->first;
      if (key.IsString()) {
        Quoted(key.Text(), options);
      } else if (key.IsNumber() || key.IsNone()) {
        out_ += '"';
        NIBBLE_TRY_VOID(Json(key, options, depth + 1));
        out_ += '"';
      } else {
        return TypeError(
            fmt::format("keys must be str, int, float, bool or None, not {}", key.TypeName()));
      }
      out_ += options.key_separator;
      NIBBLE_TRY_VOID(Json(member->second, options, depth + 1));
    }
    if (!first) {
      Newline(options, depth);
    }
    out_ += '}';
    return {};
  }

  std::string out_;
  std::size_t max_bytes_;
};

}  // namespace

struct ValueFactory {
  template <typename T>
  static Value Of(T pointer) {
    Value value;
    value.data_ = std::move(pointer);
    return value;
  }
  template <typename T>
  static T* Get(const Value& value) {
    const auto* const pointer = std::get_if<T*>(&value.data_);
    return pointer != nullptr ? *pointer : nullptr;
  }
  template <typename T>
  static T* GetShared(const Value& value) {
    const auto* const pointer = std::get_if<std::shared_ptr<T>>(&value.data_);
    return pointer != nullptr ? pointer->get() : nullptr;
  }
};

tl::unexpected<Error> TypeError(std::string_view what) { return TemplateError("TypeError", what); }
tl::unexpected<Error> ValueError(std::string_view what) {
  return TemplateError("ValueError", what);
}
tl::unexpected<Error> UndefinedError(std::string_view what) {
  return TemplateError("UndefinedError", what);
}
tl::unexpected<Error> SecurityError(std::string_view what) {
  return TemplateError("SecurityError", what);
}
tl::unexpected<Error> TooLarge(std::string_view what) {
  return Fail(ErrorCode::kLimitExceeded, std::string(what));
}

std::size_t DictData::Position(const Value& key) const {
  if (!index_.empty()) {
    const auto found = index_.find(CanonicalKey(key));
    return found != index_.end() ? found->second : members_.size();
  }
  std::size_t position = 0;
  while (position < members_.size() && !Equal(members_[position].first, key)) {
    ++position;
  }
  return position;
}

const Value* DictData::Find(const Value& key) const {
  const std::size_t position = Position(key);
  return position < members_.size() ? &members_[position].second : nullptr;
}

const Value* DictData::Find(std::string_view key) const {
  if (!index_.empty()) {
    return Find(Value::String(std::string(key)));
  }
  for (const Member& member : members_) {
    if (member.first.IsString() && member.first.Text() == key) {
      return &member.second;
    }
  }
  return nullptr;
}

void DictData::Set(Value key, Value value) {
  depth_ = std::max({depth_, key.Depth() + 1, value.Depth() + 1});
  weight_ = std::min(kMaxWeight, weight_ + key.Weight() + value.Weight());
  const std::size_t position = Position(key);
  if (position < members_.size()) {
    members_[position].second = std::move(value);
    return;
  }
  members_.emplace_back(std::move(key), std::move(value));
  if (!index_.empty()) {
    index_.emplace(CanonicalKey(members_.back().first), members_.size() - 1);
  } else if (members_.size() >= kIndexFrom) {
    for (std::size_t i = 0; i < members_.size(); ++i) {
      index_.emplace(CanonicalKey(members_[i].first), i);
    }
  }
}

Value Value::String(std::string text, bool markup) {
  return ValueFactory::Of(std::make_shared<const StringData>(StringData{std::move(text), markup}));
}

Value Value::Undefined(std::string message, bool is_security) {
  return ValueFactory::Of(
      std::make_shared<const UndefinedData>(UndefinedData{std::move(message), is_security}));
}

Value Value::Method(std::string name, std::shared_ptr<const Value> self) {
  return Value(
      std::make_shared<const FunctionData>(FunctionData{std::move(name), std::move(self)}));
}

Result<Value> Value::Sequence(SequenceKind kind, std::vector<Value> items) {
  SequenceData data{.kind = kind, .items = std::move(items), .depth = 1, .weight = 1, .label = {}};
  data.depth = DepthOf(data.items);
  data.weight = WeightOf(data.items);
  if (data.depth > kMaxValueDepth) {
    return TooDeep();
  }
  return Value(std::make_shared<const SequenceData>(std::move(data)));
}

Result<Value> Value::Generator(std::vector<Value> items) {
  GeneratorData data{.items = std::move(items), .next = 0, .depth = 1, .weight = 1};
  data.depth = DepthOf(data.items);
  data.weight = WeightOf(data.items);
  if (data.depth > kMaxValueDepth) {
    return TooDeep();
  }
  return ValueFactory::Of(std::make_shared<GeneratorData>(std::move(data)));
}

Result<Value> Value::Dict(DictData dict) {
  if (dict.depth() > kMaxValueDepth) {
    return TooDeep();
  }
  return Value(std::make_shared<const DictData>(std::move(dict)));
}

std::string_view Value::Text() const {
  const auto* const s = ValueFactory::GetShared<const StringData>(*this);
  return s != nullptr ? std::string_view(s->text) : std::string_view();
}

const SequenceData* Value::AsSequence() const {
  return ValueFactory::GetShared<const SequenceData>(*this);
}

const SequenceData* Value::AsListOrTuple() const {
  const SequenceData* const s = AsSequence();
  const bool indexable =
      s != nullptr && (s->kind == SequenceKind::kList || s->kind == SequenceKind::kTuple);
  return indexable ? s : nullptr;
}

bool Value::Is(SequenceKind kind) const {
  const SequenceData* const s = AsSequence();
  return s != nullptr && s->kind == kind;
}

const DictData* Value::AsDict() const { return ValueFactory::GetShared<const DictData>(*this); }
GeneratorData* Value::AsGenerator() const { return ValueFactory::GetShared<GeneratorData>(*this); }
NamespaceData* Value::AsNamespace() const { return ValueFactory::Get<NamespaceData>(*this); }
const Macro* Value::AsMacro() const { return ValueFactory::Get<const Macro>(*this); }
LoopState* Value::AsLoop() const { return ValueFactory::Get<LoopState>(*this); }
const FunctionData* Value::AsFunction() const {
  return ValueFactory::GetShared<const FunctionData>(*this);
}

std::optional<Int> Value::AsIndex() const {
  if (const Int* const i = std::get_if<Int>(&data_)) {
    return *i;
  }
  if (const bool* const b = std::get_if<bool>(&data_)) {
    return static_cast<Int>(*b ? 1 : 0);
  }
  return std::nullopt;
}

std::optional<double> Value::AsDouble() const {
  if (const double* const d = std::get_if<double>(&data_)) {
    return *d;
  }
  if (const auto i = AsIndex()) {
    return static_cast<double>(*i);
  }
  return std::nullopt;
}

bool Value::Truthy() const {
  if (IsUndefined() || IsNone()) {
    return false;
  }
  if (const auto d = AsDouble()) {
    return *d != 0;
  }
  if (IsString()) {
    return !Text().empty();
  }
  if (const SequenceData* const s = AsSequence()) {
    return !s->items.empty();
  }
  if (const DictData* const dict = AsDict()) {
    return !dict->members().empty();
  }
  return true;
}

int Value::Depth() const {
  if (const SequenceData* const s = AsSequence()) {
    return s->depth;
  }
  if (const DictData* const dict = AsDict()) {
    return dict->depth();
  }
  if (const GeneratorData* const generator = AsGenerator()) {
    return generator->depth;
  }
  const FunctionData* const function = AsFunction();
  return function != nullptr && function->self ? function->self->Depth() + 1 : 0;
}

std::int64_t Value::Weight() const {
  if (IsString()) {
    return 1 + static_cast<std::int64_t>(Text().size() / 256);
  }
  if (const SequenceData* const s = AsSequence()) {
    return s->weight;
  }
  if (const DictData* const dict = AsDict()) {
    return dict->weight();
  }
  const GeneratorData* const generator = AsGenerator();
  return generator != nullptr ? generator->weight : 1;
}

const char* Value::TypeName() const {
  switch (data_.index()) {
    case 0:
      return "Undefined";
    case 1:
      return "NoneType";
    case 2:
      return "bool";
    case 3:
      return "int";
    case 4:
      return "float";
    case 5:
      return IsMarkup() ? "Markup" : "str";
    case 6:
      switch (AsSequence()->kind) {
        case SequenceKind::kList:
          return "list";
        case SequenceKind::kTuple:
          return "tuple";
        case SequenceKind::kDictKeys:
          return "dict_keys";
        case SequenceKind::kDictValues:
          return "dict_values";
        case SequenceKind::kDictItems:
          return "dict_items";
        case SequenceKind::kRange:
          return "range";
      }
      return "list";
    case 7:
      return "dict";
    case 8:
      return "generator";
    case 9:
      return "Namespace";
    case 10:
      return "Macro";
    case 11:
      return "LoopContext";
    default:
      return "function";
  }
}

std::string Value::ObjectRepr() const {
  if (IsNone()) {
    return "None";
  }
  return fmt::format("{} object", TypeName());
}

tl::unexpected<Error> Value::Unusable() const {
  const auto* const undefined = ValueFactory::GetShared<const UndefinedData>(*this);
  if (undefined == nullptr) {
    return UndefinedError("a value is undefined");
  }
  return undefined->is_security ? SecurityError(undefined->message)
                                : UndefinedError(undefined->message);
}

std::string IntText(Int i) { return fmt::format("{}", i); }

std::string FloatRepr(double d) {
  if (std::isnan(d)) {
    return "nan";
  }
  if (std::isinf(d)) {
    return d > 0 ? "inf" : "-inf";
  }
  return json::Dump(json::Value(d), {.python_floats = true});
}

Result<std::string> Repr(const Value& value, std::size_t max_bytes) {
  Printer printer(max_bytes);
  NIBBLE_TRY_VOID(printer.Repr(value, 0));
  return std::move(printer).Take();
}

Result<std::string> Str(const Value& value, std::size_t max_bytes) {
  if (value.IsString()) {
    return std::string(value.Text());
  }
  if (value.IsUndefined()) {
    return std::string();
  }
  return Repr(value, max_bytes);
}

Result<std::string> ToJson(const Value& value, const JsonOptions& options, std::size_t max_bytes) {
  Printer printer(max_bytes);
  NIBBLE_TRY_VOID(printer.Json(value, options, 0));
  return std::move(printer).Take();
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsString() || b.IsString()) {
    return a.IsString() && b.IsString() && a.Text() == b.Text();
  }
  if (a.IsNumber() && b.IsNumber()) {
    const auto left = a.AsIndex();
    const auto right = b.AsIndex();
    return left && right ? *left == *right : *a.AsDouble() == *b.AsDouble();
  }
  const SequenceData* const left = a.AsSequence();
  const SequenceData* const right = b.AsSequence();
  if (left != nullptr && right != nullptr) {
    return left->kind == right->kind && std::equal(left->items.begin(), left->items.end(),
                                                   right->items.begin(), right->items.end(), Equal);
  }
  const DictData* const left_dict = a.AsDict();
  const DictData* const right_dict = b.AsDict();
  if (left_dict != nullptr && right_dict != nullptr) {
    if (left_dict->members().size() != right_dict->members().size()) {
      return false;
    }
    return std::all_of(left_dict->members().begin(), left_dict->members().end(),
                       [&](const DictData::Member& member) {
                         const Value* const other = right_dict->Find(member.first);
                         return other != nullptr && Equal(member.second, *other);
                       });
  }
  if (a.AsGenerator() != nullptr || a.AsNamespace() != nullptr || a.AsMacro() != nullptr ||
      a.AsLoop() != nullptr) {
    return a.AsGenerator() == b.AsGenerator() && a.AsNamespace() == b.AsNamespace() &&
           a.AsMacro() == b.AsMacro() && a.AsLoop() == b.AsLoop();
  }
  if (a.AsFunction() != nullptr || b.AsFunction() != nullptr) {
    return a.AsFunction() == b.AsFunction();
  }
  return (a.IsNone() && b.IsNone()) || (a.IsUndefined() && b.IsUndefined());
}

Result<bool> Less(const Value& a, const Value& b, std::string_view op) {
  if (a.IsUndefined()) {
    return a.Unusable();
  }
  if (b.IsUndefined()) {
    return b.Unusable();
  }
  if (a.IsString() && b.IsString()) {
    return a.Text() < b.Text();  // the order of code points is that of UTF-8 bytes
  }
  if (a.IsNumber() && b.IsNumber()) {
    const auto left = a.AsIndex();
    const auto right = b.AsIndex();
    return left && right ? *left < *right : *a.AsDouble() < *b.AsDouble();
  }
  const SequenceData* const left = a.AsListOrTuple();
  const SequenceData* const right = b.AsListOrTuple();
  if (left != nullptr && right != nullptr && left->kind == right->kind) {
    for (std::size_t i = 0; i < std::min(left->items.size(), right->items.size()); ++i) {
      if (!Equal(left->items[i], right->items[i])) {
        return Less(left->items[i], right->items[i], op);
      }
    }
    return left->items.size() < right->items.size();
  }
  return TypeError(fmt::format("'{}' not supported between instances of '{}' and '{}'", op,
                               a.TypeName(), b.TypeName()));
}

Result<Value> FromJson(const json::Value& value) {
  if (value.IsNull()) {
    return Value(Value::None{});
  }
  if (const auto b = value.AsBool()) {
    return Value(*b);
  }
  if (value.IsDouble()) {
    return Value(*value.AsDouble());
  }
  if (const auto i = value.AsInt()) {
    return Value(static_cast<Int>(*i));
  }
  if (const auto u = value.AsUint()) {
    return Value(static_cast<Int>(*u));
  }
  if (const std::string* const s = value.AsString()) {
    return Value::String(*s);
  }
  if (const json::Array* const array = value.AsArray()) {
    std::vector<Value> items;
    items.reserve(array->size());
    for (const json::Value& element : *array) {
      NIBBLE_TRY(item, FromJson(element));
      items.push_back(std::move(item));
    }
    return Value::List(std::move(items));
  }
  DictData dict;
  for (const auto& [key, member] : *value.AsObject()) {
    NIBBLE_TRY(item, FromJson(member));
    dict.Set(Value::String(key), std::move(item));
  }
  return Value::Dict(std::move(dict));
}

}  // namespace nibble::jinja
