#include "kernels/isa.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace nibble {
namespace {

constexpr std::array<const char*, 4> kNames = {"ref", "avx2", "avx512", "amx"};

struct CpuFeatures {
  std::string brand;
  bool avx2 = false;    // with FMA and F16C, and the system saves ymm
  bool avx512 = false;  // F BW VL DQ, and the system saves zmm
  bool vnni = false;
  bool bf16 = false;
  bool amx_int8 = false;
};

#if defined(__x86_64__)
std::uint64_t ReadXcr0() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

CpuFeatures ReadFeatures() {
  CpuFeatures f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  const auto bit = [](unsigned word, int i) { return ((word >> i) & 1U) != 0; };
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) {
    return f;
  }
  const bool fma = bit(c, 12);
  const bool f16c = bit(c, 29);
  const std::uint64_t xcr0 = bit(c, 27) ? ReadXcr0() : 0;
  const bool ymm = (xcr0 & 0x6U) == 0x6U;
  const bool zmm = (xcr0 & 0xe6U) == 0xe6U;
  const bool tiles = (xcr0 & 0x60000U) == 0x60000U;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    f.avx2 = ymm && fma && f16c && bit(b, 5);
    f.avx512 = f.avx2 && zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    f.vnni = f.avx512 && bit(c, 11);
    f.amx_int8 = f.vnni && tiles && bit(d, 24) && bit(d, 25);
  }
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    f.bf16 = f.avx512 && bit(a, 5);
  }
  std::array<char, 49> brand{};
  for (unsigned i = 0; i < 3; ++i) {
    std::array<unsigned, 4> words{};
    if (__get_cpuid(0x80000002U + i, words.data(), &words[1], &words[2], &words[3]) != 0) {
      std::memcpy(brand.data() + std::size_t{16} * i, words.data(), 16);
    }
  }
  f.brand = brand.data();
  while (!f.brand.empty() && f.brand.back() == ' ') {
    f.brand.pop_back();
  }
  f.brand.erase(0, f.brand.find_first_not_of(' '));
  return f;
}
#else
CpuFeatures ReadFeatures() { return {}; }
#endif

const CpuFeatures& Features() {
  static const CpuFeatures features = ReadFeatures();
  return features;
}

// The highest level that kernels exist for.
Isa HighestWithKernels() { return DetectIsa() < Isa::kAvx512 ? DetectIsa() : Isa::kAvx512; }

std::atomic<Isa>& Current() {
  static std::atomic<Isa> current{HighestWithKernels()};
  return current;
}

}  // namespace

const char* Name(Isa isa) { return kNames[static_cast<std::size_t>(isa)]; }

std::optional<Isa> ParseIsa(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) {
      return static_cast<Isa>(i);
    }
  }
  return std::nullopt;
}

Isa DetectIsa() {
  const CpuFeatures& f = Features();
  return f.amx_int8 ? Isa::kAmx : f.vnni ? Isa::kAvx512 : f.avx2 ? Isa::kAvx2 : Isa::kRef;
}

Isa CurrentIsa() { return Current().load(std::memory_order_relaxed); }

bool ForceIsa(Isa isa) {
  if (isa > DetectIsa()) {
    return false;
  }
  Current().store(isa < HighestWithKernels() ? isa : HighestWithKernels(),
                  std::memory_order_relaxed);
  return true;
}

std::string DescribeCpu() {
  const CpuFeatures& f = Features();
  std::string text = f.brand.empty() ? "unknown CPU" : f.brand;
  text += ":";
  if (f.avx512) {
    text += " avx512";
  } else if (f.avx2) {
    text += " avx2";
  } else {
    text += " no avx2";
  }
  if (f.vnni) {
    text += " vnni";
  }
  if (f.bf16) {
    text += " bf16";
  }
  text += f.amx_int8 ? " amx" : " (no amx)";
  return text;
}

}  // namespace nibble
