#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallW4(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kW4>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchSmall<Format::kW4, kGrid, kUnitCols, kSubCols>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
