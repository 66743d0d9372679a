#include "kernels/cuda/linear_tile.cuh"

namespace nibble::cuda {

int LaunchLinearTile(const LinearArgs& args, CUstream_st* stream) {
  switch (args.layout.format) {
    case Format::kW4:
      return LaunchTileOf<Format::kW4>(args, stream);
    case Format::kW8:
      return LaunchTileOf<Format::kW8>(args, stream);
    case Format::kNf4:
      return LaunchTile<Format::kNf4, Grid::kSymmetric>(args, stream);
    case Format::kFp8:
      return args.layout.grid == Grid::kRow
                 ? LaunchTile<Format::kFp8, Grid::kRow>(args, stream)
                 : LaunchTile<Format::kFp8, Grid::kSymmetric>(args, stream);
    default:
      return LaunchTile<Format::kF16, Grid::kSymmetric>(args, stream);
  }
}

}  // namespace nibble::cuda
