#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/folder_format.h"
#include "checkpoint/model_config.h"
#include "codec/quantized_tensor.h"
#include "io/atomic_writer.h"
#include "json/value.h"

namespace nibble {

/// Storage of scales and of tables: what 16-bit type loses least of a checkpoint of this config.
/// Round scales to it (RoundToDType) before choosing codes.
DType SixteenBitType(const ModelConfig& config);

/// The `quantization_config` of config.json for weights that are all written with one grid.
/// group_size 0: a scale a row. ignore: modules that stay as they are, e.g. "lm_head".
json::Object CompressedTensorsConfig(int bits, std::int64_t group_size, bool symmetric,
                                     const std::vector<std::string>& ignore);

/// Writes weights as safetensors, in the order given: quantized ones in one FolderFormat, with the
/// memory of a few rows (GPTQ and AWQ, which lie transposed: of one weight's codes). One
/// model.safetensors, or shards and an index when that would exceed shard_bytes.
class WeightWriter {
 public:
  struct Options {
    FolderFormat format = FolderFormat::kCompressedTensors;
    DType scale_dtype = DType::kF16;  // what scales are stored in, where the format leaves it open
    DType model_dtype = DType::kF16;  // of the float tensors, for formats that note it
    std::uint64_t shard_bytes = std::uint64_t{2} << 30;
  };
  /// out must outlive the writer. Errors: kInvalidArgument for a spec that the format cannot hold.
  static Result<std::unique_ptr<WeightWriter>> Create(AtomicWriter& out,
                                                      std::vector<WeightToWrite> weights,
                                                      const Options& options);
  virtual ~WeightWriter() = default;

  /// Bytes that the weight files will take, headers included; an index is none of them.
  static std::uint64_t SizeBytes(const std::vector<WeightToWrite>& weights, const Options& options);

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
