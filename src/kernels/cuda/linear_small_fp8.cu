#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallFp8(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kFp8>(
      chain.front().layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
        return LaunchSmall<Format::kFp8, kGrid, kUnitCols, kSubCols>(chain, num_sms, stream);
      });
}

}  // namespace nibble::cuda
