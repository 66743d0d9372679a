#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeFp8(const LinearArgs& args, cudaStream_t stream) {
  return ForLayout<Format::kFp8>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kFp8, kGrid, kUnitCols / kHalfCols>(args, stream);
  });
}

}  // namespace nibble::cuda
