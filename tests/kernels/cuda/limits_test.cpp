#include <gtest/gtest.h>

#include "kernels/kernel_table.h"
#include "kernels/limits_probe.h"
#include "tests/kernels/cuda/cuda_fixture.h"

namespace nibble::cuda {
namespace {

class CudaLimits : public CudaTest {};

TEST_F(CudaLimits, AreThoseOfACard) {
  const auto limits = MeasureCardLimits(device());
  ASSERT_TRUE(limits) << limits.error().message;
  EXPECT_FALSE(limits->name.empty());
  EXPECT_GT(limits->read_gb_per_s, 100.0);  // a small card
  EXPECT_LT(limits->read_gb_per_s, 20'000.0);
  EXPECT_GT(limits->copy_gb_per_s, 1.0);
  EXPECT_LT(limits->copy_gb_per_s, limits->read_gb_per_s);
  EXPECT_GT(limits->graph_node_us, 0.1);
  EXPECT_LT(limits->graph_node_us, 20.0);
  EXPECT_LT(limits->dependent_node_us, 1.2 * limits->graph_node_us);
  EXPECT_NE(limits->f16_gflop_per_s > 0.0, !limits->f16_missing.empty());
  EXPECT_TRUE(device().Health());
}

TEST_F(CudaLimits, NoKernelIsFasterThanTheCard) {
  const auto limits = MeasureCardLimits(device());
  ASSERT_TRUE(limits) << limits.error().message;
  for (const KernelInfo& info : CudaKernelInfos()) {
    for (const KernelSpeed& speed : info.bench(device())) {
      EXPECT_GT(speed.seconds, 0.0) << info.name << ": " << speed.shape;
      EXPECT_GE(speed.num_runs, 10) << info.name;
      // A little more than the stream's rate may be measured, twice would be a cache's.
      EXPECT_LT(FractionOfLimit(speed, *limits), 1.1) << info.name << ": " << speed.shape;
    }
  }
  EXPECT_TRUE(device().Health());
}

}  // namespace
}  // namespace nibble::cuda
