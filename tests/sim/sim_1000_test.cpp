#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/log.h"
#include "tests/sim/simulator.h"

namespace nibble::sim {
namespace {

/// An environment variable's number; NIBBLE_SIM_SEED and NIBBLE_SIM_DEPTH repeat one failed run.
std::uint64_t FromEnvironment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return text != nullptr ? std::stoull(text) : otherwise;
}

TEST(Sim1000, ThousandSeedsAtEveryDepthHoldEveryInvariant) {
  SetLogLevel(LogLevel::kError);  // simulated failures are no news
  const std::uint64_t one_seed = FromEnvironment("NIBBLE_SIM_SEED", 0);
  const std::uint64_t one_depth = FromEnvironment("NIBBLE_SIM_DEPTH", 3);
  const std::uint64_t num_seeds = FromEnvironment("NIBBLE_SIM_SEEDS", 1000);
  Report total;
  std::uint64_t num_runs = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t seed = 1; seed <= num_seeds; ++seed) {
    for (std::uint64_t depth = 0; depth <= 2; ++depth) {
      if ((one_seed != 0 && seed != one_seed) || (one_depth < 3 && depth != one_depth)) {
        continue;
      }
      const Report report = Simulate({.seed = seed, .depth = static_cast<int>(depth)});
      ASSERT_EQ(report.failure, "");
      total.Add(report);
      ++num_runs;
    }
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  std::printf(
      "simulator: %llu runs, %llu steps, %.2f virtual hours in %.2f s: %.0f steps/s, "
      "%.0f virtual hours an hour\n"
      "  choices %llu: stop %llu, length %llu, cancelled %llu, deadline %llu, queue timeout %llu, "
      "error %llu, shutdown "
      "%llu; refused "
      "%llu\n"
      "  preemptions %llu, prefix hits %llu tokens, lookahead tokens %llu, steps with fenced "
      "blocks "
      "%llu\n"
      "  blocks spilled %llu, restored %llu\n",
      static_cast<unsigned long long>(num_runs), static_cast<unsigned long long>(total.num_steps),
      total.virtual_seconds / 3600, elapsed.count(),
      static_cast<double>(total.num_steps) / elapsed.count(),
      total.virtual_seconds / elapsed.count(), static_cast<unsigned long long>(total.num_choices),
      static_cast<unsigned long long>(total.num_stopped),
      static_cast<unsigned long long>(total.num_length),
      static_cast<unsigned long long>(total.num_cancelled),
      static_cast<unsigned long long>(total.num_deadline),
      static_cast<unsigned long long>(total.num_queue_timeout),
      static_cast<unsigned long long>(total.num_failed),
      static_cast<unsigned long long>(total.num_shutdown),
      static_cast<unsigned long long>(total.num_rejected),
      static_cast<unsigned long long>(total.num_preemptions),
      static_cast<unsigned long long>(total.num_prefix_hits),
      static_cast<unsigned long long>(total.num_lookaheads),
      static_cast<unsigned long long>(total.num_fenced),
      static_cast<unsigned long long>(total.num_spills),
      static_cast<unsigned long long>(total.num_restores));
}

}  // namespace
}  // namespace nibble::sim
