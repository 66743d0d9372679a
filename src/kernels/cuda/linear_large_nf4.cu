#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeNf4(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kNf4>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kNf4, kGrid, kUnitCols / kHalfCols>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
