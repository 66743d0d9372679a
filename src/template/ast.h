#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "template/value.h"

/// A template as a tree, flat in one vector: freeing and copying it never recurses.
namespace nibble::jinja {

using NodeId = std::int32_t;
using NameId = std::int32_t;
inline constexpr std::int32_t kNoNode = -1;

enum class NodeKind : std::uint8_t {
  // Expressions
  kConst,      // value
  kName,       // name
  kTuple,      // list
  kList,       // list
  kDict,       // list: key, value, key, value, ...
  kAttribute,  // a . name
  kItem,       // a [ b ]
  kSlice,      // a : b : c, each may be missing; only as b of kItem
  kCall,       // a ( arguments )
  kFilter,     // a | name ( arguments ); a is missing where a block's text goes in
  kTest,       // a is name ( arguments )
  kNegate,     // - a
  kPlus,       // + a
  kNot,        // not a
  kBinary,     // a op b
  kAnd,        // a and b
  kOr,         // a or b
  kCompare,    // a ops[0] list[0] ops[1] list[1] ...
  kConcat,     // list joined by ~
  kCondition,  // b if a else c; c may be missing
  // Statements
  kBlock,        // list, one after the other
  kText,         // value
  kOutput,       // list
  kIf,           // list: test, block, test, block, ...; c: the else block
  kFor,          // for a in b if list[0]: c; else list[1]; either of list may be missing
  kSet,          // set a = b
  kSetBlock,     // set a (| b) %} c
  kMacro,        // name, parameters, list: defaults of the last ones, c: body
  kCallBlock,    // a: the call; parameters, list, c as kMacro
  kFilterBlock,  // b: the filters, c: body
  kWith,         // list: target, value, target, value, ...; c: body
  kScope,        // c, in a scope of its own (`generation`, `block`)
  kBreak,
  kContinue,
  kNamespaceMember,  // as a target: a . name
};

enum class Op : std::uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Node {
  NodeKind kind = NodeKind::kConst;
  Op op = Op::kAdd;
  bool recursive = false;  // of a for
  int line = 1;
  NameId name = -1;
  NodeId a = kNoNode;
  NodeId b = kNoNode;
  NodeId c = kNoNode;
  std::vector<NodeId> list = {};
  std::vector<Op> ops = {};
  // Calls, filters and tests: list holds the positional arguments, then
  std::vector<NameId> names = {};  // names of keyword arguments, or of parameters
  std::vector<NodeId> named = {};  // their values
  NodeId star = kNoNode;           // *arguments
  NodeId double_star = kNoNode;
  Value value = {};
};

struct Ast {
  std::vector<Node> nodes;
  std::vector<std::string> names;
  NodeId root = kNoNode;

  const Node& operator[](NodeId id) const { return nodes[static_cast<std::size_t>(id)]; }
  const std::string& Name(NameId id) const { return names[static_cast<std::size_t>(id)]; }
  /// The id of a name, or -1 where the template never uses it.
  NameId FindName(std::string_view name) const;
};

/// Parses a template in the setting of transformers: trim_blocks, lstrip_blocks, loop controls,
/// `generation`. Errors name the line: kCorruptFile for syntax, kUnsupported for tags that need
/// other templates, kLimitExceeded.
Result<Ast> ParseTemplate(std::string_view source);

}  // namespace nibble::jinja
