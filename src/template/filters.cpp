#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "template/interpreter.h"
#include "template/pystring.h"

// Jinja's filters. Those that need a clock's randomness, a browser or other templates are absent.
namespace nibble::jinja {
namespace {

using Items = std::vector<Value>;

Result<Value> ListLike(Items items) { return Value::List(std::move(items)); }

/// What `attribute=` names: a path of names and numbers, as "function.name" or 0.
class Path {
 public:
  static Result<Path> Of(const std::optional<Value>& attribute) {
    Path path;
    if (!attribute || attribute->IsNone()) {
      return path;
    }
    if (!attribute->IsString()) {
      path.parts_.push_back(*attribute);
      return path;
    }
    for (const std::string_view part : Split(attribute->Text(), ".", -1)) {
      std::int64_t index = 0;
      const auto read = std::from_chars(part.data(), part.data() + part.size(), index);
      const bool is_index =
          read.ec == std::errc() && read.ptr == part.data() + part.size() && !part.starts_with('-');
      path.parts_.push_back(is_index ? Value::Integer(index) : Value::String(std::string(part)));
    }
    return path;
  }

  Result<Value> Get(Interpreter& interpreter, Value item,
                    const std::optional<Value>& fallback = std::nullopt) const {
    for (const Value& part : parts_) {
      NIBBLE_TRY_VOID(interpreter.Charge(1));
      NIBBLE_TRY(next, interpreter.Item(item, part));
      item = next.IsUndefined() && fallback && !fallback->IsNone() ? *fallback : std::move(next);
    }
    return item;
  }

 private:
  Items parts_;
};

class FilterCall {
 public:
  FilterCall(Interpreter& interpreter, std::string_view name, const Value& input,
             Arguments arguments)
      : interpreter_(interpreter), name_(name), input_(input), arguments_(std::move(arguments)) {}

  using Function = Result<Value> (FilterCall::*)();
  static Function Find(std::string_view name);

  // Texts --------------------------------------------------------------------------------------

  Result<Value> Trim() {
    NIBBLE_TRY(bound, Bind({"chars"}));
    NIBBLE_TRY(text, Text());
    if (!bound.Has(0) || bound[0]->IsNone()) {
      return Made(std::string(Strip(text, Side::kBoth)), input_.IsMarkup());
    }
    NIBBLE_TRY(chars, bound.Text(0, ""));
    NIBBLE_TRY_VOID(interpreter_.ChargeSearch(text, chars));
    return Made(std::string(Strip(text, Side::kBoth, chars)), input_.IsMarkup());
  }

  Result<Value> ChangeCase() {
    NIBBLE_TRY_VOID(Bind({}));
    NIBBLE_TRY(text, Text());
    return Made(name_ == "upper"   ? Upper(text)
                : name_ == "lower" ? Lower(text)
                : name_ == "title" ? Title(text, /*filter=*/true)
                                   : Capitalize(text));
  }

  Result<Value> ToString() {
    NIBBLE_TRY_VOID(Bind({}));
    if (input_.IsString()) {
      return input_;
    }
    NIBBLE_TRY(text, Text());
    return Made(std::move(text));
  }

  Result<Value> Safe() {
    NIBBLE_TRY_VOID(Bind({}));
    NIBBLE_TRY(text, Text());
    return Made(std::move(text), /*markup=*/true);
  }

  Result<Value> Escape() {
    NIBBLE_TRY_VOID(Bind({}));
    if (input_.IsMarkup() && name_ != "forceescape") {
      return input_;
    }
    NIBBLE_TRY(text, Text());
    return Made(EscapeHtml(text), /*markup=*/true);
  }

  Result<Value> Replace() {
    NIBBLE_TRY(bound, Bind({"old", "new", "count"}));
    NIBBLE_TRY(old_text, bound.Required(0));
    NIBBLE_TRY(new_text, bound.Required(1));
    NIBBLE_TRY(text, Text());
    Arguments call;
    for (const Value& argument : {old_text, new_text}) {
      NIBBLE_TRY(shown, interpreter_.Str(argument));
      call.positional.push_back(Value::String(std::move(shown)));
    }
    if (bound.Has(2) && !bound[2]->IsNone()) {
      call.positional.push_back(*bound[2]);
    }
    return interpreter_.Method(Value::String(std::move(text)), "replace", std::move(call));
  }

  Result<Value> Indent() {
    NIBBLE_TRY(bound, Bind({"width", "first", "blank"}));
    if (!input_.IsString()) {
      return input_.IsUndefined()
                 ? Result<Value>(input_.Unusable())
                 : TypeError(fmt::format("unsupported operand type(s) for +=: '{}' and 'str'",
                                         input_.TypeName()));
    }
    std::string indention;
    if (bound.Has(0) && bound[0]->IsString()) {
      indention = bound[0]->Text();
    } else {
      NIBBLE_TRY(width, bound.Integer(0, 4));
      if (width > static_cast<std::int64_t>(interpreter_.max_text())) {
        return TooLong();
      }
      indention.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, width)), ' ');
    }
    const bool blank = bound.Flag(2, false);
    const std::string text = std::string(input_.Text()) + "\n";  // Jinja adds one, too
    std::string out = bound.Flag(1, false) ? indention : "";
    bool first = true;
    for (const std::string_view line : SplitLines(text, false)) {
      if (!first) {
        out += '\n';
        out += blank || !line.empty() ? indention : std::string();
      }
      first = false;
      out += line;
      if (out.size() > interpreter_.max_text()) {
        return TooLong();
      }
    }
    return Made(std::move(out), input_.IsMarkup());
  }

  Result<Value> Truncate() {
    NIBBLE_TRY(bound, Bind({"length", "killwords", "end", "leeway"}));
    NIBBLE_TRY(length, bound.Integer(0, 255));
    NIBBLE_TRY(end, bound.Text(2, "..."));
    std::int64_t leeway = 5;
    if (bound.Has(3) && !bound[3]->IsNone()) {
      NIBBLE_TRY(given, bound.Integer(3, 5));
      leeway = given;
    }
    if (!input_.IsString()) {
      NIBBLE_TRY(count, Size());
      return count <= length + leeway
                 ? Result<Value>(input_)
                 : TypeError(fmt::format("can only concatenate {} (not \"str\") to {}",
                                         input_.TypeName(), input_.TypeName()));
    }
    NIBBLE_TRY(text, Text());
    const auto end_length = static_cast<std::int64_t>(Length(end));
    if (length < end_length || leeway < 0) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("AssertionError: expected length >= {}, got {}", end_length, length));
    }
    if (static_cast<std::int64_t>(Length(text)) <= length + leeway) {
      return input_;
    }
    std::size_t cut = 0;
    for (std::int64_t i = 0; i < length - end_length; ++i) {
      cut += Decode(text, cut).length;
    }
    text.resize(cut);
    if (!bound.Flag(1, false)) {
      text = std::string(RightSplit(text, " ", 1).front());
    }
    return Made(text + end);
  }

  Result<Value> Center() {
    NIBBLE_TRY(bound, Bind({"width"}));
    NIBBLE_TRY(text, Text());
    return interpreter_.Method(Value::String(std::move(text)), "center",
                               {.positional = {bound.Or(0, Value::Integer(80))}});
  }

  Result<Value> Format() {
    NIBBLE_TRY(text, Text());
    if (!arguments_.named.empty()) {
      if (!arguments_.positional.empty()) {
        return TypeError("can't handle positional and keyword arguments at the same time");
      }
      DictData dict;
      for (auto& [name, value] : arguments_.named) {
        dict.Set(Value::String(name), std::move(value));
      }
      NIBBLE_TRY(named, Value::Dict(std::move(dict)));
      arguments_ = {.positional = {std::move(named)}};
    }
    return interpreter_.PercentFormat(input_.IsString() ? input_ : Value::String(std::move(text)),
                                      arguments_);
  }

  Result<Value> WordCount() {
    NIBBLE_TRY_VOID(Bind({}));
    NIBBLE_TRY(text, Text());
    std::int64_t count = 0;
    bool in_word = false;
    for (std::size_t at = 0; at < text.size();) {
      const CodePoint point = Decode(text, at);
      const bool is_word = IsAlpha(point.value) || IsNumeric(point.value) || point.value == '_';
      count += is_word && !in_word ? 1 : 0;
      in_word = is_word;
      at += point.length;
    }
    return Value::Integer(count);
  }

  Result<Value> UrlEncode() {
    NIBBLE_TRY_VOID(Bind({}));
    const auto quote = [](std::string_view text, bool in_query) {
      std::string out;
      for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                           (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-' || c == '~' ||
                           (c == '/' && !in_query);
        out += plain                  ? std::string(1, c)
               : c == ' ' && in_query ? "+"
                                      : fmt::format("%{:02X}", static_cast<unsigned char>(c));
      }
      return out;
    };
    if (input_.AsDict() == nullptr && input_.AsSequence() == nullptr) {
      NIBBLE_TRY(text, Text());
      return Made(quote(text, false));
    }
    Value pairs = input_;
    if (input_.AsDict() != nullptr) {
      NIBBLE_TRY(items, interpreter_.Method(input_, "items", {}));
      pairs = std::move(items);
    }
    NIBBLE_TRY(items, interpreter_.Items(pairs));
    std::string out;
    for (const Value& item : items) {
      NIBBLE_TRY(pair, interpreter_.Items(item));
      if (pair.size() != 2) {
        return ValueError("urlencode takes pairs");
      }
      NIBBLE_TRY(key, interpreter_.Str(pair[0]));
      NIBBLE_TRY(value, interpreter_.Str(pair[1]));
      out += fmt::format("{}{}={}", out.empty() ? "" : "&", quote(key, true), quote(value, true));
      if (out.size() > interpreter_.max_text()) {
        return TooLong();
      }
    }
    return Made(std::move(out));
  }

  // JSON ---------------------------------------------------------------------------------------

  Result<Value> ToJson() {
    NIBBLE_TRY(bound, Bind({"ensure_ascii", "indent", "separators", "sort_keys"}));
    JsonOptions options;
    options.ensure_ascii = bound.Flag(0, false);
    options.sort_keys = bound.Flag(3, false);
    if (bound.Has(1) && !bound[1]->IsNone()) {
      options.item_separator = ",";
      if (bound[1]->IsString()) {
        options.indent = bound[1]->Text();
      } else {
        NIBBLE_TRY(width, bound.Integer(1, 0));
        if (width > 1024) {
          return TooLarge("an indent of more than 1,024 blanks");
        }
        options.indent =
            std::string(static_cast<std::size_t>(std::max<std::int64_t>(0, width)), ' ');
      }
    }
    if (bound.Has(2) && !bound[2]->IsNone()) {
      NIBBLE_TRY(separators, interpreter_.Items(*bound[2]));
      if (separators.size() != 2 || !separators[0].IsString() || !separators[1].IsString()) {
        return ValueError("separators must be two strings");
      }
      options.item_separator = separators[0].Text();
      options.key_separator = separators[1].Text();
    }
    NIBBLE_TRY_VOID(interpreter_.Charge(input_.Weight() / 16));
    NIBBLE_TRY(text, jinja::ToJson(input_, options, interpreter_.max_text()));
    return Made(std::move(text));
  }

  // Not in transformers, but in templates written for other engines.
  Result<Value> FromJsonText() {
    NIBBLE_TRY_VOID(Bind({}));
    NIBBLE_TRY(text, Text());
    json::ParseLimits limits;
    limits.duplicates = json::DuplicateKeys::kKeepLast;
    const auto value = json::Parse(text, limits);
    if (!value) {
      return ValueError(value.error().message);
    }
    return jinja::FromJson(*value);
  }

  // Numbers ------------------------------------------------------------------------------------

  Result<Value> Abs() {
    NIBBLE_TRY_VOID(Bind({}));
    if (input_.IsUndefined()) {
      return input_.Unusable();
    }
    if (const auto i = input_.AsIndex()) {
      if (*i == std::numeric_limits<Int>::min()) {
        return TooLarge("an integer beyond 128 bits");
      }
      return Value(*i < 0 ? -*i : *i);
    }
    if (const auto d = input_.AsDouble()) {
      return Value(std::fabs(*d));
    }
    return TypeError(fmt::format("bad operand type for abs(): '{}'", input_.TypeName()));
  }

  /// Python's float(text); nullopt where that raises.
  static std::optional<double> ParseDouble(std::string_view text) {
    text = Strip(text, Side::kBoth);
    std::string digits(text);
    std::erase(digits, '_');
    const std::string lower = Lower(digits);
    const bool negative = lower.starts_with('-');
    const std::string_view magnitude =
        std::string_view(lower).substr(negative || lower.starts_with('+') ? 1 : 0);
    if (magnitude == "inf" || magnitude == "infinity") {
      return negative ? -std::numeric_limits<double>::infinity()
                      : std::numeric_limits<double>::infinity();
    }
    if (magnitude == "nan") {
      return std::numeric_limits<double>::quiet_NaN();
    }
    if (magnitude.empty() || (magnitude[0] != '.' && (magnitude[0] < '0' || magnitude[0] > '9'))) {
      return std::nullopt;
    }
    double value = 0;
    const auto read = std::from_chars(magnitude.data(), magnitude.data() + magnitude.size(), value);
    if (read.ptr != magnitude.data() + magnitude.size() || read.ec == std::errc::invalid_argument) {
      return std::nullopt;
    }
    if (read.ec != std::errc()) {
      const std::size_t exponent = magnitude.find("e-");
      value = exponent != std::string_view::npos ? 0 : std::numeric_limits<double>::infinity();
    }
    return negative ? -value : value;
  }

  /// Python's int(text, base); nullopt where that raises.
  static std::optional<Int> ParseInt(std::string_view text, int base) {
    text = Strip(text, Side::kBoth);
    const bool negative = text.starts_with('-');
    text.remove_prefix(negative || text.starts_with('+') ? 1 : 0);
    if (text.size() > 2 && text[0] == '0') {
      const char letter = static_cast<char>(text[1] | 0x20);
      const int named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
      if (named != 0 && (base == named || base == 0)) {
        text.remove_prefix(2);
        base = named;
      }
    }
    base = base == 0 ? 10 : base;
    Int value = 0;
    bool digit_before = false;
    for (const char c : text) {
      if (c == '_' && digit_before) {
        digit_before = false;
        continue;
      }
      const char lower = static_cast<char>(c | 0x20);
      const int digit = c >= '0' && c <= '9'           ? c - '0'
                        : lower >= 'a' && lower <= 'z' ? lower - 'a' + 10
                                                       : 99;
      if (digit >= base || __builtin_mul_overflow(value, static_cast<Int>(base), &value) ||
          __builtin_add_overflow(value, static_cast<Int>(digit), &value)) {
        return std::nullopt;
      }
      digit_before = true;
    }
    return digit_before ? std::optional(negative ? -value : value) : std::nullopt;
  }

  Result<Value> ToInt() {
    NIBBLE_TRY(bound, Bind({"default", "base"}));
    NIBBLE_TRY(base, bound.Integer(1, 10));
    if (base != 0 && (base < 2 || base > 36)) {
      return ValueError("int() base must be >= 2 and <= 36, or 0");
    }
    if (input_.IsUndefined()) {
      return input_.Unusable();
    }
    std::optional<double> d = input_.AsDouble();
    if (const auto i = input_.AsIndex()) {
      return Value(*i);
    }
    if (input_.IsString()) {
      if (const auto i = ParseInt(input_.Text(), static_cast<int>(base))) {
        return Value(*i);
      }
      d = ParseDouble(input_.Text());
    }
    if (d && std::fabs(*d) < 0x1p126) {
      return Value(static_cast<Int>(*d));
    }
    return bound.Or(0, Value::Integer(0));
  }

  Result<Value> ToFloat() {
    NIBBLE_TRY(bound, Bind({"default"}));
    if (input_.IsUndefined()) {
      return input_.Unusable();
    }
    const auto d = input_.IsString() ? ParseDouble(input_.Text()) : input_.AsDouble();
    return d ? Value(*d) : bound.Or(0, Value(0.0));
  }

  Result<Value> Round() {
    NIBBLE_TRY(bound, Bind({"precision", "method"}));
    NIBBLE_TRY(precision, bound.Integer(0, 0));
    NIBBLE_TRY(method, bound.Text(1, "common"));
    if (method != "common" && method != "ceil" && method != "floor") {
      return Fail(ErrorCode::kCorruptFile,
                  "FilterArgumentError: method must be common, ceil or floor");
    }
    if (input_.IsUndefined()) {
      return input_.Unusable();
    }
    const auto d = input_.AsDouble();
    if (!d) {
      return TypeError(fmt::format("type {} doesn't define __round__ method", input_.TypeName()));
    }
    if (method != "common") {
      const double scale = std::pow(10.0, static_cast<double>(precision));
      return Value((method == "ceil" ? std::ceil(*d * scale) : std::floor(*d * scale)) / scale);
    }
    if (const auto i = input_.AsIndex(); i && precision >= 0) {
      return Value(*i);
    }
    if (!std::isfinite(*d) || precision > 300) {
      return input_;
    }
    if (precision >= 0) {
      // Correctly rounded decimals, then read back, as Python does it.
      const std::string text = fmt::format("{:.{}f}", *d, precision);
      return Value(ParseDouble(text).value_or(*d));
    }
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    const double rounded = std::nearbyint(*d / scale) * scale;
    return input_.AsIndex() ? Value(static_cast<Int>(rounded)) : Value(rounded);
  }

  Result<Value> Sum() {
    NIBBLE_TRY(bound, Bind({"attribute", "start"}));
    NIBBLE_TRY(path, Path::Of(bound[0]));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    Value total = bound.Or(1, Value::Integer(0));
    for (const Value& item : items) {
      NIBBLE_TRY(value, path.Get(interpreter_, item));
      NIBBLE_TRY(next, interpreter_.Binary(Op::kAdd, total, value));
      total = std::move(next);
    }
    return total;
  }

  // Containers ---------------------------------------------------------------------------------

  /// len()
  Result<std::int64_t> Size() {
    if (input_.IsUndefined()) {
      return 0;
    }
    if (input_.IsString()) {
      NIBBLE_TRY_VOID(interpreter_.ChargeBytes(input_.Text().size()));
      return static_cast<std::int64_t>(Length(input_.Text()));
    }
    if (const SequenceData* const sequence = input_.AsSequence()) {
      return std::ssize(sequence->items);
    }
    if (const DictData* const dict = input_.AsDict()) {
      return std::ssize(dict->members());
    }
    if (input_.AsLoop() != nullptr) {
      NIBBLE_TRY(length, interpreter_.Attribute(input_, "length"));
      return static_cast<std::int64_t>(*length.AsIndex());
    }
    return TypeError(fmt::format("object of type '{}' has no len()", input_.TypeName()));
  }

  Result<Value> Count() {
    NIBBLE_TRY_VOID(Bind({}));
    NIBBLE_TRY(count, Size());
    return Value::Integer(count);
  }

  Result<Value> Default() {
    NIBBLE_TRY(bound, Bind({"default_value", "boolean"}));
    const bool replaces = input_.IsUndefined() || (bound.Flag(1, false) && !input_.Truthy());
    return replaces ? bound.Or(0, Value::String("")) : input_;
  }

  Result<Value> First() {
    NIBBLE_TRY_VOID(Bind({}));
    if (GeneratorData* const generator = input_.AsGenerator()) {
      if (generator->next < generator->items.size()) {
        return generator->items[generator->next++];
      }
      return Value::Undefined("No first item, sequence was empty.");
    }
    if (input_.IsString() && !input_.Text().empty()) {
      return Made(std::string(input_.Text().substr(0, Decode(input_.Text(), 0).length)));
    }
    NIBBLE_TRY(items, interpreter_.Items(input_));
    return items.empty() ? Value::Undefined("No first item, sequence was empty.")
                         : std::move(items.front());
  }

  Result<Value> Last() {
    NIBBLE_TRY_VOID(Bind({}));
    if (input_.AsGenerator() != nullptr) {
      return TypeError("'generator' object is not reversible");
    }
    NIBBLE_TRY(items, interpreter_.Items(input_));
    return items.empty() ? Value::Undefined("No last item, sequence was empty.")
                         : std::move(items.back());
  }

  Result<Value> ToList() {
    NIBBLE_TRY_VOID(Bind({}));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    return ListLike(std::move(items));
  }

  Result<Value> DictItems() {
    NIBBLE_TRY_VOID(Bind({}));
    if (input_.IsUndefined()) {
      return Value::Generator({});
    }
    if (input_.AsDict() == nullptr) {
      return TypeError("Can only get item pairs from a mapping.");
    }
    NIBBLE_TRY(view, interpreter_.Method(input_, "items", {}));
    NIBBLE_TRY(items, interpreter_.Items(view));
    return Value::Generator(std::move(items));
  }

  Result<Value> Join() {
    NIBBLE_TRY(bound, Bind({"d", "attribute"}));
    NIBBLE_TRY(path, Path::Of(bound[1]));
    NIBBLE_TRY(separator, interpreter_.Str(bound.Or(0, Value::String(""))));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    std::string out;
    for (std::size_t i = 0; i < items.size(); ++i) {
      NIBBLE_TRY(item, path.Get(interpreter_, items[i]));
      NIBBLE_TRY(text, interpreter_.Str(item));
      out += i > 0 ? separator : std::string();
      out += text;
      if (out.size() > interpreter_.max_text()) {
        return TooLong();
      }
    }
    return Made(std::move(out));
  }

  Result<Value> Reverse() {
    NIBBLE_TRY_VOID(Bind({}));
    if (input_.IsString()) {
      NIBBLE_TRY_VOID(interpreter_.ChargeBytes(input_.Text().size() * 8));
      const auto characters = Characters(input_.Text());
      std::string out;
      for (auto character = characters.rbegin(); character != characters.rend(); ++character) {
        out += *character;
      }
      return Made(std::move(out));
    }
    NIBBLE_TRY(items, interpreter_.Items(input_));
    std::reverse(items.begin(), items.end());
    return input_.AsGenerator() != nullptr ? ListLike(std::move(items))
                                           : Value::Generator(std::move(items));
  }

  /// Sorts `items` by `keys`, stable. Reverse keeps equal ones in their order, as Python does.
  Result<Items> SortBy(const Items& items, const Items& keys, bool reverse) {
    std::vector<std::size_t> order(items.size());
    std::int64_t work = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      order[i] = i;
      work += keys[i].Weight();
    }
    std::int64_t rounds = 1;
    for (std::size_t n = items.size(); n > 1; n /= 2) {
      ++rounds;
    }
    NIBBLE_TRY_VOID(interpreter_.Charge(std::min<std::int64_t>(work, 1'000'000'000) * rounds));
    // A merge sort of our own: std::sort may run wild where an order is none (NaN, errors).
    std::vector<std::size_t> other(order.size());
    for (std::size_t width = 1; width < order.size(); width *= 2) {
      for (std::size_t left = 0; left < order.size(); left += 2 * width) {
        const std::size_t middle = std::min(left + width, order.size());
        const std::size_t right = std::min(left + 2 * width, order.size());
        std::size_t a = left;
        std::size_t b = middle;
        for (std::size_t out = left; out < right; ++out) {
          bool take_b = a >= middle;
          if (a < middle && b < right) {
            const Value& x = keys[order[a]];
            const Value& y = keys[order[b]];
            NIBBLE_TRY(less, reverse ? Less(x, y) : Less(y, x));
            take_b = less;
          }
          other[out] = take_b ? order[b++] : order[a++];
        }
      }
      order.swap(other);
    }
    Items sorted;
    sorted.reserve(items.size());
    for (const std::size_t i : order) {
      sorted.push_back(items[i]);
    }
    return sorted;
  }

  Result<Value> Sort() {
    NIBBLE_TRY(bound, Bind({"reverse", "case_sensitive", "attribute"}));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    std::vector<Path> paths;
    if (bound.Has(2) && bound[2]->IsString()) {
      for (const std::string_view part : Split(bound[2]->Text(), ",", -1)) {
        NIBBLE_TRY(path, Path::Of(Value::String(std::string(part))));
        paths.push_back(std::move(path));
      }
    } else {
      NIBBLE_TRY(path, Path::Of(bound[2]));
      paths.push_back(std::move(path));
    }
    Items keys;
    for (const Value& item : items) {
      Items key;
      for (const Path& path : paths) {
        NIBBLE_TRY(value, path.Get(interpreter_, item));
        NIBBLE_TRY(folded, IgnoreCase(value, bound.Flag(1, false)));
        key.push_back(std::move(folded));
      }
      if (key.size() == 1) {
        keys.push_back(std::move(key[0]));
      } else {
        NIBBLE_TRY(list, Value::List(std::move(key)));
        keys.push_back(std::move(list));
      }
    }
    NIBBLE_TRY(sorted, SortBy(items, keys, bound.Flag(0, false)));
    return ListLike(std::move(sorted));
  }

  Result<Value> DictSort() {
    NIBBLE_TRY(bound, Bind({"case_sensitive", "by", "reverse"}));
    NIBBLE_TRY(by, bound.Text(1, "key"));
    if (by != "key" && by != "value") {
      return Fail(ErrorCode::kCorruptFile,
                  "FilterArgumentError: You can only sort by either \"key\" or \"value\"");
    }
    if (input_.IsUndefined()) {
      return input_.Unusable();
    }
    if (input_.AsDict() == nullptr) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("AttributeError: '{}' object has no "
                                                       "attribute 'items'",
                                                       input_.TypeName()));
    }
    NIBBLE_TRY(view, interpreter_.Method(input_, "items", {}));
    NIBBLE_TRY(items, interpreter_.Items(view));
    Items keys;
    for (const Value& item : items) {
      const Value& value = item.AsSequence()->items[by == "key" ? 0 : 1];
      NIBBLE_TRY(folded, IgnoreCase(value, bound.Flag(0, false)));
      keys.push_back(std::move(folded));
    }
    NIBBLE_TRY(sorted, SortBy(items, keys, bound.Flag(2, false)));
    return ListLike(std::move(sorted));
  }

  Result<Value> Unique() {
    NIBBLE_TRY(bound, Bind({"case_sensitive", "attribute"}));
    NIBBLE_TRY(path, Path::Of(bound[1]));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    DictData seen;
    Items kept;
    for (const Value& item : items) {
      NIBBLE_TRY(value, path.Get(interpreter_, item));
      NIBBLE_TRY(key, IgnoreCase(value, bound.Flag(0, false)));
      NIBBLE_TRY_VOID(interpreter_.CheckHashable(key));
      if (seen.Find(key) == nullptr) {
        seen.Set(key, Value(true));
        kept.push_back(item);
      }
    }
    return Value::Generator(std::move(kept));
  }

  Result<Value> Extreme() {
    NIBBLE_TRY(bound, Bind({"case_sensitive", "attribute"}));
    NIBBLE_TRY(path, Path::Of(bound[1]));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    if (items.empty()) {
      return Value::Undefined("No aggregated item, sequence was empty.");
    }
    std::size_t best = 0;
    Value best_key;
    for (std::size_t i = 0; i < items.size(); ++i) {
      NIBBLE_TRY(value, path.Get(interpreter_, items[i]));
      NIBBLE_TRY(key, IgnoreCase(value, bound.Flag(0, false)));
      if (i > 0) {
        NIBBLE_TRY_VOID(interpreter_.ChargeCompare(key, best_key));
        NIBBLE_TRY(better, name_ == "min" ? Less(key, best_key) : Less(best_key, key));
        if (!better) {
          continue;
        }
      }
      best = i;
      best_key = std::move(key);
    }
    return items[best];
  }

  Result<Value> GroupBy() {
    NIBBLE_TRY(bound, Bind({"attribute", "default", "case_sensitive"}));
    NIBBLE_TRY_VOID(bound.Required(0));
    NIBBLE_TRY(path, Path::Of(bound[0]));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    Items keys;
    Items originals;
    for (const Value& item : items) {
      NIBBLE_TRY(value, path.Get(interpreter_, item, bound[1]));
      NIBBLE_TRY(folded, IgnoreCase(value, bound.Flag(2, false)));
      keys.push_back(std::move(folded));
    }
    Items pairs;
    for (std::size_t i = 0; i < items.size(); ++i) {
      NIBBLE_TRY(pair, Value::Tuple({keys[i], items[i]}));
      pairs.push_back(std::move(pair));
    }
    NIBBLE_TRY(sorted, SortBy(pairs, keys, false));
    Items groups;
    for (std::size_t i = 0; i < sorted.size();) {
      const Value key = sorted[i].AsSequence()->items[0];
      Items members;
      for (; i < sorted.size() && Equal(sorted[i].AsSequence()->items[0], key); ++i) {
        members.push_back(sorted[i].AsSequence()->items[1]);
      }
      // Jinja shows the group's name as its first member spells it.
      NIBBLE_TRY(name, path.Get(interpreter_, members[0], bound[1]));
      NIBBLE_TRY(list, Value::List(std::move(members)));
      NIBBLE_TRY(group, Value::Tuple({name, list}));
      groups.push_back(std::move(group));
    }
    return ListLike(std::move(groups));
  }

  Result<Value> Batch() {
    NIBBLE_TRY(bound, Bind({"linecount", "fill_with"}));
    NIBBLE_TRY_VOID(bound.Required(0));
    NIBBLE_TRY(count, bound.Integer(0, 1));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    if (count > interpreter_.max_items()) {
      return TooLarge(fmt::format("batches of more than {} items", interpreter_.max_items()));
    }
    Items batches;
    Items batch;
    const auto flush = [&]() -> Result<void> {
      NIBBLE_TRY(list, Value::List(std::move(batch)));
      batches.push_back(std::move(list));
      batch.clear();
      return {};
    };
    for (Value& item : items) {
      if (std::ssize(batch) == count) {
        NIBBLE_TRY_VOID(flush());
      }
      batch.push_back(std::move(item));
    }
    if (!batch.empty()) {
      if (bound.Has(1) && !bound[1]->IsNone() && std::ssize(batch) < count) {
        batch.resize(static_cast<std::size_t>(count), *bound[1]);
      }
      NIBBLE_TRY_VOID(flush());
    }
    return Value::Generator(std::move(batches));
  }

  Result<Value> Slice() {
    NIBBLE_TRY(bound, Bind({"slices", "fill_with"}));
    NIBBLE_TRY_VOID(bound.Required(0));
    NIBBLE_TRY(slices, bound.Integer(0, 1));
    if (slices <= 0 || slices > interpreter_.max_items()) {
      return slices <= 0 ? Result<Value>(ValueError("slices must be positive"))
                         : TooLarge(fmt::format("more than {} slices", interpreter_.max_items()));
    }
    NIBBLE_TRY_VOID(interpreter_.Charge(slices));
    NIBBLE_TRY(items, interpreter_.Items(input_));
    const std::int64_t per_slice = std::ssize(items) / slices;
    const std::int64_t longer = std::ssize(items) % slices;
    Items columns;
    auto from = items.begin();
    for (std::int64_t i = 0; i < slices; ++i) {
      const auto to = from + per_slice + (i < longer ? 1 : 0);
      Items column(from, to);
      from = to;
      if (bound.Has(1) && !bound[1]->IsNone() && i >= longer) {
        column.push_back(*bound[1]);
      }
      NIBBLE_TRY(list, Value::List(std::move(column)));
      columns.push_back(std::move(list));
    }
    return Value::Generator(std::move(columns));
  }

  Result<Value> Attr() {
    NIBBLE_TRY(bound, Bind({"name"}));
    NIBBLE_TRY(name, bound.Required(0));
    NIBBLE_TRY(text, interpreter_.Str(name));
    if (input_.IsUndefined()) {
      return input_.Unusable();
    }
    if (input_.AsDict() != nullptr && input_.AsDict()->Find(std::string_view(text)) != nullptr) {
      // Only attributes: a dict's items are none.
      DictData empty;
      NIBBLE_TRY(bare, Value::Dict(std::move(empty)));
      return interpreter_.Attribute(bare, text);
    }
    return interpreter_.Attribute(input_, text);
  }

  Result<Value> Map() {
    if (!input_.Truthy()) {
      return Value::Generator({});  // none, too
    }
    NIBBLE_TRY(items, interpreter_.Items(input_));
    Items mapped;
    mapped.reserve(items.size());
    if (arguments_.positional.empty()) {
      NIBBLE_TRY(bound, Bind({"attribute", "default"}));
      if (!bound.Has(0)) {
        return Fail(ErrorCode::kCorruptFile, "FilterArgumentError: map requires a filter argument");
      }
      NIBBLE_TRY(path, Path::Of(bound[0]));
      for (const Value& item : items) {
        NIBBLE_TRY(value, path.Get(interpreter_, item, bound[1]));
        mapped.push_back(std::move(value));
      }
      return Value::Generator(std::move(mapped));
    }
    NIBBLE_TRY(filter, interpreter_.Str(arguments_.positional[0]));
    const Arguments rest = Rest(1);
    for (const Value& item : items) {
      NIBBLE_TRY_VOID(interpreter_.Charge(1));
      NIBBLE_TRY(value, interpreter_.Filter(filter, item, rest));
      mapped.push_back(std::move(value));
    }
    return Value::Generator(std::move(mapped));
  }

  /// select, reject, selectattr, rejectattr
  Result<Value> Select() {
    const bool by_attribute = name_.ends_with("attr");
    const bool keep = name_.starts_with("select");
    if (!input_.Truthy()) {
      return Value::Generator({});  // none, too
    }
    std::size_t used = 0;
    Path path;
    if (by_attribute) {
      if (arguments_.positional.empty()) {
        return Fail(ErrorCode::kCorruptFile,
                    "FilterArgumentError: Missing parameter for attribute name");
      }
      NIBBLE_TRY(given, Path::Of(arguments_.positional[0]));
      path = std::move(given);
      used = 1;
    }
    std::optional<std::string> test;
    Arguments rest;
    if (arguments_.positional.size() > used) {
      NIBBLE_TRY(name, interpreter_.Str(arguments_.positional[used]));
      test = std::move(name);
      rest = Rest(used + 1);
    }
    NIBBLE_TRY(items, interpreter_.Items(input_));
    Items kept;
    for (Value& item : items) {
      NIBBLE_TRY_VOID(interpreter_.Charge(1));
      NIBBLE_TRY(subject, path.Get(interpreter_, item));
      bool holds = subject.Truthy();
      if (test) {
        NIBBLE_TRY(result, interpreter_.Test(*test, subject, rest));
        holds = result;
      }
      if (holds == keep) {
        kept.push_back(std::move(item));
      }
    }
    return Value::Generator(std::move(kept));
  }

 private:
  Result<Value> IgnoreCase(const Value& value, bool case_sensitive) {
    return value.IsString() && !case_sensitive ? Made(Lower(value.Text())) : Result<Value>(value);
  }

  Result<Bound> Bind(std::initializer_list<std::string_view> parameters) {
    return Bound::Bind(name_, std::move(arguments_), parameters);
  }

  Arguments Rest(std::size_t used) const {
    Arguments rest = arguments_;
    rest.positional.erase(rest.positional.begin(),
                          rest.positional.begin() + static_cast<std::ptrdiff_t>(used));
    return rest;
  }

  Result<std::string> Text() { return interpreter_.Str(input_); }
  Result<Value> Made(std::string text, bool markup = false) {
    return interpreter_.MakeString(std::move(text), markup);
  }
  tl::unexpected<Error> TooLong() const {
    return TooLarge(fmt::format("a text grew beyond {} bytes", interpreter_.max_text()));
  }

  Interpreter& interpreter_;
  const std::string_view name_;
  const Value& input_;
  Arguments arguments_;
};

FilterCall::Function FilterCall::Find(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kFilters[] = {
      {"abs", &FilterCall::Abs},
      {"attr", &FilterCall::Attr},
      {"batch", &FilterCall::Batch},
      {"capitalize", &FilterCall::ChangeCase},
      {"center", &FilterCall::Center},
      {"count", &FilterCall::Count},
      {"d", &FilterCall::Default},
      {"default", &FilterCall::Default},
      {"dictsort", &FilterCall::DictSort},
      {"e", &FilterCall::Escape},
      {"escape", &FilterCall::Escape},
      {"first", &FilterCall::First},
      {"float", &FilterCall::ToFloat},
      {"forceescape", &FilterCall::Escape},
      {"format", &FilterCall::Format},
      {"from_json", &FilterCall::FromJsonText},
      {"fromjson", &FilterCall::FromJsonText},
      {"groupby", &FilterCall::GroupBy},
      {"indent", &FilterCall::Indent},
      {"int", &FilterCall::ToInt},
      {"items", &FilterCall::DictItems},
      {"join", &FilterCall::Join},
      {"last", &FilterCall::Last},
      {"length", &FilterCall::Count},
      {"list", &FilterCall::ToList},
      {"lower", &FilterCall::ChangeCase},
      {"map", &FilterCall::Map},
      {"max", &FilterCall::Extreme},
      {"min", &FilterCall::Extreme},
      {"reject", &FilterCall::Select},
      {"rejectattr", &FilterCall::Select},
      {"replace", &FilterCall::Replace},
      {"reverse", &FilterCall::Reverse},
      {"round", &FilterCall::Round},
      {"safe", &FilterCall::Safe},
      {"select", &FilterCall::Select},
      {"selectattr", &FilterCall::Select},
      {"slice", &FilterCall::Slice},
      {"sort", &FilterCall::Sort},
      {"string", &FilterCall::ToString},
      {"sum", &FilterCall::Sum},
      {"title", &FilterCall::ChangeCase},
      {"tojson", &FilterCall::ToJson},
      {"trim", &FilterCall::Trim},
      {"truncate", &FilterCall::Truncate},
      {"unique", &FilterCall::Unique},
      {"upper", &FilterCall::ChangeCase},
      {"urlencode", &FilterCall::UrlEncode},
      {"wordcount", &FilterCall::WordCount},
  };
  for (const auto& [known, function] : kFilters) {
    if (known == name) {
      return function;
    }
  }
  return nullptr;
}

}  // namespace

Result<Value> Interpreter::Filter(std::string_view name, const Value& input, Arguments arguments) {
  const FilterCall::Function function = FilterCall::Find(name);
  if (function == nullptr) {
    return Fail(ErrorCode::kUnsupported, fmt::format("no filter named '{}'", name));
  }
  return (FilterCall(*this, name, input, std::move(arguments)).*function)();
}

}  // namespace nibble::jinja
