#include <fmt/format.h>

#include "template/interpreter.h"
#include "template/pystring.h"

// Jinja's tests: what may stand after `is`.
namespace nibble::jinja {
namespace {

std::optional<Op> ComparisonNamed(std::string_view name) {
  static constexpr std::pair<std::string_view, Op> kComparisons[] = {
      {"eq", Op::kEqual},      {"equalto", Op::kEqual},   {"==", Op::kEqual},
      {"ne", Op::kNotEqual},   {"!=", Op::kNotEqual},     {"lt", Op::kLess},
      {"lessthan", Op::kLess}, {"<", Op::kLess},          {"le", Op::kLessEqual},
      {"<=", Op::kLessEqual},  {"gt", Op::kGreater},      {"greaterthan", Op::kGreater},
      {">", Op::kGreater},     {"ge", Op::kGreaterEqual}, {">=", Op::kGreaterEqual},
      {"in", Op::kIn},
  };
  for (const auto& [known, op] : kComparisons) {
    if (known == name) {
      return op;
    }
  }
  return std::nullopt;
}

bool IsCallable(const Value& value) {
  // Python asks the type only, and calling an Undefined is what raises.
  return value.IsUndefined() || value.AsMacro() != nullptr || value.AsFunction() != nullptr ||
         value.AsLoop() != nullptr;
}

bool IsIterable(const Value& value) {
  return value.IsUndefined() || value.IsString() || value.AsSequence() != nullptr ||
         value.AsDict() != nullptr || value.AsGenerator() != nullptr || value.AsLoop() != nullptr;
}

/// Has a length and can be indexed.
bool IsSequence(const Value& value) {
  return value.IsUndefined() || value.IsString() || value.AsListOrTuple() != nullptr ||
         value.AsDict() != nullptr || value.Is(SequenceKind::kRange);
}

std::optional<bool> Simple(std::string_view name, const Value& value) {
  if (name == "defined") {
    return !value.IsUndefined();
  }
  if (name == "undefined") {
    return value.IsUndefined();
  }
  if (name == "none") {
    return value.IsNone();
  }
  if (name == "boolean") {
    return value.IsBool();
  }
  if (name == "true" || name == "false") {
    return value.IsBool() && value.Truthy() == (name == "true");
  }
  if (name == "integer") {
    return value.IsInt();
  }
  if (name == "float") {
    return value.IsFloat();
  }
  if (name == "number") {
    return value.IsNumber();
  }
  if (name == "string") {
    return value.IsString();
  }
  if (name == "mapping") {
    return value.AsDict() != nullptr;
  }
  if (name == "iterable") {
    return IsIterable(value);
  }
  if (name == "sequence") {
    return IsSequence(value);
  }
  if (name == "callable") {
    return IsCallable(value);
  }
  if (name == "escaped") {
    return value.IsMarkup();
  }
  return std::nullopt;
}

/// `is sameas`: one object, where Python would have one.
bool Same(const Value& a, const Value& b) {
  if (a.IsBool() != b.IsBool() || a.IsInt() != b.IsInt() || a.IsFloat() != b.IsFloat()) {
    return false;
  }
  if (a.AsSequence() != nullptr || a.AsDict() != nullptr) {
    return a.AsSequence() == b.AsSequence() && a.AsDict() == b.AsDict();
  }
  return Equal(a, b);
}

}  // namespace

Result<bool> Interpreter::Test(std::string_view name, const Value& subject, Arguments arguments) {
  if (const auto op = ComparisonNamed(name)) {
    NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"other"}));
    NIBBLE_TRY(other, bound.Required(0));
    return Compare(*op, subject, other);
  }
  if (name == "sameas") {
    NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"other"}));
    NIBBLE_TRY(other, bound.Required(0));
    NIBBLE_TRY_VOID(ChargeCompare(subject, other));
    return Same(subject, other);
  }
  if (name == "divisibleby") {
    NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"num"}));
    NIBBLE_TRY(divisor, bound.Required(0));
    NIBBLE_TRY(rest, Binary(Op::kModulo, subject, divisor));
    return !rest.Truthy();
  }
  NIBBLE_TRY_VOID(Bound::Bind(name, std::move(arguments), {}));
  if (const auto result = Simple(name, subject)) {
    return *result;
  }
  if (name == "odd" || name == "even") {
    NIBBLE_TRY(rest, Binary(Op::kModulo, subject, Value::Integer(2)));
    return Equal(rest, Value::Integer(name == "odd" ? 1 : 0));
  }
  if (name == "lower" || name == "upper") {
    NIBBLE_TRY(text, Str(subject));
    NIBBLE_TRY(is, Method(Value::String(std::move(text)), "is" + std::string(name), {}));
    return is.Truthy();
  }
  return Fail(ErrorCode::kUnsupported, fmt::format("no test named '{}'", name));
}

}  // namespace nibble::jinja
