#include "serve/metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>
#include <vector>

namespace nibble {
namespace {

// A label's value: backslash, quote and line feed are escaped (text format 0.0.4).
std::string EscapeLabel(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string Number(double value) {
  if (std::isinf(value)) {
    return value > 0 ? "+Inf" : "-Inf";
  }
  return std::isnan(value) ? "NaN" : fmt::format("{}", value);
}

class Writer {
 public:
  Writer(std::string& out, std::string labels) : out_(out), labels_(std::move(labels)) {}

  void Family(std::string_view name, std::string_view type, std::string_view help) {
    fmt::format_to(std::back_inserter(out_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name,
                   type);
  }
  void Sample(std::string_view name, double value, std::string_view extra = "") {
    fmt::format_to(std::back_inserter(out_), "{}{{{}{}{}}} {}\n", name, labels_,
                   extra.empty() ? "" : ",", extra, Number(value));
  }
  void Gauge(std::string_view name, double value, std::string_view help) {
    Family(name, "gauge", help);
    Sample(name, value);
  }
  void Counter(std::string_view name, std::uint64_t value, std::string_view help) {
    Family(name, "counter", help);
    Sample(name, static_cast<double>(value));
  }
  void Distribution(const std::string& name, const Histogram& histogram, std::string_view help) {
    Family(name, "histogram", help);
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < histogram.bounds.size(); ++i) {
      below += i < histogram.counts.size() ? histogram.counts[i] : 0;
      Sample(name + "_bucket", static_cast<double>(below),
             fmt::format("le=\"{}\"", Number(histogram.bounds[i])));
    }
    Sample(name + "_bucket", static_cast<double>(histogram.count), "le=\"+Inf\"");
    Sample(name + "_sum", histogram.sum);
    Sample(name + "_count", static_cast<double>(histogram.count));
  }

 private:
  std::string& out_;
  std::string labels_;
};

// The fields of /proc/self/stat after the command name, which may hold blanks itself.
std::vector<double> ReadProcStat() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t end = text.rfind(')');
  std::vector<double> fields;
  if (end == std::string::npos) {
    return fields;
  }
  std::istringstream rest(text.substr(end + 1));
  std::string state;
  rest >> state;
  fields.push_back(0.0);
  double value = 0.0;
  while (rest >> value) {
    fields.push_back(value);
  }
  return fields;
}

double BootTime() {
  std::ifstream file("/proc/stat");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with("btime ")) {
      std::istringstream rest(line.substr(6));
      double seconds = 0.0;
      rest >> seconds;
      return seconds;
    }
  }
  return 0.0;
}

}  // namespace

void HttpMetrics::Count(const AccessRecord& record) {
  static constexpr std::array kMethods =
      std::to_array<std::string_view>({"GET", "POST", "HEAD", "OPTIONS"});
  std::string_view method = "other";
  for (const std::string_view known : kMethods) {
    if (record.method == known) {
      method = known;
    }
  }
  // Probes and scrapes are not traffic.
  static constexpr std::array kQuiet = std::to_array<std::string_view>(
      {"/metrics", "/health", "/ping", "/version", "/live", "/ready"});
  for (const std::string_view quiet : kQuiet) {
    if (record.handler == quiet) {
      return;
    }
  }
  const std::lock_guard lock(mutex_);
  Cell& cell = cells_[{std::string(record.handler), std::string(method),
                       fmt::format("{}xx", record.status / 100)}];
  ++cell.count;
  cell.seconds += record.seconds;
  cell.request_bytes += record.request_bytes;
  cell.response_bytes += record.response_bytes;
}

void HttpMetrics::Render(std::string& out) const {
  const std::lock_guard lock(mutex_);
  const auto family = [&](std::string_view name, std::string_view type, std::string_view help,
                          auto value) {
    fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
    for (const auto& [key, cell] : cells_) {
      value(fmt::format("{{handler=\"{}\",method=\"{}\",status=\"{}\"}}",
                        EscapeLabel(std::get<0>(key)), std::get<1>(key), std::get<2>(key)),
            cell);
    }
  };
  const auto line = [&](std::string_view name, const std::string& labels, double value) {
    fmt::format_to(std::back_inserter(out), "{}{} {}\n", name, labels, Number(value));
  };
  family("http_requests_total", "counter", "Requests by route, method and status class.",
         [&](const std::string& labels, const Cell& cell) {
           line("http_requests_total", labels, static_cast<double>(cell.count));
         });
  family("http_request_duration_seconds", "summary", "Time from the request to its last byte.",
         [&](const std::string& labels, const Cell& cell) {
           line("http_request_duration_seconds_sum", labels, cell.seconds);
           line("http_request_duration_seconds_count", labels, static_cast<double>(cell.count));
         });
  family("http_request_size_bytes", "summary", "Bytes of request bodies.",
         [&](const std::string& labels, const Cell& cell) {
           line("http_request_size_bytes_sum", labels, static_cast<double>(cell.request_bytes));
           line("http_request_size_bytes_count", labels, static_cast<double>(cell.count));
         });
  family("http_response_size_bytes", "summary", "Bytes of answers.",
         [&](const std::string& labels, const Cell& cell) {
           line("http_response_size_bytes_sum", labels, static_cast<double>(cell.response_bytes));
           line("http_response_size_bytes_count", labels, static_cast<double>(cell.count));
         });
}

std::string RenderEngineMetrics(const EngineStats& stats, const EngineConfig& config,
                                const std::string& model_name) {
  std::string out;
  Writer w(out, fmt::format("engine=\"0\",model_name=\"{}\"", EscapeLabel(model_name)));
  w.Gauge("vllm:num_requests_running", stats.num_requests_running, "Requests in the batch.");
  w.Gauge("vllm:num_requests_waiting", stats.num_requests_waiting, "Requests in the queue.");
  w.Family("vllm:num_requests_waiting_by_reason", "gauge", "Requests in the queue, by reason.");
  w.Sample("vllm:num_requests_waiting_by_reason", stats.num_requests_waiting,
           "reason=\"capacity\"");
  w.Sample("vllm:num_requests_waiting_by_reason", 0.0, "reason=\"deferred\"");
  w.Gauge("vllm:kv_cache_usage_perc", stats.kv_cache_usage, "Part of the KV cache in use, 0 to 1.");
  w.Gauge("vllm:gpu_cache_usage_perc", stats.kv_cache_usage,
          "The older name of vllm:kv_cache_usage_perc.");
  w.Family("vllm:cache_config_info", "gauge", "Settings of the KV cache.");
  w.Sample(
      "vllm:cache_config_info", 1.0,
      fmt::format("block_size=\"{}\",num_gpu_blocks=\"{}\",num_cpu_blocks=\"{}\","
                  "enable_prefix_caching=\"{}\"",
                  config.block_size_tokens, stats.num_blocks_total, stats.num_host_blocks_total,
                  config.enable_prefix_caching ? "True" : "False"));
  w.Family("vllm:engine_sleep_state", "gauge", "1 for the state the engine is in.");
  w.Sample("vllm:engine_sleep_state", 1.0, "sleep_state=\"awake\"");
  w.Sample("vllm:engine_sleep_state", 0.0, "sleep_state=\"weights_offloaded\"");
  w.Sample("vllm:engine_sleep_state", 0.0, "sleep_state=\"discard_all\"");

  w.Counter("vllm:prefix_cache_queries_total", stats.prefix_cache_queries,
            "Prompt tokens looked up in the prefix cache.");
  w.Counter("vllm:prefix_cache_hits_total", stats.prefix_cache_hits,
            "Prompt tokens found in the prefix cache.");
  w.Counter("vllm:external_prefix_cache_queries_total", stats.host_cache_queries,
            "Prompt tokens that the prefix cache did not have, looked up in host memory.");
  w.Counter("vllm:external_prefix_cache_hits_total", stats.host_cache_hits,
            "Prompt tokens found in host memory.");
  w.Gauge("vllm:kv_offload_cpu_cache_usage_perc",
          stats.num_host_blocks_total == 0
              ? 0.0
              : static_cast<double>(stats.num_host_blocks_used) / stats.num_host_blocks_total,
          "Part of the host memory for KV blocks in use, 0 to 1.");
  w.Family("vllm:kv_offload_total_bytes_total", "counter",
           "Bytes of KV blocks copied to host memory and back.");
  w.Sample("vllm:kv_offload_total_bytes_total", static_cast<double>(stats.bytes_spilled),
           "transfer_type=\"GPU_to_CPU\"");
  w.Sample("vllm:kv_offload_total_bytes_total", static_cast<double>(stats.bytes_restored),
           "transfer_type=\"CPU_to_GPU\"");
  w.Counter("vllm:gpu_prefix_cache_queries_total", stats.prefix_cache_queries,
            "The older name of vllm:prefix_cache_queries_total.");
  w.Counter("vllm:gpu_prefix_cache_hits_total", stats.prefix_cache_hits,
            "The older name of vllm:prefix_cache_hits_total.");
  w.Counter("vllm:num_preemptions_total", stats.num_preemptions,
            "Sequences put back to the queue for want of blocks.");
  w.Counter("vllm:prompt_tokens_total", stats.prompt_tokens, "Prompt tokens processed.");
  w.Counter("vllm:generation_tokens_total", stats.generation_tokens, "Tokens generated.");
  w.Counter("vllm:prompt_tokens_cached_total", stats.prompt_tokens_cached,
            "Prompt tokens not computed again.");

  const auto finished = [&](FinishReason reason) {
    return static_cast<double>(stats.finished[static_cast<std::size_t>(reason)]);
  };
  w.Family("vllm:request_success_total", "counter", "Finished requests by reason.");
  w.Sample("vllm:request_success_total", finished(FinishReason::kStop), "finished_reason=\"stop\"");
  w.Sample("vllm:request_success_total", finished(FinishReason::kLength),
           "finished_reason=\"length\"");
  w.Sample("vllm:request_success_total",
           finished(FinishReason::kCancelled) + finished(FinishReason::kDeadline) +
               finished(FinishReason::kQueueTimeout) + finished(FinishReason::kShutdown),
           "finished_reason=\"abort\"");
  w.Sample("vllm:request_success_total",
           finished(FinishReason::kRejected) + finished(FinishReason::kError),
           "finished_reason=\"error\"");
  w.Sample("vllm:request_success_total", 0.0, "finished_reason=\"repetition\"");

  w.Distribution("vllm:request_prompt_tokens", stats.request_prompt_tokens, "Prompt lengths.");
  w.Distribution("vllm:request_generation_tokens", stats.request_generation_tokens,
                 "Output lengths.");
  w.Distribution("vllm:request_params_max_tokens", stats.request_params_max_tokens,
                 "max_tokens as asked for.");
  w.Distribution("vllm:request_params_n", stats.request_params_n, "n as asked for.");
  w.Distribution("vllm:iteration_tokens_total", stats.iteration_tokens, "Tokens a step.");
  w.Distribution("vllm:time_to_first_token_seconds", stats.time_to_first_token_s,
                 "From arrival to the first token.");
  w.Distribution("vllm:inter_token_latency_seconds", stats.inter_token_latency_s,
                 "Between two tokens of a sequence.");
  w.Distribution("vllm:time_per_output_token_seconds", stats.inter_token_latency_s,
                 "The older name of vllm:inter_token_latency_seconds.");
  w.Distribution("vllm:e2e_request_latency_seconds", stats.e2e_request_latency_s,
                 "From arrival to the last token.");
  w.Distribution("vllm:request_queue_time_seconds", stats.request_queue_time_s,
                 "In the queue before the first step.");
  w.Distribution("vllm:request_inference_time_seconds", stats.request_inference_time_s,
                 "From the first step to the last token.");
  w.Distribution("vllm:request_prefill_time_seconds", stats.request_prefill_time_s,
                 "From the first step to the first token.");
  w.Distribution("vllm:request_decode_time_seconds", stats.request_decode_time_s,
                 "From the first token to the last.");
  return out;
}

std::string RenderProcessMetrics() {
  // Fields of proc(5), counted from `state`, which is 0 here.
  constexpr std::size_t kUtime = 11;
  constexpr std::size_t kStime = 12;
  constexpr std::size_t kStartTime = 19;
  constexpr std::size_t kVsize = 20;
  constexpr std::size_t kRss = 21;
  std::string out;
  const auto add = [&](std::string_view name, std::string_view type, std::string_view help,
                       double value) {
    fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n{} {}\n", name, help, name,
                   type, name, Number(value));
  };
  const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  const auto page = static_cast<double>(::sysconf(_SC_PAGESIZE));
  const std::vector<double> stat = ReadProcStat();
  if (stat.size() > kRss && ticks > 0.0) {
    add("process_cpu_seconds_total", "counter", "User and system time.",
        (stat[kUtime] + stat[kStime]) / ticks);
    add("process_resident_memory_bytes", "gauge", "Resident memory.", stat[kRss] * page);
    add("process_virtual_memory_bytes", "gauge", "Virtual memory.", stat[kVsize]);
    add("process_start_time_seconds", "gauge", "Start, in Unix seconds.",
        BootTime() + stat[kStartTime] / ticks);
  }
  std::error_code error;
  std::size_t open = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    ++open;
  }
  add("process_open_fds", "gauge", "Open file descriptors.", static_cast<double>(open));
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    add("process_max_fds", "gauge", "Most file descriptors that may be open.",
        static_cast<double>(files.rlim_cur));
  }
  return out;
}

}  // namespace nibble
