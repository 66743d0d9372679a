#include "kernels/cuda/linear_small.cuh"

namespace nibble::cuda {

int LaunchSmallW8(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  switch (args.layout.grid) {
    case Grid::kZeroPoints:
      return LaunchSmallOf<Format::kW8, Grid::kZeroPoints>(args, num_sms, stream);
    case Grid::kMinima:
      return LaunchSmallOf<Format::kW8, Grid::kMinima>(args, num_sms, stream);
    default:
      return LaunchSmallOf<Format::kW8, Grid::kSymmetric>(args, num_sms, stream);
  }
}

}  // namespace nibble::cuda
