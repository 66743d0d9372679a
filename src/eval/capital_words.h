#pragma once

#include <cstdint>
#include <string_view>

namespace nibble {

/// Words in capitals as IFEval counts them: tokens of NLTK's word tokenizer (3.10) that are upper
/// case in Python's sense. The original cuts the text into sentences first, by a trained model;
/// where those end tells on this count only for a clitic before a period ("IT'S."), whose period is
/// taken for the end of one here: only a known abbreviation would not end it.
std::int64_t CountCapitalWords(std::string_view text);

}  // namespace nibble
