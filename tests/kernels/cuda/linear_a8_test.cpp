#include "kernels/cuda/linear_a8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "codec/codebook.h"
#include "kernels/cuda/ops_kernel.h"
#include "kernels/cuda/weight_layout.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/linear_fixture.h"

namespace nibble::cuda {
namespace {

constexpr int kTileTokens[] = {16, 32, 64, 128};

WeightSpec W4(std::int64_t rows, std::int64_t cols, std::int64_t group = 128, int bits = 4) {
  return {
      .rows = rows, .cols = cols, .kind = CodecKind::kUniform, .bits = bits, .group_size = group};
}

// Column of byte `at` of a row of e4m3 activations.
std::size_t ColumnOf(std::size_t at) {
  const std::size_t t = at % 16 / 4;
  const std::size_t i = at % 4;
  return at / 16 * 16 + 2 * t + 8 * (i % 2) + i / 2;
}

// Activations as the card rounds them.
struct Rounded {
  std::vector<std::uint8_t> bytes;  // [tokens, cols], as the kernels want them
  std::vector<float> scales;        // [tokens]
  std::vector<float> values;        // [tokens, cols], without the scales
};
Rounded RoundRows(const std::vector<std::uint16_t>& x, std::size_t cols) {
  Rounded out;
  const std::span<const float> values = ValuesOf(Codebook::kFp8E4M3);
  for (std::size_t row = 0; row < x.size(); row += cols) {
    float largest = 0.0F;
    for (std::size_t k = 0; k < cols; ++k) {
      largest = std::max(largest, std::fabs(F16ToFloat(x[row + k])));
    }
    const float inverse = largest == 0.0F ? 0.0F : 448.0F / largest;
    out.scales.push_back(largest / 448.0F);
    out.values.resize(row + cols);
    for (std::size_t at = 0; at < cols; ++at) {
      const std::size_t column = ColumnOf(at);
      const float scaled = F16ToFloat(x[row + column]) * inverse;
      const std::uint8_t code = NearestCode(Codebook::kFp8E4M3, scaled);
      out.bytes.push_back(code);
      out.values[row + column] = values[code];
    }
  }
  return out;
}

class CudaLinearA8 : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped() && device().compute_capability() != 90) {
      GTEST_SKIP() << "needs the FP8 tensor cores of Hopper";
    }
  }

  struct Uploaded {
    QuantizedTensor tensor;
    WeightLayout layout;
    DeviceBuffer memory;
    LinearPart part;
  };
  // So many copies behind each other.
  Uploaded Put(const WeightSpec& spec, std::uint32_t seed, std::size_t copies = 1) {
    Uploaded out;
    out.tensor = RandomWeight(spec, seed);
    const auto layout = LayoutOf(spec);
    EXPECT_TRUE(layout) << layout.error().message;
    out.layout = *layout;
    EXPECT_TRUE(TakesE4M3(out.layout));
    std::vector<std::byte> bytes(layout->size_bytes());
    PackTiles(out.tensor, *layout, bytes.data(),
              reinterpret_cast<float*>(bytes.data() + layout->factor_offset()));
    const std::vector<std::byte> once = bytes;
    for (std::size_t i = 1; i < copies; ++i) {
      bytes.insert(bytes.end(), once.begin(), once.end());
    }
    out.memory = Upload(bytes);
    out.part = {
        .weight = reinterpret_cast<const std::uint8_t*>(out.memory.data()),
        .factor = reinterpret_cast<const float*>(out.memory.data() + layout->factor_offset()),
        .rows = out.layout.rows,
        .num_tiles = out.layout.num_tiles};
    return out;
  }

  struct Activations {
    DeviceBuffer half, bytes, scales;

    E4M3Rows rows() const { return {.x = bytes.as<std::uint8_t>(), .scales = scales.as<float>()}; }
  };
  Activations Quantize(const std::vector<std::uint16_t>& x, std::size_t cols) {
    Activations out;
    const std::size_t tokens = x.size() / cols;
    out.half = Upload(x);
    out.bytes = Poisoned<std::uint8_t>(x.size());
    out.scales = Poisoned<float>(tokens);
    EXPECT_EQ(LaunchQuantizeE4M3({.x = out.half.as<std::uint16_t>(),
                                  .x_stride = static_cast<std::int64_t>(cols),
                                  .out = out.bytes.as<std::uint8_t>(),
                                  .scales = out.scales.as<float>(),
                                  .cols = static_cast<int>(cols),
                                  .num_tokens = static_cast<int>(tokens)},
                                 stream()),
              0);
    return out;
  }

  // Of all parts side by side; kAdd adds to `initial`.
  std::vector<float> Run(const std::vector<const Uploaded*>& weights, const Activations& x,
                         int tokens, int tile_tokens, Epilogue epilogue = Epilogue::kStore,
                         float initial = 0.0F, const float* bias = nullptr) {
    LinearArgs args{.layout = weights[0]->layout,
                    .num_parts = static_cast<int>(weights.size()),
                    .epilogue = epilogue,
                    .num_tokens = tokens,
                    .x_scale = 4.0F};
    std::int64_t rows = 0;
    for (const Uploaded* weight : weights) {
      rows += weight->layout.rows;
    }
    const auto count = static_cast<std::size_t>(rows * tokens);
    const DeviceBuffer y =
        Upload(std::vector<float>(count, epilogue == Epilogue::kAdd ? initial : std::nanf("")));
    std::int64_t column = 0;
    for (std::size_t p = 0; p < weights.size(); ++p) {
      LinearPart& part = args.parts[p];
      part = weights[p]->part;
      part.y = y.as<float>() + column;
      part.y_stride = rows;
      part.bias = bias;
      column += part.rows;
    }
    EXPECT_EQ(LaunchLinearA8(args, x.rows(), device().num_sms(), stream(), tile_tokens), 0);
    return Download<float>(y, count);
  }
};

TEST_F(CudaLinearA8, ActivationsAreTheNearestE4M3OfTheirRowsScale) {
  std::uint32_t seed = 1;
  for (const std::size_t cols : {128, 384, 4096, 11008, 17152}) {
    constexpr std::size_t kTokens = 7;
    std::vector<std::uint16_t> x = ToHalf(Normal(kTokens * cols, 1.0F, ++seed, 100.0F));
    for (std::size_t k = 0; k < cols; ++k) {
      x[cols + k] = 0;                                            // a row of zeros
      x[2 * cols + k] = FloatToF16(F16ToFloat(x[k]) * 0x1p-22F);  // below the normal range of fp16
      x[3 * cols + k] = FloatToF16(F16ToFloat(x[k]) * 200.0F);
    }
    const Rounded truth = RoundRows(x, cols);
    const Activations found = Quantize(x, cols);
    EXPECT_EQ(Download<std::uint8_t>(found.bytes, x.size()), truth.bytes) << cols;
    EXPECT_EQ(Download<float>(found.scales, kTokens), truth.scales) << cols;
  }
}

// Products are those of the rounded activations but for what the tensor cores drop: a step of wgmma
// aligns its 32 products and the sum before to the largest of them, and keeps kBits below it.
TEST_F(CudaLinearA8, EveryTileAndNumberOfTokensGivesTheSameBitsAndTheTruth) {
  constexpr double kBits = 13;
  std::uint32_t seed = 1;
  const std::vector<WeightSpec> specs = {W4(160, 128),        W4(33, 512),       W4(272, 1024),
                                         W4(100, 2176),       W4(160, 512, 512), W4(48, 1024, 256),
                                         W4(64, 256, 128, 3), W4(14000, 384),    W4(1024, 11008)};
  for (const WeightSpec& spec : specs) {
    SCOPED_TRACE(spec.ToString() + " " + std::to_string(spec.rows) + "x" +
                 std::to_string(spec.cols));
    constexpr std::size_t kTokens = 257;
    const auto rows = static_cast<std::size_t>(spec.rows);
    const auto cols = static_cast<std::size_t>(spec.cols);
    const Uploaded weight = Put(spec, ++seed);
    const std::vector<std::uint16_t> half = ToHalf(Normal(kTokens * cols, 1.0F, ++seed, 50.0F));
    const Activations x = Quantize(half, cols);
    const std::vector<float> all = Run({&weight}, x, kTokens, 128);
    for (const int tokens : {1, 8, 16, 17, 33, 64, 130, 257}) {
      for (const int tile_tokens : {0, 16, 32, 64, 128}) {
        const std::vector<float> some = Run({&weight}, x, tokens, tile_tokens);
        EXPECT_EQ(std::memcmp(some.data(), all.data(), some.size() * sizeof(float)), 0)
            << tokens << " tokens, tiles of " << tile_tokens;
      }
    }
    const Rounded rounded = RoundRows(half, cols);
    const std::vector<float> values = Dequantize(weight.tensor);
    double worst = 0.0;
    double error_squares = 0.0;
    double squares = 0.0;
    double errors = 0.0;
    std::size_t count = 0;
    const std::size_t row_step = std::max<std::size_t>(1, rows * cols / 1000000);
    for (const std::size_t m : {0, 1, 5, 40, 128, 255, 256}) {
      for (std::size_t n = 0; n < rows; n += row_step) {
        double sum = 0.0;
        double bound = 0.0;
        for (std::size_t g = 0; g < cols; g += 128) {
          double magnitude = 0.0;
          double largest_w = 0.0;
          double largest_x = 0.0;
          for (std::size_t k = g; k < g + 128; ++k) {
            const double w = values[n * cols + k];
            const double product = w * rounded.values[m * cols + k];
            sum += product;
            magnitude += std::fabs(product);
            largest_w = std::max(largest_w, std::fabs(w));
            largest_x =
                std::max(largest_x, std::fabs(static_cast<double>(rounded.values[m * cols + k])));
          }
          // All codes are aligned as if they were 8, at most 4 times the largest of a group here.
          const double largest = std::max(magnitude, 4.0 * largest_w * largest_x);
          bound += 4.0 * 33.0 * std::exp2(-kBits) * largest + 0x1p-22 * magnitude;
        }
        const double scale = 4.0 * static_cast<double>(rounded.scales[m]);
        const double error = static_cast<double>(all[m * rows + n]) - sum * scale;
        worst = std::max(worst, std::fabs(error) / (bound * scale + 1e-12));
        errors += error / scale;
        error_squares += error / scale * error / scale;
        squares += sum * sum;
        ++count;
      }
    }
    EXPECT_LT(worst, 1.0);
    const double relative = std::sqrt(error_squares / squares);
    EXPECT_LT(relative, std::exp2(-11.5));
    std::printf(
        "  %zux%zu: worst error %.5f of the bound, root mean square 2^%.2f, mean 2^%.2f of the "
        "outputs'\n",
        rows, cols, worst, std::log2(relative),
        std::log2(std::fabs(errors / static_cast<double>(count)) /
                  std::sqrt(squares / static_cast<double>(count))));
    if (HasFailure()) {
      return;
    }
  }
}

TEST_F(CudaLinearA8, PartsAndEpiloguesGiveTheBitsOfEachAlone) {
  constexpr std::size_t kCols = 1024;
  const Uploaded a = Put(W4(192, kCols), 1);
  const Uploaded b = Put(W4(80, kCols), 2);   // an odd number of tiles
  const Uploaded c = Put(W4(100, kCols), 3);  // a last tile that is not full
  const std::vector<float> bias = Normal(192, 1.0F, 4);
  const DeviceBuffer bias_buffer = Upload(bias);
  for (const int tokens : {1, 3, 24, 64, 130, 300}) {
    const auto count = static_cast<std::size_t>(tokens);
    const Activations x = Quantize(ToHalf(Normal(count * kCols, 1.0F, 7)), kCols);
    const std::vector<float> alone[] = {Run({&a}, x, tokens, 0), Run({&b}, x, tokens, 0),
                                        Run({&c}, x, tokens, 0)};
    std::vector<float> stored;
    std::vector<float> added;
    std::vector<float> biased;
    for (std::size_t m = 0; m < count; ++m) {
      for (const std::vector<float>& part : alone) {
        const std::size_t rows = part.size() / count;
        for (std::size_t n = 0; n < rows; ++n) {
          stored.push_back(part[m * rows + n]);
          added.push_back(1.5F + stored.back());
        }
      }
      for (std::size_t n = 0; n < 192; ++n) {
        biased.push_back(alone[0][m * 192 + n] + bias[n]);
      }
    }
    for (const int tile_tokens : kTileTokens) {
      EXPECT_EQ(Run({&a, &b, &c}, x, tokens, tile_tokens), stored) << tokens << " " << tile_tokens;
      EXPECT_EQ(Run({&a, &b, &c}, x, tokens, tile_tokens, Epilogue::kAdd, 1.5F), added)
          << tokens << " " << tile_tokens;
      EXPECT_EQ(Run({&a}, x, tokens, tile_tokens, Epilogue::kStore, 0.0F, bias_buffer.as<float>()),
                biased)
          << tokens << " " << tile_tokens;
    }
  }
}

TEST_F(CudaLinearA8, GatedProductsAreThoseOfTheirParts) {
  constexpr std::size_t kCols = 512;
  constexpr std::size_t kRows = 1000;  // a last tile that is not full
  const Uploaded gate = Put(W4(kRows, kCols), 1);
  const Uploaded up = Put(W4(kRows, kCols), 2);
  for (const int tokens : {1, 20, 40, 130}) {
    const auto count = static_cast<std::size_t>(tokens);
    const Activations x = Quantize(ToHalf(Normal(count * kCols, 1.0F, 7)), kCols);
    const DeviceBuffer gates = Upload(Run({&gate}, x, tokens, 0));
    const DeviceBuffer ups = Upload(Run({&up}, x, tokens, 0));
    const DeviceBuffer product = Poisoned<std::uint16_t>(count * kRows);
    ASSERT_EQ(LaunchSwiGlu({.gate = gates.as<float>(),
                            .up = ups.as<float>(),
                            .out = product.as<std::uint16_t>(),
                            .gate_stride = kRows,
                            .up_stride = kRows,
                            .out_stride = kRows,
                            .scale = 0.25F,
                            .tokens = tokens,
                            .width = kRows},
                           stream()),
              0);
    const auto truth = Download<std::uint16_t>(product, count * kRows);
    for (const int tile_tokens : kTileTokens) {
      const DeviceBuffer gated = Poisoned<std::uint16_t>(count * kRows);
      LinearArgs args{.layout = gate.layout,
                      .num_parts = 2,
                      .epilogue = Epilogue::kSwiGlu,
                      .num_tokens = tokens,
                      .x_scale = 4.0F,
                      .product = gated.as<std::uint16_t>(),
                      .product_stride = kRows,
                      .product_scale = 0.25F};
      args.parts[0] = gate.part;
      args.parts[1] = up.part;
      EXPECT_EQ(LaunchLinearA8(args, x.rows(), device().num_sms(), stream(), tile_tokens), 0);
      EXPECT_EQ(Download<std::uint16_t>(gated, count * kRows), truth)
          << tokens << " " << tile_tokens;
    }
  }
}

// Steps of a model: a product starts while the one before still ends, on weights that no cache
// holds, and rounds its activations just before.
TEST_F(CudaLinearA8, LaunchesBehindEachOtherGiveTheBitsOfEachAlone) {
  constexpr std::size_t kSize = 4096;
#ifdef NIBBLE_RACECHECK
  constexpr int kLaunches = 4;  // it looks at each for itself
#else
  constexpr int kLaunches = 24;
#endif
  constexpr std::size_t kCopies = 8;  // some 210 MB of them
  std::vector<Uploaded> weights;
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    weights.push_back(Put(W4(kSize, kSize), seed, kCopies));
  }
  const auto part_of = [&](std::size_t p, std::size_t copy) {
    LinearPart part = weights[p].part;
    const std::size_t offset = copy * weights[p].layout.size_bytes();
    part.weight += offset;
    part.factor += offset / sizeof(float);
    return part;
  };
  for (const int tokens : {1, 32, 100, 300}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const auto count = static_cast<std::size_t>(tokens);
    const std::vector<std::uint16_t> x = ToHalf(Normal(2 * count * kSize, 1.0F, 7));
    const DeviceBuffer half = Upload(x);
    const DeviceBuffer bytes = Poisoned<std::uint8_t>(count * kSize);
    const DeviceBuffer scales = Poisoned<float>(count);
    for (const bool gated : {false, true}) {
      const std::size_t out_bytes = count * kSize * (gated ? sizeof(std::uint16_t) : 12);
      const DeviceBuffer out = Poisoned<std::uint8_t>(kLaunches * out_bytes);
      const auto launch = [&](std::size_t i) {
        ASSERT_EQ(LaunchQuantizeE4M3({.x = half.as<std::uint16_t>() + i % 2 * count * kSize,
                                      .x_stride = kSize,
                                      .out = bytes.as<std::uint8_t>(),
                                      .scales = scales.as<float>(),
                                      .cols = kSize,
                                      .num_tokens = tokens},
                                     stream()),
                  0);
        std::byte* const to = out.data() + i * out_bytes;
        LinearArgs args{.layout = weights[0].layout,
                        .num_parts = gated ? 2 : 3,
                        .epilogue = gated ? Epilogue::kSwiGlu : Epilogue::kStore,
                        .num_tokens = tokens,
                        .product = reinterpret_cast<std::uint16_t*>(to),
                        .product_stride = kSize};
        for (std::size_t p = 0; p < 3; ++p) {
          args.parts[p] = part_of(p, i % kCopies);
          args.parts[p].y = reinterpret_cast<float*>(to) + p * kSize;
          args.parts[p].y_stride = 3 * kSize;
        }
        ASSERT_EQ(
            LaunchLinearA8(args, {.x = bytes.as<std::uint8_t>(), .scales = scales.as<float>()},
                           device().num_sms(), stream()),
            0);
      };
      std::vector<std::uint8_t> alone[2];
      for (std::size_t i = 0; i < 2; ++i) {
        launch(i);
        const auto all = Download<std::uint8_t>(out, (i + 1) * out_bytes);
        alone[i].assign(all.end() - static_cast<std::ptrdiff_t>(out_bytes), all.end());
      }
      for (std::size_t i = 0; i < kLaunches; ++i) {
        launch(i);
      }
      const auto all = Download<std::uint8_t>(out, kLaunches * out_bytes);
      for (std::size_t i = 0; i < kLaunches; ++i) {
        EXPECT_EQ(std::memcmp(all.data() + i * out_bytes, alone[i % 2].data(), out_bytes), 0)
            << (gated ? "gated, " : "") << "launch " << i;
      }
      if (HasFailure()) {
        return;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
