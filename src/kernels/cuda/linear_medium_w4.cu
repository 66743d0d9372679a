#include "kernels/cuda/linear_medium_launch.cuh"

namespace nibble::cuda {

int LaunchMediumW4(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kW4>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchMedium<Format::kW4, kGrid, kSubCols == 32>(args, num_sms, stream);
  });
}

}  // namespace nibble::cuda
