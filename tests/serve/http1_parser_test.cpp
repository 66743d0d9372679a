#include "serve/http1_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nibble {
namespace {

using State = Http1Parser::State;

// Feeds in pieces of `step` bytes; returns how many bytes were taken.
std::size_t FeedAll(Http1Parser& parser, std::string_view bytes, std::size_t step) {
  std::size_t used = 0;
  while (used < bytes.size() && parser.state() != State::kDone &&
         parser.state() != State::kFailed) {
    used += parser.Feed(bytes.substr(used, step));
  }
  return used;
}

std::string Post(std::string_view headers, std::string_view body) {
  return "POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + std::string(headers) + "\r\n" +
         std::string(body);
}

TEST(Http1Parser, ReadsARequestHoweverItIsCut) {
  const std::string bytes =
      "POST /v1/models/a%2Fb?x=1&y HTTP/1.1\r\nHost: localhost:80\r\nX-Thing:  two words \t\r\n"
      "Content-Length: 5\r\n\r\nhelloGET";
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    Http1Parser parser;
    EXPECT_EQ(FeedAll(parser, bytes, step), bytes.size() - 3);
    ASSERT_EQ(parser.state(), State::kDone) << parser.error_message();
    const HttpRequest request = parser.TakeRequest();
    EXPECT_EQ(request.method, "POST");
    EXPECT_EQ(request.path, "/v1/models/a/b");
    EXPECT_EQ(request.query, "x=1&y");
    EXPECT_EQ(*request.Find("x-thing"), "two words");
    EXPECT_EQ(request.body, "hello");
    EXPECT_TRUE(request.keep_alive);
    EXPECT_EQ(parser.state(), State::kHead);
    EXPECT_FALSE(parser.started());
  }
}

TEST(Http1Parser, ReadsChunksHoweverTheyAreCut) {
  const std::string bytes = Post("Transfer-Encoding: Chunked\r\n",
                                 "5\r\nhello\r\n00b;ext=\"1\"\r\n, the world\r\n0\r\nT: x\r\n\r\n");
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    Http1Parser parser;
    EXPECT_EQ(FeedAll(parser, bytes, step), bytes.size());
    ASSERT_EQ(parser.state(), State::kDone) << parser.error_message();
    EXPECT_EQ(parser.TakeRequest().body, "hello, the world");
  }
}

TEST(Http1Parser, StopsAfterTheHeadSoThatItCanBeJudgedFirst) {
  Http1Parser parser;
  const std::string bytes = Post("Content-Length: 3\r\nExpect: 100-continue\r\n", "abc");
  const std::size_t used = parser.Feed(bytes);
  EXPECT_EQ(used, bytes.size() - 3);
  EXPECT_EQ(parser.state(), State::kBody);
  EXPECT_TRUE(parser.head().expects_continue);
}

TEST(Http1Parser, KnowsWhenTheConnectionStays) {
  const auto keeps = [](std::string_view version, std::string_view header) {
    Http1Parser parser;
    parser.Feed("GET / HTTP/" + std::string(version) + "\r\nHost: a\r\n" + std::string(header) +
                "\r\n");
    EXPECT_EQ(parser.state(), State::kDone);
    return parser.TakeRequest().keep_alive;
  };
  EXPECT_TRUE(keeps("1.1", ""));
  EXPECT_FALSE(keeps("1.1", "Connection: x, Close\r\n"));
  EXPECT_FALSE(keeps("1.0", ""));
  EXPECT_TRUE(keeps("1.0", "Connection: keep-alive\r\n"));
}

TEST(Http1Parser, TakesTheFormsOfATarget) {
  const auto path = [](std::string_view target) -> std::string {
    Http1Parser parser;
    parser.Feed("GET " + std::string(target) + " HTTP/1.1\r\nHost: a\r\n\r\n");
    return parser.state() == State::kDone ? parser.TakeRequest().path : "refused";
  };
  EXPECT_EQ(path("/a"), "/a");
  EXPECT_EQ(path("/?q"), "/");
  EXPECT_EQ(path("http://host/a"), "/a");
  EXPECT_EQ(path("http://host"), "/");
  EXPECT_EQ(path("*"), "*");
  EXPECT_EQ(path("a"), "refused");
  EXPECT_EQ(path("/%"), "refused");
  EXPECT_EQ(path("/%0a"), "refused");
  EXPECT_EQ(path("/%00"), "refused");
  EXPECT_EQ(path("/%ff"), "refused");  // no UTF-8
  EXPECT_EQ(path("/\x80"), "refused");
}

struct BadCase {
  const char* name;
  std::string bytes;
  int status;
};

class Refused : public ::testing::TestWithParam<BadCase> {};

TEST_P(Refused, HoweverItIsCut) {
  const std::string& bytes = GetParam().bytes;
  for (const std::size_t step : {std::size_t{1}, std::size_t{7}, bytes.size()}) {
    Http1Parser parser;
    FeedAll(parser, bytes, step);
    ASSERT_EQ(parser.state(), State::kFailed) << "step " << step;
    EXPECT_EQ(parser.error_status(), GetParam().status);
    EXPECT_FALSE(parser.error_message().empty());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Http1Parser, Refused,
    ::testing::Values(
        // Two readers of these bytes could see two different requests.
        BadCase{"BothLengths", Post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "abc"),
                400},
        BadCase{"RepeatedLength", Post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), 400},
        BadCase{"LengthList", Post("Content-Length: 3, 3\r\n", "abc"), 400},
        BadCase{"LengthSign", Post("Content-Length: +3\r\n", "abc"), 400},
        BadCase{"LengthNegative", Post("Content-Length: -3\r\n", "abc"), 400},
        BadCase{"LengthHex", Post("Content-Length: 0x3\r\n", "abc"), 400},
        BadCase{"LengthEmpty", Post("Content-Length:\r\n", "abc"), 400},
        BadCase{"LengthOverflow", Post("Content-Length: 18446744073709551619\r\n", "abc"), 400},
        BadCase{"RepeatedCoding",
                Post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
                400},
        BadCase{"UnknownCoding", Post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400},
        BadCase{"IdentityCoding", Post("Transfer-Encoding: identity\r\n", "abc"), 400},
        BadCase{"OddCoding",
                Post("Transfer-Encoding: \x0b"
                     "chunked\r\n",
                     "0\r\n\r\n"),
                400},
        BadCase{"CodingIn10", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400},
        BadCase{"BareLfInHead", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
        BadCase{"BareLfAfterHeader", "GET / HTTP/1.1\r\nHost: a\n\r\n", 400},
        BadCase{"BareLfEndsHead", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400},
        BadCase{"BareCr", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400},
        BadCase{"FoldedHeader", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400},
        BadCase{"FoldedFirst", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
        BadCase{"SpaceBeforeColon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
        BadCase{"NoColon", "GET / HTTP/1.1\r\nHost\r\n\r\n", 400},
        BadCase{"EmptyName", "GET / HTTP/1.1\r\n: a\r\n\r\n", 400},
        BadCase{"NulInValue", std::string("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", 29), 400},
        BadCase{"DelInValue", "GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n", 400},
        BadCase{"NoHost", "GET / HTTP/1.1\r\n\r\n", 400},
        BadCase{"TwoHosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400},
        BadCase{"ChunkSizeEmpty", Post("Transfer-Encoding: chunked\r\n", "\r\n"), 400},
        BadCase{"ChunkSizeSigned", Post("Transfer-Encoding: chunked\r\n", "+1\r\na\r\n"), 400},
        BadCase{"ChunkSizePrefix", Post("Transfer-Encoding: chunked\r\n", "0x1\r\na\r\n"), 400},
        BadCase{"ChunkSizeBlank", Post("Transfer-Encoding: chunked\r\n", "1 \r\na\r\n"), 400},
        BadCase{"ChunkSizeOverflow",
                Post("Transfer-Encoding: chunked\r\n", "10000000000000001\r\na\r\n"), 400},
        BadCase{"ChunkTooLong", Post("Transfer-Encoding: chunked\r\n", "1\r\nab\r\n0\r\n\r\n"),
                400},
        BadCase{"ChunkBareLf", Post("Transfer-Encoding: chunked\r\n", "1\na\r\n0\r\n\r\n"), 400},
        BadCase{"ChunkExtensionFlood",
                Post("Transfer-Encoding: chunked\r\n", "1;" + std::string(300, 'x')), 400},
        BadCase{"TrailerFolded", Post("Transfer-Encoding: chunked\r\n", "0\r\n a\r\n\r\n"), 400},
        // Not HTTP/1 at all, or too much of it.
        BadCase{"NoVersion", "GET /\r\n\r\n", 400},
        BadCase{"TwoBlanks", "GET  / HTTP/1.1\r\n\r\n", 400},
        BadCase{"LowerCaseVersion", "GET / http/1.1\r\n\r\n", 400},
        BadCase{"MethodNotAToken", "G(T / HTTP/1.1\r\n\r\n", 400},
        BadCase{"TwoEmptyLines", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        BadCase{"Http2Preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
        BadCase{"Http3", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505},
        BadCase{"Expectation", Post("Expect: a-miracle\r\nContent-Length: 1\r\n", "a"), 417},
        BadCase{"LongTarget", "GET /" + std::string(9000, 'a'), 414},
        BadCase{"LongHeader", "GET / HTTP/1.1\r\nX: " + std::string(17000, 'a'), 431},
        BadCase{"LargeBody", Post("Content-Length: 16777217\r\n", ""), 413},
        BadCase{"LargeChunk", Post("Transfer-Encoding: chunked\r\n", "1000001\r\n"), 413}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(Http1Parser, BoundsTheHeadersTogether) {
  const auto status = [](int count, std::size_t size) {
    std::string bytes = "GET / HTTP/1.1\r\nHost: a\r\n";
    for (int i = 0; i < count; ++i) {
      bytes += "X: " + std::string(size, 'a') + "\r\n";
    }
    Http1Parser parser;
    FeedAll(parser, bytes + "\r\n", 4096);
    return parser.state() == State::kDone ? 200 : parser.error_status();
  };
  EXPECT_EQ(status(99, 1), 200);
  EXPECT_EQ(status(100, 1), 431);
  EXPECT_EQ(status(3, 10'000), 200);
  EXPECT_EQ(status(4, 10'000), 431);
}

TEST(Http1Parser, AddsUpChunksAgainstTheLimit) {
  Http1Parser parser(Http1Limits{.body_bytes = 8});
  FeedAll(parser, Post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n4\r\n"), 100);
  EXPECT_EQ(parser.error_status(), 413);
}

}  // namespace
}  // namespace nibble
