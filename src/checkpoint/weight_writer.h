#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/model_config.h"
#include "codec/quantized_tensor.h"
#include "io/atomic_writer.h"
#include "json/value.h"

namespace nibble {

/// A weight that will be written: its canonical name ("....weight" or "....bias") and what it will
/// be stored as. Vectors have rows = 1.
struct WeightToWrite {
  std::string name;
  WeightSpec spec;  // kUniform with 4 or 8 bits, NF4 with f32 scales, or kFloat
};

/// Storage of scales and of tables: what 16-bit type loses least of a checkpoint of this config.
/// Round scales to it (RoundToDType) before choosing codes.
DType SixteenBitType(const ModelConfig& config);

/// The `quantization_config` of config.json for weights that are all written with one grid.
/// group_size 0: a scale a row. ignore: modules that stay as they are, e.g. "lm_head".
json::Object CompressedTensorsConfig(int bits, std::int64_t group_size, bool symmetric,
                                     const std::vector<std::string>& ignore);

/// Writes weights as safetensors, in the order given and with the memory of a few rows. NF4 as
/// bitsandbytes does (bitsandbytes.h); uniform weights as compressed-tensors does
/// (pack-quantized). Layout of such a weight W [out, in]:
///   W_packed     I32 [out, in * bits / 32]      codes, lowest bits first, along in
///   W_scale      F16, BF16 or F32 [out, groups]
///   W_zero_point I32 [out * bits / 32, groups]  asymmetric: codes, lowest bits first, along out
///   W_shape      I64 [2]                        out, in
/// One model.safetensors, or shards and an index when that would exceed shard_bytes.
class WeightWriter {
 public:
  struct Options {
    DType scale_dtype = DType::kF16;  // of uniform weights; NF4: the model's dtype
    std::uint64_t shard_bytes = std::uint64_t{2} << 30;
  };
  /// out must outlive the writer. Errors: kInvalidArgument for a spec that the format cannot hold.
  static Result<std::unique_ptr<WeightWriter>> Create(AtomicWriter& out,
                                                      std::vector<WeightToWrite> weights,
                                                      const Options& options);
  virtual ~WeightWriter() = default;

  /// Bytes that the weight files will take: what AtomicWriter::Create wants to know.
  static std::uint64_t SizeBytes(const std::vector<WeightToWrite>& weights, DType scale_dtype);

  /// True if an earlier run finished the file that this weight is in: do not write it again.
  virtual bool IsDone(std::string_view name) const = 0;
  /// What Write was told about a weight of such a file.
  virtual std::optional<json::Value> DoneFacts(std::string_view name) const = 0;

  /// The next rows of the next weight that is not done: weights in the given order, rows from first
  /// to last. Values are rounded to the spec's float type. facts are journalled with the weight's
  /// last rows. Errors: kInvalidArgument for another order, spec or a scale that scale_dtype cannot
  /// hold exactly, naming the weight; kIo.
  virtual Result<void> Write(std::string_view name, const QuantizedTensor& rows,
                             const json::Value& facts = {}) = 0;
  /// After the last row of the last weight: writes the index, if there are several files.
  virtual Result<void> Finish() = 0;
};

}  // namespace nibble
