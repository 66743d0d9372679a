#pragma once

#include <array>
#include <cstddef>

#include "codec/codebook.h"
#include "codec/quantized_tensor.h"
#include "kernels/cuda/gptq_kernel.h"
#include "solve/grid.h"

namespace nibble {

// GridSearch as the card's kernels take it.

/// NearestCode of a codebook, found by asking it: the same code for every float that is not NaN.
cuda::CodeTable MakeCodeTable(Codebook codebook);

/// The tables that the rules of a grid may need: of its codebook, and of e4m3 scales.
inline constexpr std::size_t kNumCodeTables = 2;
std::array<cuda::CodeTable, kNumCodeTables> TablesOf(const WeightSpec& spec);

/// tables: those of TablesOf, in the card's memory.
cuda::GridRules RulesOf(const WeightSpec& spec, const GridSearch::Options& options,
                        const cuda::CodeTable* tables);

}  // namespace nibble
