#include "template/interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "template/pystring.h"

namespace nibble::jinja {
namespace {

// C++ recursion over a template's tree. A level costs about a kilobyte of stack.
constexpr int kMaxEvaluationDepth = 1500;
constexpr std::size_t kBytesPerOperation = 256;

bool IsGlobal(std::string_view name) {
  return name == "range" || name == "namespace" || name == "dict" || name == "raise_exception" ||
         name == "strftime_now";
}

constexpr std::string_view kStringMethods[] = {
    "capitalize", "casefold",   "center",       "count",        "endswith", "expandtabs",
    "find",       "format",     "format_map",   "index",        "isalnum",  "isalpha",
    "isascii",    "isdecimal",  "isdigit",      "isidentifier", "islower",  "isnumeric",
    "isspace",    "istitle",    "isupper",      "join",         "ljust",    "lower",
    "lstrip",     "partition",  "removeprefix", "removesuffix", "replace",  "rfind",
    "rindex",     "rjust",      "rpartition",   "rsplit",       "rstrip",   "split",
    "splitlines", "startswith", "strip",        "swapcase",     "title",    "upper",
    "zfill"};
constexpr std::string_view kDictMethods[] = {"copy", "get", "items", "keys", "values"};
constexpr std::string_view kDictMutators[] = {"clear", "pop", "popitem", "setdefault", "update"};
constexpr std::string_view kListMethods[] = {"copy", "count", "index"};
constexpr std::string_view kListMutators[] = {"append", "clear",  "extend",  "insert",
                                              "pop",    "remove", "reverse", "sort"};
constexpr std::string_view kTupleMethods[] = {"count", "index"};
constexpr std::string_view kLoopMembers[] = {"index",  "index0", "revindex", "revindex0", "first",
                                             "last",   "length", "previtem", "nextitem",  "depth",
                                             "depth0", "cycle",  "changed"};

template <std::size_t N>
bool IsOneOf(std::string_view name, const std::string_view (&names)[N]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool HasMethod(const Value& object, std::string_view name) {
  if (object.IsString()) {
    return IsOneOf(name, kStringMethods);
  }
  if (object.AsDict() != nullptr) {
    return IsOneOf(name, kDictMethods);
  }
  if (object.Is(SequenceKind::kList)) {
    return IsOneOf(name, kListMethods);
  }
  if (object.Is(SequenceKind::kTuple) || object.Is(SequenceKind::kRange)) {
    return IsOneOf(name, kTupleMethods);
  }
  return object.AsLoop() != nullptr && (name == "cycle" || name == "changed");
}

bool HasMutator(const Value& object, std::string_view name) {
  return (object.AsDict() != nullptr && IsOneOf(name, kDictMutators)) ||
         (object.Is(SequenceKind::kList) && IsOneOf(name, kListMutators));
}

Value NoAttribute(const Value& object, std::string_view name) {
  std::string quoted;
  AppendRepr(quoted, name);
  return Value::Undefined(fmt::format("'{}' has no attribute {}", object.ObjectRepr(), quoted));
}

/// One of the values that a slice selects: Python's PySlice_AdjustIndices.
struct SliceRange {
  std::int64_t start = 0;
  std::int64_t step = 1;
  std::int64_t count = 0;
};

Result<std::optional<std::int64_t>> SliceBound(const Value& value) {
  if (value.IsNone()) {
    return std::nullopt;
  }
  if (value.IsUndefined()) {
    return value.Unusable();
  }
  const auto index = value.AsIndex();
  if (!index) {
    return TypeError("slice indices must be integers or None or have an __index__ method");
  }
  constexpr Int kMax = std::numeric_limits<std::int64_t>::max() / 4;
  return static_cast<std::int64_t>(std::clamp(*index, -kMax, kMax));
}

Result<SliceRange> AdjustSlice(const Value& start, const Value& stop, const Value& step,
                               std::int64_t length) {
  SliceRange range;
  NIBBLE_TRY(given_step, SliceBound(step));
  NIBBLE_TRY(given_start, SliceBound(start));
  NIBBLE_TRY(given_stop, SliceBound(stop));
  range.step = given_step.value_or(1);
  if (range.step == 0) {
    return ValueError("slice step cannot be zero");
  }
  const bool backward = range.step < 0;
  const auto adjust = [&](std::int64_t at) {
    if (at < 0) {
      at += length;
      return std::max<std::int64_t>(at, backward ? -1 : 0);
    }
    return std::min(at, backward ? length - 1 : length);
  };
  range.start = given_start ? adjust(*given_start) : (backward ? length - 1 : 0);
  const std::int64_t end = given_stop ? adjust(*given_stop) : (backward ? -1 : length);
  if (backward) {
    range.count = end < range.start ? (range.start - end - 1) / -range.step + 1 : 0;
  } else {
    range.count = range.start < end ? (end - range.start - 1) / range.step + 1 : 0;
  }
  return range;
}

}  // namespace

// Scopes ---------------------------------------------------------------------------------------

const Value* Scope::Find(NameId name) const {
  for (const auto& [id, value] : variables) {
    if (id == name) {
      return &value;
    }
  }
  return nullptr;
}

void Scope::Set(NameId name, Value value) {
  for (auto& [id, existing] : variables) {
    if (id == name) {
      existing = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

class Interpreter::Enter {
 public:
  Enter(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter),
        previous_(interpreter.scope_),
        scope_(interpreter.NewScope(parent)) {
    interpreter_.scope_ = scope_;
  }
  ~Enter() {
    Recycle();
    interpreter_.scope_ = previous_;
  }
  Enter(const Enter&) = delete;
  Enter& operator=(const Enter&) = delete;

  /// An empty scope again, as each turn of a loop has its own.
  void Renew() {
    if (!scope_->captured) {
      scope_->variables.clear();
      return;
    }
    scope_ = interpreter_.NewScope(scope_->parent);
    interpreter_.scope_ = scope_;
  }

 private:
  void Recycle() {
    if (!scope_->captured) {
      scope_->variables.clear();
      interpreter_.free_scopes_.push_back(scope_);
    }
  }

  Interpreter& interpreter_;
  Scope* const previous_;
  Scope* scope_;
};

class Interpreter::Descend {
 public:
  explicit Descend(int& depth) : depth_(depth) { ++depth_; }
  ~Descend() { --depth_; }
  Descend(const Descend&) = delete;
  Descend& operator=(const Descend&) = delete;

 private:
  int& depth_;
};

Scope* Interpreter::NewScope(Scope* parent) {
  Scope* scope = nullptr;
  if (free_scopes_.empty()) {
    scope = &scopes_.emplace_back();
  } else {
    scope = free_scopes_.back();
    free_scopes_.pop_back();
  }
  scope->parent = parent;
  return scope;
}

void Interpreter::Capture(Scope* scope) {
  for (; scope != nullptr && !scope->captured; scope = scope->parent) {
    scope->captured = true;
  }
}

// Limits ---------------------------------------------------------------------------------------

Result<void> Interpreter::Charge(std::int64_t operations) {
  operations_ += operations;
  if (operations_ > options_.max_operations) {
    return TooLarge(fmt::format("more than {} operations", options_.max_operations));
  }
  return {};
}

Result<void> Interpreter::ChargeBytes(std::size_t bytes) {
  return Charge(static_cast<std::int64_t>(bytes / kBytesPerOperation));
}

Result<void> Interpreter::ChargeSearch(std::string_view text, std::string_view part) {
  return ChargeBytes(text.size() / 8 * std::max<std::size_t>(part.size(), 8));
}

Result<void> Interpreter::ChargeCompare(const Value& a, const Value& b) {
  return Charge(std::min(a.Weight(), b.Weight()));
}

Result<void> Interpreter::CheckHashable(const Value& key) {
  if (key.Is(SequenceKind::kTuple)) {
    for (const Value& item : key.AsSequence()->items) {
      NIBBLE_TRY_VOID(CheckHashable(item));
    }
  } else if (key.Is(SequenceKind::kList) || key.AsDict() != nullptr) {
    return TypeError(fmt::format("unhashable type: '{}'", key.TypeName()));
  }
  return Charge(key.Weight());
}

Result<void> Interpreter::CheckDepth() {
  if (depth_ > kMaxEvaluationDepth) {
    return TooLarge("the template recurses too deep");
  }
  return Charge(1);
}

Result<Value> Interpreter::MakeString(std::string text, bool markup) {
  if (text.size() > options_.max_output_bytes) {
    return TooLarge(fmt::format("a text grew beyond {} bytes", options_.max_output_bytes));
  }
  NIBBLE_TRY_VOID(ChargeBytes(text.size()));
  return Value::String(std::move(text), markup);
}

Result<std::string> Interpreter::Str(const Value& value) {
  NIBBLE_TRY_VOID(Charge(value.Weight() / 16));
  NIBBLE_TRY(text, jinja::Str(value, options_.max_output_bytes));
  NIBBLE_TRY_VOID(ChargeBytes(text.size()));
  return text;
}

Result<void> Interpreter::Write(std::string_view text) {
  if (out_->size() + text.size() > options_.max_output_bytes) {
    return TooLarge(fmt::format("the output grew beyond {} bytes", options_.max_output_bytes));
  }
  NIBBLE_TRY_VOID(ChargeBytes(text.size()));
  *out_ += text;
  return {};
}

// Statements -----------------------------------------------------------------------------------

Result<std::string> Interpreter::Run(const json::Object& variables) {
  context_.resize(ast_.names.size());
  for (std::size_t i = 0; i < ast_.names.size(); ++i) {
    if (const json::Value* const value = variables.Find(ast_.names[i])) {
      NIBBLE_TRY(converted, FromJson(*value));
      context_[i] = std::move(converted);
    }
  }
  std::string out;
  out_ = &out;
  const Enter root(*this, nullptr);
  NIBBLE_TRY_VOID(Execute(ast_.root));
  return out;
}

Result<Interpreter::Flow> Interpreter::Execute(NodeId id) {
  const Descend descend(depth_);
  const Node& node = ast_[id];
  line_ = node.line;
  NIBBLE_TRY_VOID(CheckDepth());
  switch (node.kind) {
    case NodeKind::kBlock:
      return ExecuteBlock(node);
    case NodeKind::kText:
      NIBBLE_TRY_VOID(Write(node.value.Text()));
      return Flow::kNext;
    case NodeKind::kOutput:
      return ExecuteOutput(node);
    case NodeKind::kIf:
      return ExecuteIf(node);
    case NodeKind::kFor:
      return ExecuteFor(node, id);
    case NodeKind::kSet:
      return ExecuteSet(node);
    case NodeKind::kSetBlock:
      return ExecuteSetBlock(node);
    case NodeKind::kMacro:
      return ExecuteMacro(node, id);
    case NodeKind::kCallBlock:
      return ExecuteCallBlock(node, id);
    case NodeKind::kFilterBlock:
      return ExecuteFilterBlock(node);
    case NodeKind::kWith:
      return ExecuteWith(node);
    case NodeKind::kScope:
      return ExecuteScope(node);
    case NodeKind::kBreak:
      return Flow::kBreak;
    case NodeKind::kContinue:
      return Flow::kContinue;
    default:
      return Fail(ErrorCode::kInternal, "an expression where a statement should be");
  }
}

Result<Interpreter::Flow> Interpreter::ExecuteBlock(const Node& node) {
  for (const NodeId statement : node.list) {
    NIBBLE_TRY(flow, Execute(statement));
    if (flow != Flow::kNext) {
      return flow;
    }
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteOutput(const Node& node) {
  for (const NodeId expression : node.list) {
    NIBBLE_TRY(value, Evaluate(expression));
    if (value.IsString()) {
      NIBBLE_TRY_VOID(Write(value.Text()));
    } else {
      NIBBLE_TRY(text, Str(value));
      NIBBLE_TRY_VOID(Write(text));
    }
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteIf(const Node& node) {
  for (std::size_t i = 0; i + 1 < node.list.size(); i += 2) {
    NIBBLE_TRY(test, Evaluate(node.list[i]));
    if (test.Truthy()) {
      return Execute(node.list[i + 1]);
    }
  }
  return node.c != kNoNode ? Execute(node.c) : Result<Flow>(Flow::kNext);
}

Result<Interpreter::Flow> Interpreter::ExecuteFor(const Node& node, NodeId id) {
  NIBBLE_TRY(iterable, Evaluate(node.b));
  NIBBLE_TRY(items, Items(iterable));
  return Loop(node, id, std::move(items), 1);
}

Result<std::vector<Value>> Interpreter::KeepMatching(const Node& node, std::vector<Value> items) {
  std::vector<Value> kept;
  Enter scope(*this, scope_);
  for (Value& item : items) {
    scope.Renew();
    NIBBLE_TRY_VOID(Assign(node.a, item));
    NIBBLE_TRY(test, Evaluate(node.list[0]));
    if (test.Truthy()) {
      kept.push_back(std::move(item));
    }
  }
  return kept;
}

Result<Interpreter::Flow> Interpreter::Loop(const Node& node, NodeId id, std::vector<Value> items,
                                            int depth) {
  if (node.list[0] != kNoNode) {
    NIBBLE_TRY(kept, KeepMatching(node, std::move(items)));
    items = std::move(kept);
  }
  if (static_cast<std::int64_t>(items.size()) > options_.max_loop_items) {
    return TooLarge(
        fmt::format("a loop over {} items; at most {}", items.size(), options_.max_loop_items));
  }
  if (items.empty()) {
    if (node.list[1] == kNoNode) {
      return Flow::kNext;
    }
    const Enter scope(*this, scope_);
    return Execute(node.list[1]);
  }
  LoopState& loop = loops_.emplace_back();
  loop.node = id;
  loop.scope = scope_;
  loop.items = std::move(items);
  loop.depth = depth;
  Enter scope(*this, scope_);
  for (loop.index = 0; loop.index < loop.items.size(); ++loop.index) {
    scope.Renew();
    NIBBLE_TRY_VOID(Charge(1));
    if (loop_name_ >= 0) {
      scope_->Set(loop_name_, Value(&loop));
    }
    NIBBLE_TRY_VOID(Assign(node.a, loop.items[loop.index]));
    NIBBLE_TRY(flow, Execute(node.c));
    if (flow == Flow::kBreak) {
      break;
    }
  }
  loop.items = {};
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteSet(const Node& node) {
  NIBBLE_TRY(value, Evaluate(node.b));
  NIBBLE_TRY_VOID(Assign(node.a, value));
  return Flow::kNext;
}

Result<std::string> Interpreter::Captured(NodeId body) {
  std::string text;
  std::string* const outer = out_;
  out_ = &text;
  const auto flow = Execute(body);
  out_ = outer;
  if (!flow) {
    return tl::unexpected(flow.error());
  }
  return text;
}

Result<Interpreter::Flow> Interpreter::ExecuteSetBlock(const Node& node) {
  std::string text;
  {
    const Enter scope(*this, scope_);
    NIBBLE_TRY(captured, Captured(node.c));
    text = std::move(captured);
  }
  NIBBLE_TRY(value, MakeString(std::move(text)));
  if (node.b != kNoNode) {
    NIBBLE_TRY(filtered, EvaluateFilters(node.b, &value));
    value = std::move(filtered);
  }
  NIBBLE_TRY_VOID(Assign(node.a, value));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteMacro(const Node& node, NodeId id) {
  Capture(scope_);
  Macro& macro =
      macros_.emplace_back(Macro{.node = id, .name = ast_.Name(node.name), .scope = scope_});
  scope_->Set(node.name, Value(static_cast<const Macro*>(&macro)));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteCallBlock(const Node& node, NodeId id) {
  Capture(scope_);
  Macro& caller = macros_.emplace_back(Macro{.node = id, .name = "caller", .scope = scope_});
  const Node& call = ast_[node.a];
  NIBBLE_TRY(callee, Evaluate(call.a));
  NIBBLE_TRY(arguments, EvaluateArguments(call));
  arguments.named.emplace_back("caller", Value(static_cast<const Macro*>(&caller)));
  NIBBLE_TRY(value, Call(callee, std::move(arguments)));
  NIBBLE_TRY(text, Str(value));
  NIBBLE_TRY_VOID(Write(text));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteFilterBlock(const Node& node) {
  std::string text;
  {
    const Enter scope(*this, scope_);
    NIBBLE_TRY(captured, Captured(node.c));
    text = std::move(captured);
  }
  NIBBLE_TRY(input, MakeString(std::move(text)));
  NIBBLE_TRY(value, EvaluateFilters(node.b, &input));
  NIBBLE_TRY(filtered, Str(value));
  NIBBLE_TRY_VOID(Write(filtered));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteWith(const Node& node) {
  std::vector<Value> values;
  for (std::size_t i = 1; i < node.list.size(); i += 2) {
    NIBBLE_TRY(value, Evaluate(node.list[i]));
    values.push_back(std::move(value));
  }
  const Enter scope(*this, scope_);
  for (std::size_t i = 0; i < values.size(); ++i) {
    NIBBLE_TRY_VOID(Assign(node.list[2 * i], values[i]));
  }
  return Execute(node.c);
}

Result<Interpreter::Flow> Interpreter::ExecuteScope(const Node& node) {
  const Enter scope(*this, scope_);
  return Execute(node.c);
}

Result<void> Interpreter::Assign(NodeId target, const Value& value) {
  const Node& node = ast_[target];
  if (node.kind == NodeKind::kName) {
    scope_->Set(node.name, value);
    return {};
  }
  if (node.kind == NodeKind::kNamespaceMember) {
    NIBBLE_TRY(object, Evaluate(node.a));
    NamespaceData* const ns = object.AsNamespace();
    if (ns == nullptr) {
      return Fail(ErrorCode::kCorruptFile,
                  "TemplateRuntimeError: cannot assign attribute on non-namespace object");
    }
    const std::string& name = ast_.Name(node.name);
    if (name.starts_with('_')) {
      return SecurityError("a namespace takes no names that start with an underscore");
    }
    NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(ns->members.size() / 16)));
    for (auto& [existing, member] : ns->members) {
      if (existing == name) {
        member = value;
        return {};
      }
    }
    ns->members.emplace_back(name, value);
    return {};
  }
  if (value.IsUndefined() || value.IsNone() || value.IsNumber()) {
    return TypeError(fmt::format("cannot unpack non-iterable {} object", value.TypeName()));
  }
  NIBBLE_TRY(items, Items(value));
  if (items.size() != node.list.size()) {
    return ValueError(
        items.size() < node.list.size()
            ? fmt::format("not enough values to unpack (expected {}, got {})", node.list.size(),
                          items.size())
            : fmt::format("too many values to unpack (expected {})", node.list.size()));
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    NIBBLE_TRY_VOID(Assign(node.list[i], items[i]));
  }
  return {};
}

// Expressions ----------------------------------------------------------------------------------

Result<Value> Interpreter::Evaluate(NodeId id) {
  const Descend descend(depth_);
  const Node& node = ast_[id];
  line_ = node.line;
  NIBBLE_TRY_VOID(CheckDepth());
  switch (node.kind) {
    case NodeKind::kConst:
      return node.value;
    case NodeKind::kName:
      return EvaluateName(node);
    case NodeKind::kTuple:
    case NodeKind::kList:
      return EvaluateSequence(node);
    case NodeKind::kDict:
      return EvaluateDict(node);
    case NodeKind::kAttribute: {
      NIBBLE_TRY(object, Evaluate(node.a));
      return Attribute(object, ast_.Name(node.name));
    }
    case NodeKind::kItem:
      return EvaluateItem(node);
    case NodeKind::kCall:
      return EvaluateCall(node);
    case NodeKind::kFilter:
      return EvaluateFilters(id, nullptr);
    case NodeKind::kTest:
      return EvaluateTest(node);
    case NodeKind::kNegate:
    case NodeKind::kPlus:
      return EvaluateUnary(node);
    case NodeKind::kNot: {
      NIBBLE_TRY(operand, Evaluate(node.a));
      return Value(!operand.Truthy());
    }
    case NodeKind::kBinary: {
      NIBBLE_TRY(left, Evaluate(node.a));
      NIBBLE_TRY(right, Evaluate(node.b));
      return Binary(node.op, left, right);
    }
    case NodeKind::kAnd: {
      NIBBLE_TRY(left, Evaluate(node.a));
      return left.Truthy() ? Evaluate(node.b) : Result<Value>(std::move(left));
    }
    case NodeKind::kOr: {
      NIBBLE_TRY(left, Evaluate(node.a));
      return left.Truthy() ? Result<Value>(std::move(left)) : Evaluate(node.b);
    }
    case NodeKind::kCompare:
      return EvaluateCompare(node);
    case NodeKind::kConcat:
      return EvaluateConcat(node);
    case NodeKind::kCondition:
      return EvaluateCondition(node);
    default:
      return Fail(ErrorCode::kInternal, "a statement where an expression should be");
  }
}

Result<Value> Interpreter::EvaluateName(const Node& node) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    if (const Value* const value = scope->Find(node.name)) {
      return *value;
    }
    NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(scope->variables.size() / 64)));
  }
  const auto& variable = context_[static_cast<std::size_t>(node.name)];
  if (variable) {
    return *variable;
  }
  const std::string& name = ast_.Name(node.name);
  if (IsGlobal(name)) {
    return Value::Function(name);
  }
  std::string quoted;
  AppendRepr(quoted, name);
  return Value::Undefined(quoted + " is undefined");
}

Result<Value> Interpreter::EvaluateSequence(const Node& node) {
  std::vector<Value> items;
  items.reserve(node.list.size());
  for (const NodeId item : node.list) {
    NIBBLE_TRY(value, Evaluate(item));
    items.push_back(std::move(value));
  }
  return node.kind == NodeKind::kTuple ? Value::Tuple(std::move(items))
                                       : Value::List(std::move(items));
}

Result<Value> Interpreter::EvaluateDict(const Node& node) {
  DictData dict;
  for (std::size_t i = 0; i + 1 < node.list.size(); i += 2) {
    NIBBLE_TRY(key, Evaluate(node.list[i]));
    NIBBLE_TRY(value, Evaluate(node.list[i + 1]));
    NIBBLE_TRY_VOID(CheckHashable(key));
    dict.Set(std::move(key), std::move(value));
  }
  return Value::Dict(std::move(dict));
}

Result<Value> Interpreter::EvaluateItem(const Node& node) {
  NIBBLE_TRY(object, Evaluate(node.a));
  if (ast_[node.b].kind == NodeKind::kSlice) {
    return EvaluateSlice(ast_[node.b], object);
  }
  NIBBLE_TRY(key, Evaluate(node.b));
  return Item(object, key);
}

Result<Value> Interpreter::EvaluateSlice(const Node& slice, const Value& object) {
  std::array<Value, 3> bounds = {Value(Value::None{}), Value(Value::None{}), Value(Value::None{})};
  const std::array<NodeId, 3> nodes = {slice.a, slice.b, slice.c};
  for (std::size_t i = 0; i < 3; ++i) {
    if (nodes[i] != kNoNode) {
      NIBBLE_TRY(bound, Evaluate(nodes[i]));
      bounds[i] = std::move(bound);
    }
  }
  if (object.IsUndefined()) {
    return object.Unusable();
  }
  if (object.IsString()) {
    const std::string_view text = object.Text();
    NIBBLE_TRY_VOID(ChargeBytes(text.size() * 8));
    const auto characters = Characters(text);
    NIBBLE_TRY(range, AdjustSlice(bounds[0], bounds[1], bounds[2],
                                  static_cast<std::int64_t>(characters.size())));
    std::string out;
    for (std::int64_t i = 0; i < range.count; ++i) {
      out += characters[static_cast<std::size_t>(range.start + i * range.step)];
    }
    return MakeString(std::move(out), object.IsMarkup());
  }
  const SequenceData* const sequence = object.AsSequence();
  if (sequence == nullptr ||
      (object.AsListOrTuple() == nullptr && sequence->kind != SequenceKind::kRange)) {
    return TypeError(object.AsDict() != nullptr
                         ? std::string("unhashable type: 'slice'")
                         : fmt::format("'{}' object is not subscriptable", object.TypeName()));
  }
  NIBBLE_TRY(range, AdjustSlice(bounds[0], bounds[1], bounds[2],
                                static_cast<std::int64_t>(sequence->items.size())));
  NIBBLE_TRY_VOID(Charge(range.count / 4));
  std::vector<Value> items;
  items.reserve(static_cast<std::size_t>(range.count));
  for (std::int64_t i = 0; i < range.count; ++i) {
    items.push_back(sequence->items[static_cast<std::size_t>(range.start + i * range.step)]);
  }
  return Value::Sequence(
      sequence->kind == SequenceKind::kRange ? SequenceKind::kList : sequence->kind,
      std::move(items));
}

Result<Arguments> Interpreter::EvaluateArguments(const Node& node) {
  Arguments arguments;
  for (const NodeId argument : node.list) {
    NIBBLE_TRY(value, Evaluate(argument));
    arguments.positional.push_back(std::move(value));
  }
  if (node.star != kNoNode) {
    NIBBLE_TRY(star, Evaluate(node.star));
    NIBBLE_TRY(items, Items(star));
    arguments.positional.insert(arguments.positional.end(), items.begin(), items.end());
  }
  for (std::size_t i = 0; i < node.names.size(); ++i) {
    NIBBLE_TRY(value, Evaluate(node.named[i]));
    arguments.named.emplace_back(ast_.Name(node.names[i]), std::move(value));
  }
  if (node.double_star != kNoNode) {
    NIBBLE_TRY(stars, Evaluate(node.double_star));
    const DictData* const dict = stars.AsDict();
    if (dict == nullptr) {
      return TypeError(
          fmt::format("argument after ** must be a mapping, not {}", stars.TypeName()));
    }
    NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(dict->members().size())));
    for (const auto& [key, value] : dict->members()) {
      if (!key.IsString()) {
        return TypeError("keywords must be strings");
      }
      arguments.named.emplace_back(std::string(key.Text()), value);
    }
  }
  return arguments;
}

Result<Value> Interpreter::EvaluateCall(const Node& node) {
  NIBBLE_TRY(callee, Evaluate(node.a));
  NIBBLE_TRY(arguments, EvaluateArguments(node));
  return Call(callee, std::move(arguments));
}

Result<Value> Interpreter::EvaluateFilters(NodeId id, const Value* input) {
  std::vector<NodeId> chain;
  while (id != kNoNode && ast_[id].kind == NodeKind::kFilter) {
    chain.push_back(id);
    id = ast_[id].a;
  }
  Value value;
  if (id != kNoNode) {
    NIBBLE_TRY(innermost, Evaluate(id));
    value = std::move(innermost);
  } else if (input != nullptr) {
    value = *input;
  }
  for (auto filter = chain.rbegin(); filter != chain.rend(); ++filter) {
    const Node& node = ast_[*filter];
    NIBBLE_TRY_VOID(Charge(1));
    NIBBLE_TRY(arguments, EvaluateArguments(node));
    line_ = node.line;
    NIBBLE_TRY(filtered, Filter(ast_.Name(node.name), value, std::move(arguments)));
    value = std::move(filtered);
  }
  return value;
}

Result<Value> Interpreter::EvaluateTest(const Node& node) {
  NIBBLE_TRY(subject, Evaluate(node.a));
  NIBBLE_TRY(arguments, EvaluateArguments(node));
  NIBBLE_TRY(result, Test(ast_.Name(node.name), subject, std::move(arguments)));
  return Value(result);
}

Result<Value> Interpreter::EvaluateUnary(const Node& node) {
  NIBBLE_TRY(operand, Evaluate(node.a));
  if (operand.IsUndefined()) {
    return operand.Unusable();
  }
  const bool negates = node.kind == NodeKind::kNegate;
  if (const auto i = operand.AsIndex()) {
    if (*i == std::numeric_limits<Int>::min()) {
      return TooLarge("an integer beyond 128 bits");
    }
    return Value(negates ? -*i : *i);
  }
  if (const auto d = operand.AsDouble()) {
    return Value(negates ? -*d : *d);
  }
  return TypeError(
      fmt::format("bad operand type for unary {}: '{}'", negates ? '-' : '+', operand.TypeName()));
}

Result<Value> Interpreter::EvaluateCompare(const Node& node) {
  NIBBLE_TRY(left, Evaluate(node.a));
  for (std::size_t i = 0; i < node.ops.size(); ++i) {
    NIBBLE_TRY(right, Evaluate(node.list[i]));
    NIBBLE_TRY(holds, Compare(node.ops[i], left, right));
    if (!holds) {
      return Value(false);
    }
    left = std::move(right);
  }
  return Value(true);
}

Result<Value> Interpreter::EvaluateConcat(const Node& node) {
  std::string out;
  for (const NodeId part : node.list) {
    NIBBLE_TRY(value, Evaluate(part));
    NIBBLE_TRY(text, Str(value));
    out += text;
    if (out.size() > options_.max_output_bytes) {
      break;  // MakeString says so
    }
  }
  return MakeString(std::move(out));
}

Result<Value> Interpreter::EvaluateCondition(const Node& node) {
  NIBBLE_TRY(test, Evaluate(node.a));
  if (test.Truthy()) {
    return Evaluate(node.b);
  }
  if (node.c != kNoNode) {
    return Evaluate(node.c);
  }
  return Value::Undefined(
      "the inline if-expression evaluated to false and no else section was defined.");
}

// Objects --------------------------------------------------------------------------------------

Result<Value> Interpreter::Attribute(const Value& object, const std::string& name) {
  if (object.IsUndefined()) {
    return object.Unusable();
  }
  if (LoopState* const loop = object.AsLoop(); loop != nullptr && IsOneOf(name, kLoopMembers)) {
    return LoopAttribute(*loop, name);
  }
  if (HasMutator(object, name)) {
    return Value::Undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, object.TypeName()),
        /*is_security=*/true);
  }
  if (HasMethod(object, name)) {
    return Value::Method(name, std::make_shared<const Value>(object));
  }
  if (const DictData* const dict = object.AsDict()) {
    const Value* const member = dict->Find(std::string_view(name));
    return member != nullptr ? *member : NoAttribute(object, name);
  }
  if (const NamespaceData* const ns = object.AsNamespace()) {
    NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(ns->members.size() / 16)));
    for (const auto& [key, member] : ns->members) {
      if (key == name) {
        return member;
      }
    }
  }
  if (const Macro* const macro = object.AsMacro(); macro != nullptr && name == "name") {
    return MakeString(macro->name);
  }
  return NoAttribute(object, name);
}

Result<Value> Interpreter::Item(const Value& object, const Value& key) {
  if (object.IsUndefined()) {
    return object.Unusable();
  }
  if (const DictData* const dict = object.AsDict()) {
    NIBBLE_TRY_VOID(Charge(key.Weight()));
    if (const Value* const member = dict->Find(key)) {
      return *member;
    }
  } else if (const auto index = key.AsIndex()) {
    const SequenceData* const sequence = object.AsSequence();
    if (sequence != nullptr &&
        (object.AsListOrTuple() != nullptr || sequence->kind == SequenceKind::kRange)) {
      const Int size = static_cast<Int>(sequence->items.size());
      const Int at = *index < 0 ? *index + size : *index;
      if (at >= 0 && at < size) {
        return sequence->items[static_cast<std::size_t>(at)];
      }
    } else if (object.IsString()) {
      NIBBLE_TRY_VOID(ChargeBytes(object.Text().size() * 8));
      const auto characters = Characters(object.Text());
      const Int size = static_cast<Int>(characters.size());
      const Int at = *index < 0 ? *index + size : *index;
      if (at >= 0 && at < size) {
        return MakeString(std::string(characters[static_cast<std::size_t>(at)]));
      }
    }
  }
  if (key.IsString()) {
    return object.AsDict() != nullptr && !HasMethod(object, key.Text()) &&
                   !HasMutator(object, key.Text())
               ? NoAttribute(object, key.Text())
               : Attribute(object, std::string(key.Text()));
  }
  NIBBLE_TRY(shown, Repr(key, limits::kQuotedBytes * 64));
  return Value::Undefined(fmt::format("{} has no element {}", object.ObjectRepr(), shown));
}

Result<std::vector<Value>> Interpreter::Items(const Value& value) {
  std::vector<Value> items;
  if (value.IsUndefined()) {
    return items;
  }
  if (const SequenceData* const sequence = value.AsSequence()) {
    items = sequence->items;
  } else if (const DictData* const dict = value.AsDict()) {
    for (const auto& member : dict->members()) {
      items.push_back(member.first);
    }
  } else if (GeneratorData* const generator = value.AsGenerator()) {
    items.assign(generator->items.begin() + static_cast<std::ptrdiff_t>(generator->next),
                 generator->items.end());
    generator->next = generator->items.size();
  } else if (value.IsString()) {
    NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(Length(value.Text()))));
    for (const std::string_view character : Characters(value.Text())) {
      items.push_back(Value::String(std::string(character)));
    }
  } else if (LoopState* const loop = value.AsLoop()) {
    items.assign(loop->items.begin() +
                     static_cast<std::ptrdiff_t>(std::min(loop->index + 1, loop->items.size())),
                 loop->items.end());
  } else {
    return TypeError(fmt::format("'{}' object is not iterable", value.TypeName()));
  }
  NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(items.size() / 4)));
  return items;
}

Result<Value> Interpreter::LoopAttribute(LoopState& loop, const std::string& name) {
  const auto size = static_cast<std::int64_t>(loop.items.size());
  const auto index = static_cast<std::int64_t>(loop.index);
  if (name == "index") {
    return Value::Integer(index + 1);
  }
  if (name == "index0") {
    return Value::Integer(index);
  }
  if (name == "revindex") {
    return Value::Integer(size - index);
  }
  if (name == "revindex0") {
    return Value::Integer(size - index - 1);
  }
  if (name == "first") {
    return Value(index == 0);
  }
  if (name == "last") {
    return Value(index + 1 >= size);
  }
  if (name == "length") {
    return Value::Integer(size);
  }
  if (name == "previtem") {
    return index > 0 && index <= size ? loop.items[loop.index - 1]
                                      : Value::Undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < size ? loop.items[loop.index + 1]
                            : Value::Undefined("there is no next item");
  }
  if (name == "depth") {
    return Value::Integer(loop.depth);
  }
  if (name == "depth0") {
    return Value::Integer(loop.depth - 1);
  }
  return Value::Method(name, std::make_shared<const Value>(Value(&loop)));
}

Result<Value> Interpreter::LoopMethod(LoopState& loop, const std::string& name,
                                      Arguments arguments) {
  if (name == "cycle") {
    if (arguments.positional.empty()) {
      return TypeError("no items for cycling given");
    }
    return arguments.positional[loop.index % arguments.positional.size()];
  }
  NIBBLE_TRY(seen, Value::Tuple(std::move(arguments.positional)));
  NIBBLE_TRY_VOID(Charge(seen.Weight()));
  const bool changed = !loop.changed || !Equal(*loop.changed, seen);
  loop.changed = std::move(seen);
  return Value(changed);
}

// Calls ----------------------------------------------------------------------------------------

Result<Value> Interpreter::Call(const Value& callee, Arguments arguments) {
  if (callee.IsUndefined()) {
    return callee.Unusable();
  }
  if (const Macro* const macro = callee.AsMacro()) {
    return CallMacro(*macro, std::move(arguments));
  }
  if (LoopState* const loop = callee.AsLoop()) {
    return CallLoop(*loop, std::move(arguments));
  }
  const FunctionData* const function = callee.AsFunction();
  if (function == nullptr) {
    return TypeError(fmt::format("'{}' object is not callable", callee.TypeName()));
  }
  if (!function->self) {
    return CallFunction(function->name, std::move(arguments));
  }
  if (LoopState* const loop = function->self->AsLoop()) {
    return LoopMethod(*loop, function->name, std::move(arguments));
  }
  return Method(*function->self, function->name, std::move(arguments));
}

Result<Value> Interpreter::CallMacro(const Macro& macro, Arguments arguments) {
  const Descend call(call_depth_);
  if (call_depth_ > options_.max_call_depth) {
    return TooLarge(fmt::format("macros call one another deeper than {}", options_.max_call_depth));
  }
  const Node& node = ast_[macro.node];
  const Enter scope(*this, macro.scope);
  const std::size_t num_parameters = node.names.size();
  const std::size_t first_default = num_parameters - node.list.size();
  const auto take_named = [&](std::string_view name) -> std::optional<Value> {
    for (auto named = arguments.named.begin(); named != arguments.named.end(); ++named) {
      if (named->first == name) {
        Value value = std::move(named->second);
        arguments.named.erase(named);
        return value;
      }
    }
    return std::nullopt;
  };
  // All given ones first: a default may use any parameter before it.
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < num_parameters; ++i) {
    if (i < arguments.positional.size()) {
      scope_->Set(node.names[i], arguments.positional[i]);
    } else if (auto named = take_named(ast_.Name(node.names[i]))) {
      scope_->Set(node.names[i], std::move(*named));
    } else {
      missing.push_back(i);
    }
  }
  for (const std::size_t i : missing) {
    if (i >= first_default) {
      NIBBLE_TRY(value, Evaluate(node.list[i - first_default]));
      scope_->Set(node.names[i], std::move(value));
    } else {
      scope_->Set(node.names[i], Value::Undefined(fmt::format("parameter '{}' was not provided",
                                                              ast_.Name(node.names[i]))));
    }
  }
  if (auto caller = take_named("caller")) {
    if (caller_name_ >= 0) {
      scope_->Set(caller_name_, std::move(*caller));
    }
  }
  if (kwargs_name_ >= 0) {
    DictData dict;
    for (auto& [name, value] : arguments.named) {
      dict.Set(Value::String(name), std::move(value));
    }
    NIBBLE_TRY(value, Value::Dict(std::move(dict)));
    scope_->Set(kwargs_name_, std::move(value));
  } else if (!arguments.named.empty()) {
    return TypeError(fmt::format("macro '{}' takes no keyword argument '{}'", macro.name,
                                 arguments.named.front().first));
  }
  if (varargs_name_ >= 0) {
    const std::size_t taken = std::min(num_parameters, arguments.positional.size());
    NIBBLE_TRY(value,
               Value::Tuple({arguments.positional.begin() + static_cast<std::ptrdiff_t>(taken),
                             arguments.positional.end()}));
    scope_->Set(varargs_name_, std::move(value));
  } else if (arguments.positional.size() > num_parameters) {
    return TypeError(
        fmt::format("macro '{}' takes not more than {} argument(s)", macro.name, num_parameters));
  }
  NIBBLE_TRY(text, Captured(node.c));
  return MakeString(std::move(text));
}

Result<Value> Interpreter::CallLoop(LoopState& loop, Arguments arguments) {
  const Node& node = ast_[loop.node];
  if (!node.recursive) {
    return TypeError("The loop must have the 'recursive' marker to be called recursively.");
  }
  if (arguments.positional.size() != 1) {
    return TypeError("loop() takes one argument");
  }
  const Descend call(call_depth_);
  if (call_depth_ > options_.max_call_depth) {
    return TooLarge(fmt::format("loops recurse deeper than {}", options_.max_call_depth));
  }
  NIBBLE_TRY(items, Items(arguments.positional[0]));
  std::string text;
  std::string* const outer_out = out_;
  Scope* const outer_scope = scope_;
  out_ = &text;
  scope_ = loop.scope;
  const auto flow = Loop(node, loop.node, std::move(items), loop.depth + 1);
  out_ = outer_out;
  scope_ = outer_scope;
  if (!flow) {
    return tl::unexpected(flow.error());
  }
  return MakeString(std::move(text));
}

Result<Value> Interpreter::CallFunction(const std::string& name, Arguments arguments) {
  if (name == "range") {
    return Range(arguments);
  }
  if (name == "dict") {
    return MakeDict(std::move(arguments));
  }
  if (name == "namespace") {
    NIBBLE_TRY(dict, MakeDict(std::move(arguments)));
    NamespaceData& ns = namespaces_.emplace_back();
    for (const auto& [key, value] : dict.AsDict()->members()) {
      if (key.Text().starts_with('_')) {
        return SecurityError("a namespace takes no names that start with an underscore");
      }
      ns.members.emplace_back(std::string(key.Text()), value);
    }
    return Value(&ns);
  }
  if (name == "raise_exception") {
    NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"message"}));
    NIBBLE_TRY(message, bound.Required(0));
    NIBBLE_TRY(text, Str(message));
    return Fail(ErrorCode::kInvalidArgument, text);
  }
  NIBBLE_TRY(bound, Bound::Bind(name, std::move(arguments), {"format"}));
  NIBBLE_TRY(given, bound.Required(0));
  if (!given.IsString()) {
    return TypeError(fmt::format("strftime() argument 1 must be str, not {}", given.TypeName()));
  }
  // strftime returns 0 for a full buffer and for an empty text: the blank tells them apart.
  const std::string format = std::string(given.Text().substr(0, given.Text().find('\0'))) + " ";
  if (format.size() > 1024) {
    return TooLarge("a time format of more than 1024 bytes");
  }
  std::array<char, 16384> buffer{};
  const std::size_t length = std::strftime(buffer.data(), buffer.size(), format.c_str(), &now_);
  if (length == 0) {
    return ValueError("strftime_now cannot write this format");
  }
  return MakeString(std::string(buffer.data(), length - 1));
}

Result<Value> Interpreter::MakeDict(Arguments arguments) {
  DictData dict;
  if (arguments.positional.size() > 1) {
    return TypeError("dict expected at most 1 argument");
  }
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.IsUndefined()) {
      return from.Unusable();
    }
    if (const DictData* const other = from.AsDict()) {
      dict = *other;
    } else {
      NIBBLE_TRY(pairs, Items(from));
      for (const Value& pair : pairs) {
        NIBBLE_TRY(items, Items(pair));
        if (items.size() != 2) {
          return ValueError("dictionary update sequence element has not length 2");
        }
        NIBBLE_TRY_VOID(CheckHashable(items[0]));
        dict.Set(std::move(items[0]), std::move(items[1]));
      }
    }
  }
  for (auto& [name, value] : arguments.named) {
    dict.Set(Value::String(name), std::move(value));
  }
  NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(dict.members().size())));
  return Value::Dict(std::move(dict));
}

Result<Value> Interpreter::Range(const Arguments& arguments) {
  std::vector<Int> bounds;
  for (const Value& value : arguments.positional) {
    if (value.IsUndefined()) {
      return value.Unusable();
    }
    const auto bound = value.AsIndex();
    if (!bound) {
      return TypeError(
          fmt::format("'{}' object cannot be interpreted as an integer", value.TypeName()));
    }
    bounds.push_back(std::clamp<Int>(*bound, std::numeric_limits<std::int64_t>::min() / 4,
                                     std::numeric_limits<std::int64_t>::max() / 4));
  }
  if (bounds.empty() || bounds.size() > 3 || !arguments.named.empty()) {
    return TypeError("range expected 1 to 3 arguments");
  }
  const Int start = bounds.size() == 1 ? 0 : bounds[0];
  const Int stop = bounds.size() == 1 ? bounds[0] : bounds[1];
  const Int step = bounds.size() == 3 ? bounds[2] : 1;
  if (step == 0) {
    return ValueError("range() arg 3 must not be zero");
  }
  const Int count = step > 0 ? (start < stop ? (stop - start - 1) / step + 1 : 0)
                             : (stop < start ? (start - stop - 1) / -step + 1 : 0);
  if (count > options_.max_loop_items) {
    return TooLarge(fmt::format("a range of {} items; at most {}", count, options_.max_loop_items));
  }
  NIBBLE_TRY_VOID(Charge(static_cast<std::int64_t>(count)));
  SequenceData range{
      .kind = SequenceKind::kRange, .items = {}, .depth = 1, .weight = 1, .label = {}};
  for (Int i = 0; i < count; ++i) {
    range.items.push_back(Value(start + i * step));
  }
  range.label = step == 1 ? fmt::format("range({}, {})", start, stop)
                          : fmt::format("range({}, {}, {})", start, stop, step);
  range.weight += static_cast<std::int64_t>(count);
  return Value(std::make_shared<const SequenceData>(std::move(range)));
}

// Arguments ------------------------------------------------------------------------------------

Result<Bound> Bound::Bind(std::string_view function, Arguments arguments,
                          std::initializer_list<std::string_view> parameters) {
  Bound bound;
  bound.function_ = function;
  bound.parameters_ = parameters;
  bound.values_.resize(parameters.size());
  if (arguments.positional.size() > parameters.size()) {
    return TypeError(fmt::format("{}() takes at most {} argument(s), {} given", function,
                                 parameters.size(), arguments.positional.size()));
  }
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) {
    bound.values_[i] = std::move(arguments.positional[i]);
  }
  for (auto& [name, value] : arguments.named) {
    const auto found = std::find(parameters.begin(), parameters.end(), name);
    if (found == parameters.end()) {
      return TypeError(fmt::format("{}() got an unexpected keyword argument '{}'", function, name));
    }
    auto& slot = bound.values_[static_cast<std::size_t>(found - parameters.begin())];
    if (slot) {
      return TypeError(fmt::format("{}() got multiple values for argument '{}'", function, name));
    }
    slot = std::move(value);
  }
  return bound;
}

Result<std::int64_t> Bound::Integer(std::size_t i, std::int64_t fallback) const {
  if (!values_[i]) {
    return fallback;
  }
  if (values_[i]->IsUndefined()) {
    return values_[i]->Unusable();
  }
  const auto index = values_[i]->AsIndex();
  if (!index) {
    return TypeError(fmt::format("{}() argument '{}' must be an integer, not {}", function_,
                                 parameters_[i], values_[i]->TypeName()));
  }
  constexpr Int kMax = std::numeric_limits<std::int64_t>::max() / 4;
  return static_cast<std::int64_t>(std::clamp(*index, -kMax, kMax));
}

Result<std::string> Bound::Text(std::size_t i, std::string_view fallback) const {
  if (!values_[i]) {
    return std::string(fallback);
  }
  if (!values_[i]->IsString()) {
    return TypeError(fmt::format("{}() argument '{}' must be str, not {}", function_,
                                 parameters_[i], values_[i]->TypeName()));
  }
  return std::string(values_[i]->Text());
}

Result<Value> Bound::Required(std::size_t i) const {
  if (!values_[i]) {
    return TypeError(fmt::format("{}() missing 1 required positional argument: '{}'", function_,
                                 parameters_[i]));
  }
  return *values_[i];
}

}  // namespace nibble::jinja
