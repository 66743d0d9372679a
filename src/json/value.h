#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/limits.h"
#include "base/result.h"

namespace nibble::json {

class Value;
using Array = std::vector<Value>;

/// An object that keeps the order in which members were added. Look-up is by hash above 16 members.
class Object {
 public:
  using Member = std::pair<std::string, Value>;

  Object();
  Object(const Object&);
  Object(Object&&) noexcept;
  Object& operator=(const Object&);
  Object& operator=(Object&&) noexcept;
  ~Object();

  /// The member's value, or nullptr.
  const Value* Find(std::string_view key) const;
  Value* Find(std::string_view key);
  /// Adds the member at the end, or replaces the value where it stands.
  Value& Set(std::string_view key, Value value);
  void Erase(std::string_view key);

  inline std::size_t size() const;
  inline bool empty() const;
  inline std::vector<Member>::const_iterator begin() const;
  inline std::vector<Member>::const_iterator end() const;

 private:
  struct Index;
  std::vector<Member> members_;
  std::unique_ptr<Index> index_;
};

/// One JSON value. Integers stay integers: int64 where they fit, else uint64, else double.
class Value {
 public:
  Value() = default;           // null
  Value(std::nullptr_t) {}     // NOLINT(google-explicit-constructor): values are literals
  Value(bool b) : data_(b) {}  // NOLINT(google-explicit-constructor)
  Value(int i) : data_(std::int64_t{i}) {}              // NOLINT(google-explicit-constructor)
  Value(std::int64_t i) : data_(i) {}                   // NOLINT(google-explicit-constructor)
  Value(std::uint64_t u);                               // NOLINT(google-explicit-constructor)
  Value(double d) : data_(d) {}                         // NOLINT(google-explicit-constructor)
  Value(const char* s) : data_(std::string(s)) {}       // NOLINT(google-explicit-constructor)
  Value(std::string s) : data_(std::move(s)) {}         // NOLINT(google-explicit-constructor)
  Value(std::string_view s) : data_(std::string(s)) {}  // NOLINT(google-explicit-constructor)
  Value(Array a) : data_(std::move(a)) {}               // NOLINT(google-explicit-constructor)
  Value(Object o) : data_(std::move(o)) {}              // NOLINT(google-explicit-constructor)

  bool IsNull() const { return std::holds_alternative<std::monostate>(data_); }
  bool IsBool() const { return std::holds_alternative<bool>(data_); }
  bool IsInteger() const;  // int64 or uint64
  bool IsNumber() const;   // integer or double
  bool IsString() const { return std::holds_alternative<std::string>(data_); }
  bool IsArray() const { return std::holds_alternative<Array>(data_); }
  bool IsObject() const { return std::holds_alternative<Object>(data_); }

  // Typed access: nullptr or nullopt where the value is of another type. Numbers convert only
  // exactly (AsInt of 3.0 is 3, of 3.5 is nullopt); AsDouble takes any number.
  std::optional<bool> AsBool() const;
  std::optional<std::int64_t> AsInt() const;
  std::optional<std::uint64_t> AsUint() const;
  std::optional<double> AsDouble() const;
  const std::string* AsString() const { return std::get_if<std::string>(&data_); }
  const Array* AsArray() const { return std::get_if<Array>(&data_); }
  const Object* AsObject() const { return std::get_if<Object>(&data_); }
  Array* AsArray() { return std::get_if<Array>(&data_); }
  Object* AsObject() { return std::get_if<Object>(&data_); }
  bool IsDouble() const { return std::holds_alternative<double>(data_); }

  /// Member of an object; nullptr if this is no object or has no such member.
  const Value* Find(std::string_view key) const;

  /// "null", "bool", "integer", "number", "string", "array" or "object", for error messages.
  const char* TypeName() const;

  friend bool operator==(const Value& a, const Value& b);

 private:
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      data_;
};

// Here, because they need to know how large a Value is.
std::size_t Object::size() const { return members_.size(); }
bool Object::empty() const { return members_.empty(); }
std::vector<Object::Member>::const_iterator Object::begin() const { return members_.begin(); }
std::vector<Object::Member>::const_iterator Object::end() const { return members_.end(); }

enum class DuplicateKeys { kReject, kKeepLast };

struct ParseLimits {
  int max_depth = limits::kJsonDepth;
  std::size_t max_bytes = limits::kConfigJsonBytes;
  std::size_t max_values = 8'000'000;  // members and elements in all
  std::size_t max_string_bytes = 32 * limits::kMiB;
  DuplicateKeys duplicates = DuplicateKeys::kReject;
};

/// Parses one JSON document (RFC 8259, UTF-8 checked, no trailing bytes). Work is linear in the
/// input. Errors: kCorruptFile with the byte offset where known, kLimitExceeded.
Result<Value> Parse(std::string_view text, const ParseLimits& limits = {});

/// Reads and parses a file; the message names it.
Result<Value> ParseFile(const std::string& path, const ParseLimits& limits = {});

struct DumpStyle {
  int indent = -1;                        // spaces a level; -1: one line
  std::string_view item_separator = ",";  // Python's json.dumps: ", "
  std::string_view key_separator = ":";   // Python's json.dumps: ": "
  bool sort_keys = false;
  bool python_floats = false;  // 1e+16 the way repr() writes it, NaN/Infinity spelled out
};

/// Compact, or in the given style. Doubles print shortest (std::to_chars); NaN and infinities as
/// null unless python_floats. Strings: only what JSON requires is escaped; invalid UTF-8 becomes
/// U+FFFD.
std::string Dump(const Value& value, const DumpStyle& style = {});

/// Appends `text` as a quoted JSON string: the hot path of streaming.
void AppendQuoted(std::string& out, std::string_view text);

}  // namespace nibble::json
