#include "device/energy_meter.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

TEST(EnergyMeter, AddsUpPackagesAcrossAWrap) {
  const testing::TempFolder folder;
  for (const char* package : {"intel-rapl:0/", "intel-rapl:1/"}) {
    folder.Write(package + std::string("max_energy_range_uj"), "10000000\n");
    folder.Write(package + std::string("energy_uj"), "9000000\n");
  }
  folder.Write("intel-rapl:0:0/energy_uj", "1\n");  // a part of package 0
  EnergyMeter meter = EnergyMeter::OfCpu(folder.path());
  EXPECT_EQ(meter.Joules(), 0.0) << meter.reason();
  folder.Write("intel-rapl:0/energy_uj", "9500000\n");
  folder.Write("intel-rapl:1/energy_uj", "2000000\n");  // past its range: 3 J
  EXPECT_DOUBLE_EQ(meter.Joules().value(), 3.5);
  folder.Write("intel-rapl:0/energy_uj", "9600000\n");
  EXPECT_DOUBLE_EQ(meter.Joules().value(), 3.6);
}

TEST(EnergyMeter, SaysWhyThereIsNone) {
  const testing::TempFolder folder;
  EnergyMeter none = EnergyMeter::OfCpu(folder.path());
  EXPECT_FALSE(none.Joules());
  EXPECT_NE(none.reason().find("no RAPL counter"), std::string::npos) << none.reason();
  folder.Write("intel-rapl:0/energy_uj", "");
  EnergyMeter unreadable = EnergyMeter::OfCpu(folder.path());
  EXPECT_FALSE(unreadable.Joules());
  EXPECT_NE(unreadable.reason().find("cannot be read"), std::string::npos) << unreadable.reason();
}

}  // namespace
}  // namespace nibble
