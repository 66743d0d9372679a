#include "cli/limits_text.h"

#include <fmt/format.h>

namespace nibble::cli {

json::Object DescribeLimits(const MachineLimits& limits) {
  json::Object out;
  out.Set("threads", limits.num_threads);
  out.Set("read_gb_per_s_one_thread", limits.read_gb_per_s_one);
  out.Set("read_gb_per_s", limits.read_gb_per_s);
  out.Set("int8_gop_per_s", limits.int8_gop_per_s);
  out.Set("f32_gop_per_s", limits.f32_gop_per_s);
  out.Set("int16_gop_per_s", limits.int16_gop_per_s);
  return out;
}

json::Object DescribeLimits(const CardLimits& limits) {
  json::Object out;
  out.Set("card", limits.name);
  out.Set("sms", limits.num_sms);
  out.Set("read_gb_per_s", limits.read_gb_per_s);
  if (limits.copy_gb_per_s > 0.0) {
    out.Set("host_to_card_gb_per_s", limits.copy_gb_per_s);
  } else {
    out.Set("host_to_card_gb_per_s", nullptr);
  }
  out.Set("graph_node_us", limits.graph_node_us);
  out.Set("dependent_graph_node_us", limits.dependent_node_us);
  if (limits.f16_gflop_per_s > 0.0) {
    out.Set("f16_gflop_per_s", limits.f16_gflop_per_s);
  } else {
    out.Set("f16_gflop_per_s", nullptr);
    out.Set("f16_not_measured", limits.f16_missing);
  }
  return out;
}

std::string DescribeLimitsInWords(const CardLimits& limits) {
  const std::string dense = limits.f16_gflop_per_s > 0.0
                                ? fmt::format("{:.0f} TFLOP/s", limits.f16_gflop_per_s / 1e3)
                                : fmt::format("not measured ({})", limits.f16_missing);
  const std::string copy = limits.copy_gb_per_s > 0.0
                               ? fmt::format("{:.1f} GB/s", limits.copy_gb_per_s)
                               : "not measured (no pinned memory)";
  return fmt::format(
      "{}, {} SMs: memory read {:.0f} GB/s, host to card {}, an empty graph node {:.2f} us ({:.2f} "
      "us where it may "
      "start early), dense fp16 {}",
      limits.name, limits.num_sms, limits.read_gb_per_s, copy, limits.graph_node_us,
      limits.dependent_node_us, dense);
}

}  // namespace nibble::cli
