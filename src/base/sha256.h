#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace nibble {

/// SHA-256 over any number of updates; the digest as 64 lower-case hex digits.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(std::span<const std::byte> bytes);
  /// Ends the hash; Update must not be called afterwards.
  std::string Hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(std::span<const std::byte> bytes);

}  // namespace nibble
