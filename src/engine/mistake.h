#pragma once

#include <cstdint>

namespace nibble {

/// Seeded mistakes of scheduler and block manager, for the proof that the simulator sees them
/// (tests/sim/mistakes_test.cpp). They exist only in objects compiled with NIBBLE_TEST_MISTAKES; in
/// the product MistakeIs is constant false and the branches are compiled away.
enum class Mistake : std::uint8_t {
  kNone,
  kDroppedDecrement,        // releasing a shared block forgets to count down
  kSkippedTokenCompare,     // a prefix hit trusts the hash alone
  kSaltIgnored,             // prefix cache is shared between tenants
  kFenceSkipped,            // a freed block is reusable while a step in flight still touches it
  kBlockCountOffByOne,      // a table grows one token too late
  kWrongBlocksOnPreempt,    // preemption frees another sequence's blocks
  kReferenceLeakOnEnd,      // an ended sequence keeps its blocks
  kPartialBlockRegistered,  // a block enters the prefix index before it is full
  kEvictsHeldBlock,         // a revived block stays in the eviction order
  kLookaheadNotDiscarded,   // a token that was in flight when its sequence ended is sent on
  kEarlyRegistration,       // blocks enter the prefix index at launch, before they are written
  kDeviceTokenForgotten,    // a lookahead step is given a stale token of the host
  kOldestPreempted,         // preemption takes the oldest
  kSpillForgotten,          // a slot is given to an evicted block, but its copy is not planned
  kHostCompareSkipped,      // a hit in host memory trusts the hash alone
  kSlotNotPinned,           // a slot may be reused while a restore from it is planned
  kFailedCopiesKept,        // the copies of a launch that failed are believed
  kCount,
};

#ifdef NIBBLE_TEST_MISTAKES
inline Mistake active_mistake = Mistake::kNone;
inline bool MistakeIs(Mistake mistake) { return active_mistake == mistake; }
#else
constexpr bool MistakeIs(Mistake /*mistake*/) { return false; }
#endif

}  // namespace nibble
