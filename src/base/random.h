#pragma once

#include <array>
#include <cstdint>

namespace nibble {

/// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As
/// Easy as 1, 2, 3"). A pure function of key and counter, so sampling is a pure function of (seed,
/// choice, position).
constexpr std::array<std::uint32_t, 4> Philox(std::array<std::uint32_t, 2> key,
                                              std::array<std::uint32_t, 4> counter) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ULL * counter[0];
    const std::uint64_t b = 0xCD9E8D57ULL * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

/// Philox as a standard engine, for made-up data of checks and benchmarks: the same numbers on
/// every machine.
class PhiloxEngine {
 public:
  using result_type = std::uint32_t;
  explicit constexpr PhiloxEngine(std::uint64_t seed) : seed_(seed) {}
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return 0xffffffffU; }
  constexpr result_type operator()() {
    return Philox(
        {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)},
        {static_cast<std::uint32_t>(next_), static_cast<std::uint32_t>(next_++ >> 32), 0, 1})[0];
  }

 private:
  std::uint64_t seed_;
  std::uint64_t next_ = 0;
};

/// Uniform in [0, 1) with 24 bits, for sampling position `position` of choice `choice` under
/// `seed`.
constexpr float UniformAt(std::uint64_t seed, std::uint32_t choice, std::uint64_t position) {
  const auto random =
      Philox({static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
             {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32),
              choice, 0});
  return static_cast<float>(random[0] >> 8) * 0x1p-24F;
}

/// A number that nobody can foresee, from the operating system: for names and for the seeds of
/// requests that bring none.
std::uint64_t Entropy();

}  // namespace nibble
