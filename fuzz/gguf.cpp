#include "io/gguf.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "checkpoint/checkpoint.h"

// The container from memory; then, from a file in memory, the whole model: what opens must give
// every row of every weight, whole and in parts the same.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  const auto header = ParseGguf(std::as_bytes(std::span(data, size)));
  if (!header) {
    return 0;
  }
  for (const GgufTensor& tensor : header->tensors) {
    if (header->data_begin + tensor.offset + tensor.size_bytes > size) {
      std::abort();
    }
  }
  static const int fd = memfd_create("fuzz.gguf", MFD_CLOEXEC);
  static const std::string path = "/tmp/nibble_fuzz_" + std::to_string(getpid()) + ".gguf";
  static const int linked = symlink(
      ("/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd)).c_str(), path.c_str());
  if (linked != 0 || ftruncate(fd, static_cast<off_t>(size)) != 0 ||
      pwrite(fd, data, size, 0) != static_cast<ssize_t>(size)) {
    std::abort();
  }
  static const int at_end = std::atexit([] { unlink(path.c_str()); });
  static_cast<void>(at_end);
  const auto checkpoint = Checkpoint::Open(path);
  if (!checkpoint) {
    return 0;
  }
  for (const WeightInfo& weight : (*checkpoint)->weights()) {
    const auto rows = (*checkpoint)->ReadRows(weight, 0, weight.spec.rows);
    if (!rows) {
      continue;
    }
    if (!Validate(*rows)) {
      std::abort();
    }
    const std::int64_t half = weight.spec.rows / 2;
    const auto last = (*checkpoint)->ReadRows(weight, half, weight.spec.rows);
    const auto whole = Dequantize(*rows);
    const auto part = Dequantize(*last);
    if (std::memcmp(whole.data() + half * weight.spec.cols, part.data(),
                    part.size() * sizeof(float)) != 0) {
      std::abort();
    }
  }
  return 0;
}
