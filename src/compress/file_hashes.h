#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"

namespace nibble {

/// What a certificate says about one file of a model's folder: the SHA-256 of its bytes. Of a file
/// of weights (.safetensors, .gguf) only what lies outside the tensors counts, header and padding:
/// tensors have hashes of their own, so that damage is named by tensor.
/// Errors: what reading and parsing the header give.
Result<std::string> FileHash(const std::filesystem::path& path);

/// Every regular file of a certified folder has its hash in the certificate, save the certificate
/// itself and names that begin with a dot.
bool IsCertified(const std::filesystem::directory_entry& entry);

}  // namespace nibble
