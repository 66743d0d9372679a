#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Python's str over UTF-8: what is counted, cut and compared is code points. Texts are
/// well-formed.
namespace nibble::jinja {

struct CodePoint {
  char32_t value = 0;
  std::size_t length = 1;  // bytes
};

/// The code point that starts at byte `at`.
CodePoint Decode(std::string_view text, std::size_t at);
void AppendUtf8(std::string& out, char32_t point);

/// len(text)
std::size_t Length(std::string_view text);
/// The code points of `text`, each as its bytes.
std::vector<std::string_view> Characters(std::string_view text);

bool IsSpace(char32_t point);
bool IsPrintable(char32_t point);
bool IsAlpha(char32_t point);
bool IsDecimal(char32_t point);
bool IsDigitPoint(char32_t point);
bool IsNumeric(char32_t point);
bool IsCased(char32_t point);
bool IsUpperPoint(char32_t point);
bool IsLowerPoint(char32_t point);

/// text.find(part, from) in linear time, whatever the two are; npos where there is none.
std::size_t FindText(std::string_view text, std::string_view part, std::size_t from = 0);

enum class Side { kLeft, kRight, kBoth };
/// strip: blanks, or the code points of `chars`.
std::string_view Strip(std::string_view text, Side side,
                       std::optional<std::string_view> chars = std::nullopt);

std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);
/// str.title(), or with `filter` the rule of Jinja's filter: words start after blanks and -([{<.
std::string Title(std::string_view text, bool filter);
std::string SwapCase(std::string_view text);

/// split and rsplit; max_split < 0: no bound. Without `separator`: at runs of blanks.
std::vector<std::string_view> Split(std::string_view text,
                                    std::optional<std::string_view> separator, long max_split);
std::vector<std::string_view> RightSplit(std::string_view text,
                                         std::optional<std::string_view> separator, long max_split);
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

/// replace; count < 0: all.
std::string Replace(std::string_view text, std::string_view from, std::string_view to, long count);

/// HTML escaping as markupsafe does it.
std::string EscapeHtml(std::string_view text);

/// repr() of a string.
void AppendRepr(std::string& out, std::string_view text);

}  // namespace nibble::jinja
