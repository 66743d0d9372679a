#include "checkpoint/module_rule.h"

#include <fmt/format.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/text.h"

namespace nibble {
namespace {

constexpr std::size_t kPatternBytes = 1024;
// An expression that backtracks more than this is refused; module names are short, so honest ones
// need some hundred steps.
constexpr std::uint32_t kMatchSteps = 20'000;
constexpr std::uint32_t kDepth = 1'000;

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

struct ModuleRule::Impl {
  std::unique_ptr<pcre2_code, FreeCode> code;
};

ModuleRule::ModuleRule(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModuleRule::ModuleRule(ModuleRule&&) noexcept = default;
ModuleRule& ModuleRule::operator=(ModuleRule&&) noexcept = default;
ModuleRule::~ModuleRule() = default;

Result<ModuleRule> ModuleRule::Compile(std::string_view expression) {
  if (expression.size() > kPatternBytes) {
    return Fail(ErrorCode::kCorruptFile, fmt::format("an expression of {} bytes, the limit is {}",
                                                     expression.size(), kPatternBytes));
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto impl = std::make_unique<Impl>();
  impl->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                 PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  if (!impl->code) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("\"{}\" is no regular expression (at character {})", Quote(expression),
                            offset));
  }
  return ModuleRule(std::move(impl));
}

bool ModuleRule::Matches(std::string_view module) const {
  const std::unique_ptr<pcre2_match_context, FreeContext> context(
      pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), kMatchSteps);
  pcre2_set_depth_limit(context.get(), kDepth);
  const std::unique_ptr<pcre2_match_data, FreeMatch> data(pcre2_match_data_create(1, nullptr));
  return pcre2_match(impl_->code.get(), reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(),
                     0, PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, data.get(), context.get()) >= 0;
}

}  // namespace nibble
