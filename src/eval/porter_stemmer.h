#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// The stem of an English word in lower case, by Porter's algorithm (Program 14.3, 1980) with the
/// extensions of NLTK's PorterStemmer, its default mode: the stemmer of the rouge-score package.
std::string PorterStem(std::string_view word);

}  // namespace nibble
