#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "base/limits.h"

namespace nibble::text {
namespace {

// Members of character classes, without the brackets. PCRE2's own \s holds U+180E, its \w every
// number, its \h is horizontal space.
constexpr std::string_view kSpaceMembers =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
// Letters, marks, decimal and letter numbers, connectors, the circled and squared letters, and of
// the other numbers just those of Latin-1.
constexpr std::string_view kWordMembers =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9})"
    R"(\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
constexpr std::string_view kHexMembers = "0-9a-fA-F";

constexpr int kMaxClassDepth = 16;

/// One pass over the pattern; a class becomes a class, or a group of classes where PCRE2 has no
/// operator for it.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> Run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        NIBBLE_TRY_VOID(Escape());
      } else if (c == '[') {
        NIBBLE_TRY(group, Class(0));
        out_ += group;
      } else if (c == '{') {
        NIBBLE_TRY_VOID(Interval());
      } else {
        out_.push_back(c);
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  tl::unexpected<Error> Unsupported(std::string_view what) const {
    return Fail(ErrorCode::kUnsupported, fmt::format("{} at byte {} of the pattern", what, at_));
  }

  /// \uHHHH -> \x{HHHH}; nullopt-like empty string if it is not one.
  Result<std::string> HexEscape() {
    constexpr std::size_t kDigits = 4;
    const std::string_view digits = in_.substr(at_ + 2, kDigits);
    if (digits.size() != kDigits ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      return Unsupported("\\u without four hexadecimal digits");
    }
    at_ += 2 + kDigits;
    return fmt::format("\\x{{{}}}", digits);
  }

  Result<void> Escape() {
    if (at_ + 1 == in_.size()) {
      return Unsupported("a lone backslash");
    }
    const char c = in_[at_ + 1];
    const auto emit = [&](std::string text) {
      out_ += text;
      at_ += 2;
    };
    switch (c) {
      case 's':
        emit(fmt::format("[{}]", kSpaceMembers));
        break;
      case 'S':
        emit(fmt::format("[^{}]", kSpaceMembers));
        break;
      case 'w':
        emit(fmt::format("[{}]", kWordMembers));
        break;
      case 'W':
        emit(fmt::format("[^{}]", kWordMembers));
        break;
      case 'h':
        emit(fmt::format("[{}]", kHexMembers));
        break;
      case 'H':
        emit(fmt::format("[^{}]", kHexMembers));
        break;
      case 'b':
        emit(fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", kWordMembers));
        break;
      case 'B':
        emit(fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", kWordMembers));
        break;
      case 'u': {
        NIBBLE_TRY(hex, HexEscape());
        out_ += hex;
        break;
      }
      case 'p':
      case 'P':
      case 'x':
        CopyBraced(out_);
        break;
      case 'C':
      case 'K':
      case 'G':
      case 'g':
      case 'k':
      case 'Q':
      case 'E':
        return Unsupported(fmt::format("\\{}", c));
      default:
        out_ += in_.substr(at_, 2);
        at_ += 2;
    }
    return {};
  }

  /// \p{...} and \x{...} as they are, or just the two characters where no brace follows.
  void CopyBraced(std::string& out) {
    std::size_t size = 2;
    if (at_ + 2 < in_.size() && in_[at_ + 2] == '{') {
      const std::size_t close = in_.find('}', at_);
      size = close == std::string_view::npos ? 2 : close + 1 - at_;
    }
    out += in_.substr(at_, size);
    at_ += size;
  }

  Result<void> Interval() {
    const std::size_t close = in_.find('}', at_);
    const std::string_view body =
        close == std::string_view::npos ? "" : in_.substr(at_ + 1, close - at_ - 1);
    if (body.empty() || body.find_first_not_of("0123456789,") != std::string_view::npos) {
      out_ += "\\{";  // literal in both, once escaped
      ++at_;
      return {};
    }
    out_ += body.front() == ',' ? fmt::format("{{0{}}}", body) : fmt::format("{{{}}}", body);
    at_ = close + 1;
    if (at_ < in_.size() && in_[at_] == '+') {
      return Unsupported("a quantifier after {n,m}");  // greedy there, possessive here
    }
    return {};
  }

  /// One operand of && while it is read: plain members, and the nested classes beside them.
  struct Operand {
    std::string members;
    std::vector<std::string> nested;
  };

  static std::string Union(const Operand& operand) {
    if (operand.nested.empty()) {
      return fmt::format("[{}]", operand.members);
    }
    std::string group = "(?:";
    if (!operand.members.empty()) {
      group += fmt::format("[{}]|", operand.members);
    }
    for (std::size_t i = 0; i < operand.nested.size(); ++i) {
      group += (i == 0 ? "" : "|") + operand.nested[i];
    }
    return group + ")";
  }

  /// A class from its '[' to its ']', as an expression that matches one character.
  Result<std::string> Class(int depth) {
    if (depth >= kMaxClassDepth) {
      return Unsupported("a class nested this deeply");
    }
    ++at_;
    const bool negated = at_ < in_.size() && in_[at_] == '^';
    at_ += negated ? 1 : 0;
    std::vector<Operand> operands(1);
    bool first = true;
    while (true) {
      if (at_ >= in_.size()) {
        return Unsupported("a class without its ']'");
      }
      Operand& operand = operands.back();
      const char c = in_[at_];
      if (c == ']' && !first) {
        ++at_;
        break;
      }
      first = false;
      if (c == ']') {
        operand.members += "\\]";
        ++at_;
      } else if (c == '[' && in_.substr(at_, 2) == "[:") {
        const std::size_t close = in_.find(":]", at_);
        if (close == std::string_view::npos) {
          return Unsupported("[: without :]");
        }
        operand.members += in_.substr(at_, close + 2 - at_);
        at_ = close + 2;
      } else if (c == '[') {
        NIBBLE_TRY(nested, Class(depth + 1));
        operand.nested.push_back(std::move(nested));
      } else if (c == '&' && in_.substr(at_, 2) == "&&") {
        at_ += 2;
        operands.emplace_back();
      } else if (c == '\\') {
        NIBBLE_TRY_VOID(ClassEscape(operand.members));
      } else {
        operand.members.push_back(c);
        ++at_;
      }
    }
    for (const Operand& operand : operands) {
      if (operand.members.empty() && operand.nested.empty()) {
        return Unsupported("an empty class");
      }
    }
    if (operands.size() == 1 && operands[0].nested.empty()) {
      return fmt::format("[{}{}]", negated ? "^" : "", operands[0].members);
    }
    std::string all;
    for (std::size_t i = 1; i < operands.size(); ++i) {
      all += fmt::format("(?={})", Union(operands[i]));
    }
    all += Union(operands[0]);
    return negated ? fmt::format("(?:(?!{})(?s:.))", all) : fmt::format("(?:{})", all);
  }

  Result<void> ClassEscape(std::string& members) {
    if (at_ + 1 == in_.size()) {
      return Unsupported("a lone backslash");
    }
    const char c = in_[at_ + 1];
    std::string_view replacement;
    switch (c) {
      case 's':
        replacement = kSpaceMembers;
        break;
      case 'S':
        replacement = R"(\S\x{180e})";
        break;
      case 'w':
        replacement = kWordMembers;
        break;
      case 'h':
        replacement = kHexMembers;
        break;
      case 'u': {
        NIBBLE_TRY(hex, HexEscape());
        members += hex;
        return {};
      }
      case 'p':
      case 'P':
      case 'x':
        CopyBraced(members);
        return {};
      case 'W':
      case 'H':
      case 'Q':
      case 'E':
        return Unsupported(fmt::format("\\{} in a class", c));
      default:
        replacement = in_.substr(at_, 2);
    }
    members += replacement;
    at_ += 2;
    return {};
  }

  std::string_view in_;
  std::size_t at_ = 0;
  std::string out_;
};

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

// A match may walk the text a few hundred times; more is a pattern that explodes.
constexpr std::uint64_t kMatchSteps = 20'000;
constexpr std::uint64_t kMatchStepsPerByte = 200;
constexpr std::uint32_t kHeapKiB = 256 * 1024;
constexpr std::size_t kJitStackBytes = 8 * limits::kMiB;
// The limits above hold for one start; a call tries this many, then the clock is looked at.
constexpr std::size_t kStartsPerCall = 256;
constexpr std::size_t kLongText = 64 * limits::kKiB;
constexpr auto kCallTime = std::chrono::seconds(5);
constexpr std::size_t kBytesPerExtraSecond = 1 * limits::kMiB;
constexpr std::size_t kPatternBytes = 64 * limits::kKiB;
constexpr std::uint32_t kParenthesesDepth = 64;

/// Match limits and the JIT's stack: one a thread, as PCRE2 asks.
class ThreadContext {
 public:
  ThreadContext()
      : context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(32 * limits::kKiB, kJitStackBytes, nullptr)) {
    if (context_ != nullptr) {
      pcre2_set_heap_limit(context_, kHeapKiB);
      if (stack_ != nullptr) {
        pcre2_jit_stack_assign(context_, nullptr, stack_);
      }
    }
  }
  ~ThreadContext() {
    pcre2_match_context_free(context_);
    pcre2_jit_stack_free(stack_);
  }
  ThreadContext(const ThreadContext&) = delete;
  ThreadContext& operator=(const ThreadContext&) = delete;

  pcre2_match_context* get() const { return context_; }

 private:
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;
};

/// Start of the code point after the one that holds the byte `at`.
std::size_t NextStart(std::string_view text, std::size_t at) {
  do {
    ++at;
  } while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

}  // namespace

Result<std::string> TranslatePattern(std::string_view pattern) { return Translator(pattern).Run(); }

struct Regex::Impl {
  pcre2_code* code = nullptr;

  explicit Impl(pcre2_code* compiled) : code(compiled) {}
  ~Impl() { pcre2_code_free(code); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
};

Regex::Regex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kPatternBytes) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("a pattern of {} bytes, more than {}", pattern.size(), kPatternBytes));
  }
  NIBBLE_TRY(translated, TranslatePattern(pattern));
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) {
    return Fail(ErrorCode::kOutOfMemory, "no memory to compile a pattern");
  }
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, kParenthesesDepth);
  int code = 0;
  PCRE2_SIZE offset = 0;
  // ^ and $ are those of a line in the reference's dialect.
  pcre2_code* compiled = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
      &code, &offset, context);
  pcre2_compile_context_free(context);
  if (compiled == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(code, message.data(), message.size());
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{} (byte {} of the translated pattern)",
                            reinterpret_cast<const char*>(message.data()), offset));
  }
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // without JIT the interpreter runs it
  return Regex(std::make_unique<Impl>(compiled));
}

void Regex::FindAll(std::string_view text, std::vector<Span>& matches) const {
  thread_local const ThreadContext context;
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
      pcre2_match_data_create(1, nullptr));
  if (data == nullptr || context.get() == nullptr) {
    return;
  }
  const std::uint64_t steps = kMatchSteps + kMatchStepsPerByte * text.size();
  const auto limit = static_cast<std::uint32_t>(std::min<std::uint64_t>(steps, UINT32_MAX));
  pcre2_set_match_limit(context.get(), limit);
  pcre2_set_depth_limit(context.get(), limit);
  const auto deadline = std::chrono::steady_clock::now() + kCallTime +
                        std::chrono::seconds(text.size() / kBytesPerExtraSecond);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::size_t at = 0;
  std::size_t previous_end = std::string_view::npos;
  int calls = 0;
  // A call on a short text costs less than the clock, one on a long text may take long.
  const int calls_per_clock = text.size() > kLongText ? 1 : 64;
  while (at <= text.size()) {
    if (++calls % calls_per_clock == 0 && std::chrono::steady_clock::now() > deadline) {
      return;
    }
    const std::size_t last_start = std::min(text.size(), at + kStartsPerCall);
    pcre2_set_offset_limit(context.get(), last_start);
    int rc = pcre2_match(impl_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, data.get(),
                         context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(impl_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       data.get(), context.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH && last_start < text.size()) {
      at = NextStart(text, last_start);
      continue;
    }
    if (rc < 0) {
      return;  // no match, or a bound was hit
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    const Span match{ends[0], ends[1]};
    if (match.begin < at || match.end < match.begin) {
      return;  // only \K, which is refused, moves a start; better stop than loop
    }
    if (match.begin == match.end && match.end == previous_end) {
      at = NextStart(text, at);
    } else {
      matches.push_back(match);
      at = match.end;
      previous_end = match.end;
    }
  }
}

}  // namespace nibble::text
