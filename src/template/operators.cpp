#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "template/interpreter.h"
#include "template/pystring.h"

namespace nibble::jinja {
namespace {

const char* OpText(Op op) {
  switch (op) {
    case Op::kAdd:
      return "+";
    case Op::kSubtract:
      return "-";
    case Op::kMultiply:
      return "*";
    case Op::kDivide:
      return "/";
    case Op::kFloorDivide:
      return "//";
    case Op::kModulo:
      return "%";
    case Op::kPower:
      return "** or pow()";
    case Op::kEqual:
      return "==";
    case Op::kNotEqual:
      return "!=";
    case Op::kLess:
      return "<";
    case Op::kLessEqual:
      return "<=";
    case Op::kGreater:
      return ">";
    case Op::kGreaterEqual:
      return ">=";
    case Op::kIn:
      return "in";
    case Op::kNotIn:
      return "not in";
  }
  return "?";
}

tl::unexpected<Error> ZeroDivision(std::string_view what) {
  return Fail(ErrorCode::kCorruptFile, fmt::format("ZeroDivisionError: {}", what));
}

tl::unexpected<Error> IntOverflow() { return TooLarge("an integer beyond 128 bits"); }

Int FloorDivide(Int a, Int b) {
  const Int quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

Int FloorModulo(Int a, Int b) {
  const Int rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Result<Value> IntPower(Int base, Int exponent) {
  Int result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      return IntOverflow();
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      return IntOverflow();
    }
  }
  return Value(result);
}

Result<Value> IntBinary(Op op, Int a, Int b) {
  Int result = 0;
  switch (op) {
    case Op::kAdd:
      return __builtin_add_overflow(a, b, &result) ? Result<Value>(IntOverflow()) : Value(result);
    case Op::kSubtract:
      return __builtin_sub_overflow(a, b, &result) ? Result<Value>(IntOverflow()) : Value(result);
    case Op::kMultiply:
      return __builtin_mul_overflow(a, b, &result) ? Result<Value>(IntOverflow()) : Value(result);
    case Op::kDivide:
      return b == 0 ? Result<Value>(ZeroDivision("division by zero"))
                    : Value(static_cast<double>(a) / static_cast<double>(b));
    case Op::kFloorDivide:
    case Op::kModulo:
      if (b == 0) {
        return ZeroDivision("integer division or modulo by zero");
      }
      if (b == -1) {  // the smallest integer has no opposite
        return op == Op::kModulo ? Result<Value>(Value::Integer(0))
                                 : IntBinary(Op::kMultiply, a, b);
      }
      return Value(op == Op::kModulo ? FloorModulo(a, b) : FloorDivide(a, b));
    default:
      break;
  }
  if (b < 0) {
    if (a == 0) {
      return ZeroDivision("0.0 cannot be raised to a negative power");
    }
    return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  return IntPower(a, b);
}

Result<Value> DoubleBinary(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd:
      return Value(a + b);
    case Op::kSubtract:
      return Value(a - b);
    case Op::kMultiply:
      return Value(a * b);
    case Op::kDivide:
      return b == 0 ? Result<Value>(ZeroDivision("float division by zero")) : Value(a / b);
    case Op::kFloorDivide:
    case Op::kModulo: {
      if (b == 0) {
        return ZeroDivision(op == Op::kModulo ? "float modulo" : "float floor division by zero");
      }
      double rest = std::fmod(a, b);
      double quotient = (a - rest) / b;
      if (rest != 0 && (b < 0) != (rest < 0)) {
        rest += b;
        quotient -= 1;
      }
      rest = rest == 0 ? std::copysign(0.0, b) : rest;
      quotient = quotient == 0 ? std::copysign(0.0, a / b) : std::floor(quotient + 0.5);
      return Value(op == Op::kModulo ? rest : quotient);
    }
    default:
      break;
  }
  if (a == 0 && b < 0) {
    return ZeroDivision("0.0 cannot be raised to a negative power");
  }
  if (a < 0 && std::trunc(b) != b) {
    return Fail(ErrorCode::kUnsupported, "complex numbers are not supported");
  }
  return Value(std::pow(a, b));
}

}  // namespace

Result<Value> Interpreter::Binary(Op op, const Value& a, const Value& b) {
  const bool formats = op == Op::kModulo && a.IsString();
  if (a.IsUndefined() || (b.IsUndefined() && !formats)) {
    return a.IsUndefined() ? a.Unusable() : b.Unusable();
  }
  if (a.IsNumber() && b.IsNumber()) {
    const auto left = a.AsIndex();
    const auto right = b.AsIndex();
    return left && right ? IntBinary(op, *left, *right)
                         : DoubleBinary(op, *a.AsDouble(), *b.AsDouble());
  }
  if (op == Op::kAdd && a.IsString() && b.IsString()) {
    const bool markup = a.IsMarkup() || b.IsMarkup();
    const auto side = [&](const Value& value) {
      return markup && !value.IsMarkup() ? EscapeHtml(value.Text()) : std::string(value.Text());
    };
    return MakeString(side(a) + side(b), markup);
  }
  const SequenceData* const left = a.AsListOrTuple();
  const SequenceData* const right = b.AsListOrTuple();
  if (op == Op::kAdd && left != nullptr && right != nullptr && left->kind == right->kind) {
    NIBBLE_TRY_VOID(
        Charge(static_cast<std::int64_t>(left->items.size() + right->items.size()) / 4));
    std::vector<Value> items = left->items;
    items.insert(items.end(), right->items.begin(), right->items.end());
    return Value::Sequence(left->kind, std::move(items));
  }
  if (formats) {
    Arguments arguments;
    if (b.Is(SequenceKind::kTuple)) {
      arguments.positional = right->items;
    } else {
      arguments.positional = {b};
    }
    return PercentFormat(a, arguments);
  }
  const bool a_repeats = a.IsString() || left != nullptr;
  const bool b_repeats = b.IsString() || right != nullptr;
  if (op == Op::kMultiply && ((a_repeats && b.AsIndex()) || (b_repeats && a.AsIndex()))) {
    const Value& what = a_repeats ? a : b;
    const Int times = std::max<Int>(0, a_repeats ? *b.AsIndex() : *a.AsIndex());
    if (what.IsString()) {
      const std::string_view text = what.Text();
      if (!text.empty() && times > static_cast<Int>(max_text() / text.size())) {
        return TooLarge(fmt::format("a text grew beyond {} bytes", max_text()));
      }
      std::string out;
      for (Int i = 0; i < times && !text.empty(); ++i) {
        out += text;
      }
      return MakeString(std::move(out), what.IsMarkup());
    }
    const SequenceData& sequence = *what.AsSequence();
    const auto size = static_cast<Int>(sequence.items.size());
    if (size > 0 && times > max_items() / size) {
      return TooLarge(fmt::format("a list grew beyond {} items", max_items()));
    }
    NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(times * size)));
    std::vector<Value> items;
    for (Int i = 0; i < times && size > 0; ++i) {
      items.insert(items.end(), sequence.items.begin(), sequence.items.end());
    }
    return Value::Sequence(sequence.kind, std::move(items));
  }
  if (op == Op::kAdd && (a.IsString() || left != nullptr)) {
    return TypeError(fmt::format("can only concatenate {} (not \"{}\") to {}", a.TypeName(),
                                 b.TypeName(), a.TypeName()));
  }
  return TypeError(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", OpText(op),
                               a.TypeName(), b.TypeName()));
}

Result<bool> Interpreter::Contains(const Value& container, const Value& item) {
  if (container.IsString()) {
    if (!item.IsString()) {
      return TypeError(
          fmt::format("'in <string>' requires string as left operand, not {}", item.TypeName()));
    }
    NIBBLE_TRY_VOID(ChargeBytes(container.Text().size()));
    return FindText(container.Text(), item.Text()) != std::string_view::npos;
  }
  if (const DictData* const dict = container.AsDict()) {
    NIBBLE_TRY_VOID(CheckHashable(item));
    return dict->Find(item) != nullptr;
  }
  if (!container.IsUndefined() && container.AsSequence() == nullptr &&
      container.AsGenerator() == nullptr && container.AsLoop() == nullptr) {
    return TypeError(fmt::format("argument of type '{}' is not iterable", container.TypeName()));
  }
  NIBBLE_TRY(items, Items(container));
  for (const Value& candidate : items) {
    NIBBLE_TRY_VOID(ChargeCompare(candidate, item));
    if (Equal(candidate, item)) {
      return true;
    }
  }
  return false;
}

Result<bool> Interpreter::Compare(Op op, const Value& a, const Value& b) {
  NIBBLE_TRY_VOID(ChargeCompare(a, b));
  const auto negated = [](Result<bool> result) { return result ? Result<bool>(!*result) : result; };
  const bool has_nan =
      (a.IsFloat() && std::isnan(*a.AsDouble())) || (b.IsFloat() && std::isnan(*b.AsDouble()));
  switch (op) {
    case Op::kEqual:
      return Equal(a, b);
    case Op::kNotEqual:
      return !Equal(a, b);
    case Op::kLess:
      return Less(a, b, "<");
    case Op::kGreater: {
      if (a.IsUndefined() || b.IsUndefined()) {
        return a.IsUndefined() ? a.Unusable() : b.Unusable();
      }
      const auto less = Less(b, a, ">");
      // Python names the operands as they stand.
      return less ? less : Less(a, b, ">");
    }
    case Op::kLessEqual:
      if (a.IsUndefined() || b.IsUndefined()) {
        return a.IsUndefined() ? a.Unusable() : b.Unusable();
      }
      if (const auto greater = Less(b, a, "<="); greater) {
        return !has_nan && !*greater;
      }
      return Less(a, b, "<=");
    case Op::kGreaterEqual:
      return has_nan ? Result<bool>(false) : negated(Less(a, b, ">="));
    case Op::kIn:
      return Contains(b, a);
    case Op::kNotIn:
      return negated(Contains(b, a));
    default:
      return Fail(ErrorCode::kInternal, "no comparison");
  }
}

}  // namespace nibble::jinja
