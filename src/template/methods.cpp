#include <fmt/format.h>

#include <algorithm>

#include "template/interpreter.h"
#include "template/pystring.h"

// The methods of str, list, tuple and dict that a template may call.
namespace nibble::jinja {
namespace {

using Texts = std::vector<std::string_view>;

/// Byte position of code point `index`, which may count from the end; clamped.
std::size_t BytePosition(std::string_view text, std::int64_t index, std::size_t length) {
  const auto size = static_cast<std::int64_t>(length);
  const std::int64_t at = std::clamp<std::int64_t>(index < 0 ? index + size : index, 0, size);
  std::size_t byte = 0;
  for (std::int64_t i = 0; i < at; ++i) {
    byte += Decode(text, byte).length;
  }
  return byte;
}

/// The part of `text` that str.find(sub, start, end) looks at.
struct Window {
  std::string_view text;
  std::size_t from_byte = 0;
};

Result<Window> WindowOf(std::string_view text, const Bound& bound) {
  if (!bound.Has(1) && !bound.Has(2)) {
    return Window{text, 0};
  }
  const std::size_t length = Length(text);
  const auto position = [&](std::size_t i, std::int64_t fallback) -> Result<std::int64_t> {
    return bound.Has(i) && bound[i]->IsNone() ? Result<std::int64_t>(fallback)
                                              : bound.Integer(i, fallback);
  };
  NIBBLE_TRY(start, position(1, 0));
  NIBBLE_TRY(end, position(2, static_cast<std::int64_t>(length)));
  const std::size_t from = BytePosition(text, start, length);
  const std::size_t to = BytePosition(text, end, length);
  return Window{text.substr(from, to > from ? to - from : 0), from};
}

std::size_t CountOf(std::string_view text, std::string_view part) {
  if (part.empty()) {
    return Length(text) + 1;
  }
  std::size_t count = 0;
  for (std::size_t at = FindText(text, part); at != std::string_view::npos;
       at = FindText(text, part, at + part.size())) {
    ++count;
  }
  return count;
}

/// True if `text` is not empty and each code point satisfies `test`.
template <typename Test>
bool AllOf(std::string_view text, Test test) {
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = Decode(text, at);
    if (!test(point.value)) {
      return false;
    }
    at += point.length;
  }
  return !text.empty();
}

bool HasCase(std::string_view text, bool upper) {
  bool cased = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = Decode(text, at);
    if (upper ? IsLowerPoint(point.value) : IsUpperPoint(point.value)) {
      return false;
    }
    cased = cased || IsCased(point.value);
    at += point.length;
  }
  return cased;
}

std::optional<bool> Classify(std::string_view text, std::string_view name) {
  if (name == "isspace") {
    return AllOf(text, IsSpace);
  }
  if (name == "isalpha") {
    return AllOf(text, IsAlpha);
  }
  if (name == "isdecimal") {
    return AllOf(text, IsDecimal);
  }
  if (name == "isdigit") {
    return AllOf(text, IsDigitPoint);
  }
  if (name == "isnumeric") {
    return AllOf(text, IsNumeric);
  }
  if (name == "isalnum") {
    return AllOf(text, [](char32_t c) { return IsAlpha(c) || IsNumeric(c); });
  }
  if (name == "isascii") {
    return text.empty() || AllOf(text, [](char32_t c) { return c < 0x80; });
  }
  if (name == "isupper" || name == "islower") {
    return HasCase(text, name == "isupper");
  }
  if (name == "istitle") {
    return !text.empty() && Title(text, false) == text && (HasCase(Lower(text), false));
  }
  if (name == "isidentifier") {
    return AllOf(text, [](char32_t c) { return c == '_' || IsAlpha(c) || IsNumeric(c); }) &&
           !IsNumeric(Decode(text, 0).value);
  }
  return std::nullopt;
}

Result<bool> HasAffix(std::string_view text, const Value& affix, bool prefix,
                      std::string_view name) {
  const auto one = [&](std::string_view part) {
    return prefix ? text.starts_with(part) : text.ends_with(part);
  };
  if (affix.IsString()) {
    return one(affix.Text());
  }
  if (affix.Is(SequenceKind::kTuple)) {
    for (const Value& item : affix.AsSequence()->items) {
      if (item.IsString() && one(item.Text())) {
        return true;
      }
    }
    return false;
  }
  return TypeError(
      fmt::format("{} first arg must be str or a tuple of str, not {}", name, affix.TypeName()));
}

std::string Fill(std::string_view text, std::int64_t width, std::string_view fill,
                 std::string_view name) {
  const auto length = static_cast<std::int64_t>(Length(text));
  const std::int64_t missing = std::max<std::int64_t>(0, width - length);
  // str.center puts the odd blank on the left if the width is odd.
  const std::int64_t left = name == "ljust"   ? 0
                            : name == "rjust" ? missing
                                              : missing / 2 + (missing & width & 1);
  std::string out;
  for (std::int64_t i = 0; i < left; ++i) {
    out += fill;
  }
  out += text;
  for (std::int64_t i = left; i < missing; ++i) {
    out += fill;
  }
  return out;
}

class StringMethod {
 public:
  StringMethod(Interpreter& interpreter, const Value& self, const std::string& name)
      : interpreter_(interpreter), self_(self), text_(self.Text()), name_(name) {}

  Result<Value> Call(Arguments arguments) {
    NIBBLE_TRY_VOID(interpreter_.ChargeBytes(text_.size()));
    if (name_ == "format") {
      return interpreter_.StrFormat(text_, arguments);
    }
    if (name_ == "strip" || name_ == "lstrip" || name_ == "rstrip") {
      return Strip(std::move(arguments));
    }
    if (name_ == "split" || name_ == "rsplit") {
      return Split(std::move(arguments));
    }
    if (name_ == "startswith" || name_ == "endswith") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"prefix", "start", "end"}));
      NIBBLE_TRY(affix, bound.Required(0));
      NIBBLE_TRY_VOID(interpreter_.Charge(affix.Weight()));
      NIBBLE_TRY(window, WindowOf(text_, bound));
      NIBBLE_TRY(has, HasAffix(window.text, affix, name_ == "startswith", name_));
      return Value(has);
    }
    if (name_ == "replace") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"old", "new", "count"}));
      NIBBLE_TRY(from, Text(bound, 0));
      NIBBLE_TRY(to, Text(bound, 1));
      NIBBLE_TRY(count, bound.Integer(2, -1));
      return Replaced(from, to, count);
    }
    if (name_ == "find" || name_ == "rfind" || name_ == "index" || name_ == "rindex" ||
        name_ == "count") {
      return Find(std::move(arguments));
    }
    if (name_ == "join") {
      return Join(std::move(arguments));
    }
    if (name_ == "partition" || name_ == "rpartition") {
      return Partition(std::move(arguments));
    }
    if (name_ == "center" || name_ == "ljust" || name_ == "rjust") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"width", "fillchar"}));
      NIBBLE_TRY_VOID(bound.Required(0));
      NIBBLE_TRY(width, Width(bound));
      NIBBLE_TRY(fill, bound.Text(1, " "));
      if (Length(fill) != 1) {
        return TypeError("The fill character must be exactly one character long");
      }
      return interpreter_.MakeString(Fill(text_, width, fill, name_));
    }
    if (name_ == "zfill") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"width"}));
      NIBBLE_TRY(width, Width(bound));
      const bool has_sign = text_.starts_with('-') || text_.starts_with('+');
      return interpreter_.MakeString(
          std::string(text_.substr(0, has_sign ? 1 : 0)) +
          Fill(text_.substr(has_sign ? 1 : 0), width - (has_sign ? 1 : 0), "0", "rjust"));
    }
    if (name_ == "splitlines") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"keepends"}));
      return ListOf(SplitLines(text_, bound.Flag(0, false)));
    }
    if (name_ == "removeprefix" || name_ == "removesuffix") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"prefix"}));
      NIBBLE_TRY(affix, Text(bound, 0));
      std::string_view rest = text_;
      if (name_ == "removeprefix" && rest.starts_with(affix)) {
        rest.remove_prefix(affix.size());
      } else if (name_ == "removesuffix" && rest.ends_with(affix)) {
        rest.remove_suffix(affix.size());
      }
      return interpreter_.MakeString(std::string(rest), self_.IsMarkup());
    }
    if (name_ == "expandtabs") {
      return ExpandTabs(std::move(arguments));
    }
    if (name_ == "format_map") {
      NIBBLE_TRY(bound, Bind(std::move(arguments), {"mapping"}));
      NIBBLE_TRY(mapping, bound.Required(0));
      Arguments named;
      if (const DictData* const dict = mapping.AsDict()) {
        for (const auto& [key, value] : dict->members()) {
          named.named.emplace_back(std::string(key.Text()), value);
        }
      }
      return interpreter_.StrFormat(text_, named);
    }
    NIBBLE_TRY_VOID(Bind(std::move(arguments), {}));
    if (const auto is = Classify(text_, name_)) {
      return Value(*is);
    }
    const auto changed = [&] {
      return name_ == "upper"        ? Upper(text_)
             : name_ == "title"      ? Title(text_, false)
             : name_ == "capitalize" ? Capitalize(text_)
             : name_ == "swapcase"   ? SwapCase(text_)
                                     : Lower(text_);  // lower, casefold
    };
    return interpreter_.MakeString(changed(), self_.IsMarkup());
  }

 private:
  Result<Bound> Bind(Arguments arguments, std::initializer_list<std::string_view> parameters) {
    return Bound::Bind(name_, std::move(arguments), parameters);
  }

  static Result<std::string> Text(const Bound& bound, std::size_t i) {
    NIBBLE_TRY_VOID(bound.Required(i));
    return bound.Text(i, "");
  }

  Result<std::int64_t> Width(const Bound& bound) const {
    NIBBLE_TRY_VOID(bound.Required(0));
    NIBBLE_TRY(width, bound.Integer(0, 0));
    if (width > static_cast<std::int64_t>(interpreter_.max_text())) {
      return TooLarge(fmt::format("a text grew beyond {} bytes", interpreter_.max_text()));
    }
    return width;
  }

  Result<Value> ListOf(const Texts& texts) {
    NIBBLE_TRY_VOID(interpreter_.Charge(static_cast<std::int64_t>(texts.size())));
    std::vector<Value> items;
    items.reserve(texts.size());
    for (const std::string_view text : texts) {
      items.push_back(Value::String(std::string(text), self_.IsMarkup()));
    }
    return Value::List(std::move(items));
  }

  Result<Value> Strip(Arguments arguments) {
    NIBBLE_TRY(bound, Bind(std::move(arguments), {"chars"}));
    const Side side = name_ == "strip"    ? Side::kBoth
                      : name_ == "lstrip" ? Side::kLeft
                                          : Side::kRight;
    if (!bound.Has(0) || bound[0]->IsNone()) {
      return interpreter_.MakeString(std::string(jinja::Strip(text_, side)), self_.IsMarkup());
    }
    NIBBLE_TRY(chars, bound.Text(0, ""));
    NIBBLE_TRY_VOID(interpreter_.ChargeSearch(text_, chars));
    return interpreter_.MakeString(std::string(jinja::Strip(text_, side, chars)), self_.IsMarkup());
  }

  Result<Value> Split(Arguments arguments) {
    NIBBLE_TRY(bound, Bind(std::move(arguments), {"sep", "maxsplit"}));
    NIBBLE_TRY(max_split, bound.Integer(1, -1));
    const bool right = name_ == "rsplit";
    if (!bound.Has(0) || bound[0]->IsNone()) {
      return ListOf(right ? RightSplit(text_, std::nullopt, max_split)
                          : jinja::Split(text_, std::nullopt, max_split));
    }
    NIBBLE_TRY(separator, bound.Text(0, ""));
    if (separator.empty()) {
      return ValueError("empty separator");
    }
    if (right) {
      NIBBLE_TRY_VOID(interpreter_.ChargeSearch(text_, separator));
    }
    return ListOf(right ? RightSplit(text_, separator, max_split)
                        : jinja::Split(text_, separator, max_split));
  }

  Result<Value> Replaced(std::string_view from, std::string_view to, std::int64_t count) {
    const auto matches = static_cast<std::int64_t>(CountOf(text_, from));
    const std::int64_t replaced = count < 0 ? matches : std::min(matches, count);
    if (to.size() > from.size() &&
        replaced > static_cast<std::int64_t>(interpreter_.max_text() / (to.size() - from.size()))) {
      return TooLarge(fmt::format("a text grew beyond {} bytes", interpreter_.max_text()));
    }
    return interpreter_.MakeString(jinja::Replace(text_, from, to, replaced), self_.IsMarkup());
  }

  Result<Value> Find(Arguments arguments) {
    NIBBLE_TRY(bound, Bind(std::move(arguments), {"sub", "start", "end"}));
    NIBBLE_TRY(part, Text(bound, 0));
    NIBBLE_TRY(window, WindowOf(text_, bound));
    if (name_ == "count") {
      return Value::Integer(static_cast<std::int64_t>(CountOf(window.text, part)));
    }
    const bool from_right = name_ == "rfind" || name_ == "rindex";
    if (from_right) {
      NIBBLE_TRY_VOID(interpreter_.ChargeSearch(text_, part));
    }
    const std::size_t at = from_right ? window.text.rfind(part) : FindText(window.text, part);
    if (at == std::string_view::npos) {
      return name_.ends_with("index") ? Result<Value>(ValueError("substring not found"))
                                      : Value::Integer(-1);
    }
    return Value::Integer(
        static_cast<std::int64_t>(Length(text_.substr(0, window.from_byte + at))));
  }

  Result<Value> Join(Arguments arguments) {
    NIBBLE_TRY(bound, Bind(std::move(arguments), {"iterable"}));
    NIBBLE_TRY(iterable, bound.Required(0));
    NIBBLE_TRY(items, interpreter_.Items(iterable));
    std::string out;
    for (std::size_t i = 0; i < items.size() && out.size() <= interpreter_.max_text(); ++i) {
      if (!items[i].IsString()) {
        return TypeError(fmt::format("sequence item {}: expected str instance, {} found", i,
                                     items[i].TypeName()));
      }
      out += i > 0 ? text_ : std::string_view();
      out += items[i].Text();
    }
    return interpreter_.MakeString(std::move(out));
  }

  Result<Value> Partition(Arguments arguments) {
    NIBBLE_TRY(bound, Bind(std::move(arguments), {"sep"}));
    NIBBLE_TRY(separator, Text(bound, 0));
    if (separator.empty()) {
      return ValueError("empty separator");
    }
    const bool from_right = name_ == "rpartition";
    if (from_right) {
      NIBBLE_TRY_VOID(interpreter_.ChargeSearch(text_, separator));
    }
    const std::size_t at = from_right ? text_.rfind(separator) : FindText(text_, separator);
    Texts parts;
    if (at != std::string_view::npos) {
      parts = {text_.substr(0, at), separator, text_.substr(at + separator.size())};
    } else if (from_right) {
      parts = {"", "", text_};
    } else {
      parts = {text_, "", ""};
    }
    std::vector<Value> items;
    for (const std::string_view part : parts) {
      items.push_back(Value::String(std::string(part), self_.IsMarkup()));
    }
    return Value::Tuple(std::move(items));
  }

  Result<Value> ExpandTabs(Arguments arguments) {
    NIBBLE_TRY(bound, Bind(std::move(arguments), {"tabsize"}));
    NIBBLE_TRY(size, bound.Integer(0, 8));
    if (size > 1024) {
      return TooLarge("a tab of more than 1,024 columns");
    }
    std::string out;
    std::int64_t column = 0;
    for (const std::string_view character : Characters(text_)) {
      if (character == "\t") {
        const std::int64_t blanks = size > 0 ? size - column % size : 0;
        out.append(static_cast<std::size_t>(blanks), ' ');
        column += blanks;
      } else {
        out += character;
        column = character == "\n" || character == "\r" ? 0 : column + 1;
      }
      if (out.size() > interpreter_.max_text()) {
        break;
      }
    }
    return interpreter_.MakeString(std::move(out));
  }

  Interpreter& interpreter_;
  const Value& self_;
  const std::string_view text_;
  const std::string& name_;
};

Result<Value> DictMethod(Interpreter& interpreter, const Value& self, const std::string& name,
                         Arguments arguments) {
  const DictData& dict = *self.AsDict();
  if (name == "get") {
    NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"key", "default"}));
    NIBBLE_TRY(key, bound.Required(0));
    NIBBLE_TRY_VOID(interpreter.CheckHashable(key));
    const Value* const member = dict.Find(key);
    return member != nullptr ? *member : bound.Or(1, Value(Value::None{}));
  }
  NIBBLE_TRY_VOID(Bound::Bind(name, std::move(arguments), {}));
  NIBBLE_TRY_VOID(interpreter.Charge(static_cast<std::int64_t>(dict.members().size())));
  if (name == "copy") {
    return self;
  }
  std::vector<Value> items;
  items.reserve(dict.members().size());
  for (const auto& [key, value] : dict.members()) {
    if (name == "keys") {
      items.push_back(key);
    } else if (name == "values") {
      items.push_back(value);
    } else {
      NIBBLE_TRY(pair, Value::Tuple({key, value}));
      items.push_back(std::move(pair));
    }
  }
  return Value::Sequence(name == "keys"     ? SequenceKind::kDictKeys
                         : name == "values" ? SequenceKind::kDictValues
                                            : SequenceKind::kDictItems,
                         std::move(items));
}

Result<Value> SequenceMethod(Interpreter& interpreter, const Value& self, const std::string& name,
                             Arguments arguments) {
  if (name == "copy") {
    return self;
  }
  NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"value"}));
  NIBBLE_TRY(wanted, bound.Required(0));
  const std::vector<Value>& items = self.AsSequence()->items;
  std::int64_t count = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    NIBBLE_TRY_VOID(interpreter.ChargeCompare(items[i], wanted));
    if (Equal(items[i], wanted)) {
      if (name == "index") {
        return Value::Integer(static_cast<std::int64_t>(i));
      }
      ++count;
    }
  }
  if (name == "index") {
    return ValueError(fmt::format("the value is not in the {}", self.TypeName()));
  }
  return Value::Integer(count);
}

}  // namespace

Result<Value> Interpreter::Method(const Value& self, const std::string& name, Arguments arguments) {
  if (self.IsString()) {
    return StringMethod(*this, self, name).Call(std::move(arguments));
  }
  return self.AsDict() != nullptr ? DictMethod(*this, self, name, std::move(arguments))
                                  : SequenceMethod(*this, self, name, std::move(arguments));
}

}  // namespace nibble::jinja
