#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// What chrF is made of, for one sentence or added up over a corpus. Index: characters of an n-gram
/// less one.
struct ChrfCounts {
  static constexpr std::size_t kOrders = 6;
  std::array<std::int64_t, kOrders> matches{};
  std::array<std::int64_t, kOrders> in_hypothesis{};
  std::array<std::int64_t, kOrders> in_reference{};
  ChrfCounts& operator+=(const ChrfCounts& other);
};

/// Of the reference that scores best.
ChrfCounts CountChrf(std::string_view hypothesis, std::span<const std::string> references);

/// chrF2 (Popovic 2015), 0 to 100: character n-grams without blanks, orders 1 to 6, beta 2;
/// sacrebleu's corpus_chrf with its defaults.
double Chrf(const ChrfCounts& counts);

}  // namespace nibble
