#pragma once

#include "engine/sequence.h"
#include "kernels/sampling.h"

namespace nibble {

/// What the device needs to draw the token of `position` for a sequence. Randomness depends on
/// (seed, choice, position) only, so a sequence that was preempted and computed again goes on with
/// the same tokens. The spans point into the sequence and its request, which live until the step
/// has retired.
SampleRow BuildSampleRow(const Sequence& sequence, std::int32_t position);

}  // namespace nibble
