#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "device/vendor_library.h"

namespace nibble {

/// What NVML, the driver's own monitor, knows of a card. Each answer is empty where NVML is not
/// there or does not say it. Cards go by their PCI bus id, since NVML counts them its own way.
class Nvml {
 public:
  Nvml();
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  bool started() const { return started_; }
  std::string DriverVersion() const;
  std::optional<std::uint64_t> FreeBytes(const std::string& bus_id) const;
  /// Energy since the driver was loaded (Volta and newer).
  std::optional<double> Joules(const std::string& bus_id) const;

 private:
  void* Card(const std::string& bus_id) const;
  VendorLibrary library_;
  bool started_ = false;
};

/// The PCI bus id of the driver's card `ordinal`; empty without a driver or such a card.
std::string PciBusId(int ordinal);

}  // namespace nibble
