#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "serve/http.h"

namespace nibble {

struct Http1Limits {
  std::size_t request_line_bytes = limits::kRequestLineBytes;
  std::size_t header_bytes = limits::kHeaderBytes;
  std::size_t all_headers_bytes = limits::kAllHeadersBytes;
  int header_count = limits::kHeaderCount;
  std::size_t body_bytes = limits::kBodyBytes;
};

/// HTTP/1.0 and 1.1 requests (RFC 9112), strictly: where two readers could disagree about where a
/// message ends, it is refused. Refused with 400: bare LF or CR, folded headers, blanks before a
/// colon, two lengths of any kind, a transfer coding other than exactly "chunked", bad chunk sizes,
/// no or several Host headers in 1.1. Bytes in, a request or an error out; no I/O.
class Http1Parser {
 public:
  enum class State : std::uint8_t {
    kHead,    // wants the head's bytes (started() says whether any came)
    kBody,    // head() is valid; wants the body's bytes
    kDone,    // TakeRequest
    kFailed,  // error_status, error_message; the connection is beyond use
  };

  explicit Http1Parser(const Http1Limits& limits = {}) : limits_(limits) {}

  /// Consumes bytes up to the end of the head or of the message; returns how many. Call again with
  /// the rest while the state is kHead or kBody.
  std::size_t Feed(std::string_view bytes);

  State state() const { return state_; }
  bool started() const { return started_; }
  const HttpRequest& head() const { return request_; }
  std::size_t body_bytes() const { return request_.body.size(); }
  int error_status() const { return error_status_; }
  const std::string& error_message() const { return error_message_; }

  /// The finished request; the parser is then ready for the next one.
  HttpRequest TakeRequest();

 private:
  enum class Part : std::uint8_t {
    kRequestLine,
    kHeaders,
    kFixedBody,
    kChunkSize,
    kChunkData,
    kChunkEnd,
    kTrailers,
  };

  std::size_t FeedLine(std::string_view bytes);
  std::size_t FeedBody(std::string_view bytes);
  void OnLine(std::string_view line);
  void OnRequestLine(std::string_view line);
  void OnTarget(std::string_view target);
  bool OnHeader(std::string_view line, bool keep);
  void OnHeadComplete();
  void OnChunkSize(std::string_view line);
  void Complete();
  void Failed(int status, std::string message);

  Http1Limits limits_;
  State state_ = State::kHead;
  Part part_ = Part::kRequestLine;
  bool started_ = false;
  bool skipped_blank_line_ = false;
  std::string line_;             // a line that came in pieces
  std::size_t head_bytes_ = 0;   // header lines so far, trailers included
  int num_headers_ = 0;          // trailers included
  std::uint64_t body_left_ = 0;  // of the fixed body or of the current chunk
  HttpRequest request_;
  int error_status_ = 0;
  std::string error_message_;
};

}  // namespace nibble
