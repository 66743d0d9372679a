#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallF16(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kF16>(
      chain.front().layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
        return LaunchSmall<Format::kF16, kGrid, kUnitCols, kSubCols>(chain, num_sms, stream);
      });
}

int LaunchLinearChain(std::span<const LinearArgs> args, int num_sms, CUstream_st* stream) {
  switch (args.front().layout.format) {
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

int LaunchLinearSmall(const LinearArgs& args, int num_sms, CUstream_st* stream) {
  return LaunchLinearChain({&args, 1}, num_sms, stream);
}

}  // namespace nibble::cuda
