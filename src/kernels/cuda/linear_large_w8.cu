#include "kernels/cuda/linear_large.cuh"

namespace nibble::cuda {

int LaunchLargeW8(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  switch (args.layout.grid) {
    case Grid::kZeroPoints:
      return LaunchLargeOf<Format::kW8, Grid::kZeroPoints>(args, num_sms, stream);
    case Grid::kMinima:
      return LaunchLargeOf<Format::kW8, Grid::kMinima>(args, num_sms, stream);
    default:
      return LaunchLargeOf<Format::kW8, Grid::kSymmetric>(args, num_sms, stream);
  }
}

}  // namespace nibble::cuda
