#pragma once

#include <cstdint>
#include <utility>

namespace nibble {

// Ids never mix, cost nothing, and work in device code.
enum class RequestId : std::uint64_t {};   // one client request; n choices share it
enum class SequenceId : std::uint64_t {};  // one choice of one request
enum class BlockId : std::int32_t {};      // a block of the KV cache
enum class HostSlot : std::int32_t {};     // room for a block's content in host memory
enum class TokenId : std::int32_t {};      // an entry of the vocabulary

/// The number inside an id, for indexing and printing.
template <typename Id>
constexpr auto Raw(Id id) {
  return static_cast<std::underlying_type_t<Id>>(id);
}

}  // namespace nibble
