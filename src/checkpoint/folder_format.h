#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "codec/quantized_tensor.h"
#include "io/safetensors.h"
#include "json/value.h"

namespace nibble {

/// The layouts of quantized weights in a folder of safetensors that nibble writes.
enum class FolderFormat : std::uint8_t {
  kCompressedTensors,  // uniform weights pack-quantized, FP8 float-quantized, MXFP4 and NVFP4
  kGptq,               // v1: qzeros hold the zero point less one; symmetric weights only
  kGptqV2,
  kAwq,                 // gemm
  kBitsandbytes,        // NF4 and FP4, or int8
  kBitsandbytesNested,  // NF4 and FP4 with double quantization of their scales
  kNibble               // nibble's own (nibble_layout.h): log4, log3 and FP8 e5m2
};
inline constexpr FolderFormat kFolderFormats[] = {FolderFormat::kCompressedTensors,
                                                  FolderFormat::kGptq,
                                                  FolderFormat::kGptqV2,
                                                  FolderFormat::kAwq,
                                                  FolderFormat::kBitsandbytes,
                                                  FolderFormat::kBitsandbytesNested,
                                                  FolderFormat::kNibble};

/// "compressed-tensors", "gptq", "gptq_v2", "awq", "bitsandbytes", "bitsandbytes-nested", "nibble".
std::string_view Name(FolderFormat format);

/// A weight that will be written: its canonical name ("....weight" or "....bias") and what it will
/// be stored as. Vectors have rows = 1.
struct WeightToWrite {
  std::string name;
  WeightSpec spec;
};

/// Turns the rows of one quantized weight into the tensors of its layout.
class WeightEncoder {
 public:
  virtual ~WeightEncoder() = default;

  /// Tensors whose bytes are known before any row, with them; their sizes are multiples of 8.
  struct Head {
    SafetensorsEntry entry;
    std::string bytes;
  };
  virtual std::vector<Head> Heads() const { return {}; }
  /// The other tensors, in the order in which their bytes come.
  virtual std::vector<SafetensorsEntry> Parts() const = 0;
  /// The next rows, valid and of the spec. Returns bytes of the first part, if they are known yet.
  /// Errors: kInvalidArgument for values that the layout cannot hold.
  virtual Result<std::string> Add(const QuantizedTensor& rows) = 0;
  /// After the last row: what is left of the first part, and the others. Ready for the next weight.
  virtual std::vector<std::string> Finish() = 0;
  /// What the layout stores scales in: it must hold each of them exactly.
  virtual DType ScaleDType() const = 0;
};

/// How numbers beside the codes are stored.
struct EncoderOptions {
  DType scale_dtype = DType::kF16;  // compressed-tensors, GPTQ, AWQ; bitsandbytes has F32
  DType model_dtype = DType::kF16;  // of the model's other tensors, for those who note it
};

/// Errors: kInvalidArgument saying what of the spec the layout cannot hold, and what to do.
Result<std::unique_ptr<WeightEncoder>> MakeWeightEncoder(FolderFormat format,
                                                         const WeightToWrite& weight,
                                                         const EncoderOptions& options);

/// The `quantization_config` of a folder of these weights: all weights of a model, in its order.
/// The layout holds each (MakeWeightEncoder); errors: kInvalidArgument if the config cannot tell
/// them apart (AWQ and bitsandbytes have one scheme for all).
Result<json::Object> QuantizationConfigOf(FolderFormat format,
                                          std::span<const WeightToWrite> weights, DType model_dtype,
                                          std::string_view nibble_version);

/// Encoders of single formats, for MakeWeightEncoder.
Result<std::unique_ptr<WeightEncoder>> MakeCompressedTensorsEncoder(const WeightToWrite& weight,
                                                                    const EncoderOptions& options);
Result<std::unique_ptr<WeightEncoder>> MakeGptqEncoder(const WeightToWrite& weight, bool v2,
                                                       const EncoderOptions& options);
Result<std::unique_ptr<WeightEncoder>> MakeAwqEncoder(const WeightToWrite& weight,
                                                      const EncoderOptions& options);
Result<std::unique_ptr<WeightEncoder>> MakeNibbleEncoder(const WeightToWrite& weight,
                                                         const EncoderOptions& options);
Result<std::unique_ptr<WeightEncoder>> MakeBitsandbytesEncoder(const WeightToWrite& weight,
                                                               bool nested,
                                                               const EncoderOptions& options);

/// Appends values in a float dtype, rounded to it.
void AppendFloats(std::span<const float> values, DType dtype, std::string& out);

}  // namespace nibble
