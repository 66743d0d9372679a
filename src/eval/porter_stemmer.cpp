#include "eval/porter_stemmer.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace nibble {
namespace {

struct Rule {
  std::string_view suffix, replacement;
};

constexpr Rule kIrregular[] = {
    {"sky", "sky"},         {"skies", "sky"},       {"dying", "die"},      {"lying", "lie"},
    {"tying", "tie"},       {"news", "news"},       {"innings", "inning"}, {"inning", "inning"},
    {"outings", "outing"},  {"outing", "outing"},   {"howe", "howe"},      {"cannings", "canning"},
    {"canning", "canning"}, {"proceed", "proceed"}, {"exceed", "exceed"},  {"succeed", "succeed"}};
constexpr Rule kStep1a[] = {{"sses", "ss"}, {"ies", "i"}, {"ss", "ss"}, {"s", ""}};
constexpr Rule kStep2[] = {
    {"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"}, {"anci", "ance"}, {"izer", "ize"},
    {"bli", "ble"},     {"alli", "al"},     {"entli", "ent"}, {"eli", "e"},     {"ousli", "ous"},
    {"ization", "ize"}, {"ation", "ate"},   {"ator", "ate"},  {"alism", "al"},  {"iveness", "ive"},
    {"fulness", "ful"}, {"ousness", "ous"}, {"aliti", "al"},  {"iviti", "ive"}, {"biliti", "ble"},
    {"fulli", "ful"},   {"logi", "log"}};
constexpr Rule kStep3[] = {{"icate", "ic"}, {"ative", ""}, {"alize", "al"}, {"iciti", "ic"},
                           {"ical", "ic"},  {"ful", ""},   {"ness", ""}};
constexpr Rule kStep4[] = {{"al", ""},   {"ance", ""}, {"ence", ""}, {"er", ""},    {"ic", ""},
                           {"able", ""}, {"ible", ""}, {"ant", ""},  {"ement", ""}, {"ment", ""},
                           {"ent", ""},  {"ion", ""},  {"ou", ""},   {"ism", ""},   {"ate", ""},
                           {"iti", ""},  {"ous", ""},  {"ive", ""},  {"ize", ""}};

// Consonant or not, letter by letter: y is one unless it follows one.
std::vector<bool> Consonants(std::string_view word) {
  std::vector<bool> out;
  for (const char c : word) {
    const bool vowel = std::string_view("aeiou").find(c) != std::string_view::npos;
    out.push_back(c == 'y' ? out.empty() || !out.back() : !vowel);
  }
  return out;
}

// m of the paper: how often a vowel is followed by a consonant.
int Measure(std::string_view stem) {
  const std::vector<bool> consonants = Consonants(stem);
  int measure = 0;
  for (std::size_t i = 1; i < consonants.size(); ++i) {
    measure += !consonants[i - 1] && consonants[i] ? 1 : 0;
  }
  return measure;
}

bool HasVowel(std::string_view stem) {
  return std::ranges::any_of(Consonants(stem), [](bool consonant) { return !consonant; });
}

bool EndsInDoubleConsonant(std::string_view word) {
  return word.size() >= 2 && word.back() == word[word.size() - 2] && Consonants(word).back();
}

// *o of the paper, and NLTK's case of two letters.
bool EndsInShortSyllable(std::string_view word) {
  const std::vector<bool> consonants = Consonants(word);
  const std::size_t n = word.size();
  if (n == 2) {
    return !consonants[0] && consonants[1];
  }
  return n >= 3 && consonants[n - 3] && !consonants[n - 2] && consonants[n - 1] &&
         std::string_view("wxy").find(word.back()) == std::string_view::npos;
}

// The first rule whose suffix fits decides: it is applied, or nothing is.
template <typename Condition>
std::string Apply(std::string word, std::span<const Rule> rules, const Condition& condition) {
  for (const Rule& rule : rules) {
    if (word.ends_with(rule.suffix)) {
      const std::string_view stem(word.data(), word.size() - rule.suffix.size());
      return condition(rule, stem) ? std::string(stem) + std::string(rule.replacement)
                                   : std::move(word);
    }
  }
  return word;
}

std::string Step1a(std::string word) {
  if (word.size() == 4 && word.ends_with("ies")) {
    word.pop_back();
    return word;
  }
  return Apply(std::move(word), kStep1a, [](const Rule&, std::string_view) { return true; });
}

// What is left when -ed or -ing is gone gets its e back, or loses a doubled letter.
std::string Mend(std::string stem) {
  if (stem.ends_with("at") || stem.ends_with("bl") || stem.ends_with("iz")) {
    return stem + "e";
  }
  if (EndsInDoubleConsonant(stem)) {
    if (std::string_view("lsz").find(stem.back()) == std::string_view::npos) {
      stem.pop_back();
    }
    return stem;
  }
  return Measure(stem) == 1 && EndsInShortSyllable(stem) ? stem + "e" : stem;
}

std::string Step1b(std::string word) {
  if (word.ends_with("ied")) {
    word.resize(word.size() - (word.size() == 4 ? 1 : 2));
    return word;
  }
  if (word.ends_with("eed")) {
    word.resize(word.size() - (Measure(word.substr(0, word.size() - 3)) > 0 ? 1 : 0));
    return word;
  }
  for (const std::string_view suffix : {"ed", "ing"}) {
    if (word.ends_with(suffix)) {
      std::string stem = word.substr(0, word.size() - suffix.size());
      if (HasVowel(stem)) {
        return Mend(std::move(stem));
      }
    }
  }
  return word;
}

std::string Step1c(std::string word) {
  if (word.size() > 2 && word.back() == 'y' && Consonants(word)[word.size() - 2]) {
    word.back() = 'i';
  }
  return word;
}

std::string Step2(std::string word) {
  if (word.ends_with("alli") && Measure(word.substr(0, word.size() - 4)) > 0) {
    word.resize(word.size() - 2);  // and the rules go on with what ends in -al
  }
  const int measure_of_logi = word.size() > 3 ? Measure(word.substr(0, word.size() - 3)) : 0;
  return Apply(std::move(word), kStep2, [&](const Rule& rule, std::string_view stem) {
    return (rule.suffix == "logi" ? measure_of_logi : Measure(stem)) > 0;
  });
}

std::string Step3(std::string word) {
  return Apply(std::move(word), kStep3,
               [](const Rule&, std::string_view stem) { return Measure(stem) > 0; });
}

std::string Step4(std::string word) {
  return Apply(std::move(word), kStep4, [](const Rule& rule, std::string_view stem) {
    return Measure(stem) > 1 && (rule.suffix != "ion" || stem.back() == 's' || stem.back() == 't');
  });
}

std::string Step5(std::string word) {
  if (word.ends_with('e')) {
    const std::string_view stem(word.data(), word.size() - 1);
    const int measure = Measure(stem);
    if (measure > 1 || (measure == 1 && !EndsInShortSyllable(stem))) {
      word.pop_back();
    }
  }
  if (word.ends_with("ll") && Measure(word.substr(0, word.size() - 1)) > 1) {
    word.pop_back();
  }
  return word;
}

}  // namespace

std::string PorterStem(std::string_view word) {
  for (const Rule& irregular : kIrregular) {
    if (word == irregular.suffix) {
      return std::string(irregular.replacement);
    }
  }
  if (word.size() <= 2) {
    return std::string(word);
  }
  return Step5(Step4(Step3(Step2(Step1c(Step1b(Step1a(std::string(word))))))));
}

}  // namespace nibble
