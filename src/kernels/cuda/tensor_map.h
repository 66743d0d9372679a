#pragma once

#include <cstdint>

struct CUtensorMap_st;  // CUtensorMap of <cuda.h>, which a build without CUDA does not have

namespace nibble::cuda {

/// A tensor map (cuTensorMapEncodeTiled) of an fp16 matrix [rows, columns] whose rows are
/// `row_bytes` apart, a multiple of 16: boxes of 64 columns and `box_rows` rows, under the 128-byte
/// swizzle. Returns a cudaError_t.
int EncodeTensorMap(CUtensorMap_st* map, const void* data, std::int64_t columns, std::int64_t rows,
                    std::int64_t row_bytes, int box_rows);

}  // namespace nibble::cuda
