#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

/// What reading every byte of a model has shown.
struct Verification {
  bool is_certified = false;
  std::int64_t num_files = 0, num_tensors = 0;  // that hashes prove
  std::vector<std::string> damage;  // one line each, naming the tensor or the file: whole if empty
  std::vector<std::string> unproven;  // what nothing vouches for, and why
};

/// Return false to stop (kCancelled).
using VerifyProgress =
    std::function<bool(std::uint64_t done, std::uint64_t total, const std::string& detail)>;

/// Reads every byte of a model and compares it with what vouches for it: the certificate, or in the
/// hub cache the names of the blobs (a large file is named by its SHA-256). What nothing vouches
/// for is checked by structure: headers, shapes, every number finite, tokenizer and template
/// readable. Goes on after damage, to name all of it.
/// Errors: kNotFound where there is no model; kInvalidArgument; kCancelled.
Result<Verification> VerifyCheckpoint(const std::string& model,
                                      const std::filesystem::path& hub_cache, int num_threads,
                                      const VerifyProgress& progress = {});

}  // namespace nibble
