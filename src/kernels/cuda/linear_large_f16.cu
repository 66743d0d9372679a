#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeF16(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kF16>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kF16, kGrid, kUnitCols / kHalfCols>(args, num_sms, stream);
  });
}

int LaunchLinearLarge(const LinearArgs& args, int num_sms, CUstream_st* stream) {
  switch (args.layout.format) {
    case Format::kW4:
      return LaunchLargeW4(args, num_sms, stream);
    case Format::kW8:
      return LaunchLargeW8(args, num_sms, stream);
    case Format::kNf4:
      return LaunchLargeNf4(args, num_sms, stream);
    case Format::kFp8:
      return LaunchLargeFp8(args, num_sms, stream);
    default:
      return LaunchLargeF16(args, num_sms, stream);
  }
}

}  // namespace nibble::cuda
