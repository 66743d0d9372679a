#include "engine/sequence.h"

#include <array>

#include "base/check.h"

namespace nibble {
namespace {

constexpr int kNumStates = 6;
using Row = std::array<bool, kNumStates>;

// to:        new    queued prefill decode preempt ended
constexpr std::array<Row, kNumStates> kLegal = {{
    Row{false, true, false, false, false, true},   // new
    Row{false, false, true, false, false, true},   // queued
    Row{false, false, false, true, true, true},    // prefill
    Row{false, false, false, false, true, true},   // decode
    Row{false, true, false, false, false, true},   // preempted
    Row{false, false, false, false, false, false}  // ended
}};

}  // namespace

const char* Name(SequenceState state) {
  constexpr std::array<const char*, kNumStates> kNames = {"new",    "queued",    "prefill",
                                                          "decode", "preempted", "ended"};
  return kNames[static_cast<std::size_t>(state)];
}

bool IsLegal(SequenceState from, SequenceState to) {
  return kLegal[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)];
}

void Sequence::Become(SequenceState next) {
  NIBBLE_CHECK(IsLegal(state_, next), "an illegal transition of a sequence");
  state_ = next;
}

}  // namespace nibble
