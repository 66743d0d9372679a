#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeW4(const LinearArgs& args, cudaStream_t stream) {
  return ForLayout<Format::kW4>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchLarge<Format::kW4, kGrid, kUnitCols / kHalfCols>(args, stream);
  });
}

}  // namespace nibble::cuda
