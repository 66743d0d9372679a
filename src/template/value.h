#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"
#include "json/value.h"

namespace nibble::jinja {

class Value;
struct Macro;      // interpreter.h
struct LoopState;  // interpreter.h

// Errors of a template, by the name Python gives them; the interpreter adds the line.
tl::unexpected<Error> TypeError(std::string_view what);
tl::unexpected<Error> ValueError(std::string_view what);
tl::unexpected<Error> UndefinedError(std::string_view what);
tl::unexpected<Error> SecurityError(std::string_view what);
tl::unexpected<Error> TooLarge(std::string_view what);

/// Values may nest this deep; then they can be printed, compared and freed by recursion.
inline constexpr int kMaxValueDepth = 100;

/// Python's int, as far as 128 bits go; beyond, arithmetic is an error.
using Int = __int128;

struct StringData {
  std::string text;     // well-formed UTF-8
  bool markup = false;  // markupsafe.Markup: `+` escapes the other side
};

struct UndefinedData {
  std::string message;       // "'x' is undefined"
  bool is_security = false;  // access to something the sandbox forbids
};

enum class SequenceKind { kList, kTuple, kDictKeys, kDictValues, kDictItems, kRange };

struct SequenceData {
  SequenceKind kind = SequenceKind::kList;
  std::vector<Value> items;
  int depth = 1;
  std::int64_t weight = 1;
  std::string label;  // of a range: what it prints as
};

/// What a lazy filter returns: it can be walked once and has no length.
struct GeneratorData {
  std::vector<Value> items;
  std::size_t next = 0;
  int depth = 1;
  std::int64_t weight = 1;
};

/// A dict in insertion order; look-up by an ordered index above 16 members.
class DictData {
 public:
  using Member = std::pair<Value, Value>;
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  void Set(Value key, Value value);
  const std::vector<Member>& members() const { return members_; }
  int depth() const { return depth_; }
  std::int64_t weight() const { return weight_; }

 private:
  std::size_t Position(const Value& key) const;
  std::vector<Member> members_;
  std::map<std::string, std::size_t, std::less<>> index_;
  int depth_ = 1;
  std::int64_t weight_ = 1;
};

/// The one mutable thing of a template. Owned by the render, so cycles through it do not leak.
struct NamespaceData {
  std::vector<std::pair<std::string, Value>> members;
};

/// A method taken from an object, or a global function.
struct FunctionData {
  std::string name;
  std::shared_ptr<const Value> self;  // null: a global function
};

class Value {
 public:
  using StringPtr = std::shared_ptr<const StringData>;
  using SequencePtr = std::shared_ptr<const SequenceData>;
  using DictPtr = std::shared_ptr<const DictData>;
  using GeneratorPtr = std::shared_ptr<GeneratorData>;
  using UndefinedPtr = std::shared_ptr<const UndefinedData>;
  using FunctionPtr = std::shared_ptr<const FunctionData>;
  struct None {};

  Value() = default;  // undefined, without a message
  explicit Value(None) : data_(None{}) {}
  explicit Value(bool b) : data_(b) {}
  explicit Value(Int i) : data_(i) {}
  explicit Value(double d) : data_(d) {}
  explicit Value(DictPtr dict) : data_(std::move(dict)) {}
  explicit Value(SequencePtr sequence) : data_(std::move(sequence)) {}
  explicit Value(NamespaceData* ns) : data_(ns) {}
  explicit Value(const Macro* macro) : data_(macro) {}
  explicit Value(LoopState* loop) : data_(loop) {}
  explicit Value(FunctionPtr function) : data_(std::move(function)) {}

  static Value String(std::string text, bool markup = false);
  static Value Integer(std::int64_t i) { return Value(static_cast<Int>(i)); }
  static Value Undefined(std::string message, bool is_security = false);
  static Value Function(std::string name) { return Method(std::move(name), nullptr); }
  static Value Method(std::string name, std::shared_ptr<const Value> self);
  static Result<Value> Sequence(SequenceKind kind, std::vector<Value> items);
  static Result<Value> List(std::vector<Value> items) {
    return Sequence(SequenceKind::kList, std::move(items));
  }
  static Result<Value> Tuple(std::vector<Value> items) {
    return Sequence(SequenceKind::kTuple, std::move(items));
  }
  static Result<Value> Generator(std::vector<Value> items);
  static Result<Value> Dict(DictData dict);

  bool IsUndefined() const { return std::holds_alternative<UndefinedPtr>(data_); }
  bool IsNone() const { return std::holds_alternative<None>(data_); }
  bool IsBool() const { return std::holds_alternative<bool>(data_); }
  bool IsInt() const { return std::holds_alternative<Int>(data_); }
  bool IsFloat() const { return std::holds_alternative<double>(data_); }
  bool IsNumber() const { return IsBool() || IsInt() || IsFloat(); }
  bool IsString() const { return std::holds_alternative<StringPtr>(data_); }
  bool IsMarkup() const { return IsString() && std::get<StringPtr>(data_)->markup; }
  /// The text of a string; empty for anything else.
  std::string_view Text() const;
  const SequenceData* AsSequence() const;
  /// A list or a tuple: what can be indexed.
  const SequenceData* AsListOrTuple() const;
  bool Is(SequenceKind kind) const;
  const DictData* AsDict() const;
  GeneratorData* AsGenerator() const;
  NamespaceData* AsNamespace() const;
  const Macro* AsMacro() const;
  LoopState* AsLoop() const;
  const FunctionData* AsFunction() const;
  /// bool or int as an integer (Python's index protocol).
  std::optional<Int> AsIndex() const;
  std::optional<double> AsDouble() const;
  bool BoolOr(bool fallback) const { return IsBool() ? std::get<bool>(data_) : fallback; }

  bool Truthy() const;
  int Depth() const;
  /// The work of walking the value: its items and theirs, each as often as it is named (a list may
  /// hold another many times), and 256 bytes of text as one.
  std::int64_t Weight() const;
  /// Python's type name: "str", "dict", ...
  const char* TypeName() const;
  /// How Undefined names it in "'dict object' has no attribute": None and bool by name.
  std::string ObjectRepr() const;
  /// The message of using an undefined value.
  tl::unexpected<Error> Unusable() const;

 private:
  friend struct ValueFactory;
  std::variant<UndefinedPtr, None, bool, Int, double, StringPtr, SequencePtr, DictPtr, GeneratorPtr,
               NamespaceData*, const Macro*, LoopState*, FunctionPtr>
      data_;
};

/// Python's str() and repr(). `max_bytes` bounds the text.
Result<std::string> Str(const Value& value, std::size_t max_bytes);
Result<std::string> Repr(const Value& value, std::size_t max_bytes);
std::string IntText(Int i);
std::string FloatRepr(double d);

bool Equal(const Value& a, const Value& b);
/// Less-than of Python; TypeError where Python has none.
Result<bool> Less(const Value& a, const Value& b, std::string_view op = "<");

struct JsonOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// json.dumps.
Result<std::string> ToJson(const Value& value, const JsonOptions& options, std::size_t max_bytes);

Result<Value> FromJson(const json::Value& value);

}  // namespace nibble::jinja
