#include "device/cuda_start.h"

#include <gtest/gtest.h>

#include <string>

#include "device/device.h"

namespace nibble {
namespace {

TEST(ExplainCudaStart, NamesWhatIsMissingAndHowToMendIt) {
  const struct {
    int error;
    int driver_version;
    const char* says;
  } kCases[] = {
      {35, 0, "no NVIDIA driver is installed"},
      {100, 0, "no NVIDIA driver is installed"},
      {35, 12040, "speaks CUDA 12.4 and nibble needs 13.0: update the driver"},
      {100, 13000, "CUDA_VISIBLE_DEVICES"},
      {46, 13000, "exclusive mode"},
      {34, 0, "stub"},
      {34, 13000, "stub"},
      {802, 13000, "nvidia-fabricmanager"},
      {803, 13000, "another version than the kernel's driver"},
      {999, 13010, "unknown error (CUDA error 999)"},
  };
  for (const auto& c : kCases) {
    const std::string text = ExplainCudaStart(c.error, c.driver_version, "unknown error", "");
    EXPECT_NE(text.find(c.says), std::string::npos) << text;
  }
}

TEST(ExplainCudaStart, ALibraryThatIsThereAndBrokenIsNotCalledMissing) {
  const std::string text = ExplainCudaStart(35, 0, "", "/x/libcuda.so.1: file too short");
  EXPECT_NE(text.find("/x/libcuda.so.1: file too short"), std::string::npos) << text;
  EXPECT_EQ(text.find("was not found"), std::string::npos) << text;
}

TEST(MakeCudaDevice, WithoutACardSaysWhatIsMissing) {
  const auto device = MakeCudaDevice(0, 1);
  if (device) {
    GTEST_SKIP() << "this machine has a card";
  }
  EXPECT_EQ(device.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(device.error().message.find("--device cpu"), std::string::npos)
      << device.error().message;
}

TEST(MakeCudaDevice, ACardThatDoesNotExistIsUnavailable) {
  const auto device = MakeCudaDevice(4096, 1);
  ASSERT_FALSE(device);
  EXPECT_EQ(device.error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace nibble
