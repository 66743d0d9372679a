#include "device/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/text.h"

namespace nibble {

MemoryLedger::Line& MemoryLedger::Find(std::string_view name, MemoryPlace place) {
  for (Line& line : lines_) {
    if (line.name == name) {
      return line;
    }
  }
  return lines_.emplace_back(Line{.name = std::string(name), .place = place});
}

void MemoryLedger::Plan(std::string_view line, std::uint64_t bytes, MemoryPlace place) {
  const std::lock_guard lock(mutex_);
  Find(line, place).planned_bytes += bytes;
}

std::vector<MemoryLedger::Line> MemoryLedger::lines() const {
  const std::lock_guard lock(mutex_);
  return lines_;
}

std::uint64_t MemoryLedger::planned_bytes() const {
  return planned_bytes(MemoryPlace::kDevice) + planned_bytes(MemoryPlace::kHost);
}

std::uint64_t MemoryLedger::planned_bytes(MemoryPlace place) const {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const Line& line : lines_) {
    sum += line.place == place ? line.planned_bytes : 0;
  }
  return sum;
}

std::uint64_t MemoryLedger::allocated_bytes() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const Line& line : lines_) {
    sum += line.allocated_bytes;
  }
  return sum;
}

void MemoryLedger::Seal() {
  const std::lock_guard lock(mutex_);
  sealed_ = true;
}

bool MemoryLedger::sealed() const {
  const std::lock_guard lock(mutex_);
  return sealed_;
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(std::exchange(other.device_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)),
      host_(other.host_) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  std::swap(host_, other.host_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) {
    device_->Unmap({data_, mapped_}, host_ ? Device::Place::kHost : Device::Place::kDevice);
  }
}

DeviceWrite::DeviceWrite(DeviceWrite&& other) noexcept
    : device_(std::exchange(other.device_, nullptr)),
      staging_(other.staging_),
      destination_(other.destination_),
      bytes_(other.bytes_) {}

DeviceWrite::~DeviceWrite() {
  if (device_ != nullptr) {
    device_->CloseWrite(staging_, destination_, bytes_);
  }
}

DeviceWrite Device::Write(std::byte* destination, std::size_t bytes) {
  return {this, OpenWrite(destination, bytes), destination, bytes};
}

void WriteBytes(Device& device, std::byte* destination, std::span<const std::byte> bytes) {
  for (std::size_t at = 0; at < bytes.size(); at += Device::kMaxWriteBytes) {
    const auto piece = bytes.subspan(at, std::min(Device::kMaxWriteBytes, bytes.size() - at));
    const DeviceWrite write = device.Write(destination + at, piece.size());
    std::memcpy(write.data(), piece.data(), piece.size());
  }
}

void Device::BeginCapture() { NIBBLE_CHECK(false, "this device captures no steps"); }

Result<CapturedStep> Device::EndCapture() {
  return Fail(ErrorCode::kInternal, "this device captures no steps");
}

void Device::Replay(CapturedStep) { NIBBLE_CHECK(false, "this device captures no steps"); }

Result<DeviceBuffer> Device::Allocate(std::string_view line, std::size_t bytes) {
  return AllocateAt(line, bytes, Place::kDevice);
}

Result<DeviceBuffer> Device::AllocateHost(std::string_view line, std::size_t bytes) {
  return AllocateAt(line, bytes, Place::kHost);
}

Result<DeviceBuffer> Device::AllocateAt(std::string_view line, std::size_t bytes, Place place) {
  if (ledger_.sealed()) {
    return Fail(ErrorCode::kInternal,
                fmt::format("allocation of {} for {} after the engine was ready",
                            HumanBytes(static_cast<double>(bytes)), line));
  }
  DeviceBuffer buffer;
  if (bytes == 0) {
    return buffer;
  }
  auto mapped = Map(bytes, place);
  if (!mapped) {
    return Fail(mapped.error().code,
                fmt::format("no memory for {} ({}): {}", line,
                            HumanBytes(static_cast<double>(bytes)), mapped.error().message));
  }
  {
    const std::lock_guard lock(ledger_.mutex_);
    ledger_.Find(line, place).allocated_bytes += bytes;
  }
  buffer.device_ = this;
  buffer.data_ = mapped->data();
  buffer.size_ = bytes;
  buffer.mapped_ = mapped->size();
  buffer.host_ = place == Place::kHost;
  return buffer;
}

}  // namespace nibble
