#include "kernels/kernel_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/isa.h"
#include "kernels/linear_check.h"
#include "kernels/linear_table.h"

namespace nibble {
namespace {

TEST(KernelTable, EveryVariantThisMachineRunsAgreesWithRef) {
  std::set<std::string> names;
  for (const KernelInfo& info : KernelTable()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name << " twice";
    const KernelReport report = info.check(20261124);
    EXPECT_TRUE(report.ok) << info.name << ": " << report.detail;
    if (info.isa <= DetectIsa()) {
      EXPECT_GT(report.num_cases, 0) << info.name;
    } else {
      GTEST_LOG_(INFO) << info.name << " skipped: " << report.detail;
    }
  }
  EXPECT_GE(names.size(), 30U);
}

void RunWrongly(const LinearCall& call) {
  SelectLinear(Isa::kRef, call.layout.format, LinearActivation::kInt16, 1).run(call);
  // One bit of the last output of the last row.
  float& last = call.y[(call.x.num_rows - 1) * call.y_stride + call.layout.rows - 1];
  last = std::nextafter(last, 1e30F);
}

void WriteBeyond(const LinearCall& call) {
  SelectLinear(Isa::kRef, call.layout.format, LinearActivation::kInt16, 1).run(call);
  call.y[call.layout.rows] = 0.0F;
}

TEST(KernelTable, ACheckCatchesOneWrongBitAndOneStrayWrite) {
  LinearKernel kernel = SelectLinear(Isa::kRef, LinearFormat::kW4, LinearActivation::kInt16, 1);
  EXPECT_TRUE(CheckLinearKernel(kernel, 1).ok);
  kernel.run = RunWrongly;
  EXPECT_FALSE(CheckLinearKernel(kernel, 1).ok);
  EXPECT_NE(CheckLinearKernel(kernel, 1).detail, "");
  kernel.run = WriteBeyond;
  EXPECT_FALSE(CheckLinearKernel(kernel, 1).ok);
}

TEST(KernelTable, DispatchTakesTheBestLevelForTheShape) {
  const auto name = [](Isa isa, std::int64_t rows) {
    return std::string(SelectLinear(isa, LinearFormat::kW4, LinearActivation::kInt16, rows).name);
  };
  EXPECT_EQ(name(Isa::kRef, 1), "linear.w4.int16.ref");
  EXPECT_EQ(name(Isa::kAvx2, 7), "linear.w4.int16.avx2");
  EXPECT_EQ(name(Isa::kAvx512, 4), "linear.w4.int16.avx512.rows");
  EXPECT_EQ(name(Isa::kAvx512, 5), "linear.w4.int16.avx512.batch");
  EXPECT_EQ(name(Isa::kAmx, 512), "linear.w4.int16.avx512.batch");
}

TEST(KernelTable, FractionsOfTheLimit) {
  MachineLimits limits;
  limits.read_gb_per_s = 10.0;
  limits.int8_gop_per_s = 100.0;
  KernelSpeed speed;
  speed.bytes = 5e9;
  speed.ops = 25e9;
  speed.seconds = 1.0;
  EXPECT_DOUBLE_EQ(FractionOfLimit(speed, limits), 0.5);
  speed.limit = KernelSpeed::Limit::kInt8;
  speed.limb_products = 2.0;
  EXPECT_DOUBLE_EQ(FractionOfLimit(speed, limits), 0.5);
  speed.limit = KernelSpeed::Limit::kF32;
  EXPECT_EQ(FractionOfLimit(speed, limits), 0.0);
}

}  // namespace
}  // namespace nibble
