#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallF16(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kF16>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchSmall<Format::kF16, kGrid, kUnitCols, kSubCols>(args, num_sms, stream);
  });
}

int LaunchLinearSmall(const LinearArgs& args, int num_sms, CUstream_st* stream) {
  switch (args.layout.format) {
    case Format::kW4:
      return LaunchSmallW4(args, num_sms, stream);
    case Format::kW8:
      return LaunchSmallW8(args, num_sms, stream);
    case Format::kNf4:
      return LaunchSmallNf4(args, num_sms, stream);
    case Format::kFp8:
      return LaunchSmallFp8(args, num_sms, stream);
    default:
      return LaunchSmallF16(args, num_sms, stream);
  }
}

}  // namespace nibble::cuda
