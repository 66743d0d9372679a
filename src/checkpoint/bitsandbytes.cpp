#include "checkpoint/bitsandbytes.h"

#include <fmt/format.h>

#include <cmath>

#include "base/text.h"

namespace nibble {
namespace {

const char* TorchName(DType dtype) {
  return dtype == DType::kF16 ? "float16" : dtype == DType::kBF16 ? "bfloat16" : "float32";
}

bool IsTrue(const json::Value& object, std::string_view key) {
  const json::Value* value = object.Find(key);
  return value != nullptr && value->AsBool().value_or(false);
}

}  // namespace

Result<BitsandbytesState> ParseBitsandbytesState(std::string_view text, const std::string& source) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 32;
  auto parsed = json::Parse(text);
  if (!parsed) {
    return Fail(parsed.error(), source + ": ");
  }
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: {}", source, what));
  };
  const auto whole = [](const json::Value* value) -> std::int64_t {
    const auto number = value == nullptr ? std::nullopt : value->AsInt();
    return number && *number > 0 && *number < kLargest ? *number : 0;
  };
  const json::Value* type = parsed->Find("quant_type");
  if (type == nullptr || type->AsString() == nullptr || *type->AsString() != "nf4") {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: quant_type is {}; nibble reads \"nf4\"", source,
                            type == nullptr ? "missing" : Quote(json::Dump(*type))));
  }
  BitsandbytesState state;
  state.block_size = whole(parsed->Find("blocksize"));
  if (state.block_size == 0) {
    return wrong("blocksize is not a positive number");
  }
  const json::Value* shape = parsed->Find("shape");
  const json::Array* dims = shape == nullptr ? nullptr : shape->AsArray();
  if (dims == nullptr || dims->size() != 2 || whole(&(*dims)[0]) == 0 || whole(&(*dims)[1]) == 0) {
    return wrong("shape is not [out, in]");
  }
  state.rows = whole(&(*dims)[0]);
  state.cols = whole(&(*dims)[1]);
  const json::Value* nested_block = parsed->Find("nested_blocksize");
  const json::Value* offset = parsed->Find("nested_offset");
  if (nested_block != nullptr || offset != nullptr) {
    BitsandbytesState::Nested nested;
    nested.block_size = whole(nested_block);
    const auto number = offset == nullptr ? std::nullopt : offset->AsDouble();
    if (nested.block_size == 0 || !number || !std::isfinite(static_cast<float>(*number))) {
      return wrong("nested_blocksize and nested_offset are not a positive and a finite number");
    }
    nested.offset = static_cast<float>(*number);
    state.nested = nested;
  }
  return state;
}

std::string BitsandbytesStateText(std::int64_t rows, std::int64_t cols, std::int64_t block_size,
                                  DType dtype) {
  json::Object out;
  out.Set("quant_type", "nf4");
  out.Set("blocksize", block_size);
  out.Set("dtype", TorchName(dtype));
  out.Set("shape", json::Array{rows, cols});
  return json::Dump(out);
}

Result<void> CheckBitsandbytesConfig(const json::Value& config, const std::string& source) {
  const auto unsupported = [&](const std::string& what) {
    return Fail(
        ErrorCode::kUnsupported,
        fmt::format("{}: this checkpoint is bitsandbytes {}; nibble reads its NF4", source, what));
  };
  if (IsTrue(config, "load_in_8bit") || IsTrue(config, "_load_in_8bit")) {
    return unsupported("LLM.int8");
  }
  if (!IsTrue(config, "load_in_4bit") && !IsTrue(config, "_load_in_4bit")) {
    return unsupported("without load_in_4bit");
  }
  const json::Value* type = config.Find("bnb_4bit_quant_type");
  const bool is_nf4 = type != nullptr && type->AsString() != nullptr && *type->AsString() == "nf4";
  if (!is_nf4) {
    return unsupported(
        fmt::format("{}", type == nullptr ? "FP4 (the default of bnb_4bit_quant_type)"
                                          : "of bnb_4bit_quant_type " + Quote(json::Dump(*type))));
  }
  return {};
}

json::Object BitsandbytesConfig(DType compute_dtype) {
  json::Object out;
  out.Set("quant_method", "bitsandbytes");
  out.Set("load_in_4bit", true);
  out.Set("load_in_8bit", false);
  out.Set("bnb_4bit_quant_type", "nf4");
  out.Set("bnb_4bit_use_double_quant", false);
  out.Set("bnb_4bit_compute_dtype", TorchName(compute_dtype));
  out.Set("bnb_4bit_quant_storage", "uint8");
  out.Set("llm_int8_enable_fp32_cpu_offload", false);
  out.Set("llm_int8_has_fp16_weight", false);
  out.Set("llm_int8_skip_modules", nullptr);
  out.Set("llm_int8_threshold", 6.0);
  return out;
}

}  // namespace nibble
