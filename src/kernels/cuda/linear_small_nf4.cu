#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallNf4(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kNf4>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchSmall<Format::kNf4, kGrid, kUnitCols, kSubCols>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
