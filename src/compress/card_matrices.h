#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"

namespace nibble {

/// What the host does while a card walks and solves: it reads the matrices that are solved next,
/// and whatever else may wait. Jobs run one after the other, on workers of their own.
class CardMatrices {
 public:
  /// Pinned memory for the matrices of one input, and a place on the card for one of them: the
  /// lines "solver (host)" and "solver".
  static Result<std::unique_ptr<CardMatrices>> Create(Device& device, std::uint64_t host_bytes,
                                                      std::uint64_t card_bytes);

  /// Begins to read whole matrices as floats, behind the jobs given so far. What was read before is
  /// gone.
  void Read(const Checkpoint& source, const std::vector<const WeightInfo*>& matrices);
  /// [rows, cols] of one that was read. Waits for its read, not for jobs given after it.
  Result<std::span<const float>> Values(const WeightInfo& matrix);
  /// These values on the card, until the next call.
  std::span<const float> OnCard(std::span<const float> values);

  /// What a job refers to must outlive it: Finish waits for all, and so does the destructor.
  void Behind(std::function<Result<void>()> job);
  Result<void> Finish();
  /// For jobs alone.
  ThreadPool& pool() { return pool_; }

 private:
  explicit CardMatrices(Device& device) : device_(device), pool_(device.pool().num_workers()) {}

  struct Matrix {
    std::span<float> values;  // in host_
    std::shared_future<Result<void>> read;
  };

  Device& device_;
  ThreadPool pool_;
  DeviceBuffer host_, card_;
  std::map<std::string, Matrix, std::less<>> matrices_;  // by name
  std::shared_future<Result<void>> last_;  // the job given last, which waits for those before
};

}  // namespace nibble
