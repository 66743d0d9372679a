#include "kernels/cuda/linear_tile.cuh"

namespace nibble::cuda {

int LaunchLinearTile(const LinearArgs& args, CUstream_st* stream) {
  switch (args.layout.format) {
    case Format::kW4:
      return LaunchTileOf<Format::kW4>(args, stream);
    case Format::kW8:
      return LaunchTileOf<Format::kW8>(args, stream);
    default:
      return LaunchTile<Format::kF16, Grid::kSymmetric>(args, stream);
  }
}

}  // namespace nibble::cuda
