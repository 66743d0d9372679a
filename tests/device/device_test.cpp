#include "device/device.h"

#include <gtest/gtest.h>

#include "device/populate.h"

namespace nibble {
namespace {

TEST(CpuDevice, LargeBuffersAreZeroAndStartOnAHugePage) {
  const auto device = MakeCpuDevice(1);
  auto buffer = device->Allocate("kv_cache", 5'000'000);
  ASSERT_TRUE(buffer) << buffer.error().message;
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % (2 << 20), 0U);
  for (std::size_t i = 0; i < buffer->size_bytes(); i += 4096) {
    ASSERT_EQ(buffer->data()[i], std::byte{0});
  }
}

TEST(CpuDevice, PopulatingKeepsWhatTheMemoryHolds) {
  const auto device = MakeCpuDevice(1);
  auto buffer = device->Allocate("kv_cache", 5'000'000);
  ASSERT_TRUE(buffer) << buffer.error().message;
  buffer->data()[4'999'999] = std::byte{7};
  if (!PopulatePages(buffer->data(), buffer->size_bytes())) {
    GTEST_SKIP() << "this kernel has no MADV_POPULATE_WRITE";
  }
  EXPECT_EQ(buffer->data()[4'999'999], std::byte{7});
  EXPECT_EQ(buffer->data()[0], std::byte{0});
}

TEST(CpuDevice, EveryAllocationLandsInItsLine) {
  const auto device = MakeCpuDevice(1);
  device->ledger().Plan("weights", 1000);
  const auto a = device->Allocate("weights", 600);
  const auto b = device->Allocate("weights", 300);
  const auto lines = device->ledger().lines();
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0].planned_bytes, 1000U);
  EXPECT_EQ(lines[0].allocated_bytes, 900U);
}

TEST(CpuDevice, NothingIsAllocatedAfterSeal) {
  const auto device = MakeCpuDevice(1);
  device->ledger().Seal();
  const auto late = device->Allocate("workspace", 64);
  ASSERT_FALSE(late);
  EXPECT_NE(late.error().message.find("workspace"), std::string::npos);
}

TEST(CpuDevice, AnImpossibleSizeIsAnErrorThatNamesTheLine) {
  const auto device = MakeCpuDevice(1);
  const auto huge = device->Allocate("kv_cache", std::size_t{1} << 55);
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(huge.error().message.find("kv_cache"), std::string::npos);
}

TEST(DeviceBuffer, MovingKeepsTheAddress) {
  const auto device = MakeCpuDevice(1);
  auto buffer = device->Allocate("x", 128);
  ASSERT_TRUE(buffer);
  std::byte* address = buffer->data();
  const DeviceBuffer moved = std::move(*buffer);
  EXPECT_EQ(moved.data(), address);
}

}  // namespace
}  // namespace nibble
