#pragma once

#include <cstdint>
#include <string>

namespace nibble::sim {

struct Options {
  std::uint64_t seed = 1;
  int depth = 0;
};

struct Report {
  std::string failure;  // empty: every check held
  std::uint64_t num_steps = 0;
  double virtual_seconds = 0.0;
  // What the run exercised.
  std::uint64_t num_choices = 0, num_stopped = 0, num_length = 0, num_cancelled = 0,
                num_deadline = 0, num_queue_timeout = 0, num_failed = 0, num_rejected = 0,
                num_shutdown = 0;
  std::uint64_t num_preemptions = 0, num_prefix_hits = 0, num_lookaheads = 0, num_fenced = 0,
                num_prompt_logprobs = 0, num_stop_strings = 0, num_spills = 0, num_restores = 0;

  void Add(const Report& other);
};

/// One simulated service life: the real engine over the fake device in virtual time, with faults
/// drawn from the seed. Checks the engine's invariants after each step and every output against
/// Predict. A pure function of the options.
Report Simulate(const Options& options);

}  // namespace nibble::sim
