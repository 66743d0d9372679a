#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <limits>
#include <unordered_map>

#include "base/limits.h"
#include "base/text.h"
#include "template/ast.h"
#include "template/lexer.h"

namespace nibble::jinja {
namespace {

// Brackets, operators and blocks inside one another. A level costs a dozen C++ frames here.
constexpr int kMaxNesting = 150;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<Ast> Run() {
    NIBBLE_TRY(root, Body({}));
    if (Current().kind != TokenKind::kEnd) {
      return Unexpected();
    }
    ast_.root = root;
    return std::move(ast_);
  }

 private:
  // Tokens -------------------------------------------------------------------------------------

  const Token& Current() const { return tokens_[at_]; }
  const Token& Look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void Next() { at_ += at_ + 1 < tokens_.size() ? 1 : 0; }

  bool IsOperator(std::string_view op) const {
    return Current().kind == TokenKind::kOperator && Current().text == op;
  }
  bool IsName(std::string_view name) const {
    return Current().kind == TokenKind::kName && Current().text == name;
  }
  bool SkipOperator(std::string_view op) {
    const bool is = IsOperator(op);
    is ? Next() : void();
    return is;
  }
  bool SkipName(std::string_view name) {
    const bool is = IsName(name);
    is ? Next() : void();
    return is;
  }

  std::string Describe() const {
    switch (Current().kind) {
      case TokenKind::kEnd:
        return "end of template";
      case TokenKind::kText:
        return "template text";
      case TokenKind::kBlockBegin:
        return "begin of statement block";
      case TokenKind::kBlockEnd:
        return "end of statement block";
      case TokenKind::kVariableBegin:
        return "begin of print statement";
      case TokenKind::kVariableEnd:
        return "end of print statement";
      case TokenKind::kString:
        return "string";
      default:
        return Quote(Current().text);
    }
  }

  tl::unexpected<Error> Unexpected() const {
    return SyntaxError(Current().line, fmt::format("unexpected {}", Describe()));
  }

  Result<void> ExpectOperator(std::string_view op) {
    if (!SkipOperator(op)) {
      return SyntaxError(Current().line, fmt::format("expected '{}', got {}", op, Describe()));
    }
    return {};
  }

  Result<void> ExpectName(std::string_view name) {
    if (!SkipName(name)) {
      return SyntaxError(Current().line, fmt::format("expected '{}', got {}", name, Describe()));
    }
    return {};
  }

  Result<void> Expect(TokenKind kind, std::string_view what) {
    if (Current().kind != kind) {
      return SyntaxError(Current().line, fmt::format("expected {}, got {}", what, Describe()));
    }
    Next();
    return {};
  }

  Result<NameId> TakeName() {
    if (Current().kind != TokenKind::kName) {
      return SyntaxError(Current().line, fmt::format("expected a name, got {}", Describe()));
    }
    const NameId id = Intern(Current().text);
    Next();
    return id;
  }

  // Nodes --------------------------------------------------------------------------------------

  NameId Intern(const std::string& name) {
    const auto [entry, is_new] = ids_.try_emplace(name, static_cast<NameId>(ast_.names.size()));
    if (is_new) {
      ast_.names.push_back(name);
    }
    return entry->second;
  }

  NodeId Add(Node node) {
    ast_.nodes.push_back(std::move(node));
    return static_cast<NodeId>(ast_.nodes.size() - 1);
  }

  NodeId AddConst(int line, Value value) {
    return Add({.kind = NodeKind::kConst, .line = line, .value = std::move(value)});
  }

  /// Counts nesting for as long as it lives.
  class Nesting {
   public:
    explicit Nesting(int& depth) : depth_(depth) { ++depth_; }
    ~Nesting() { --depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int& depth_;
  };

  Result<void> CheckNesting() const {
    if (depth_ > kMaxNesting) {
      return Fail(ErrorCode::kLimitExceeded, fmt::format("template line {}: nested deeper than {}",
                                                         Current().line, kMaxNesting));
    }
    return {};
  }

  // Statements ---------------------------------------------------------------------------------

  /// Statements up to a tag named in `ends`, whose name is then the current token.
  Result<NodeId> Body(std::initializer_list<std::string_view> ends) {
    Node block{.kind = NodeKind::kBlock, .line = Current().line};
    for (;;) {
      const Token& token = Current();
      if (token.kind == TokenKind::kText) {
        block.list.push_back(
            Add({.kind = NodeKind::kText, .line = token.line, .value = Value::String(token.text)}));
        Next();
      } else if (token.kind == TokenKind::kVariableBegin) {
        Next();
        Node output{.kind = NodeKind::kOutput, .line = token.line};
        NIBBLE_TRY(expression, Tuple({}));
        output.list.push_back(expression);
        NIBBLE_TRY_VOID(Expect(TokenKind::kVariableEnd, "end of print statement"));
        block.list.push_back(Add(std::move(output)));
      } else if (token.kind == TokenKind::kBlockBegin) {
        Next();
        if (Current().kind == TokenKind::kName &&
            std::find(ends.begin(), ends.end(), Current().text) != ends.end()) {
          return Add(std::move(block));
        }
        NIBBLE_TRY(statement, Statement());
        block.list.push_back(statement);
        NIBBLE_TRY_VOID(Expect(TokenKind::kBlockEnd, "end of statement block"));
      } else if (token.kind == TokenKind::kEnd && ends.size() == 0) {
        return Add(std::move(block));
      } else if (token.kind == TokenKind::kEnd) {
        return SyntaxError(token.line, fmt::format("unexpected end of template; looking for '{}'",
                                                   fmt::join(ends.begin(), ends.end(), "' or '")));
      } else {
        return Unexpected();
      }
    }
  }

  /// The body of a tag: closes the opening tag, and ends before a tag of `ends`.
  Result<NodeId> TagBody(std::initializer_list<std::string_view> ends) {
    SkipOperator(":");
    NIBBLE_TRY_VOID(Expect(TokenKind::kBlockEnd, "end of statement block"));
    return Body(ends);
  }

  Result<NodeId> ClosedBody(std::string_view end) {
    NIBBLE_TRY(body, TagBody({end}));
    Next();
    return body;
  }

  Result<NodeId> Statement() {
    const Nesting nesting(depth_);
    NIBBLE_TRY_VOID(CheckNesting());
    if (Current().kind != TokenKind::kName) {
      return SyntaxError(Current().line, "tag name expected");
    }
    const std::string tag = Current().text;
    const int line = Current().line;
    Next();
    if (tag == "if") {
      return If(line);
    }
    if (tag == "for") {
      return For(line);
    }
    if (tag == "set") {
      return Set(line);
    }
    if (tag == "macro") {
      Node node{.kind = NodeKind::kMacro, .line = line};
      NIBBLE_TRY(name, TakeName());
      node.name = name;
      NIBBLE_TRY_VOID(Signature(node));
      NIBBLE_TRY(body, ClosedBody("endmacro"));
      node.c = body;
      return Add(std::move(node));
    }
    if (tag == "call") {
      Node node{.kind = NodeKind::kCallBlock, .line = line, .name = Intern("caller")};
      if (IsOperator("(")) {
        NIBBLE_TRY_VOID(Signature(node));
      }
      NIBBLE_TRY(call, Expression());
      if (ast_[call].kind != NodeKind::kCall) {
        return SyntaxError(line, "expected call");
      }
      node.a = call;
      NIBBLE_TRY(body, ClosedBody("endcall"));
      node.c = body;
      return Add(std::move(node));
    }
    if (tag == "filter") {
      NIBBLE_TRY(filters, Filters(kNoNode, /*first_without_pipe=*/true));
      NIBBLE_TRY(body, ClosedBody("endfilter"));
      return Add({.kind = NodeKind::kFilterBlock, .line = line, .b = filters, .c = body});
    }
    if (tag == "with") {
      return With(line);
    }
    if (tag == "generation") {
      NIBBLE_TRY(body, ClosedBody("endgeneration"));
      return Add({.kind = NodeKind::kScope, .line = line, .c = body});
    }
    if (tag == "block") {
      NIBBLE_TRY(name, TakeName());
      SkipName("scoped");
      SkipName("required");
      NIBBLE_TRY(body, ClosedBody("endblock"));
      SkipName(ast_.Name(name));
      return Add({.kind = NodeKind::kScope, .line = line, .c = body});
    }
    if (tag == "print") {
      Node node{.kind = NodeKind::kOutput, .line = line};
      while (Current().kind != TokenKind::kBlockEnd) {
        if (!node.list.empty()) {
          NIBBLE_TRY_VOID(ExpectOperator(","));
        }
        NIBBLE_TRY(expression, Expression());
        node.list.push_back(expression);
      }
      return Add(std::move(node));
    }
    if (tag == "break" || tag == "continue") {
      if (num_loops_ == 0) {
        return SyntaxError(line, fmt::format("'{}' outside a loop", tag));
      }
      return Add({.kind = tag == "break" ? NodeKind::kBreak : NodeKind::kContinue, .line = line});
    }
    for (const std::string_view other :
         {"include", "import", "from", "extends", "autoescape", "do", "trans", "debug"}) {
      if (tag == other) {
        return Fail(ErrorCode::kUnsupported,
                    fmt::format("template line {}: the tag '{}' is not supported", line, tag));
      }
    }
    return SyntaxError(line, fmt::format("unknown tag {}", Quote(tag)));
  }

  Result<NodeId> If(int line) {
    Node node{.kind = NodeKind::kIf, .line = line};
    for (;;) {
      NIBBLE_TRY(test, Tuple({.with_condition = false}));
      NIBBLE_TRY(body, TagBody({"elif", "else", "endif"}));
      node.list.push_back(test);
      node.list.push_back(body);
      if (SkipName("elif")) {
        continue;
      }
      if (SkipName("else")) {
        NIBBLE_TRY(otherwise, ClosedBody("endif"));
        node.c = otherwise;
      } else {
        Next();
      }
      return Add(std::move(node));
    }
  }

  Result<NodeId> For(int line) {
    Node node{.kind = NodeKind::kFor, .line = line};
    NIBBLE_TRY(target, Target({.end = "in"}));
    node.a = target;
    NIBBLE_TRY_VOID(ExpectName("in"));
    NIBBLE_TRY(items, Tuple({.with_condition = false, .end = "recursive"}));
    node.b = items;
    node.list = {kNoNode, kNoNode};
    if (SkipName("if")) {
      NIBBLE_TRY(test, Expression());
      node.list[0] = test;
    }
    node.recursive = SkipName("recursive");
    ++num_loops_;
    NIBBLE_TRY(body, TagBody({"endfor", "else"}));
    --num_loops_;
    node.c = body;
    if (SkipName("else")) {
      NIBBLE_TRY(otherwise, ClosedBody("endfor"));
      node.list[1] = otherwise;
    } else {
      Next();
    }
    return Add(std::move(node));
  }

  Result<NodeId> Set(int line) {
    NIBBLE_TRY(target, Target({.with_namespace = true}));
    if (SkipOperator("=")) {
      NIBBLE_TRY(value, Tuple({}));
      return Add({.kind = NodeKind::kSet, .line = line, .a = target, .b = value});
    }
    NIBBLE_TRY(filters, Filters(kNoNode, /*first_without_pipe=*/false));
    NIBBLE_TRY(body, ClosedBody("endset"));
    return Add({.kind = NodeKind::kSetBlock, .line = line, .a = target, .b = filters, .c = body});
  }

  Result<NodeId> With(int line) {
    Node node{.kind = NodeKind::kWith, .line = line};
    while (Current().kind != TokenKind::kBlockEnd) {
      if (!node.list.empty()) {
        NIBBLE_TRY_VOID(ExpectOperator(","));
      }
      NIBBLE_TRY(target, Target({}));
      NIBBLE_TRY_VOID(ExpectOperator("="));
      NIBBLE_TRY(value, Expression());
      node.list.push_back(target);
      node.list.push_back(value);
    }
    NIBBLE_TRY(body, ClosedBody("endwith"));
    node.c = body;
    return Add(std::move(node));
  }

  Result<void> Signature(Node& node) {
    NIBBLE_TRY_VOID(ExpectOperator("("));
    while (!IsOperator(")")) {
      if (!node.names.empty()) {
        NIBBLE_TRY_VOID(ExpectOperator(","));
      }
      NIBBLE_TRY(parameter, TakeName());
      if (SkipOperator("=")) {
        NIBBLE_TRY(value, Expression());
        node.list.push_back(value);
      } else if (!node.list.empty()) {
        return SyntaxError(Current().line, "non-default argument follows default argument");
      }
      node.names.push_back(parameter);
    }
    return ExpectOperator(")");
  }

  // Targets ------------------------------------------------------------------------------------

  struct TargetRules {
    bool with_namespace = false;
    std::string_view end = {};
  };

  Result<NodeId> OneTarget(const TargetRules& rules) {
    const Nesting nesting(depth_);
    NIBBLE_TRY_VOID(CheckNesting());
    const int line = Current().line;
    if (SkipOperator("(")) {
      NIBBLE_TRY(tuple, Target(rules));
      NIBBLE_TRY_VOID(ExpectOperator(")"));
      return tuple;
    }
    for (const char* const constant : {"true", "false", "none", "True", "False", "None"}) {
      if (IsName(constant)) {
        return SyntaxError(line, fmt::format("can't assign to '{}'", constant));
      }
    }
    NIBBLE_TRY(name, TakeName());
    const NodeId target = Add({.kind = NodeKind::kName, .line = line, .name = name});
    if (rules.with_namespace && SkipOperator(".")) {
      NIBBLE_TRY(member, TakeName());
      return Add({.kind = NodeKind::kNamespaceMember, .line = line, .name = member, .a = target});
    }
    return target;
  }

  Result<NodeId> Target(const TargetRules& rules) {
    const int line = Current().line;
    NIBBLE_TRY(first, OneTarget(rules));
    if (!IsOperator(",")) {
      return first;
    }
    Node tuple{.kind = NodeKind::kTuple, .line = line, .list = {first}};
    while (SkipOperator(",")) {
      if (Current().kind != TokenKind::kName && !IsOperator("(")) {
        break;
      }
      if (!rules.end.empty() && IsName(rules.end)) {
        break;
      }
      NIBBLE_TRY(next, OneTarget(rules));
      tuple.list.push_back(next);
    }
    return Add(std::move(tuple));
  }

  // Expressions --------------------------------------------------------------------------------

  struct TupleRules {
    bool with_condition = true;
    bool in_brackets = false;
    std::string_view end = {};
  };

  Result<NodeId> Tuple(const TupleRules& rules) {
    const int line = Current().line;
    Node tuple{.kind = NodeKind::kTuple, .line = line};
    bool is_tuple = false;
    for (;;) {
      if (Current().kind == TokenKind::kVariableEnd || Current().kind == TokenKind::kBlockEnd ||
          IsOperator(")") || (!rules.end.empty() && IsName(rules.end))) {
        break;
      }
      NIBBLE_TRY(item, rules.with_condition ? Expression() : Or());
      tuple.list.push_back(item);
      if (!SkipOperator(",")) {
        break;
      }
      is_tuple = true;
    }
    if (!is_tuple && !tuple.list.empty()) {
      return tuple.list[0];
    }
    if (!is_tuple && !rules.in_brackets) {
      return SyntaxError(line, fmt::format("expected an expression, got {}", Describe()));
    }
    return Add(std::move(tuple));
  }

  Result<NodeId> Expression() {
    const Nesting nesting(depth_);
    NIBBLE_TRY_VOID(CheckNesting());
    NIBBLE_TRY(expression, Or());
    while (IsName("if")) {
      const int line = Current().line;
      Next();
      NIBBLE_TRY(test, Or());
      NodeId otherwise = kNoNode;
      if (SkipName("else")) {
        NIBBLE_TRY(other, Expression());
        otherwise = other;
      }
      expression = Add(
          {.kind = NodeKind::kCondition, .line = line, .a = test, .b = expression, .c = otherwise});
    }
    return expression;
  }

  Result<NodeId> Or() {
    NIBBLE_TRY(left, And());
    while (IsName("or")) {
      const int line = Current().line;
      Next();
      NIBBLE_TRY(right, And());
      left = Add({.kind = NodeKind::kOr, .line = line, .a = left, .b = right});
    }
    return left;
  }

  Result<NodeId> And() {
    NIBBLE_TRY(left, Not());
    while (IsName("and")) {
      const int line = Current().line;
      Next();
      NIBBLE_TRY(right, Not());
      left = Add({.kind = NodeKind::kAnd, .line = line, .a = left, .b = right});
    }
    return left;
  }

  Result<NodeId> Not() {
    if (!IsName("not")) {
      return Compare();
    }
    const Nesting nesting(depth_);
    NIBBLE_TRY_VOID(CheckNesting());
    const int line = Current().line;
    Next();
    NIBBLE_TRY(operand, Not());
    return Add({.kind = NodeKind::kNot, .line = line, .a = operand});
  }

  std::optional<Op> ComparisonHere() {
    static constexpr std::pair<std::string_view, Op> kComparisons[] = {
        {"==", Op::kEqual}, {"!=", Op::kNotEqual},     {"<=", Op::kLessEqual},
        {"<", Op::kLess},   {">=", Op::kGreaterEqual}, {">", Op::kGreater}};
    for (const auto& [text, op] : kComparisons) {
      if (SkipOperator(text)) {
        return op;
      }
    }
    if (SkipName("in")) {
      return Op::kIn;
    }
    if (IsName("not") && Look().kind == TokenKind::kName && Look().text == "in") {
      Next();
      Next();
      return Op::kNotIn;
    }
    return std::nullopt;
  }

  Result<NodeId> Compare() {
    const int line = Current().line;
    NIBBLE_TRY(left, Sum());
    Node node{.kind = NodeKind::kCompare, .line = line, .a = left};
    while (const auto op = ComparisonHere()) {
      NIBBLE_TRY(right, Sum());
      node.ops.push_back(*op);
      node.list.push_back(right);
    }
    return node.ops.empty() ? left : Add(std::move(node));
  }

  Result<NodeId> Sum() {
    NIBBLE_TRY(left, Concat());
    while (IsOperator("+") || IsOperator("-")) {
      const Op op = IsOperator("+") ? Op::kAdd : Op::kSubtract;
      const int line = Current().line;
      Next();
      NIBBLE_TRY(right, Concat());
      left = Add({.kind = NodeKind::kBinary, .op = op, .line = line, .a = left, .b = right});
    }
    return left;
  }

  Result<NodeId> Concat() {
    const int line = Current().line;
    NIBBLE_TRY(first, Product());
    Node node{.kind = NodeKind::kConcat, .line = line, .list = {first}};
    while (SkipOperator("~")) {
      NIBBLE_TRY(next, Product());
      node.list.push_back(next);
    }
    return node.list.size() == 1 ? first : Add(std::move(node));
  }

  Result<NodeId> Product() {
    static constexpr std::pair<std::string_view, Op> kProducts[] = {
        {"*", Op::kMultiply}, {"/", Op::kDivide}, {"//", Op::kFloorDivide}, {"%", Op::kModulo}};
    NIBBLE_TRY(left, Power());
    for (;;) {
      const int line = Current().line;
      std::optional<Op> op;
      for (const auto& [text, candidate] : kProducts) {
        if (SkipOperator(text)) {
          op = candidate;
          break;
        }
      }
      if (!op) {
        return left;
      }
      NIBBLE_TRY(right, Power());
      left = Add({.kind = NodeKind::kBinary, .op = *op, .line = line, .a = left, .b = right});
    }
  }

  Result<NodeId> Power() {
    NIBBLE_TRY(left, Unary(/*with_filter=*/true));
    while (IsOperator("**")) {
      const int line = Current().line;
      Next();
      NIBBLE_TRY(right, Unary(/*with_filter=*/true));
      left =
          Add({.kind = NodeKind::kBinary, .op = Op::kPower, .line = line, .a = left, .b = right});
    }
    return left;
  }

  Result<NodeId> Unary(bool with_filter) {
    const Nesting nesting(depth_);
    NIBBLE_TRY_VOID(CheckNesting());
    const int line = Current().line;
    NodeId node = kNoNode;
    if (IsOperator("-") || IsOperator("+")) {
      const NodeKind kind = IsOperator("-") ? NodeKind::kNegate : NodeKind::kPlus;
      Next();
      NIBBLE_TRY(operand, Unary(/*with_filter=*/false));
      node = Add({.kind = kind, .line = line, .a = operand});
    } else {
      NIBBLE_TRY(primary, Primary());
      node = primary;
    }
    NIBBLE_TRY(postfixed, Postfix(node));
    return with_filter ? FilterExpression(postfixed) : Result<NodeId>(postfixed);
  }

  Result<NodeId> Primary() {
    const Token& token = Current();
    const int line = token.line;
    if (token.kind == TokenKind::kName) {
      const std::string name = token.text;
      Next();
      if (name == "true" || name == "True") {
        return AddConst(line, Value(true));
      }
      if (name == "false" || name == "False") {
        return AddConst(line, Value(false));
      }
      if (name == "none" || name == "None") {
        return AddConst(line, Value(Value::None{}));
      }
      return Add({.kind = NodeKind::kName, .line = line, .name = Intern(name)});
    }
    if (token.kind == TokenKind::kString) {
      std::string text;
      for (; Current().kind == TokenKind::kString; Next()) {
        text += Current().text;
      }
      return AddConst(line, Value::String(std::move(text)));
    }
    if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) {
      NIBBLE_TRY(number, NumberOf(token));
      Next();
      return AddConst(line, std::move(number));
    }
    if (SkipOperator("(")) {
      NIBBLE_TRY(inner, Tuple({.in_brackets = true}));
      NIBBLE_TRY_VOID(ExpectOperator(")"));
      return inner;
    }
    if (SkipOperator("[")) {
      Node node{.kind = NodeKind::kList, .line = line};
      while (!IsOperator("]")) {
        NIBBLE_TRY(item, Expression());
        node.list.push_back(item);
        if (!SkipOperator(",")) {
          break;
        }
      }
      NIBBLE_TRY_VOID(ExpectOperator("]"));
      return Add(std::move(node));
    }
    if (SkipOperator("{")) {
      Node node{.kind = NodeKind::kDict, .line = line};
      while (!IsOperator("}")) {
        NIBBLE_TRY(key, Expression());
        NIBBLE_TRY_VOID(ExpectOperator(":"));
        NIBBLE_TRY(value, Expression());
        node.list.push_back(key);
        node.list.push_back(value);
        if (!SkipOperator(",")) {
          break;
        }
      }
      NIBBLE_TRY_VOID(ExpectOperator("}"));
      return Add(std::move(node));
    }
    return Unexpected();
  }

  static Result<Value> NumberOf(const Token& token) {
    std::string_view text = token.text;
    if (token.kind == TokenKind::kFloat) {
      double d = 0;
      if (std::from_chars(text.data(), text.data() + text.size(), d).ec != std::errc()) {
        // Beyond a double's range; Python has infinity and zero for these.
        d = text.find("e-") != std::string_view::npos || text.find("E-") != std::string_view::npos
                ? 0
                : std::numeric_limits<double>::infinity();
      }
      return Value(d);
    }
    int base = 10;
    if (text.size() > 2 && text[0] == '0' && text[1] > '9') {
      base = text[1] == 'x' || text[1] == 'X' ? 16 : text[1] == 'o' || text[1] == 'O' ? 8 : 2;
      text.remove_prefix(2);
    }
    std::int64_t i = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), i, base).ec != std::errc()) {
      return SyntaxError(token.line, "integer beyond 64 bits");
    }
    return Value::Integer(i);
  }

  Result<NodeId> Postfix(NodeId node) {
    for (;;) {
      if (IsOperator(".") || IsOperator("[")) {
        NIBBLE_TRY(next, Subscript(node));
        node = next;
      } else if (IsOperator("(")) {
        NIBBLE_TRY(next, Call(node));
        node = next;
      } else {
        return node;
      }
    }
  }

  Result<NodeId> FilterExpression(NodeId node) {
    for (;;) {
      if (IsOperator("|")) {
        NIBBLE_TRY(next, Filters(node, /*first_without_pipe=*/false));
        node = next;
      } else if (IsName("is")) {
        NIBBLE_TRY(next, Test(node));
        node = next;
      } else if (IsOperator("(")) {
        NIBBLE_TRY(next, Call(node));
        node = next;
      } else {
        return node;
      }
    }
  }

  Result<NodeId> Subscript(NodeId object) {
    const int line = Current().line;
    if (SkipOperator(".")) {
      if (Current().kind == TokenKind::kInteger) {
        NIBBLE_TRY(index, NumberOf(Current()));
        Next();
        const NodeId key = AddConst(line, std::move(index));
        return Add({.kind = NodeKind::kItem, .line = line, .a = object, .b = key});
      }
      NIBBLE_TRY(name, TakeName());
      return Add({.kind = NodeKind::kAttribute, .line = line, .name = name, .a = object});
    }
    NIBBLE_TRY_VOID(ExpectOperator("["));
    Node tuple{.kind = NodeKind::kTuple, .line = line};
    while (!IsOperator("]")) {
      if (!tuple.list.empty()) {
        NIBBLE_TRY_VOID(ExpectOperator(","));
      }
      NIBBLE_TRY(part, Subscribed());
      tuple.list.push_back(part);
    }
    NIBBLE_TRY_VOID(ExpectOperator("]"));
    const bool has_slice = std::any_of(tuple.list.begin(), tuple.list.end(), [&](NodeId part) {
      return ast_[part].kind == NodeKind::kSlice;
    });
    if (tuple.list.size() != 1 && has_slice) {
      return SyntaxError(line, "a slice of several dimensions");
    }
    const NodeId key = tuple.list.size() == 1 ? tuple.list[0] : Add(std::move(tuple));
    return Add({.kind = NodeKind::kItem, .line = line, .a = object, .b = key});
  }

  Result<NodeId> Subscribed() {
    Node slice{.kind = NodeKind::kSlice, .line = Current().line};
    if (!IsOperator(":")) {
      NIBBLE_TRY(start, Expression());
      if (!IsOperator(":")) {
        return start;
      }
      slice.a = start;
    }
    Next();
    const auto ends = [&] { return IsOperator("]") || IsOperator(",") || IsOperator(":"); };
    if (!ends()) {
      NIBBLE_TRY(stop, Expression());
      slice.b = stop;
    }
    if (SkipOperator(":") && !IsOperator("]") && !IsOperator(",")) {
      NIBBLE_TRY(step, Expression());
      slice.c = step;
    }
    return Add(std::move(slice));
  }

  Result<void> Arguments(Node& node) {
    const int line = Current().line;
    const auto invalid = [&] {
      return SyntaxError(line, "invalid syntax for function call expression");
    };
    NIBBLE_TRY_VOID(ExpectOperator("("));
    while (!IsOperator(")")) {
      if (SkipOperator("*")) {
        if (node.star != kNoNode || node.double_star != kNoNode) {
          return invalid();
        }
        NIBBLE_TRY(star, Expression());
        node.star = star;
      } else if (SkipOperator("**")) {
        if (node.double_star != kNoNode) {
          return invalid();
        }
        NIBBLE_TRY(stars, Expression());
        node.double_star = stars;
      } else if (Current().kind == TokenKind::kName && Look().kind == TokenKind::kOperator &&
                 Look().text == "=") {
        if (node.double_star != kNoNode) {
          return invalid();
        }
        NIBBLE_TRY(name, TakeName());
        if (std::find(node.names.begin(), node.names.end(), name) != node.names.end()) {
          return SyntaxError(line, fmt::format("keyword argument repeated: {}", ast_.Name(name)));
        }
        Next();
        NIBBLE_TRY(value, Expression());
        node.names.push_back(name);
        node.named.push_back(value);
      } else {
        if (node.star != kNoNode || node.double_star != kNoNode || !node.names.empty()) {
          return invalid();
        }
        NIBBLE_TRY(value, Expression());
        node.list.push_back(value);
      }
      if (!SkipOperator(",")) {
        break;
      }
    }
    return ExpectOperator(")");
  }

  Result<NodeId> Call(NodeId callee) {
    Node node{.kind = NodeKind::kCall, .line = Current().line, .a = callee};
    NIBBLE_TRY_VOID(Arguments(node));
    return Add(std::move(node));
  }

  /// A chain of filters over `input`; kNoNode if there is none.
  Result<NodeId> Filters(NodeId input, bool first_without_pipe) {
    while (first_without_pipe || IsOperator("|")) {
      if (!first_without_pipe) {
        Next();
      }
      first_without_pipe = false;
      Node node{.kind = NodeKind::kFilter, .line = Current().line, .a = input};
      NIBBLE_TRY(name, TakeName());
      node.name = name;
      if (IsOperator("(")) {
        NIBBLE_TRY_VOID(Arguments(node));
      }
      input = Add(std::move(node));
    }
    return input;
  }

  Result<NodeId> Test(NodeId subject) {
    const int line = Current().line;
    Next();
    const bool negated = SkipName("not");
    Node node{.kind = NodeKind::kTest, .line = line, .a = subject};
    NIBBLE_TRY(name, TakeName());
    node.name = name;
    const TokenKind kind = Current().kind;
    if (IsOperator("(")) {
      NIBBLE_TRY_VOID(Arguments(node));
    } else if ((kind == TokenKind::kName || kind == TokenKind::kString ||
                kind == TokenKind::kInteger || kind == TokenKind::kFloat || IsOperator("[") ||
                IsOperator("{")) &&
               !IsName("else") && !IsName("or") && !IsName("and")) {
      if (IsName("is")) {
        return SyntaxError(line, "You cannot chain multiple tests with is");
      }
      const Nesting nesting(depth_);
      NIBBLE_TRY_VOID(CheckNesting());
      NIBBLE_TRY(primary, Primary());
      NIBBLE_TRY(argument, Postfix(primary));
      node.list.push_back(argument);
    }
    const NodeId test = Add(std::move(node));
    return negated ? Add({.kind = NodeKind::kNot, .line = line, .a = test}) : test;
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
  int num_loops_ = 0;
  Ast ast_;
  std::unordered_map<std::string, NameId> ids_;
};

}  // namespace

NameId Ast::FindName(std::string_view name) const {
  const auto found = std::find(names.begin(), names.end(), name);
  return found != names.end() ? static_cast<NameId>(found - names.begin()) : -1;
}

Result<Ast> ParseTemplate(std::string_view source) {
  if (source.size() > limits::kTemplateBytes) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("a template of {} bytes; at most {}",
                                                       source.size(), limits::kTemplateBytes));
  }
  if (!IsUtf8(source)) {
    return Fail(ErrorCode::kCorruptFile, "the template is not valid UTF-8");
  }
  NIBBLE_TRY(tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace nibble::jinja
