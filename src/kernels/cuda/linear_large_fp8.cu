#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeFp8(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kFp8>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kFp8, kGrid, kUnitCols / kHalfCols>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
