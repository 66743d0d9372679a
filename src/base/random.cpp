#include "base/random.h"

#include <random>

namespace nibble {

std::uint64_t Entropy() {
  thread_local std::random_device device;
  return (std::uint64_t{device()} << 32U) | device();
}

}  // namespace nibble
