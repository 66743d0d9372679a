#include "compress/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "base/sha256.h"
#include "checkpoint/digest.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/nibble_layout.h"
#include "checkpoint/weight_writer.h"
#include "codec/encode.h"
#include "codec/regrid.h"
#include "compress/side_files.h"
#include "device/device.h"
#include "io/atomic_writer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kChunkRows = 256;  // a multiple of the rows of a packed word
constexpr const char* kGgufFile = "model.gguf";
constexpr const char* kVersion = "0.1.0";

bool IsTable(std::string_view name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

// A matrix that a layout holds in codes although no grid of ours does, and is read as floats.
bool IsMixedUp(const WeightInfo& stored) {
  return stored.spec.kind == CodecKind::kFloat && !ParseDType(stored.stored_as) &&
         stored.stored_as != "F32" && stored.stored_as != "F16" && stored.stored_as != "BF16";
}

WeightSpec Uniform(const WeightSpec& like, int bits, bool zero_points) {
  return {.rows = like.rows,
          .cols = like.cols,
          .kind = CodecKind::kUniform,
          .bits = bits,
          .group_size = like.group_size,
          .has_zero_points = zero_points};
}

WeightSpec Typed(const WeightSpec& like, GgufType type) {
  WeightSpec spec = *GgufSpecOf(static_cast<std::uint32_t>(type));
  spec.rows = like.rows;
  spec.cols = like.cols;
  return spec;
}

// Forms that a format could hold a quantized weight in, the smallest first.
std::vector<WeightSpec> FormsOf(ModelFormat format, const WeightSpec& stored) {
  const bool table = stored.kind == CodecKind::kCodebook;
  switch (format) {
    case ModelFormat::kCompressedTensors:
      if (stored.codebook == Codebook::kFp8E4M3 || stored.codebook == Codebook::kE2M1) {
        return {stored};
      }
      return table ? std::vector<WeightSpec>()
                   : std::vector{Uniform(stored, stored.bits, false),
                                 Uniform(stored, stored.bits, true)};
    case ModelFormat::kGptq:
    case ModelFormat::kGptqV2: {
      if (table) {
        return {};
      }
      const int bits = stored.bits > 4 ? 8 : stored.bits;
      std::vector<WeightSpec> out = {Uniform(stored, bits, false)};
      if (format == ModelFormat::kGptqV2) {
        out.push_back(Uniform(stored, bits, true));
      }
      return out;
    }
    case ModelFormat::kAwq:
      return table || stored.bits > 4 ? std::vector<WeightSpec>()
                                      : std::vector{Uniform(stored, 4, true)};
    case ModelFormat::kBitsandbytes:
      if (stored.codebook == Codebook::kNf4 || stored.codebook == Codebook::kFp4) {
        return {stored};
      }
      return stored.kind == CodecKind::kUniform && stored.bits == 8 &&
                     stored.group_size >= stored.cols
                 ? std::vector{Uniform(stored, 8, false)}
                 : std::vector<WeightSpec>();
    case ModelFormat::kGguf: {
      std::vector<WeightSpec> out;
      for (const GgufType type :
           {GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0, GgufType::kQ5_1, GgufType::kQ8_0}) {
        const WeightSpec spec = Typed(stored, type);
        // Codes of more bits may still be small enough, but not where all steps are used.
        if (!table && (stored.bits <= spec.bits || spec.bits == 8)) {
          out.push_back(spec);
        }
      }
      return out;
    }
    case ModelFormat::kNibble:
      return NibbleLayoutHolds(stored.codebook) ? std::vector{stored} : std::vector<WeightSpec>();
    case ModelFormat::kBitsandbytesNested:
    case ModelFormat::kSafetensors:
      break;
  }
  return {};
}

// The format of a codebook.
std::string_view HolderOf(Codebook codebook) {
  return NibbleLayoutHolds(codebook)                                ? "nibble"
         : codebook == Codebook::kNf4 || codebook == Codebook::kFp4 ? "bitsandbytes"
                                                                    : "compressed-tensors";
}

// Why a format has no form at all for a kind of weight, and what to do.
std::string WhyNot(ModelFormat format, const WeightSpec& stored) {
  const std::string what =
      stored.kind == CodecKind::kCodebook ? Name(stored.codebook) : stored.ToString();
  switch (format) {
    case ModelFormat::kBitsandbytesNested:
      return "double quantization rounds the scales of any source: make it with nibble quantize, "
             "or use bitsandbytes";
    case ModelFormat::kBitsandbytes:
      return fmt::format(
          "{} is no data type of bitsandbytes, which stores NF4, FP4 and 8 bits with "
          "one scale a row: use {}",
          what, HolderOf(stored.codebook));
    case ModelFormat::kAwq:
      return fmt::format("AWQ stores uniform integers of 4 bits, not {}: use {}", what,
                         stored.kind == CodecKind::kCodebook
                             ? HolderOf(stored.codebook)
                             : "compressed-tensors, gptq_v2 or gguf");
    case ModelFormat::kGptq:
    case ModelFormat::kGptqV2:
      return fmt::format(
          "{} is no uniform integer of 2, 3, 4 or 8 bits, which is what GPTQ stores: "
          "use {}",
          what, HolderOf(stored.codebook));
    case ModelFormat::kCompressedTensors:
      return fmt::format("{} is no data type of compressed-tensors: use {}", what,
                         HolderOf(stored.codebook));
    case ModelFormat::kNibble:
      return fmt::format("nibble's own layout is for log4, log3 and fp8-e5m2, not {}: use {}", what,
                         HolderOf(stored.codebook));
    case ModelFormat::kGguf:
      return fmt::format("GGUF has no block type for {}: use {}, or --to safetensors", what,
                         HolderOf(stored.codebook));
    case ModelFormat::kSafetensors:
      break;
  }
  return what;
}

class Planner {
 public:
  Planner(const Checkpoint& source, const ConvertOptions& options, int num_threads,
          const ConvertProgress& progress)
      : source_(source),
        options_(options),
        device_(MakeCpuDevice(num_threads)),
        progress_(progress) {
    for (const WeightInfo& weight : source.weights()) {
      total_ += static_cast<std::uint64_t>(weight.spec.rows * weight.spec.cols);
    }
  }

  Result<Conversion> Go() {
    const bool quantizes = options_.to != ModelFormat::kSafetensors;
    const bool any = std::ranges::any_of(source_.weights(), [](const WeightInfo& weight) {
      return weight.spec.kind != CodecKind::kFloat && !IsTable(weight.name);
    });
    if (options_.to == ModelFormat::kBitsandbytesNested) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}: {}", source_.path().string(), WhyNot(options_.to, {})));
    }
    if (options_.to == ModelFormat::kGguf && source_.format() == CheckpointFormat::kGguf) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} is a GGUF file already", source_.path().string()));
    }
    for (const WeightInfo& weight : source_.weights()) {
      if (quantizes && IsMixedUp(weight)) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{}: {} is stored as {}, which only floats hold in our order: use "
                                "--to safetensors",
                                source_.path().string(), weight.name, weight.stored_as));
      }
    }
    if (quantizes && !any && options_.to != ModelFormat::kGguf) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} is not quantized: there are no codes for {} to hold; use nibble "
                              "quantize",
                              source_.path().string(), Name(options_.to)));
    }
    // Scales in what the source's float tensors are, in the other 16-bit type, or in F32.
    const DType first = SixteenBitType(source_.config());
    const DType second = first == DType::kF16 ? DType::kBF16 : DType::kF16;
    std::vector<DType> kinds = {first, second};
    switch (options_.to) {
      case ModelFormat::kCompressedTensors:
      case ModelFormat::kNibble:
        kinds.push_back(DType::kF32);
        break;
      case ModelFormat::kGptq:
      case ModelFormat::kGptqV2:
      case ModelFormat::kAwq:
        kinds = {DType::kF16, DType::kBF16};
        break;
      case ModelFormat::kBitsandbytes:
        kinds = {DType::kF32};
        break;
      default:
        kinds = {DType::kF16};
    }
    std::optional<Error> why;
    for (const DType scales : kinds) {
      auto planned = Plan(scales);
      if (planned || planned.error().code != ErrorCode::kInvalidArgument) {
        return planned;
      }
      why = why ? why : planned.error();
    }
    return Fail(*why, source_.path().string() + ": ");
  }

 private:
  Result<Conversion> Plan(DType scales) {
    Conversion out{.scale_dtype = scales};
    done_ = 0;
    bool wide = false;
    for (const WeightInfo& stored : source_.weights()) {
      NIBBLE_TRY(spec, Choose(stored, scales));
      source_.Release(stored);
      out.weights.push_back({stored.name, spec});
      wide = wide || (spec.kind == CodecKind::kFloat && spec.float_dtype == DType::kF32);
      Count(out, stored.stored_as, spec);
      if (options_.to != ModelFormat::kGguf && spec.kind != CodecKind::kFloat) {
        NIBBLE_TRY(encoder, MakeWeightEncoder(*FolderFormatOf(options_.to), out.weights.back(),
                                              {.scale_dtype = scales}));
      }
    }
    const DType narrow = SixteenBitType(source_.config());
    out.model_dtype = options_.float_dtype.value_or(wide ? DType::kF32 : narrow);
    if (wide && !options_.float_dtype && options_.to != ModelFormat::kGguf) {
      out.notes.push_back(
          "float tensors that 16 bits do not hold exactly stay F32, and config.json says float32; "
          "--float-dtype bfloat16 or float16 rounds them");
    }
    const bool any_typed = std::ranges::any_of(out.weights, [](const WeightToWrite& weight) {
      return weight.spec.has_f32_scales && weight.spec.scale_grid == ScaleGrid::kAny;
    });
    if (scales == DType::kF32 && options_.to == ModelFormat::kCompressedTensors && any_typed) {
      out.notes.push_back(
          "scales are F32, as in the source; programs that run in 16 bits round them at load");
    }
    if (!source_.kv_scales().empty()) {
      out.notes.push_back("scales of an FP8 KV cache are not carried over");
    }
    if (options_.to == ModelFormat::kGguf) {
      for (const WeightToWrite& weight : out.weights) {
        const bool typed = weight.spec.rows == 1 || GgufTypeOf(weight.spec).has_value();
        if (!typed || (weight.spec.kind != CodecKind::kFloat && weight.spec.cols % 32 != 0)) {
          return Fail(ErrorCode::kInvalidArgument,
                      fmt::format("{}: rows of {} are no whole blocks of 32, as GGUF needs",
                                  weight.name, weight.spec.cols));
        }
      }
    }
    return out;
  }

  void Count(Conversion& out, const std::string& from, const WeightSpec& spec) const {
    WeightSpec described = spec;
    described.has_f32_scales = false;
    const auto type = options_.to == ModelFormat::kGguf ? GgufTypeOf(described) : std::nullopt;
    const std::string to = type && spec.rows > 1 ? GgufTypeName(static_cast<std::uint32_t>(*type))
                                                 : described.ToString();
    const auto found = std::ranges::find_if(
        out.steps, [&](const auto& step) { return step.from == from && step.to == to; });
    if (found == out.steps.end()) {
      out.steps.push_back({.from = from, .to = to, .count = 1});
    } else {
      ++found->count;
    }
  }

  // The first form that holds every value.
  Result<WeightSpec> Choose(const WeightInfo& stored, DType scales) {
    const WeightSpec& spec = stored.spec;
    std::vector<WeightSpec> forms;
    const bool head_in_codes =
        stored.name == "lm_head.weight" &&
        (options_.to == ModelFormat::kCompressedTensors || options_.to == ModelFormat::kGptq ||
         options_.to == ModelFormat::kGptqV2);
    const bool codes = spec.kind != CodecKind::kFloat && options_.to != ModelFormat::kSafetensors &&
                       (!IsTable(stored.name) || options_.to == ModelFormat::kGguf ||
                        (head_in_codes && spec.group_size % 32 == 0));
    if (codes) {
      forms = FormsOf(options_.to, spec);
      if (forms.empty()) {
        return Fail(
            ErrorCode::kInvalidArgument,
            fmt::format("{} ({}): {}", stored.name, stored.stored_as, WhyNot(options_.to, spec)));
      }
    } else {
      const DType first = SixteenBitType(source_.config());
      std::vector<DType> kinds = {first, first == DType::kF16 ? DType::kBF16 : DType::kF16,
                                  DType::kF32};
      if (options_.float_dtype) {
        kinds = {*options_.float_dtype};
      }
      if (options_.to == ModelFormat::kGguf && spec.rows == 1) {
        kinds = {DType::kF32};
      }
      for (const DType kind : kinds) {
        forms.push_back({.rows = spec.rows, .cols = spec.cols, .float_dtype = kind});
      }
    }
    std::optional<Error> why;
    for (const WeightSpec& form : forms) {
      const bool rounds = form.kind == CodecKind::kFloat && options_.float_dtype.has_value();
      const auto fits = rounds ? Result<void>{} : Try(stored, form, scales);
      if (fits) {
        done_ += static_cast<std::uint64_t>(spec.rows * spec.cols);
        if (progress_ && !progress_("checking", done_, total_, stored.name)) {
          return Fail(ErrorCode::kCancelled, "interrupted");
        }
        WeightSpec out = form;
        out.has_f32_scales = form.kind != CodecKind::kFloat && scales == DType::kF32;
        return out;
      }
      if (fits.error().code != ErrorCode::kInvalidArgument) {
        return tl::unexpected<Error>(fits.error());
      }
      why = why ? why : fits.error();
    }
    const char* advice = options_.to == ModelFormat::kGptq && spec.has_zero_points
                             ? "; gptq_v2, awq and compressed-tensors hold zero points"
                             : "; nibble quantize rounds anew";
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} ({}) does not become {} without loss: {}{}", stored.name,
                            stored.stored_as, forms.front().ToString(), why->message, advice));
  }

  // Does every row fit?
  Result<void> Try(const WeightInfo& stored, const WeightSpec& form, DType scales) {
    const std::int64_t chunks = (stored.spec.rows + kChunkRows - 1) / kChunkRows;
    std::mutex mutex;
    std::optional<Error> first;
    std::int64_t first_chunk = chunks;
    device_->pool().For(chunks, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t chunk = begin; chunk < end; ++chunk) {
        {
          const std::lock_guard lock(mutex);
          if (first_chunk < chunk) {
            return;
          }
        }
        const std::int64_t row = chunk * kChunkRows;
        auto rows = source_.ReadRows(stored, row, std::min(stored.spec.rows, row + kChunkRows));
        std::optional<Error> error;
        if (!rows) {
          error = rows.error();
        } else if (auto moved = Regrid(*rows, form, scales); !moved) {
          error = moved.error();
          if (row > 0 && error->code == ErrorCode::kInvalidArgument) {
            error->message = fmt::format("from row {} on: {}", row, error->message);
          }
        }
        const std::lock_guard lock(mutex);
        if (error && chunk < first_chunk) {
          first = error;
          first_chunk = chunk;
        }
      }
    });
    return first ? Result<void>(tl::unexpected<Error>(*first)) : Result<void>{};
  }

  const Checkpoint& source_;
  const ConvertOptions& options_;
  std::unique_ptr<Device> device_;
  const ConvertProgress& progress_;
  std::uint64_t total_ = 0, done_ = 0;
};

WeightWriter::Options WriterOptions(const Conversion& conversion, const ConvertOptions& options) {
  return {.format = FolderFormatOf(options.to).value_or(FolderFormat::kCompressedTensors),
          .scale_dtype = conversion.scale_dtype,
          .model_dtype = conversion.model_dtype,
          .shard_bytes = options.shard_bytes};
}

// What tells one run from another: the source's names and bytes, and the target.
Result<json::Value> FingerprintOf(const Checkpoint& source, const Conversion& conversion,
                                  const ConvertOptions& options) {
  NIBBLE_TRY(digest, WeightsDigest(source));
  json::Object out;
  out.Set("source_sha256", digest);
  out.Set("side_files_sha256", SideFilesDigest(source));
  out.Set("to", std::string(Name(options.to)));
  Sha256 weights;
  for (const WeightToWrite& weight : conversion.weights) {
    const std::string line = fmt::format("{} {} {}\n", weight.name, weight.spec.ToString(),
                                         Name(weight.spec.float_dtype));
    weights.Update(std::as_bytes(std::span(line)));
  }
  out.Set("weights_as", weights.Hex());
  out.Set("dtype", std::string(Name(conversion.model_dtype)));
  out.Set("shard_bytes", options.shard_bytes);
  out.Set("nibble", kVersion);
  return json::Value(std::move(out));
}

Result<void> WriteWeights(const Checkpoint& source, const Conversion& conversion,
                          WeightWriter& writer, const ConvertProgress& progress) {
  std::uint64_t done = 0, total = 0;
  for (const WeightToWrite& weight : conversion.weights) {
    total += static_cast<std::uint64_t>(weight.spec.rows * weight.spec.cols);
  }
  for (const WeightToWrite& weight : conversion.weights) {
    const WeightInfo* stored = source.Find(weight.name);
    for (std::int64_t row = 0; row < weight.spec.rows && !writer.IsDone(weight.name);
         row += kChunkRows) {
      const std::int64_t end = std::min(weight.spec.rows, row + kChunkRows);
      NIBBLE_TRY(rows, source.ReadRows(*stored, row, end));
      const bool is_float = weight.spec.kind == CodecKind::kFloat;
      // Floats are rounded by the writer, if at all.
      WeightSpec to = weight.spec;
      to.float_dtype = is_float ? DType::kF32 : to.float_dtype;
      auto moved = Regrid(rows, to, is_float ? DType::kF32 : conversion.scale_dtype);
      if (!moved) {
        return Fail(moved.error(), weight.name + ": ");
      }
      moved->spec.float_dtype = weight.spec.float_dtype;
      NIBBLE_TRY_VOID(writer.Write(weight.name, *moved));
    }
    source.Release(*stored);
    done += static_cast<std::uint64_t>(weight.spec.rows * weight.spec.cols);
    if (progress && !progress("writing", done, total, weight.name)) {
      return Fail(ErrorCode::kCancelled, "interrupted");
    }
  }
  return writer.Finish();
}

}  // namespace

Result<Conversion> PlanConversion(const Checkpoint& source, const Tokenizer& tokenizer,
                                  const ConvertOptions& options, int num_threads,
                                  const ConvertProgress& progress) {
  NIBBLE_TRY(out, Planner(source, options, num_threads, progress).Go());
  if (options.to == ModelFormat::kGguf) {
    NIBBLE_TRY(facts, GgufFactsOf(source, tokenizer));
    NIBBLE_TRY(header_bytes, GgufHeaderBytes(out.weights, facts));
    out.size_bytes = header_bytes + GgufSizeBytes(out.weights);
    return out;
  }
  if (const auto folder = FolderFormatOf(options.to)) {
    NIBBLE_TRY(config, QuantizationConfigOf(*folder, out.weights, out.model_dtype, kVersion));
  }
  out.size_bytes = WeightWriter::SizeBytes(out.weights, WriterOptions(out, options));
  return out;
}

Result<void> WriteConversion(const Checkpoint& source, const Tokenizer& tokenizer,
                             const Conversion& conversion, const fs::path& out,
                             const ConvertOptions& options, const ConvertProgress& progress) {
  std::error_code ignored;
  if (fs::exists(out, ignored)) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} exists already; remove it or choose another name", out.string()));
  }
  NIBBLE_TRY(fingerprint, FingerprintOf(source, conversion, options));
  NIBBLE_TRY(writer, AtomicWriter::Create(out, fingerprint, conversion.size_bytes));
  if (options.to == ModelFormat::kGguf) {
    NIBBLE_TRY(facts, GgufFactsOf(source, tokenizer));
    NIBBLE_TRY(weights, CreateGgufWriter(*writer, kGgufFile, conversion.weights, facts));
    NIBBLE_TRY_VOID(WriteWeights(source, conversion, *weights, progress));
    return writer->CommitFile(kGgufFile);
  }
  NIBBLE_TRY(weights,
             WeightWriter::Create(*writer, conversion.weights, WriterOptions(conversion, options)));
  NIBBLE_TRY_VOID(WriteWeights(source, conversion, *weights, progress));
  ModelConfig config = source.config();
  config.dtype = conversion.model_dtype;
  json::Object config_json = ToHuggingFaceConfig(config);
  if (const auto folder = FolderFormatOf(options.to)) {
    NIBBLE_TRY(quantization,
               QuantizationConfigOf(*folder, conversion.weights, conversion.model_dtype, kVersion));
    if (options.to == ModelFormat::kGptq || options.to == ModelFormat::kGptqV2) {
      // Older readers look for a file of its own.
      NIBBLE_TRY_VOID(writer->WriteWhole(
          "quantize_config.json",
          json::Dump(quantization, {.indent = 2, .key_separator = ": "}) + "\n"));
    }
    config_json.Set("quantization_config", std::move(quantization));
  }
  NIBBLE_TRY_VOID(WriteSideFiles(source, tokenizer, config_json, *writer));
  return writer->Commit();
}

}  // namespace nibble
