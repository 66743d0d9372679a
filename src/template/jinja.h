#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "base/result.h"
#include "json/value.h"

/// Jinja2 as transformers.apply_chat_template sets it up: trim_blocks, lstrip_blocks, break and
/// continue, `generation` blocks, an immutable sandbox, no autoescape, tojson as plain json.dumps.
namespace nibble::jinja {

struct Ast;

struct RenderOptions {
  std::int64_t max_operations = limits::kTemplateOperations;    // steps; 256 bytes of text are one
  std::size_t max_output_bytes = limits::kTemplateOutputBytes;  // of the output and of any string
  int max_call_depth = limits::kTemplateCallDepth;              // macros inside one another
  std::int64_t max_loop_items = limits::kTemplateLoopItems;     // of one loop or range
  /// What strftime_now formats, as 2025-01-15T10:30:00; without it the machine's local time.
  std::optional<std::string> now;
};

/// A parsed template. Immutable and cheap to copy; may render in several threads at once.
class Template {
 public:
  /// Errors name the line. kCorruptFile: syntax; kUnsupported: tags that need other templates
  /// (include, import, extends); kLimitExceeded: larger than 256 KiB or nested too deep.
  static Result<Template> Parse(std::string_view source);

  /// Errors: kInvalidArgument, with exactly the template's message, where the template itself
  /// refused its input by raise_exception; kLimitExceeded; kCorruptFile, "template line N:
  /// TypeError: ...", where it failed as Python would; kInvalidArgument if options.now is no time.
  Result<std::string> Render(const json::Object& variables,
                             const RenderOptions& options = {}) const;

  const Ast& ast() const { return *ast_; }

 private:
  explicit Template(std::shared_ptr<const Ast> ast) : ast_(std::move(ast)) {}
  std::shared_ptr<const Ast> ast_;
};

}  // namespace nibble::jinja
