#include "kernels/cuda/linear_choice.h"

namespace nibble::cuda {

bool HasBigBlocks(const CudaDevice& device) {
  return device.compute_capability() >= 90 && device.compute_capability() < 120;
}

const char* Name(LinearVariant variant) {
  switch (variant) {
    case LinearVariant::kSmall:
      return "small";
    case LinearVariant::kMedium:
      return "medium";
    case LinearVariant::kLarge:
      return "large";
    case LinearVariant::kTile:
      return "tile";
  }
  return "";
}

LinearVariant ChooseLinear(const CudaDevice& device, const LinearArgs& args) {
  // The medium kernel wins from the first token on, but it does not norm its input.
  const bool wgmma = device.compute_capability() == 90 && args.layout.cols % 8 == 0;
  if (args.residual != nullptr ||
      (HasBigBlocks(device) && !wgmma && args.num_tokens <= kMaxSmallTokens)) {
    return LinearVariant::kSmall;
  }
  if (wgmma) {
    return args.num_tokens <= kMaxMediumTokens ? LinearVariant::kMedium : LinearVariant::kLarge;
  }
  return LinearVariant::kTile;
}

int LaunchLinear(CudaDevice& device, const LinearArgs& args) {
  switch (ChooseLinear(device, args)) {
    case LinearVariant::kSmall:
      return LaunchLinearSmall(args, device.num_sms(), device.stream());
    case LinearVariant::kMedium:
      return LaunchLinearMedium(args, device.num_sms(), device.stream());
    case LinearVariant::kLarge:
      return LaunchLinearLarge(args, device.stream());
    case LinearVariant::kTile:
      break;
  }
  return LaunchLinearTile(args, device.stream());
}

}  // namespace nibble::cuda
