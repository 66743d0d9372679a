#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallW4(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kW4>(chain.front().layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchSmall<Format::kW4, kGrid, kUnitCols, kSubCols>(chain, num_sms, stream);
  });
}

}  // namespace nibble::cuda
