#include "solve/linear_solver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "device/cuda_start.h"
#include "device/vendor_library.h"

namespace nibble {
namespace {

using testing::HasSubstr;

// Needs no card.
TEST(LinearSolver, SaysWhichLibraryOfACardIsMissing) {
  EXPECT_TRUE(CheckLinearSolver(DeviceKind::kCpu));
  const auto result = CheckLinearSolver(DeviceKind::kCuda);
  std::string missing = BuiltWithCuda() ? "" : "this build has no CUDA";
  for (const auto name : {VendorLibrary::Name::kCublas, VendorLibrary::Name::kCusolver}) {
    if (missing.empty() && !VendorLibrary(name).found()) {
      missing = VendorLibrary::FileName(name);
    }
  }
  ASSERT_EQ(result.has_value(), missing.empty());
  if (!result) {
    EXPECT_EQ(result.error().code, ErrorCode::kUnavailable);
    EXPECT_THAT(result.error().message, HasSubstr(missing));
    EXPECT_THAT(result.error().message, HasSubstr("--device cpu"));
  }
}

}  // namespace
}  // namespace nibble
