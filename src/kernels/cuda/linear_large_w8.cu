#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeW8(const LinearArgs& args, cudaStream_t stream) {
  return ForLayout<Format::kW8>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kW8, kGrid, kUnitCols / kHalfCols>(args, stream);
  });
}

}  // namespace nibble::cuda
