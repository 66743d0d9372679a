#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "base/result.h"
#include "checkpoint/compressed_tensors_scheme.h"
#include "checkpoint/stored_weight.h"

namespace nibble {

/// Rows and columns of FP8 weights that share a scale, where they come in blocks.
inline constexpr std::int64_t kFp8Block = 128;

/// A weight whose tensors bear its own name: floats, compressed-tensors (pack-, int-, float-,
/// mxfp4-pack- and nvfp4-pack-quantized), FP8. What is stored decides; `scheme`, what the config
/// says of it (nullptr: nothing), settles only what shapes leave open. Names of the tensors that
/// belong to it are added to `used`; `folder` is named in errors. Errors: kNotFound,
/// kCorruptFile for tensors that contradict each other or `wanted`, kUnsupported.
Result<std::unique_ptr<StoredWeight>> FindTensorWeight(const ExpectedWeight& wanted,
                                                       const CompressedTensorsScheme* scheme,
                                                       const TensorMap& tensors,
                                                       const std::string& folder,
                                                       std::set<std::string>& used);

}  // namespace nibble
