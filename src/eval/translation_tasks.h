#pragma once

#include <cstdint>
#include <filesystem>

#include "base/result.h"
#include "eval/task.h"

namespace nibble {

/// The languages of the FLORES-200 file besides English.
enum class FloresLanguage : std::uint8_t {
  kGerman,
  kFrench,
  kSpanish,
  kRussian,
  kChinese,
  kJapanese,
  kHindi,
  kArabic
};

/// A sentence of FLORES-200 devtest to be translated, scored by corpus BLEU and chrF2.
Result<Task> LoadTranslationTask(const std::filesystem::path& data_dir, FloresLanguage language,
                                 bool from_english);

template <FloresLanguage language, bool from_english>
Result<Task> LoadTranslation(const std::filesystem::path& data_dir) {
  return LoadTranslationTask(data_dir, language, from_english);
}

}  // namespace nibble
