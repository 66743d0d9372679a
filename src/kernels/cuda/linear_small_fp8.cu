#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallFp8(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kFp8>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchSmall<Format::kFp8, kGrid, kUnitCols, kSubCols>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
