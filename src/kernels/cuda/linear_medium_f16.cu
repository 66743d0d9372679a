#include "kernels/cuda/linear_medium_launch.cuh"

namespace nibble::cuda {

int LaunchMediumF16(const LinearArgs& args, int num_sms, cudaStream_t stream) {
  return ForLayout<Format::kF16>(args.layout, [&]<Grid kGrid, int kUnitCols, int kSubCols> {
    return LaunchMedium<Format::kF16, kGrid, kSubCols == 32>(args, num_sms, stream);
  });
}

int MediumPairs() {
  static const int pairs = [] {
    // As large as any of them.
    auto* kernel = LinearMedium<Format::kF16, Grid::kSymmetric, false, 32, 1>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMediumSmem);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2);
    config.blockDim = dim3(kMediumThreads);
    config.dynamicSmemBytes = kMediumSmem;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = 2;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int count = 0;
    return cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess ? count : 0;
  }();
  return pairs;
}

int LaunchLinearMedium(const LinearArgs& args, int num_sms, CUstream_st* stream) {
  switch (args.layout.format) {
    case Format::kW4:
      return LaunchMediumW4(args, num_sms, stream);
    case Format::kW8:
      return LaunchMediumW8(args, num_sms, stream);
    case Format::kNf4:
      return LaunchMediumNf4(args, num_sms, stream);
    case Format::kFp8:
      return LaunchMediumFp8(args, num_sms, stream);
    default:
      return LaunchMediumF16(args, num_sms, stream);
  }
}

}  // namespace nibble::cuda
