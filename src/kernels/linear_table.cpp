#include "kernels/linear_table.h"

#include <algorithm>
#include <cstddef>

#include "base/check.h"

namespace nibble {
namespace {

template <typename Kernel, typename List>
std::vector<Kernel> Collect(std::initializer_list<List> lists) {
  std::vector<Kernel> kernels;
  for (const List& list : lists) {
    kernels.insert(kernels.end(), list.kernels, list.kernels + list.count);
  }
  std::ranges::stable_sort(kernels, std::ranges::greater{}, &Kernel::isa);
  return kernels;
}

std::size_t RoundUp(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t ValueBytes(LinearActivation activation) {
  switch (activation) {
    case LinearActivation::kInt16:
      return 2;
    case LinearActivation::kInt8:
      return 1;
    case LinearActivation::kF32:
      break;
  }
  return 4;
}

}  // namespace

std::span<const LinearKernel> LinearKernels() {
  static const std::vector<LinearKernel> kernels = Collect<LinearKernel, LinearKernelList>(
      {Avx512LinearW4Kernels(), Avx512LinearW8Kernels(), Avx512LinearFloatKernels(),
       Avx512LinearCodebookKernels(), Avx2LinearW4Kernels(), Avx2LinearW8Kernels(),
       Avx2LinearFloatKernels(), Avx2LinearCodebookKernels(), RefLinearKernels()});
  return kernels;
}

std::span<const ActivationKernel> ActivationKernels() {
  static const std::vector<ActivationKernel> kernels =
      Collect<ActivationKernel, ActivationKernelList>(
          {Avx512ActivationKernels(), Avx2ActivationKernels(), RefActivationKernels()});
  return kernels;
}

const LinearKernel& SelectLinear(Isa isa, LinearFormat format, LinearActivation activation,
                                 std::int64_t num_rows) {
  for (const LinearKernel& kernel : LinearKernels()) {
    if (kernel.isa <= isa && kernel.format == format && kernel.activation == activation &&
        num_rows >= kernel.min_rows && num_rows <= kernel.max_rows) {
      return kernel;
    }
  }
  CheckFailed(__FILE__, __LINE__, "SelectLinear", "no reference kernel for a format");
}

const ActivationKernel& SelectActivation(Isa isa, LinearActivation activation) {
  for (const ActivationKernel& kernel : ActivationKernels()) {
    if (kernel.isa <= isa && kernel.activation == activation) {
      return kernel;
    }
  }
  CheckFailed(__FILE__, __LINE__, "SelectActivation", "no reference kernel for an activation");
}

std::size_t ActivationBytes(LinearActivation activation, std::int64_t num_rows, std::int64_t cols) {
  const auto rows = static_cast<std::size_t>(num_rows);
  const auto blocks = static_cast<std::size_t>((cols + kActivationBlock - 1) / kActivationBlock);
  std::size_t bytes = RoundUp(rows * blocks * kActivationBlock * ValueBytes(activation));
  if (activation != LinearActivation::kF32) {
    bytes += RoundUp(rows * blocks * sizeof(ActivationBlock)) + RoundUp(rows * sizeof(float));
  }
  return bytes;
}

PackedActivations PlaceActivations(LinearActivation activation, std::int64_t num_rows,
                                   std::int64_t cols, std::byte* memory) {
  PackedActivations packed;
  packed.num_rows = num_rows;
  packed.block_rows = num_rows;
  packed.cols = cols;
  packed.num_blocks = (cols + kActivationBlock - 1) / kActivationBlock;
  if (activation == LinearActivation::kF32) {
    packed.values = reinterpret_cast<float*>(memory);
    return packed;
  }
  const auto values = static_cast<std::size_t>(num_rows * packed.num_blocks);
  packed.limbs = reinterpret_cast<std::int8_t*>(memory);
  memory += RoundUp(values * kActivationBlock * ValueBytes(activation));
  packed.blocks = reinterpret_cast<ActivationBlock*>(memory);
  memory += RoundUp(values * sizeof(ActivationBlock));
  packed.row_scales = reinterpret_cast<float*>(memory);
  return packed;
}

PackedActivations PartOfRows(const PackedActivations& x, LinearActivation activation,
                             std::int64_t row_begin, std::int64_t row_end) {
  PackedActivations part = x;
  part.num_rows = row_end - row_begin;
  if (activation == LinearActivation::kF32) {
    part.values += row_begin * kActivationBlock;
    return part;
  }
  part.limbs += row_begin * kActivationBlock * (activation == LinearActivation::kInt16 ? 2 : 1);
  part.blocks += row_begin;
  part.row_scales += row_begin;
  return part;
}

}  // namespace nibble
