#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

class Nvml;

/// Energy that the processor's packages (RAPL) or a card (NVML) have used, from the hardware's own
/// counters. Not the whole machine's: neither knows of fans, disks or the power supply.
class EnergyMeter {
 public:
  /// Of all packages below the kernel's powercap folder; on most systems only root may read it.
  static EnergyMeter OfCpu(const std::filesystem::path& powercap = "/sys/class/powercap");
  /// Of the driver's card `ordinal`.
  static EnergyMeter OfCard(int ordinal);
  EnergyMeter(EnergyMeter&&) noexcept;
  EnergyMeter& operator=(EnergyMeter&&) noexcept;
  ~EnergyMeter();

  /// Joules since the meter was made, or nothing, and then reason() says why. To be asked every few
  /// minutes at least: RAPL's counters wrap around.
  std::optional<double> Joules();
  /// Why there are none: "/sys/class/powercap/intel-rapl:0/energy_uj cannot be read (root may)".
  const std::string& reason() const { return reason_; }

 private:
  EnergyMeter() = default;
  struct Package {
    std::filesystem::path counter;
    std::uint64_t range_uj = 0;  // the counter starts again at 0 after this
    std::uint64_t last_uj = 0;
  };
  std::vector<Package> packages_;
  std::unique_ptr<Nvml> nvml_;
  std::string bus_id_;
  double joules_ = 0.0;        // of the packages
  double first_joules_ = 0.0;  // of the card's counter
  std::string reason_;
};

}  // namespace nibble
