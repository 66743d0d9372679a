#include <gtest/gtest.h>

#include "kernels/cuda/ops_kernel.h"
#include "kernels/cuda/sampling_kernel.h"
#include "kernels/sampling.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/linear_fixture.h"

namespace nibble::cuda {
namespace {

class CudaOps : public CudaTest {};

TEST_F(CudaOps, NormAddsNormalizesAndRoundsOnce) {
  for (const int width : {64, 576, 4096, 8192, 11008}) {
    const int tokens = 5;
    const auto count = static_cast<std::size_t>(width * tokens);
    const auto residual = Normal(count, 2.0F, 1, 50.0F);
    const auto delta = Normal(count, 1.0F, 2);
    const auto weight = Normal(static_cast<std::size_t>(width), 1.0F, 3);
    const DeviceBuffer r = Upload(residual);
    const DeviceBuffer d = Upload(delta);
    const DeviceBuffer w = Upload(weight);
    const DeviceBuffer out = Poisoned<std::uint16_t>(count);
    ASSERT_EQ(LaunchAddRmsNorm({.residual = r.as<float>(),
                                .delta = d.as<float>(),
                                .weight = w.as<float>(),
                                .eps = 1e-5F,
                                .out = out.as<std::uint16_t>(),
                                .out_stride = width,
                                .width = width,
                                .tokens = tokens},
                               stream()),
              0);
    const auto found = Download<std::uint16_t>(out, count);
    const auto sum = Download<float>(r, count);
    for (int m = 0; m < tokens; ++m) {
      double squares = 0.0;
      for (int i = 0; i < width; ++i) {
        const auto at = static_cast<std::size_t>(m * width + i);
        ASSERT_EQ(sum[at], residual[at] + delta[at]);
        squares += static_cast<double>(sum[at]) * static_cast<double>(sum[at]);
      }
      const double inverse = 1.0 / std::sqrt(squares / width + 1e-5);
      for (int i = 0; i < width; ++i) {
        const auto at = static_cast<std::size_t>(m * width + i);
        const double truth = static_cast<double>(sum[at]) * inverse *
                             static_cast<double>(weight[static_cast<std::size_t>(i)]);
        ASSERT_NEAR(static_cast<double>(F16ToFloat(found[at])), truth,
                    std::fabs(truth) * 0x1p-10 + 1e-6);
      }
    }
  }
}

TEST_F(CudaOps, EmbeddingReadsThePackedTable) {
  for (const WeightSpec& spec :
       {WeightSpec{
            .rows = 100, .cols = 576, .kind = CodecKind::kUniform, .bits = 8, .group_size = 32},
        WeightSpec{.rows = 100,
        .cols = 256,
        .kind = CodecKind::kUniform,
        .bits = 4,
        .group_size = 128,
        .has_zero_points = true},
        WeightSpec{
            .rows = 100, .cols = 256, .kind = CodecKind::kMinimum, .bits = 4, .group_size = 32},
        WeightSpec{
            .rows = 40, .cols = 64, .kind = CodecKind::kFloat, .float_dtype = DType::kBF16}}) {
    const QuantizedTensor tensor = RandomWeight(spec, 9);
    const auto layout = LayoutOf(spec);
    ASSERT_TRUE(layout);
    std::vector<std::byte> packed(layout->size_bytes());
    PackTiles(tensor, *layout, packed.data(),
              reinterpret_cast<float*>(packed.data() + layout->factor_offset()));
    const DeviceBuffer table = Upload(packed);
    const DeviceBuffer tokens =
        Upload(std::vector<TokenRecord>{{.id = 3}, {.id = 39}, {.id = 0, .from_slot = 1}});
    const DeviceBuffer slots = Upload(std::vector<std::int32_t>{7, 21});
    const DeviceBuffer out = Poisoned<float>(static_cast<std::size_t>(3 * spec.cols));
    ASSERT_EQ(LaunchEmbedding(
                  {.layout = *layout,
                   .table = table.as<std::uint8_t>(),
                   .factor = reinterpret_cast<const float*>(table.data() + layout->factor_offset()),
                   .tokens = tokens.as<TokenRecord>(),
                   .slot_tokens = slots.as<std::int32_t>(),
                   .out = out.as<float>(),
                   .num_tokens = 3},
                  stream()),
              0);
    const auto found = Download<float>(out, static_cast<std::size_t>(3 * spec.cols));
    const auto truth = Dequantize(tensor);
    const int ids[] = {3, 39, 21};
    for (int i = 0; i < 3; ++i) {
      for (std::int64_t k = 0; k < spec.cols; ++k) {
        ASSERT_NEAR(found[static_cast<std::size_t>(i * spec.cols + k)],
                    truth[static_cast<std::size_t>(ids[i] * spec.cols + k)], 1e-6F)
            << spec.ToString();
      }
    }
  }
}

// The same rows on the CPU and on the card: the same tokens, as both follow kernels/sampling.h.
TEST_F(CudaOps, SamplingFollowsTheCpu) {
  for (const int vocab : {1000, 49152, 128256}) {
    const int rows = 48;
    std::vector<float> logits = Normal(static_cast<std::size_t>(vocab * rows), 6.0F, 4);
    std::vector<SampleRow> samples;
    std::mt19937 rng(3);
    for (int i = 0; i < rows; ++i) {
      SampleRow row{.logits_row = i};
      row.temperature = i % 4 == 0 ? 0.0F : 0.3F + 0.1F * static_cast<float>(i % 10);
      row.top_k = i % 3 == 1 ? 1 + i : 0;
      row.top_p = i % 5 == 2 ? 0.8F : i % 5 == 3 ? 0.3F : 1.0F;
      row.min_p = i % 7 == 3 ? 0.05F : 0.0F;
      row.seed = rng();
      row.position = static_cast<std::uint64_t>(i);
      row.num_top_logprobs = i % 2 == 0 ? 5 : -1;
      samples.push_back(row);
    }
    const auto cpu = MakeCpuDevice(1);
    std::vector<std::byte> scratch(SamplingScratchBytes(*cpu, vocab) + 64);
    KernelContext context{
        .device = cpu.get(), .scratch = scratch.data(), .scratch_bytes = scratch.size()};
    std::vector<SampleResult> truth(static_cast<std::size_t>(rows));
    std::vector<float> copy = logits;
    Sample(context, copy.data(), vocab, vocab, samples, truth);

    std::vector<SampleRecord> records;
    for (const SampleRow& row : samples) {
      SampleRecord record{.temperature = row.temperature,
                          .top_p = row.top_p,
                          .min_p = row.min_p,
                          .top_k = row.top_k,
                          .num_top = row.num_top_logprobs};
      record.seed[0] = static_cast<std::uint32_t>(row.seed);
      record.seed[1] = static_cast<std::uint32_t>(row.seed >> 32);
      record.position[0] = static_cast<std::uint32_t>(row.position);
      records.push_back(record);
    }
    const DeviceBuffer logits_buffer = Upload(logits);
    const DeviceBuffer record_buffer = Upload(records);
    const DeviceBuffer results = Poisoned<SampleRecordResult>(static_cast<std::size_t>(rows));
    const DeviceBuffer pointer =
        Upload(std::vector<SampleRecordResult*>{results.as<SampleRecordResult>()});
    const DeviceBuffer slot_tokens = Upload(std::vector<std::int32_t>(4));
    ASSERT_EQ(LaunchSample({.logits = logits_buffer.as<float>(),
                            .logits_stride = vocab,
                            .vocab = vocab,
                            .rows = rows,
                            .records = record_buffer.as<SampleRecord>(),
                            .results = pointer.as<SampleRecordResult*>(),
                            .slot_tokens = slot_tokens.as<std::int32_t>()},
                           stream()),
              0);
    const auto found = Download<SampleRecordResult>(results, static_cast<std::size_t>(rows));
    int different = 0;
    for (int i = 0; i < rows; ++i) {
      const SampleResult& expected = truth[static_cast<std::size_t>(i)];
      const SampleRecordResult& result = found[static_cast<std::size_t>(i)];
      different += result.token != Raw(expected.token) ? 1 : 0;
      if (result.token != Raw(expected.token)) {
        ADD_FAILURE() << "vocab " << vocab << " row " << i << ": " << result.token << " instead of "
                      << Raw(expected.token);
        continue;
      }
      if (samples[static_cast<std::size_t>(i)].num_top_logprobs >= 0) {
        EXPECT_NEAR(result.logprob, expected.logprob, 1e-4F);
        EXPECT_EQ(result.rank, expected.rank);
        ASSERT_EQ(result.num_top, static_cast<int>(expected.top.size()));
        for (int k = 0; k < result.num_top; ++k) {
          EXPECT_EQ(result.top_tokens[k], Raw(expected.top[static_cast<std::size_t>(k)].token));
        }
      }
    }
    EXPECT_LE(different, 1) << "a draw may fall on another side of a rounding";
  }
}

}  // namespace
}  // namespace nibble::cuda
