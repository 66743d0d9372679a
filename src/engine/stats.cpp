#include "engine/stats.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace nibble {
namespace {

Histogram WithBounds(std::vector<double> bounds) {
  Histogram histogram;
  histogram.counts.resize(bounds.size() + 1);
  histogram.bounds = std::move(bounds);
  return histogram;
}

/// 1, 2, 5, 10, 20, ... up to `last`.
std::vector<double> OneTwoFive(std::int64_t last) {
  std::vector<double> bounds;
  for (std::int64_t decade = 1; decade <= last; decade *= 10) {
    for (const std::int64_t digit : {1, 2, 5}) {
      if (decade * digit <= last) {
        bounds.push_back(static_cast<double>(decade * digit));
      }
    }
  }
  return bounds;
}

}  // namespace

EngineStats MakeStats(const EngineConfig& config) {
  EngineStats stats;
  stats.time_to_first_token_s =
      WithBounds({.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560});
  stats.inter_token_latency_s = WithBounds(
      {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80});
  const std::vector<double> request_bounds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                              30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
  stats.e2e_request_latency_s = WithBounds(request_bounds);
  stats.request_queue_time_s = WithBounds(request_bounds);
  stats.request_prefill_time_s = WithBounds(request_bounds);
  stats.request_decode_time_s = WithBounds(request_bounds);
  stats.request_inference_time_s = WithBounds(request_bounds);
  stats.iteration_tokens =
      WithBounds({1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384});
  const std::vector<double> tokens = OneTwoFive(config.max_model_len);
  stats.request_prompt_tokens = WithBounds(tokens);
  stats.request_generation_tokens = WithBounds(tokens);
  stats.request_params_max_tokens = WithBounds(tokens);
  stats.request_params_n = WithBounds({1, 2, 5, 10, 20});
  return stats;
}

void Observe(Histogram& histogram, double value) {
  const auto bucket = std::ranges::lower_bound(histogram.bounds, value);  // bounds are inclusive
  ++histogram.counts[static_cast<std::size_t>(bucket - histogram.bounds.begin())];
  histogram.sum += value;
  ++histogram.count;
}

}  // namespace nibble
