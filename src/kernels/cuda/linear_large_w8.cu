#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeW8(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kW8>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kW8, kGrid, kUnitCols / kHalfCols>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
