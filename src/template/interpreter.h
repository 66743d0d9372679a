#pragma once

#include <array>
#include <ctime>
#include <deque>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "template/ast.h"
#include "template/jinja.h"
#include "template/value.h"

namespace nibble::jinja {

/// The variables of a macro call, a loop body, ...; names not found are looked up in `parent`.
struct Scope {
  Scope* parent = nullptr;
  bool captured = false;  // a macro may still look here when the block is over
  std::vector<std::pair<NameId, Value>> variables;

  const Value* Find(NameId name) const;
  void Set(NameId name, Value value);
};

struct Macro {
  NodeId node = kNoNode;  // kMacro or kCallBlock
  std::string name;
  Scope* scope = nullptr;  // where it was defined
};

/// The `loop` of a for.
struct LoopState {
  NodeId node = kNoNode;
  Scope* scope = nullptr;  // around the loop
  std::vector<Value> items;
  std::size_t index = 0;
  int depth = 1;                 // of a recursive loop
  std::optional<Value> changed;  // what loop.changed() saw last
};

struct Arguments {
  std::vector<Value> positional = {};
  std::vector<std::pair<std::string, Value>> named = {};
};

/// Arguments in the order of parameters; missing ones are nullopt.
class Bound {
 public:
  /// Errors: TypeError for too many arguments or an unknown or repeated name.
  static Result<Bound> Bind(std::string_view function, Arguments arguments,
                            std::initializer_list<std::string_view> parameters);

  bool Has(std::size_t i) const { return values_[i].has_value(); }
  const std::optional<Value>& operator[](std::size_t i) const { return values_[i]; }
  Value Or(std::size_t i, Value fallback) const { return Has(i) ? *values_[i] : fallback; }
  bool Flag(std::size_t i, bool fallback) const { return Has(i) ? values_[i]->Truthy() : fallback; }
  /// An integer, clamped to 64 bits; TypeError for anything else.
  Result<std::int64_t> Integer(std::size_t i, std::int64_t fallback) const;
  /// A string; TypeError for anything else.
  Result<std::string> Text(std::size_t i, std::string_view fallback) const;
  /// TypeError if argument i is missing.
  Result<Value> Required(std::size_t i) const;

 private:
  std::string function_;
  std::vector<std::string_view> parameters_;
  std::vector<std::optional<Value>> values_;
};

/// One rendering of one template. All work and all text is charged to the options' limits.
class Interpreter {
 public:
  Interpreter(const Ast& ast, const RenderOptions& options, const std::tm& now)
      : ast_(ast),
        options_(options),
        now_(now),
        loop_name_(ast.FindName("loop")),
        caller_name_(ast.FindName("caller")),
        kwargs_name_(ast.FindName("kwargs")),
        varargs_name_(ast.FindName("varargs")) {}

  Result<std::string> Run(const json::Object& variables);
  int line() const { return line_; }

  // What filters, tests and methods build on.

  Result<void> Charge(std::int64_t operations);
  /// Charges for touching that many bytes of text.
  Result<void> ChargeBytes(std::size_t bytes);
  /// Charges for looking in `text` for `part` from the right, or for each of its code points.
  Result<void> ChargeSearch(std::string_view text, std::string_view part);
  /// Charges for comparing the two.
  Result<void> ChargeCompare(const Value& a, const Value& b);
  /// TypeError for what cannot be the key of a dict; charges for hashing the rest.
  Result<void> CheckHashable(const Value& key);
  /// A string value within the limits.
  Result<Value> MakeString(std::string text, bool markup = false);
  Result<std::string> Str(const Value& value);
  /// The items of anything that can be walked; TypeError for what cannot.
  Result<std::vector<Value>> Items(const Value& value);
  /// `object.name` and `object[key]`; undefined where there is none.
  Result<Value> Attribute(const Value& object, const std::string& name);
  Result<Value> Item(const Value& object, const Value& key);
  Result<Value> Call(const Value& callee, Arguments arguments);
  Result<Value> Filter(std::string_view name, const Value& input, Arguments arguments);
  Result<bool> Test(std::string_view name, const Value& subject, Arguments arguments);
  Result<bool> Contains(const Value& container, const Value& item);
  Result<Value> Binary(Op op, const Value& a, const Value& b);
  Result<bool> Compare(Op op, const Value& a, const Value& b);
  Result<Value> PercentFormat(const Value& format, const Arguments& arguments);
  Result<Value> StrFormat(std::string_view format, const Arguments& arguments);
  /// A method of a string, list, tuple or dict.
  Result<Value> Method(const Value& self, const std::string& name, Arguments arguments);
  std::size_t max_text() const { return options_.max_output_bytes; }
  std::int64_t max_items() const { return options_.max_loop_items; }

 private:
  enum class Flow { kNext, kBreak, kContinue };
  class Enter;    // a scope, for as long as it lives
  class Descend;  // one level of recursion

  Result<Flow> Execute(NodeId id);
  Result<Flow> ExecuteBlock(const Node& node);
  Result<Flow> ExecuteIf(const Node& node);
  Result<Flow> ExecuteOutput(const Node& node);
  Result<Flow> ExecuteFor(const Node& node, NodeId id);
  Result<Flow> ExecuteSet(const Node& node);
  Result<Flow> ExecuteSetBlock(const Node& node);
  Result<Flow> ExecuteMacro(const Node& node, NodeId id);
  Result<Flow> ExecuteCallBlock(const Node& node, NodeId id);
  Result<Flow> ExecuteFilterBlock(const Node& node);
  Result<Flow> ExecuteWith(const Node& node);
  Result<Flow> ExecuteScope(const Node& node);
  Result<Flow> Loop(const Node& node, NodeId id, std::vector<Value> items, int depth);
  Result<std::vector<Value>> KeepMatching(const Node& node, std::vector<Value> items);
  /// Runs a block and returns what it wrote.
  Result<std::string> Captured(NodeId body);
  Result<void> Write(std::string_view text);
  Result<void> Assign(NodeId target, const Value& value);
  Result<void> CheckDepth();

  Result<Value> Evaluate(NodeId id);
  Result<Value> EvaluateName(const Node& node);
  Result<Value> EvaluateSequence(const Node& node);
  Result<Value> EvaluateDict(const Node& node);
  Result<Value> EvaluateItem(const Node& node);
  Result<Value> EvaluateSlice(const Node& slice, const Value& object);
  Result<Value> EvaluateCall(const Node& node);
  Result<Value> EvaluateTest(const Node& node);
  Result<Value> EvaluateUnary(const Node& node);
  Result<Value> EvaluateCompare(const Node& node);
  Result<Value> EvaluateConcat(const Node& node);
  Result<Value> EvaluateCondition(const Node& node);
  /// A chain of filters; `input` goes into the innermost if that has none of its own.
  Result<Value> EvaluateFilters(NodeId id, const Value* input);
  Result<Arguments> EvaluateArguments(const Node& node);
  Result<Value> CallFunction(const std::string& name, Arguments arguments);
  Result<Value> CallMacro(const Macro& macro, Arguments arguments);
  Result<Value> CallLoop(LoopState& loop, Arguments arguments);
  Result<Value> LoopAttribute(LoopState& loop, const std::string& name);
  Result<Value> LoopMethod(LoopState& loop, const std::string& name, Arguments arguments);
  Result<Value> Range(const Arguments& arguments);
  Result<Value> MakeDict(Arguments arguments);
  Scope* NewScope(Scope* parent);
  void Capture(Scope* scope);

  const Ast& ast_;
  const RenderOptions& options_;
  const std::tm now_;
  // Names with a meaning of their own; -1 where the template does not use them.
  const NameId loop_name_;
  const NameId caller_name_;
  const NameId kwargs_name_;
  const NameId varargs_name_;
  int line_ = 1;
  int depth_ = 0;       // of C++ recursion
  int call_depth_ = 0;  // of macros
  std::int64_t operations_ = 0;
  std::string* out_ = nullptr;
  Scope* scope_ = nullptr;
  std::vector<std::optional<Value>> context_;  // the caller's variables, by NameId
  // Owned until the end, as values point to them.
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
  std::deque<Macro> macros_;
  std::deque<LoopState> loops_;
  std::deque<NamespaceData> namespaces_;
};

}  // namespace nibble::jinja
