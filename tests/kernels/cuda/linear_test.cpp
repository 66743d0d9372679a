#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/ops_kernel.h"
#include "kernels/cuda/weight_layout.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/linear_fixture.h"

namespace nibble::cuda {
namespace {

WeightSpec Integer(std::int64_t rows, std::int64_t cols, int bits, std::int64_t group) {
  return {
      .rows = rows, .cols = cols, .kind = CodecKind::kUniform, .bits = bits, .group_size = group};
}
WeightSpec WithZeros(WeightSpec spec) {
  spec.has_zero_points = true;
  return spec;
}
WeightSpec WithMinima(WeightSpec spec) {
  spec.kind = CodecKind::kMinimum;
  return spec;
}
WeightSpec Of(Codebook codebook, std::int64_t rows, std::int64_t cols, std::int64_t group) {
  return {.rows = rows,
          .cols = cols,
          .kind = CodecKind::kCodebook,
          .bits = BitsOf(codebook),
          .group_size = group,
          .has_f32_scales = true,
          .codebook = codebook};
}
WeightSpec Float(std::int64_t rows, std::int64_t cols, DType dtype) {
  return {.rows = rows, .cols = cols, .kind = CodecKind::kFloat, .float_dtype = dtype};
}

// NF4 in its usual blocks and wider ones, FP8 with a scale a row and in blocks.
std::vector<WeightSpec> CodebookSpecs() {
  constexpr auto kNf4 = Codebook::kNf4;
  constexpr auto kFp8 = Codebook::kFp8E4M3;
  std::vector<WeightSpec> specs;
  for (const std::int64_t cols : {64, 256, 576, 1024, 1536, 2176}) {
    specs.push_back(Of(kNf4, 160, cols, 64));
    specs.push_back(Of(kFp8, 160, cols, cols));
  }
  specs.push_back(Of(kNf4, 272, 1024, 256));
  specs.push_back(Of(kNf4, 33, 576, 192));
  specs.push_back(Of(kNf4, 100, 200, 200));  // padding of rows and columns
  specs.push_back(Of(kNf4, 14000, 128, 64));
  specs.push_back(Of(kNf4, 14000, 192, 32));
  specs.push_back(Of(kNf4, 14000, 1216, 64));  // rings of LinearMedium go round
  specs.push_back(Of(kFp8, 272, 1024, 128));
  specs.push_back(Of(kFp8, 33, 384, 128));
  specs.push_back(Of(kFp8, 100, 200, 200));
  specs.push_back(Of(kFp8, 14000, 128, 128));
  for (const std::int64_t cols : {136, 200, 288, 576, 1216, 2112}) {  // a last block that is short
    specs.push_back(Of(kFp8, 160, cols, 128));
  }
  specs.push_back(Of(kFp8, 33, 10944, 128));
  return specs;
}

std::vector<WeightSpec> Specs() {
  std::vector<WeightSpec> specs;
  for (const std::int64_t cols : {64, 256, 576, 1024, 1536, 2176}) {
    for (const int bits : {4, 8}) {
      for (const std::int64_t group :
           {std::int64_t{32}, std::int64_t{64}, std::int64_t{128}, cols}) {
        if (cols % group == 0) {
          specs.push_back(Integer(160, cols, bits, group));
        }
      }
    }
  }
  specs.push_back(WithZeros(Integer(272, 1024, 4, 128)));
  specs.push_back(WithZeros(Integer(48, 576, 4, 32)));
  specs.push_back(WithZeros(Integer(33, 512, 8, 64)));
  specs.push_back(WithMinima(Integer(272, 1024, 4, 32)));
  specs.push_back(WithMinima(Integer(17, 576, 4, 64)));
  specs.push_back(WithMinima(Integer(96, 512, 8, 128)));
  specs.push_back(Integer(100, 200, 4, 200));  // padding of rows and columns
  specs.push_back(Integer(7, 48, 3, 48));
  specs.push_back(Integer(14000, 128, 4, 128));  // several passes of LinearMedium
  specs.push_back(Integer(9000, 576, 8, 32));
  specs.push_back(Integer(14000, 1152, 4, 128));
  specs.push_back(Float(160, 1024, DType::kF16));
  specs.push_back(Float(100, 576, DType::kBF16));
  specs.push_back(Float(40, 72, DType::kF32));
  return specs;
}

/// A weight on the card, and its values as the kernels multiply them.
struct Uploaded {
  WeightLayout layout;
  DeviceBuffer memory;
  std::vector<float> values;  // [rows, cols]
  LinearPart part;
};

/// A weight as it is packed, and its values as the kernels multiply them.
struct PackedTiles {
  WeightLayout layout;
  std::vector<std::byte> bytes;
  std::vector<float> values;  // [rows, cols]
};

PackedTiles Pack(const QuantizedTensor& tensor) {
  PackedTiles out;
  const WeightSpec& spec = tensor.spec;
  const auto layout = LayoutOf(spec);
  EXPECT_TRUE(layout) << layout.error().message;
  out.layout = *layout;
  out.bytes.resize(layout->size_bytes());
  PackTiles(tensor, *layout, out.bytes.data(),
            reinterpret_cast<float*>(out.bytes.data() + layout->factor_offset()));
  out.values.resize(static_cast<std::size_t>(spec.rows * spec.cols));
  for (int row = 0; row < layout->rows; ++row) {
    DequantizeTileRow(*layout, out.bytes.data(), row, out.values.data() + row * layout->cols);
  }
  const std::vector<float> exact = Dequantize(tensor);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    // Codebooks: their values and f32 scales are rounded, too.
    const float roundings = spec.kind == CodecKind::kCodebook ? 3.01F : 1.0F;
    // Weights of W4 that are small for their row fall among the subnormal fp16.
    float factor = 0.0F;
    std::memcpy(&factor,
                out.bytes.data() + layout->factor_offset() +
                    i / static_cast<std::size_t>(spec.cols) * sizeof factor,
                sizeof factor);
    const float smallest = layout->format == Format::kW4 ? 0x1p-15F * factor : 0.0F;
    EXPECT_NEAR(out.values[i], exact[i],
                std::fabs(exact[i]) * roundings * 0x1p-11F + smallest + 1e-7F);
  }
  return out;
}

// On the host: needs no card.
TEST(CudaWeightLayout, HoldsTheWeightsOfEveryFormat) {
  std::uint32_t seed = 100;
  for (const std::vector<WeightSpec>& specs : {Specs(), CodebookSpecs()}) {
    for (const WeightSpec& spec : specs) {
      const PackedTiles packed = Pack(RandomWeight(spec, ++seed));
      EXPECT_EQ(packed.layout.unit_cols, spec.cols % 128 == 0 ? 128 : 64) << spec.ToString();
      ASSERT_FALSE(testing::Test::HasFailure())
          << spec.ToString() << " " << spec.rows << "x" << spec.cols;
    }
  }
}

// Columns that do not exist hold the code of 0 and have, in a unit of their own, no scale: whatever
// a kernel reads there is worth nothing.
TEST(CudaWeightLayout, BlocksOfFp8ArePaddedWithNothing) {
  const QuantizedTensor tensor = RandomWeight(Of(Codebook::kFp8E4M3, 20, 200, 128), 7);
  PackedTiles packed = Pack(tensor);
  EXPECT_EQ(packed.layout.num_units, 4);
  EXPECT_EQ(packed.layout.unit_bytes, 16 * 64 + kPairBytes);
  packed.layout.cols = 4 * 64;  // reads the padding, too
  for (int row = 0; row < packed.layout.num_tiles * kTileRows; ++row) {
    std::vector<float> values(256, 1.0F);
    DequantizeTileRow(packed.layout, packed.bytes.data(), row, values.data());
    for (std::size_t k = row < 20 ? 200 : 0; k < 256; ++k) {
      ASSERT_EQ(values[k], 0.0F) << row << ", " << k;
    }
  }
}

class CudaLinear : public CudaTest {
 protected:
  Uploaded Put(const WeightSpec& spec, std::uint32_t seed) {
    Uploaded out;
    PackedTiles packed = Pack(RandomWeight(spec, seed));
    out.layout = packed.layout;
    out.values = std::move(packed.values);
    out.memory = Upload(packed.bytes);
    out.part = {
        .weight = reinterpret_cast<const std::uint8_t*>(out.memory.data()),
        .factor = reinterpret_cast<const float*>(out.memory.data() + out.layout.factor_offset()),
        .rows = out.layout.rows,
        .num_tiles = out.layout.num_tiles};
    return out;
  }

  enum class Kernel { kSmall, kMedium, kLarge, kTile };
  std::vector<float> Run(Kernel kernel, LinearArgs args, std::size_t rows, Epilogue epilogue,
                         float initial) {
    const auto tokens = static_cast<std::size_t>(args.num_tokens);
    const DeviceBuffer y = Upload(
        std::vector<float>(tokens * rows, epilogue == Epilogue::kAdd ? initial : std::nanf("")));
    args.epilogue = epilogue;
    std::size_t column = 0;
    for (int p = 0; p < args.num_parts; ++p) {
      args.parts[p].y = y.as<float>() + column;
      args.parts[p].y_stride = static_cast<std::int64_t>(rows);
      column += static_cast<std::size_t>(args.parts[p].rows);
    }
    const auto launch = [&] {
      switch (kernel) {
        case Kernel::kSmall:
          return LaunchLinearSmall(args, device().num_sms(), stream());
        case Kernel::kMedium:
          return LaunchLinearMedium(args, device().num_sms(), stream());
        case Kernel::kLarge:
          if (shared_.data() == nullptr) {
            shared_ = Upload(std::vector<std::byte>(LinearSharedBytes(device().num_sms())));
          }
          args.shared = shared_.data();
          return LaunchLinearLarge(args, device().num_sms(), stream());
        default:
          return LaunchLinearTile(args, stream());
      }
    };
    const int error = launch();
    EXPECT_EQ(error, 0);
    return Download<float>(y, tokens * rows);
  }
  bool HasHopper() { return device().compute_capability() == 90; }

 private:
  DeviceBuffer shared_;
};

/// One case a weight, so that a sweep can be cut in shards.
class CudaLinearSweep : public CudaLinear, public testing::WithParamInterface<WeightSpec> {};
std::string NameOfCase(const testing::TestParamInfo<WeightSpec>& info) {
  std::string name = fmt::format("{}_{}_{}x{}", info.index, info.param.ToString(), info.param.rows,
                                 info.param.cols);
  std::ranges::replace(name, ' ', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Numbers, CudaLinearSweep, testing::ValuesIn(Specs()), NameOfCase);
INSTANTIATE_TEST_SUITE_P(Codebooks, CudaLinearSweep, testing::ValuesIn(CodebookSpecs()),
                         NameOfCase);

TEST_P(CudaLinearSweep, EveryKernelGivesTheSameBitsAndTheTruth) {
  const WeightSpec& spec = GetParam();
  auto seed = static_cast<std::uint32_t>(spec.rows * 31 + spec.cols * 7 + spec.group_size);
  const Uploaded weight = Put(spec, ++seed);
  const auto rows = static_cast<std::size_t>(spec.rows);
  const auto cols = static_cast<std::size_t>(spec.cols);
  for (const int tokens : {1, 2, 5, 8, 9, 16, 17, 31, 33, 64, 65, 127, 130, 257}) {
    const std::vector<float> x =
        Normal(cols * static_cast<std::size_t>(tokens), 1.0F, ++seed, 50.0F);
    const std::vector<std::uint16_t> half = ToHalf(x);
    const DeviceBuffer x_buffer = Upload(half);
    LinearArgs args{.layout = weight.layout,
                    .num_parts = 1,
                    .x = x_buffer.as<std::uint16_t>(),
                    .x_stride = static_cast<std::int64_t>(cols),
                    .num_tokens = tokens};
    args.parts[0] = weight.part;
    const std::vector<float> truth = Run(Kernel::kTile, args, rows, Epilogue::kStore, 0.0F);
    double worst = 0.0;
    for (std::size_t m = 0; m < static_cast<std::size_t>(tokens); m += 1 + m / 3) {
      for (std::size_t n = 0; n < rows; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (std::size_t k = 0; k < cols; ++k) {
          const double product = static_cast<double>(weight.values[n * cols + k]) *
                                 static_cast<double>(F16ToFloat(half[m * cols + k]));
          sum += product;
          magnitude += std::fabs(product);
        }
        // Guide: 8 (sqrt(K) 2^-24 sum |terms|).
        const double bound =
            8.0 * std::sqrt(static_cast<double>(cols)) * 0x1p-24 * magnitude + 1e-12;
        worst = std::max(worst, std::fabs(static_cast<double>(truth[m * rows + n]) - sum) / bound);
      }
    }
    EXPECT_LT(worst, 1.0) << spec.ToString() << " " << spec.rows << "x" << spec.cols << ", "
                          << tokens;
    if (tokens <= kMaxSmallTokens && device().compute_capability() >= 90) {
      const auto small = Run(Kernel::kSmall, args, rows, Epilogue::kStore, 0.0F);
      EXPECT_EQ(std::memcmp(small.data(), truth.data(), truth.size() * 4), 0)
          << "small " << spec.ToString() << " " << spec.rows << "x" << spec.cols << ", " << tokens;
    }
    if (HasHopper()) {
      for (const Kernel kernel : {Kernel::kMedium, Kernel::kLarge}) {
        const auto y = Run(kernel, args, rows, Epilogue::kStore, 0.0F);
        EXPECT_EQ(std::memcmp(y.data(), truth.data(), truth.size() * 4), 0)
            << (kernel == Kernel::kMedium ? "medium " : "large ") << spec.ToString() << " "
            << spec.rows << "x" << spec.cols << ", " << tokens;
      }
    }
    if (HasFailure()) {
      return;
    }
  }
}

// The formats that differ in how they take part in a launch.
WeightSpec W4(std::int64_t rows, std::int64_t cols) { return Integer(rows, cols, 4, 128); }
WeightSpec Nf4(std::int64_t rows, std::int64_t cols) { return Of(Codebook::kNf4, rows, cols, 64); }
WeightSpec Fp8(std::int64_t rows, std::int64_t cols) {
  return Of(Codebook::kFp8E4M3, rows, cols, cols);
}

class CudaLinearLaunch
    : public CudaLinear,
      public testing::WithParamInterface<WeightSpec (*)(std::int64_t, std::int64_t)> {
 protected:
  void CompareGated(std::int64_t rows, std::int64_t cols, std::initializer_list<int> batches);
};
INSTANTIATE_TEST_SUITE_P(
    Formats, CudaLinearLaunch, testing::Values(W4, Nf4, Fp8), [](const auto& of) {
      return std::string(of.param == W4 ? "w4" : of.param == Nf4 ? "nf4" : "fp8");
    });

TEST_P(CudaLinearLaunch, PartsAndEpilogues) {
  const std::int64_t cols = 1024;
  const Uploaded a = Put(GetParam()(192, cols), 1);
  const Uploaded b = Put(GetParam()(80, cols), 2);   // an odd number of tiles
  const Uploaded c = Put(GetParam()(100, cols), 3);  // a last tile that is not full
  for (const int tokens : {1, 3, 8, 24, 64, 130, 300}) {
    const DeviceBuffer x = Upload(ToHalf(Normal(static_cast<std::size_t>(cols * tokens), 1.0F, 7)));
    LinearArgs args{.layout = a.layout,
                    .num_parts = 3,
                    .x = x.as<std::uint16_t>(),
                    .x_stride = cols,
                    .num_tokens = tokens,
                    .x_scale = 4.0F};
    args.parts[0] = a.part;
    args.parts[1] = b.part;
    args.parts[2] = c.part;
    for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd}) {
      const auto truth = Run(Kernel::kTile, args, 372, epilogue, 1.5F);
      if (tokens <= kMaxSmallTokens) {
        const auto small = Run(Kernel::kSmall, args, 372, epilogue, 1.5F);
        EXPECT_EQ(std::memcmp(small.data(), truth.data(), truth.size() * 4), 0) << tokens;
      }
      if (HasHopper()) {
        for (const Kernel kernel : {Kernel::kMedium, Kernel::kLarge}) {
          const auto y = Run(kernel, args, 372, epilogue, 1.5F);
          EXPECT_EQ(std::memcmp(y.data(), truth.data(), truth.size() * 4), 0) << tokens;
        }
      }
    }
  }
}

// Products of a norm, gated, by every kernel; of several batches.
void CudaLinearLaunch::CompareGated(std::int64_t rows, std::int64_t cols,
                                    std::initializer_list<int> batches) {
  const Uploaded gate = Put(GetParam()(rows, cols), 1);
  const Uploaded up = Put(GetParam()(rows, cols), 2);
  const DeviceBuffer shared = Upload(std::vector<std::byte>(LinearSharedBytes(device().num_sms())));
  for (const int tokens : batches) {
    const auto values = static_cast<std::size_t>(cols * tokens);
    const DeviceBuffer residual = Upload(Normal(values, 3.0F, 7));
    const DeviceBuffer weight = Upload(Normal(static_cast<std::size_t>(cols), 1.0F, 8));
    const DeviceBuffer x = Poisoned<std::uint16_t>(values);
    ASSERT_EQ(LaunchAddRmsNorm({.residual = residual.as<float>(),
                                .weight = weight.as<float>(),
                                .eps = 1e-5F,
                                .out = x.as<std::uint16_t>(),
                                .out_stride = cols,
                                .width = static_cast<int>(cols),
                                .tokens = tokens},
                               stream()),
              0);
    const auto count = static_cast<std::size_t>(rows * tokens);
    const auto run = [&](auto launch) {
      const DeviceBuffer product = Poisoned<std::uint16_t>(count);
      LinearArgs args{.layout = gate.layout,
                      .num_parts = 2,
                      .epilogue = Epilogue::kSwiGlu,
                      .x = x.as<std::uint16_t>(),
                      .x_stride = cols,
                      .num_tokens = tokens,
                      .product = product.as<std::uint16_t>(),
                      .product_stride = rows,
                      .product_scale = 0.25F};
      args.parts[0] = gate.part;
      args.parts[1] = up.part;
      EXPECT_EQ(launch(args), 0);
      return Download<std::uint16_t>(product, count);
    };
    const auto truth =
        run([&](const LinearArgs& args) { return LaunchLinearTile(args, stream()); });
    if (tokens <= kMaxSmallTokens) {
      EXPECT_EQ(run([&](const LinearArgs& args) {
                  return LaunchLinearSmall(args, device().num_sms(), stream());
                }),
                truth);
      EXPECT_EQ(run([&](LinearArgs args) {
                  args.x = nullptr;
                  args.residual = residual.as<float>();
                  args.norm_weight = weight.as<float>();
                  args.norm_eps = 1e-5F;
                  return LaunchLinearSmall(args, device().num_sms(), stream());
                }),
                truth);
    }
    if (HasHopper()) {
      EXPECT_EQ(run([&](const LinearArgs& args) {
                  return LaunchLinearMedium(args, device().num_sms(), stream());
                }),
                truth);
      if (tokens <= kMediumTokens) {
        const DeviceBuffer normed = Poisoned<std::uint16_t>(values);
        EXPECT_EQ(run([&](LinearArgs args) {
                    args.x = args.normed = normed.as<std::uint16_t>();
                    args.residual = residual.as<float>();
                    args.norm_weight = weight.as<float>();
                    args.norm_eps = 1e-5F;
                    args.shared = shared.data();
                    return LaunchLinearMedium(args, device().num_sms(), stream());
                  }),
                  truth);
        EXPECT_EQ(Download<std::uint16_t>(normed, values), Download<std::uint16_t>(x, values));
      }
      EXPECT_EQ(run([&](const LinearArgs& args) {
                  return LaunchLinearLarge(args, device().num_sms(), stream());
                }),
                truth);
    }
  }
}

// The products of a layer behind its attention, and the first one of the next: each reads what the
// one before wrote. Widths differ, and some blocks have no part of the narrow ones.
TEST_P(CudaLinearLaunch, AChainIsItsProductsOneByOne) {
  constexpr std::int64_t kWidth = 1152;
  constexpr std::int64_t kInner = 7040;
  const Uploaded o = Put(GetParam()(kWidth, 512), 1);
  const Uploaded gate = Put(GetParam()(kInner, kWidth), 2);
  const Uploaded up = Put(GetParam()(kInner, kWidth), 3);
  const Uploaded down = Put(GetParam()(kWidth, kInner), 4);
  const Uploaded q = Put(GetParam()(200, kWidth), 5);
  const DeviceBuffer shared = Upload(std::vector<std::byte>(LinearSharedBytes(device().num_sms())));
  const DeviceBuffer weight = Upload(Normal(kWidth, 1.0F, 8));
  for (const int tokens : {1, 2, 5, 8}) {
    const auto count = static_cast<std::size_t>(tokens);
    const DeviceBuffer x = Upload(ToHalf(Normal(512 * count, 1.0F, 9)));
    const DeviceBuffer normed = Poisoned<std::uint16_t>(kWidth * count);
    const std::vector<float> before = Normal(kWidth * count, 1.0F, 11);
    const auto run = [&](bool chained) {
      const DeviceBuffer residual = Upload(before);
      const DeviceBuffer product = Poisoned<std::uint16_t>(kInner * count);
      const DeviceBuffer y = Poisoned<float>(200 * count);
      const auto of = [&](const Uploaded& w, const std::uint16_t* from, Epilogue epilogue) {
        LinearArgs args{.layout = w.layout,
                        .num_parts = 1,
                        .epilogue = epilogue,
                        .x = from,
                        .x_stride = w.layout.cols,
                        .num_tokens = tokens,
                        .product = product.as<std::uint16_t>(),
                        .product_stride = kInner,
                        .product_scale = 0.25F,
                        .shared = shared.data()};
        args.parts[0] = w.part;
        args.parts[0].y = epilogue == Epilogue::kStore ? y.as<float>() : residual.as<float>();
        args.parts[0].y_stride = w.layout.rows;
        return args;
      };
      const auto with_norm = [&](LinearArgs args) {
        args.residual = residual.as<float>();
        args.norm_weight = weight.as<float>();
        args.norm_eps = 1e-5F;
        return args;
      };
      std::vector<LinearArgs> products = {
          of(o, x.as<std::uint16_t>(), Epilogue::kAdd),
          with_norm(of(gate, normed.as<std::uint16_t>(), Epilogue::kSwiGlu)),
          of(down, product.as<std::uint16_t>(), Epilogue::kAdd),
          with_norm(of(q, normed.as<std::uint16_t>(), Epilogue::kStore))};
      products[1].num_parts = 2;
      products[1].parts[1] = up.part;
      products[2].x_scale = 4.0F;
      if (chained) {
        EXPECT_EQ(LaunchLinearChain(products, device().num_sms(), stream()), 0);
      } else {
        for (LinearArgs& args : products) {
          if (args.residual != nullptr) {
            EXPECT_EQ(LaunchAddRmsNorm({.residual = residual.as<float>(),
                                        .weight = weight.as<float>(),
                                        .eps = 1e-5F,
                                        .out = normed.as<std::uint16_t>(),
                                        .out_stride = kWidth,
                                        .width = kWidth,
                                        .tokens = tokens},
                                       stream()),
                      0);
            args.residual = nullptr;
          }
          EXPECT_EQ(LaunchLinearSmall(args, device().num_sms(), stream()), 0);
        }
      }
      std::vector<float> out = Download<float>(residual, kWidth * count);
      const std::vector<float> last = Download<float>(y, 200 * count);
      out.insert(out.end(), last.begin(), last.end());
      return out;
    };
    const std::vector<float> truth = run(false);
    for (int i = 0; i < 3; ++i) {
      const std::vector<float> chained = run(true);
      ASSERT_EQ(std::memcmp(chained.data(), truth.data(), truth.size() * sizeof(float)), 0)
          << tokens << ", " << i;
    }
  }
}

TEST_P(CudaLinearLaunch, GatedAndNormed) {
  CompareGated(13000, 512, {1, 2, 7, 20, 40, 130});
  CompareGated(160, 8192, {1, 2, 8});
  CompareGated(160, 2176, {1, 2});
}

}  // namespace
}  // namespace nibble::cuda
