#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeF16(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return LaunchLargeOf<Format::kF16, Grid::kSymmetric>(args, num_sms, stream);
}

int LaunchLinearLarge(const LinearArgs& args, int num_sms, CUstream_st* stream) {
  switch (args.layout.format) {
    case Format::kW4:
      return LaunchLargeW4(args, num_sms, stream);
    case Format::kW8:
      return LaunchLargeW8(args, num_sms, stream);
    default:
      return LaunchLargeF16(args, num_sms, stream);
  }
}

CUresult EncodeTensorMap(CUtensorMap* map, const void* data, std::uint64_t columns,
                         std::uint64_t rows, std::uint64_t row_bytes, std::uint32_t box_rows) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault,
                                     &found);
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(symbol) : nullptr;
  }();
  if (encode == nullptr) {
    return CUDA_ERROR_NOT_FOUND;
  }
  const cuuint64_t dims[2] = {columns, rows};
  const cuuint64_t strides[1] = {row_bytes};
  const cuuint32_t box[2] = {kHalfCols, box_rows};
  const cuuint32_t steps[2] = {1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(data), dims, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace nibble::cuda
