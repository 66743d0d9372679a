#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "engine/engine.h"
#include "serve/http.h"

namespace nibble {

/// Counts HTTP requests by route, method and status class. Labels come from closed sets, so no
/// client can make the table grow. Any thread.
class HttpMetrics {
 public:
  void Count(const AccessRecord& record);
  void Render(std::string& out) const;

 private:
  struct Cell {
    std::uint64_t count = 0;
    double seconds = 0.0;
    std::uint64_t request_bytes = 0;
    std::uint64_t response_bytes = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::tuple<std::string, std::string, std::string>, Cell> cells_;
};

/// Prometheus text format 0.0.4 of the engine's figures under vLLM's names.
std::string RenderEngineMetrics(const EngineStats& stats, const EngineConfig& config,
                                const std::string& model_name);
/// process_cpu_seconds_total and its like, from /proc.
std::string RenderProcessMetrics();

}  // namespace nibble
