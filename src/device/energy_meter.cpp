#include "device/energy_meter.h"

#include <algorithm>
#include <fstream>
#include <system_error>
#include <utility>

#include "device/nvml.h"

namespace nibble {
namespace {

std::optional<std::uint64_t> ReadNumber(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

// "intel-rapl:0", on AMD's processors, too; "intel-rapl:0:1" is a part of it and would count twice.
bool IsPackage(const std::filesystem::path& folder) {
  const std::string name = folder.filename().string();
  return name.starts_with("intel-rapl:") && std::ranges::count(name, ':') == 1;
}

}  // namespace

EnergyMeter::EnergyMeter(EnergyMeter&&) noexcept = default;
EnergyMeter& EnergyMeter::operator=(EnergyMeter&&) noexcept = default;
EnergyMeter::~EnergyMeter() = default;

EnergyMeter EnergyMeter::OfCpu(const std::filesystem::path& powercap) {
  EnergyMeter meter;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(powercap, error)) {
    if (!IsPackage(entry.path())) {
      continue;
    }
    const auto counter = entry.path() / "energy_uj";
    const auto now = ReadNumber(counter);
    const auto range = ReadNumber(entry.path() / "max_energy_range_uj");
    if (!now || !range) {
      meter.packages_.clear();
      meter.reason_ = counter.string() + " cannot be read (root may)";
      return meter;
    }
    meter.packages_.push_back({counter, *range, *now});
  }
  if (meter.packages_.empty()) {
    meter.reason_ = "no RAPL counter below " + powercap.string();
  }
  return meter;
}

EnergyMeter EnergyMeter::OfCard(int ordinal) {
  EnergyMeter meter;
  meter.nvml_ = std::make_unique<Nvml>();
  meter.bus_id_ = PciBusId(ordinal);
  const auto joules = meter.nvml_->Joules(meter.bus_id_);
  if (joules) {
    meter.first_joules_ = *joules;
  } else {
    meter.reason_ = meter.nvml_->started() ? "this card has no energy counter" : "no NVML";
  }
  return meter;
}

std::optional<double> EnergyMeter::Joules() {
  if (!reason_.empty()) {
    return std::nullopt;
  }
  if (nvml_ != nullptr) {
    const auto joules = nvml_->Joules(bus_id_);
    return joules ? std::optional(*joules - first_joules_) : std::nullopt;
  }
  for (Package& package : packages_) {
    const auto now = ReadNumber(package.counter);
    if (!now) {
      reason_ = package.counter.string() + " can no longer be read";
      return std::nullopt;
    }
    const std::uint64_t used = *now >= package.last_uj ? *now - package.last_uj
                                                       : *now + package.range_uj - package.last_uj;
    joules_ += static_cast<double>(used) * 1e-6;
    package.last_uj = *now;
  }
  return joules_;
}

}  // namespace nibble
