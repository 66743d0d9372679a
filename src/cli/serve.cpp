// nibble serve: the OpenAI-compatible API over one model.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>

#include "base/limits.h"
#include "cli/command.h"
#include "cli/model_text.h"
#include "cli/session.h"
#include "io/file.h"
#include "serve/server.h"

namespace nibble::cli {
namespace {

// One key a line; blank lines and lines that begin with '#' do not count. Others must not be able
// to read the file.
Result<std::vector<std::string>> ReadKeys(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto mode = fs::status(path, error).permissions();
  if (!error && (mode & (fs::perms::group_read | fs::perms::others_read)) != fs::perms::none) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: other users can read the API keys; run: chmod 600 {}", path, path));
  }
  NIBBLE_TRY(text, ReadFile(path, limits::kMiB));
  std::vector<std::string> keys;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) {
      line.pop_back();
    }
    if (!line.empty() && line.front() != '#') {
      keys.push_back(std::move(line));
    }
    begin = end + 1;
  }
  if (keys.empty()) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: holds no API key", path));
  }
  return keys;
}

SamplingDefaults DefaultsOf(const GenerationDefaults& generation) {
  const auto narrow = [](std::optional<double> value) {
    return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
  };
  SamplingDefaults out;
  out.temperature = narrow(generation.temperature);
  if (generation.do_sample == false) {
    out.temperature = 0.0F;
  }
  out.top_p = narrow(generation.top_p);
  out.min_p = narrow(generation.min_p);
  out.repetition_penalty = narrow(generation.repetition_penalty);
  if (generation.top_k) {
    out.top_k = static_cast<std::int32_t>(*generation.top_k);
  }
  if (generation.max_new_tokens) {
    out.max_tokens = static_cast<std::int32_t>(*generation.max_new_tokens);
  }
  return out;
}

class ServeCommand final : public Command {
 public:
  std::string name() const override { return "serve"; }
  std::string summary() const override { return "answer many users over the OpenAI API"; }
  std::string description() const override {
    return "Loads the model, verifies its certificate, then serves /v1/chat/completions, "
           "/v1/completions, /v1/models, /tokenize,\n"
           "/detokenize, /health, /ready and /metrics. SIGTERM finishes running requests and exits "
           "0.\n\n"
           "  nibble serve smol-int4\n"
           "  nibble serve --model smol-int4 --host 0.0.0.0 --api-key-file keys.txt --max-num-seqs "
           "64";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    flags_.DeclareEngine(options);
    options.Group("Server");
    options.Add("--host", &host_, "address to listen on");
    options.Add("--port", &port_, "port to listen on; 0: any free one");
    options.Add("--served-model-name", &names_,
                "names the model answers to (default: the path as given and its last part)");
    options.Add("--api-key-file", &key_file_,
                "file with one API key a line, readable by you alone");
    options.Add("--api-key", &keys_,
                "an API key, as in vLLM; visible in the process list, so prefer --api-key-file");
    options.Add("--insecure-bind", &insecure_bind_, "allow a public address without API keys");
    options.Add("--allowed-host", &allowed_hosts_,
                "further Host names to accept on a loopback address");
    options.Add("--chat-template", &template_file_,
                "a .jinja file instead of the model's template");
    options.Choice("--generation-config", &generation_config_, {"auto", "vllm"},
                   "auto: the model's sampling defaults; vllm: neutral ones");
    options.Add("--strict-api", &strict_api_,
                "refuse unknown request fields instead of ignoring them");
    options.Add("--max-queued-requests", &max_queued_,
                "requests that may wait; more are answered 429");
    options.Add("--queue-timeout", &queue_timeout_,
                "seconds a request may wait to begin, then it is answered 503; 0: no limit");
    options.Add("--shutdown-timeout", &shutdown_timeout_,
                "seconds that running requests get after SIGTERM");
    options.Add("--num-io-threads", &io_threads_, "threads for connections");
    options.Add("--log-requests", &log_requests_, "one line a request, without its content");
  }

  Result<int> Run(const Environment& environment) override {
    NIBBLE_TRY(path, flags_.Path());
    std::vector<std::string> keys = keys_;
    if (!key_file_.empty()) {
      NIBBLE_TRY(from_file, ReadKeys(key_file_));
      keys.insert(keys.end(), from_file.begin(), from_file.end());
    }
    if (keys.empty() && !environment.api_key.empty()) {
      keys.push_back(environment.api_key);
    }
    if (port_ < 0 || port_ > 65535) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--port {}: ports go from 0 to 65535", port_));
    }
    constexpr std::int64_t kDay = 86'400;
    if (queue_timeout_ < 0 || queue_timeout_ > kDay || shutdown_timeout_ < 0 ||
        shutdown_timeout_ > kDay) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--queue-timeout and --shutdown-timeout take 0 to 86400 seconds");
    }
    NIBBLE_TRY(model, LoadModel(flags_, {.touch_behind = true}, environment));
    NIBBLE_TRY(engine, MakeEngine(model, flags_, static_cast<std::int32_t>(max_queued_),
                                  /*plan_late=*/true));
    NIBBLE_TRY(text, TextOfModel::Create(*model.checkpoint, *model.tokenizer, template_file_));
    ServerConfig config;
    config.http.host = host_;
    config.http.port = static_cast<std::uint16_t>(port_);
    config.http.num_io_threads = static_cast<int>(io_threads_);
    config.served_model_names = names_.empty() ? DefaultNames(path) : names_;
    config.model_root = path;
    config.api_keys = std::move(keys);
    config.insecure_bind = insecure_bind_;
    config.allowed_hosts = allowed_hosts_;
    config.strict_api = strict_api_;
    config.log_requests = log_requests_;
    config.queue_timeout = std::chrono::seconds(queue_timeout_);
    config.shutdown_timeout = std::chrono::seconds(shutdown_timeout_);
    if (generation_config_ == "auto") {
      config.sampling_defaults = DefaultsOf(model.checkpoint->generation());
    }
    config.on_listening = [name = config.served_model_names.front(),
                           host = host_](std::uint16_t port) {
      fmt::print(stderr, "serving {} on http://{}:{}\n", name, host, port);
    };
    NIBBLE_TRY(server, Server::Create(std::move(config), *engine, *text));
    std::jthread engine_thread([&](std::stop_token stop) {
      model.device->pool().PinCaller();
      engine->RunLoop(stop);
    });
    const Result<void> served = server->Run();
    engine_thread.request_stop();
    engine_thread.join();
    if (!served) {
      return tl::unexpected<Error>(served.error());
    }
    return kExitOk;
  }

 private:
  static std::vector<std::string> DefaultNames(const std::string& path) {
    std::filesystem::path folder(path);
    if (!folder.has_filename()) {
      folder = folder.parent_path();
    }
    std::vector<std::string> names{path};
    for (const std::string& name : {folder.string(), folder.filename().string()}) {
      if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) {
        names.push_back(name);
      }
    }
    return names;
  }

  ModelFlags flags_;
  std::string host_ = "127.0.0.1";
  std::string key_file_, template_file_;
  std::string generation_config_ = "auto";
  std::vector<std::string> names_, keys_, allowed_hosts_;
  std::int64_t port_ = 8000;
  std::int64_t max_queued_ = 1024;
  std::int64_t queue_timeout_ = 30;
  std::int64_t shutdown_timeout_ = 25;
  std::int64_t io_threads_ = 2;
  bool insecure_bind_ = false;
  bool strict_api_ = false;
  bool log_requests_ = true;
};

}  // namespace

std::unique_ptr<Command> MakeServeCommand() { return std::make_unique<ServeCommand>(); }

}  // namespace nibble::cli
