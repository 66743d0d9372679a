#include "checkpoint/bitsandbytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/folder_format.h"
#include "checkpoint/stored_weight.h"

namespace nibble {
namespace {

constexpr std::int64_t kNestedBlock = 256;
constexpr std::string_view kStatePrefix = ".quant_state.bitsandbytes__";

const char* TorchName(DType dtype) {
  return dtype == DType::kF16 ? "float16" : dtype == DType::kBF16 ? "bfloat16" : "float32";
}

bool IsTrue(const json::Value& object, std::string_view key) {
  const json::Value* value = object.Find(key);
  return value != nullptr && value->AsBool().value_or(false);
}

bool IsTable(const std::string& name) { return name == "nf4" || name == "fp4"; }

Codebook TableOf(const std::string& name) {
  return name == "fp4" ? Codebook::kFp4 : Codebook::kNf4;
}

}  // namespace

std::string BitsandbytesStateSuffix(Codebook codebook) {
  return std::string(kStatePrefix) + Name(codebook);
}

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
  if (type == nullptr || type->AsString() == nullptr || !IsTable(*type->AsString())) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: quant_type is {}; nibble reads \"nf4\" and \"fp4\"", source,
                            type == nullptr ? "missing" : Quote(json::Dump(*type))));
  }
  BitsandbytesState state;
  state.codebook = TableOf(*type->AsString());
  state.block_size = whole(parsed->Find("blocksize"));
  if (!std::has_single_bit(static_cast<std::uint64_t>(state.block_size)) || state.block_size < 16) {
    return wrong("blocksize is not a power of two from 16 up");
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

std::string BitsandbytesStateText(const BitsandbytesState& state, DType dtype) {
  json::Object out;
  out.Set("quant_type", Name(state.codebook));
  out.Set("blocksize", state.block_size);
  out.Set("dtype", TorchName(dtype));
  out.Set("shape", json::Array{state.rows, state.cols});
  if (state.nested) {
    out.Set("nested_blocksize", state.nested->block_size);
    out.Set("nested_dtype", "float32");
    out.Set("nested_offset", static_cast<double>(state.nested->offset));
  }
  return json::Dump(out);
}

std::span<const float> BitsandbytesNestedMap() {
  // Seven decades, the lowest with one value of each sign, each next one with twice as many: the
  // middles of equal parts of [0.1, 1].
  static const std::array<float, 256> kMap = [] {
    std::array<float, 256> map{};
    std::size_t count = 0;
    map[count++] = 0.0F;
    map[count++] = 1.0F;
    for (int decade = 0; decade < 7; ++decade) {
      const int parts = 1 << decade;
      const float step = (1.0F - 0.1F) / static_cast<float>(parts);
      // As torch.linspace counts: from both ends, with one rounding.
      const auto edge = [&](int i) {
        const bool low = i < (parts + 1) / 2;
        const int from = low ? i : i - parts;
        return static_cast<float>(static_cast<double>(low ? 0.1F : 1.0F) +
                                  static_cast<double>(step) * from);
      };
      const auto power = static_cast<float>(std::pow(10.0, decade - 6));
      for (int i = 0; i < parts; ++i) {
        const float value = power * ((edge(i) + edge(i + 1)) / 2.0F);
        map[count++] = value;
        map[count++] = -value;
      }
    }
    std::ranges::sort(map);
    return map;
  }();
  return kMap;
}

NestedAbsmax NestAbsmax(std::span<const float> absmax) {
  const std::span<const float> map = BitsandbytesNestedMap();
  NestedAbsmax out;
  double sum = 0.0;
  for (const float value : absmax) {
    sum += static_cast<double>(value);
  }
  out.offset =
      static_cast<float>(sum / static_cast<double>(std::max<std::size_t>(1, absmax.size())));
  out.codes.reserve(absmax.size());
  for (std::size_t begin = 0; begin < absmax.size(); begin += kNestedBlock) {
    const auto block =
        absmax.subspan(begin, std::min<std::size_t>(kNestedBlock, absmax.size() - begin));
    float largest = 0.0F;
    for (const float value : block) {
      largest = std::max(largest, std::fabs(value - out.offset));
    }
    out.absmax.push_back(largest);
    for (const float value : block) {
      const float v = largest == 0.0F ? 0.0F : (value - out.offset) / largest;
      const auto above = std::ranges::lower_bound(map, v);  // the first that is not below v
      auto nearest = above;
      if (above == map.end() || (above != map.begin() && v - *(above - 1) <= *above - v)) {
        --nearest;
      }
      out.codes.push_back(static_cast<std::uint8_t>(nearest - map.begin()));
    }
  }
  return out;
}

json::Object BitsandbytesConfig(const BitsandbytesScheme& scheme, DType compute_dtype) {
  const bool four = scheme.codebook != Codebook::kNone;
  json::Object out;
  out.Set("quant_method", "bitsandbytes");
  out.Set("load_in_4bit", four);
  out.Set("load_in_8bit", !four);
  out.Set("bnb_4bit_quant_type", four ? Name(scheme.codebook) : "fp4");
  out.Set("bnb_4bit_use_double_quant", scheme.nested);
  out.Set("bnb_4bit_compute_dtype", TorchName(compute_dtype));
  out.Set("bnb_4bit_quant_storage", "uint8");
  out.Set("llm_int8_enable_fp32_cpu_offload", false);
  out.Set("llm_int8_has_fp16_weight", false);
  out.Set("llm_int8_skip_modules", nullptr);
  out.Set("llm_int8_threshold", 6.0);
  return out;
}

namespace {

// Codes of 4 bits.
class TableWeight final : public StoredWeight {
 public:
  struct Parts {
    Located codes, absmax, quant_map;
    std::optional<Located> nested_absmax, nested_quant_map;
    Located state;

    std::vector<Located> All() const {
      std::vector<Located> out = {codes, absmax, quant_map};
      for (const auto* part : {&nested_absmax, &nested_quant_map}) {
        if (*part) {
          out.push_back(**part);
        }
      }
      out.push_back(state);
      return out;
    }
  };
  TableWeight(WeightSpec spec, const std::string& stored_as, const Parts& parts,
              BitsandbytesState state)
      : StoredWeight(spec, stored_as, parts.All()), named_(parts), state_(std::move(state)) {}

  Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const override {
    const std::byte* bytes = named_.codes.view().bytes.data();
    const auto first = static_cast<std::size_t>(begin * spec_.cols);
    const auto last = static_cast<std::size_t>(end * spec_.cols);
    const auto code = [&](std::size_t i) {
      const auto two = std::to_integer<std::uint8_t>(bytes[i / 2]);
      return static_cast<std::uint8_t>(i % 2 == 0 ? two >> 4 : two & 15);
    };
    const auto block_size = static_cast<std::size_t>(state_.block_size);
    if (spec_.kind == CodecKind::kFloat) {  // blocks that end inside a row
      const std::span<const float> values = ValuesOf(state_.codebook);
      out.values.reserve(last - first);
      for (std::size_t i = first; i < last; ++i) {
        out.values.push_back(values[code(i)] * ScaleOf(i / block_size));
      }
      return {};
    }
    out.codes.reserve(last - first);
    for (std::size_t i = first; i < last; ++i) {
      out.codes.push_back(code(i));
    }
    for (std::size_t block = first / block_size; block < last / block_size; ++block) {
      out.scales.push_back(ScaleOf(block));
    }
    return {};
  }

 private:
  static float FloatAt(const Located& part, std::size_t i) {
    float value = 0.0F;
    std::memcpy(&value, part.view().bytes.data() + i * sizeof value, sizeof value);
    return value;
  }
  float ScaleOf(std::size_t block) const {
    if (!state_.nested) {
      return FloatAt(named_.absmax, block);
    }
    const auto code = std::to_integer<std::size_t>(named_.absmax.view().bytes[block]);
    const auto outer = block / static_cast<std::size_t>(state_.nested->block_size);
    return FloatAt(*named_.nested_quant_map, code) * FloatAt(*named_.nested_absmax, outer) +
           state_.nested->offset;
  }

  Parts named_;
  BitsandbytesState state_;
};

// LLM.int8.
class Int8Weight final : public StoredWeight {
 public:
  Int8Weight(WeightSpec spec, std::vector<Located> parts)
      : StoredWeight(spec, "bitsandbytes int8", std::move(parts)) {}

  Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const override {
    const auto codes =
        parts_[0].view().bytes.subspan(static_cast<std::size_t>(begin * spec_.cols),
                                       static_cast<std::size_t>((end - begin) * spec_.cols));
    out.codes.resize(codes.size());
    std::ranges::transform(codes, out.codes.begin(), [](std::byte code) {
      return static_cast<std::uint8_t>(std::to_integer<unsigned>(code) ^ 0x80U);
    });
    for (std::int64_t row = begin; row < end; ++row) {
      float absmax = 0.0F;
      std::memcpy(&absmax, parts_[1].view().bytes.data() + row * 4, sizeof absmax);
      out.scales.push_back(absmax / 127.0F);
    }
    return {};
  }
};

class BitsandbytesLayout final : public WeightLayout {
 public:
  BitsandbytesLayout(Codebook codebook, std::string folder)
      : codebook_(codebook), folder_(std::move(folder)) {}

  Result<std::unique_ptr<StoredWeight>> Find(const ExpectedWeight& wanted, const TensorMap& tensors,
                                             std::set<std::string>& used) override {
    if (!wanted.name.ends_with(".weight") || wanted.rows == 1) {
      return nullptr;
    }
    const Finder find{tensors, used};
    const std::string module = wanted.name.substr(0, wanted.name.rfind('.'));
    if (const auto absmax = find(module + ".SCB")) {
      return FindInt8(wanted, module, *absmax, find);
    }
    return FindTable(wanted, find);
  }

 private:
  struct Finder {
    const TensorMap& tensors;
    std::set<std::string>& used;
    std::optional<Located> operator()(const std::string& name) const {
      const auto found = tensors.find(name);
      if (found == tensors.end()) {
        return std::nullopt;
      }
      used.insert(name);
      return found->second;
    }
  };

  Result<std::unique_ptr<StoredWeight>> FindInt8(const ExpectedWeight& wanted,
                                                 const std::string& module, const Located& absmax,
                                                 const Finder& find) const {
    const auto codes = find(wanted.name);
    const auto format = find(module + ".weight_format");
    if (codebook_ != Codebook::kNone) {
      return Corrupt(wanted, "is int8 (found SCB), but quantization_config says load_in_4bit");
    }
    if (!codes || codes->entry->dtype != DType::kI8 ||
        codes->entry->shape != Shape{wanted.rows, wanted.cols}) {
      return Corrupt(wanted, !codes ? std::string("is missing beside its SCB")
                                    : fmt::format("is {}, expected I8 [{}, {}]", Text(*codes),
                                                  wanted.rows, wanted.cols));
    }
    if (absmax.entry->dtype != DType::kF32 || absmax.entry->shape != Shape{wanted.rows}) {
      return Corrupt(wanted,
                     fmt::format("SCB is {}, expected F32 [{}]", Text(absmax), wanted.rows));
    }
    std::vector<Located> parts = {*codes, absmax};
    if (format) {
      std::uint8_t order = 0;
      NIBBLE_TRY_VOID(GuardMappedReads(wanted.name, [&]() -> Result<void> {
        order = format->view().bytes.empty()
                    ? std::uint8_t{1}
                    : std::to_integer<std::uint8_t>(format->view().bytes[0]);
        return {};
      }));
      if (order != 0) {
        return Fail(ErrorCode::kUnsupported,
                    fmt::format("{}: tensor {}: weight_format is {}, an order of columns that only "
                                "old cards had; load and save it again with a current bitsandbytes",
                                folder_, wanted.name, order));
      }
      parts.push_back(*format);
    }
    return std::make_unique<Int8Weight>(WeightSpec{.rows = wanted.rows,
                                                   .cols = wanted.cols,
                                                   .kind = CodecKind::kUniform,
                                                   .bits = 8,
                                                   .group_size = wanted.cols,
                                                   .has_f32_scales = true},
                                        std::move(parts));
  }

  Result<std::unique_ptr<StoredWeight>> FindTable(const ExpectedWeight& wanted,
                                                  const Finder& find) const {
    const auto absmax = find(wanted.name + ".absmax");
    const auto quant_map = find(wanted.name + ".quant_map");
    const auto nested_absmax = find(wanted.name + ".nested_absmax");
    const auto nested_quant_map = find(wanted.name + ".nested_quant_map");
    auto named = Codebook::kNf4;
    auto stated = find(wanted.name + BitsandbytesStateSuffix(named));
    if (!stated) {
      named = Codebook::kFp4;
      stated = find(wanted.name + BitsandbytesStateSuffix(named));
    }
    if (!absmax && !quant_map && !stated) {
      return nullptr;  // kept as floats
    }
    const auto codes = find(wanted.name);
    if (!absmax || !quant_map || !stated || !codes) {
      return Corrupt(wanted,
                     fmt::format("the tensor itself, absmax, quant_map and {} belong together, one "
                                 "is missing",
                                 BitsandbytesStateSuffix(named).substr(1)));
    }
    std::string text;
    std::vector<float> table(quant_map->view().bytes.size() / sizeof(float));
    NIBBLE_TRY_VOID(GuardMappedReads(wanted.name, [&]() -> Result<void> {
      const auto state = stated->view().bytes;
      text.assign(reinterpret_cast<const char*>(state.data()),
                  std::min(state.size(), limits::kConfigJsonBytes));
      std::memcpy(table.data(), quant_map->view().bytes.data(), table.size() * sizeof(float));
      return {};
    }));
    NIBBLE_TRY(state, ParseBitsandbytesState(
                          text, fmt::format("{}: tensor {}: quant_state", folder_, wanted.name)));
    if (state.codebook != named || state.codebook != codebook_) {
      return Corrupt(wanted,
                     fmt::format("quant_state says {}, its name {}, quantization_config {}",
                                 Name(state.codebook), Name(named),
                                 codebook_ == Codebook::kNone ? "load_in_8bit" : Name(codebook_)));
    }
    if (state.rows != wanted.rows || state.cols != wanted.cols) {
      return Corrupt(wanted, fmt::format("quant_state says [{}, {}], config.json asks for [{}, {}]",
                                         state.rows, state.cols, wanted.rows, wanted.cols));
    }
    const auto is = [](const std::optional<Located>& part, DType dtype, const Shape& shape) {
      return part && part->entry->dtype == dtype && part->entry->shape == shape;
    };
    const auto values = ValuesOf(state.codebook);
    if (!is(quant_map, DType::kF32, Shape{16}) || !std::ranges::equal(table, values)) {
      return Corrupt(wanted, fmt::format("quant_map is not the table of {}", Name(state.codebook)));
    }
    const std::int64_t count = wanted.rows * wanted.cols;
    const std::int64_t bytes = (count + 1) / 2;
    const DType storage = codes->entry->dtype;
    const bool as_bytes = storage == DType::kU8 || storage == DType::kI8;
    const bool as_floats =
        storage == DType::kF16 || storage == DType::kBF16 || storage == DType::kF32;
    if (!(as_bytes && codes->entry->shape == Shape{bytes, 1}) &&
        !(as_floats && static_cast<std::int64_t>(codes->view().bytes.size()) == bytes)) {
      return Corrupt(wanted, fmt::format("is {}, expected U8 [{}, 1]", Text(*codes), bytes));
    }
    const std::int64_t blocks = (count + state.block_size - 1) / state.block_size;
    const DType absmax_type = state.nested ? DType::kU8 : DType::kF32;
    if (!is(absmax, absmax_type, Shape{blocks})) {
      return Corrupt(wanted, fmt::format("absmax is {}, expected {} [{}]", Text(*absmax),
                                         Name(absmax_type), blocks));
    }
    if (state.nested) {
      const std::int64_t outer = (blocks + state.nested->block_size - 1) / state.nested->block_size;
      if (!is(nested_absmax, DType::kF32, Shape{outer}) ||
          !is(nested_quant_map, DType::kF32, Shape{256})) {
        return Corrupt(wanted, fmt::format("quant_state says nested, but nested_absmax and "
                                           "nested_quant_map are not F32 [{}] and F32 [256]",
                                           outer));
      }
    } else if (nested_absmax || nested_quant_map) {
      return Corrupt(wanted, "nested_absmax is there, but quant_state does not say nested");
    }
    WeightSpec spec{.rows = wanted.rows, .cols = wanted.cols};
    const bool crosses = wanted.cols % state.block_size != 0 || wanted.cols % 2 != 0;
    if (!crosses) {
      spec.kind = CodecKind::kCodebook;
      spec.bits = BitsOf(state.codebook);
      spec.group_size = state.block_size;
      spec.has_f32_scales = true;
      spec.codebook = state.codebook;
    }
    const std::string stored_as =
        fmt::format("bitsandbytes {}{}{}", Name(state.codebook), state.nested ? ", nested" : "",
                    crosses ? ", blocks across rows" : "");
    return std::make_unique<TableWeight>(
        spec, stored_as,
        TableWeight::Parts{*codes, *absmax, *quant_map, nested_absmax, nested_quant_map, *stated},
        state);
  }

  tl::unexpected<Error> Corrupt(const ExpectedWeight& wanted, const std::string& what) const {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: tensor {}: {}", folder_, wanted.name, what));
  }
  static std::string Text(const Located& part) {
    return fmt::format("{} {}", Name(part.entry->dtype), part.entry->shape.ToString());
  }

  Codebook codebook_;
  std::string folder_;
};

class TableEncoder final : public WeightEncoder {
 public:
  TableEncoder(WeightToWrite weight, bool nested, DType model_dtype)
      : weight_(std::move(weight)), nested_(nested), model_dtype_(model_dtype) {}

  std::vector<Head> Heads() const override {
    const auto head = [&](const char* suffix, std::span<const float> values) {
      return Head{.entry = {.name = weight_.name + suffix,
                            .dtype = DType::kF32,
                            .shape = Shape{static_cast<std::int64_t>(values.size())}},
                  .bytes = {reinterpret_cast<const char*>(values.data()), values.size_bytes()}};
    };
    std::vector<Head> out = {head(".quant_map", ValuesOf(weight_.spec.codebook))};
    if (nested_) {
      out.push_back(head(".nested_quant_map", BitsandbytesNestedMap()));
    }
    return out;
  }
  std::vector<SafetensorsEntry> Parts() const override {
    const WeightSpec& spec = weight_.spec;
    const std::int64_t blocks = spec.rows * spec.num_groups();
    std::vector<SafetensorsEntry> parts = {
        {.name = weight_.name, .dtype = DType::kU8, .shape = Shape{spec.rows * spec.cols / 2, 1}},
        {.name = weight_.name + ".absmax",
         .dtype = nested_ ? DType::kU8 : DType::kF32,
         .shape = Shape{blocks}}};
    if (nested_) {
      parts.push_back({.name = weight_.name + ".nested_absmax",
                       .dtype = DType::kF32,
                       .shape = Shape{(blocks + kNestedBlock - 1) / kNestedBlock}});
    }
    parts.push_back({.name = weight_.name + BitsandbytesStateSuffix(spec.codebook),
                     .dtype = DType::kU8,
                     .shape = Shape{static_cast<std::int64_t>(StateText(0.0F).size())}});
    return parts;
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    std::string bytes;
    bytes.reserve(rows.codes.size() / 2);
    for (std::size_t i = 0; i < rows.codes.size(); i += 2) {
      bytes.push_back(static_cast<char>(rows.codes[i] << 4 | rows.codes[i + 1]));
    }
    absmax_.insert(absmax_.end(), rows.scales.begin(), rows.scales.end());
    return bytes;
  }
  std::vector<std::string> Finish() override {
    std::vector<std::string> out = {""};
    float offset = 0.0F;
    if (nested_) {
      const NestedAbsmax nested = NestAbsmax(absmax_);
      offset = nested.offset;
      out.emplace_back(reinterpret_cast<const char*>(nested.codes.data()), nested.codes.size());
      AppendFloats(nested.absmax, DType::kF32, out.emplace_back());
    } else {
      AppendFloats(absmax_, DType::kF32, out.emplace_back());
    }
    out.push_back(StateText(offset));
    absmax_.clear();
    return out;
  }
  DType ScaleDType() const override { return DType::kF32; }

 private:
  // With double quantization padded with spaces to one length, as the offset is known last.
  std::string StateText(float offset) const {
    constexpr std::size_t kPadded = 256;
    BitsandbytesState state{.codebook = weight_.spec.codebook,
                            .block_size = weight_.spec.group_size,
                            .rows = weight_.spec.rows,
                            .cols = weight_.spec.cols};
    if (nested_) {
      state.nested = {.block_size = kNestedBlock, .offset = offset};
    }
    std::string text = BitsandbytesStateText(state, model_dtype_);
    if (nested_) {
      NIBBLE_CHECK(text.size() <= kPadded, "a quant_state longer than its place");
      text.resize(kPadded, ' ');
    }
    return text;
  }

  WeightToWrite weight_;
  bool nested_;
  DType model_dtype_;
  std::vector<float> absmax_;
};

class Int8Encoder final : public WeightEncoder {
 public:
  explicit Int8Encoder(WeightToWrite weight) : weight_(std::move(weight)) {}

  std::vector<SafetensorsEntry> Parts() const override {
    const WeightSpec& spec = weight_.spec;
    const std::string module = weight_.name.substr(0, weight_.name.rfind('.'));
    return {{.name = weight_.name, .dtype = DType::kI8, .shape = Shape{spec.rows, spec.cols}},
            {.name = module + ".SCB", .dtype = DType::kF32, .shape = Shape{spec.rows}},
            {.name = module + ".weight_format", .dtype = DType::kU8, .shape = Shape{}}};
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    std::string bytes(rows.codes.size(), '\0');
    std::ranges::transform(rows.codes, bytes.begin(),
                           [](std::uint8_t code) { return static_cast<char>(code ^ 0x80U); });
    for (const float scale : rows.scales) {
      const float absmax = scale * 127.0F;
      if (absmax / 127.0F != scale) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{}: the scale {} is no 127th part of an F32 number, as LLM.int8 "
                                "stores it",
                                weight_.name, scale));
      }
      absmax_.push_back(absmax);
    }
    return bytes;
  }
  std::vector<std::string> Finish() override {
    std::vector<std::string> out = {"", "", std::string(1, '\0')};
    AppendFloats(absmax_, DType::kF32, out[1]);
    absmax_.clear();
    return out;
  }
  DType ScaleDType() const override { return DType::kF32; }

 private:
  WeightToWrite weight_;
  std::vector<float> absmax_;
};

}  // namespace

Result<std::unique_ptr<WeightLayout>> MakeBitsandbytesLayout(const json::Value& config,
                                                             const std::string& source) {
  const std::string folder = source.substr(0, source.rfind('/'));
  if (IsTrue(config, "load_in_8bit") || IsTrue(config, "_load_in_8bit")) {
    return std::make_unique<BitsandbytesLayout>(Codebook::kNone, folder);
  }
  if (!IsTrue(config, "load_in_4bit") && !IsTrue(config, "_load_in_4bit")) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: quantization_config: neither load_in_4bit nor load_in_8bit is "
                            "true: set the one that it was quantized with",
                            source));
  }
  const json::Value* type = config.Find("bnb_4bit_quant_type");
  const std::string name = type == nullptr || type->IsNull() ? "fp4"  // the library's default
                           : type->AsString() == nullptr     ? json::Dump(*type)
                                                             : *type->AsString();
  if (!IsTable(name)) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: quantization_config: bnb_4bit_quant_type is {}; nibble reads nf4 "
                            "and fp4",
                            source, Quote(name)));
  }
  return std::make_unique<BitsandbytesLayout>(TableOf(name), folder);
}

Result<std::unique_ptr<WeightEncoder>> MakeBitsandbytesEncoder(const WeightToWrite& weight,
                                                               bool nested,
                                                               const EncoderOptions& options) {
  const WeightSpec& spec = weight.spec;
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  if (spec.kind == CodecKind::kUniform && spec.bits == 8 && !nested) {
    if (spec.has_zero_points || spec.group_size < spec.cols) {
      return wrong(
          fmt::format("{} has no place in bitsandbytes, whose int8 is symmetric with one "
                      "scale a row",
                      spec.ToString()));
    }
    return std::make_unique<Int8Encoder>(weight);
  }
  if (spec.codebook != Codebook::kNf4 && spec.codebook != Codebook::kFp4) {
    return wrong(fmt::format("{} has no place in bitsandbytes, which stores NF4 and FP4{}",
                             spec.ToString(), nested ? "" : ", and 8 bits with one scale a row"));
  }
  if (spec.group_size < 16 || !std::has_single_bit(static_cast<std::uint64_t>(spec.group_size)) ||
      spec.cols % spec.group_size != 0) {
    return wrong(
        fmt::format("blocks of {} are no power of two from 16 up that divides its width "
                    "of {}",
                    spec.group_size, spec.cols));
  }
  return std::make_unique<TableEncoder>(weight, nested, options.model_dtype);
}

}  // namespace nibble
