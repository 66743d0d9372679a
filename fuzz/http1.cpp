// The bytes of a connection: parser, door, routes and both request parsers, as the server runs
// them. The first byte says how the rest is cut. Oracles besides the sanitizers: a request does not
// depend on where the network cuts it; every outcome is a request, an error with a status, or
// "more"; and what our parser takes, Boost.Beast takes too, with the same body (no smuggling
// between the two).

#include <algorithm>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "serve/http1_parser.h"
#include "serve/openai_api.h"
#include "serve/router.h"
#include "tests/serve/fake_text.h"

namespace {

using nibble::Http1Parser;
using nibble::HttpRequest;

struct Outcome {
  std::vector<HttpRequest> requests;
  std::vector<std::size_t> ends;  // where each request ended
  int error_status = 0;
};

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

Outcome Run(std::string_view bytes, std::size_t step) {
  Outcome outcome;
  Http1Parser parser;
  std::size_t used = 0;
  while (used < bytes.size()) {
    const std::size_t taken = parser.Feed(bytes.substr(used, step));
    Require(taken > 0);
    used += taken;
    if (parser.state() == Http1Parser::State::kFailed) {
      outcome.error_status = parser.error_status();
      Require(outcome.error_status >= 400 && outcome.error_status < 600);
      Require(!parser.error_message().empty());
      break;
    }
    if (parser.state() == Http1Parser::State::kDone) {
      outcome.requests.push_back(parser.TakeRequest());
      outcome.ends.push_back(used);
    }
  }
  return outcome;
}

void CompareWithBeast(std::string_view bytes, const Outcome& outcome) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i < outcome.requests.size(); ++i) {
    std::string_view message = bytes.substr(begin, outcome.ends[i] - begin);
    begin = outcome.ends[i];
    boost::beast::http::request_parser<boost::beast::http::string_body> beast;
    beast.header_limit(1 << 20);
    beast.body_limit(1 << 26);
    beast.eager(true);
    boost::system::error_code error;
    beast.put(boost::asio::buffer(message.data(), message.size()), error);
    if (error && error != boost::beast::http::error::need_more) {
      continue;  // Beast may be the stricter one: that smuggles nothing past it
    }
    Require(beast.is_done() && beast.get().body() == outcome.requests[i].body);
  }
}

nibble::Router MakeRouter() {
  const auto nothing = [](HttpRequest, std::shared_ptr<nibble::ResponseWriter>) {};
  using enum nibble::RoutePolicy;
  std::vector<nibble::Route> routes;
  routes.emplace_back(kKey, "POST", "/v1/chat/completions", nothing);
  routes.emplace_back(kKey, "POST", "/v1/completions", nothing);
  routes.emplace_back(kKey, "GET", "/v1/models/*", nothing);
  routes.emplace_back(kPublic, "GET,POST", "/ping", nothing);
  return nibble::Router({.key_digests = {std::string(64, '0')},
                         .allowed_hosts = {"example.org"},
                         .allowed_origins = {"https://example.org"}},
                        std::move(routes));
}

void Serve(HttpRequest request) {
  static const nibble::Router router = MakeRouter();
  static const nibble::testing::FakeText text;
  static const nibble::ApiContext context = [] {
    nibble::ApiContext made;
    made.model_names = {"m"};
    made.engine.max_model_len = 64;
    made.engine.vocab_size = nibble::testing::kFakeVocab;
    made.text = &text;
    return made;
  }();
  const auto decision = router.Decide(request);
  Require((decision.route != nullptr) != (decision.reply != nullptr));
  // What is echoed must not be able to end a header.
  request.request_id = nibble::UsableRequestId(request);
  for (const nibble::HttpHeader& header : router.CommonHeaders(request)) {
    Require(header.value.find_first_of("\r\n") == std::string::npos);
  }
  for (const auto parse : {nibble::ParseChatCompletion, nibble::ParseCompletion}) {
    const auto parsed = parse(request.body, context);
    Require(parsed ? !parsed->requests.empty() : parsed.error().status >= 400);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::size_t step = 1 + data[0] % 32;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Outcome whole = Run(bytes, std::max<std::size_t>(bytes.size(), 1));
  const Outcome cut = Run(bytes, step);
  Require(whole.error_status == cut.error_status);
  Require(whole.ends == cut.ends && whole.requests.size() == cut.requests.size());
  for (std::size_t i = 0; i < whole.requests.size(); ++i) {
    Require(whole.requests[i].body == cut.requests[i].body);
    Require(whole.requests[i].path == cut.requests[i].path);
  }
  CompareWithBeast(bytes, whole);
  for (const HttpRequest& request : whole.requests) {
    Serve(request);
  }
  return 0;
}
