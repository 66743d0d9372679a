#include "serve/http1_parser.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/text.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxMethodBytes = 32;
constexpr std::size_t kMaxChunkLineBytes = 256;

bool IsTokenChar(char c) {
  if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
    return true;
  }
  return c != '\0' && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

// Visible, blank, tab, or beyond ASCII: what may stand in a header's value.
bool IsValueChar(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte == '\t' || (byte >= 0x20U && byte != 0x7FU);
}

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string ToLower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), Lower);
  return out;
}

std::string_view TrimBlanks(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) {
    text.remove_prefix(1);
  }
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) {
    text.remove_suffix(1);
  }
  return text;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') {
    return c - '0';
  }
  const char lower = Lower(c);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out.push_back(text[i]);
      continue;
    }
    const int high = i + 1 < text.size() ? HexDigit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? HexDigit(text[i + 2]) : -1;
    const int byte = high * 16 + low;
    if (high < 0 || low < 0 || byte < 0x20 || byte == 0x7F) {
      return std::nullopt;
    }
    out.push_back(static_cast<char>(byte));
    i += 2;
  }
  return out;
}

// Only digits, no sign, no blank, no overflow.
std::optional<std::uint64_t> ParseDecimal(std::string_view text) {
  if (text.empty() || text.size() > 18) {
    return std::nullopt;
  }
  std::uint64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') {
      return std::nullopt;
    }
    value = value * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return value;
}

// Calls visit with each element of a comma-separated header value, lower case.
template <typename Visit>
void ForEachElement(std::string_view list, Visit visit) {
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    visit(ToLower(TrimBlanks(list.substr(0, comma))));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
}

}  // namespace

const std::string* HttpRequest::Find(std::string_view lower_name) const {
  for (const HttpHeader& header : headers) {
    if (header.name == lower_name) {
      return &header.value;
    }
  }
  return nullptr;
}

const char* ReasonPhrase(int status) {
  struct Phrase {
    int status;
    const char* text;
  };
  static constexpr std::array kPhrases = std::to_array<Phrase>({
      {200, "OK"},
      {204, "No Content"},
      {400, "Bad Request"},
      {401, "Unauthorized"},
      {403, "Forbidden"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {408, "Request Timeout"},
      {413, "Content Too Large"},
      {414, "URI Too Long"},
      {415, "Unsupported Media Type"},
      {417, "Expectation Failed"},
      {422, "Unprocessable Content"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {500, "Internal Server Error"},
      {501, "Not Implemented"},
      {503, "Service Unavailable"},
      {504, "Gateway Timeout"},
      {505, "HTTP Version Not Supported"},
  });
  for (const Phrase& phrase : kPhrases) {
    if (phrase.status == status) {
      return phrase.text;
    }
  }
  return "Unknown";
}

void Http1Parser::Failed(int status, std::string message) {
  state_ = State::kFailed;
  error_status_ = status;
  error_message_ = std::move(message);
}

void Http1Parser::Complete() { state_ = State::kDone; }

HttpRequest Http1Parser::TakeRequest() {
  HttpRequest request = std::move(request_);
  *this = Http1Parser(limits_);
  return request;
}

std::size_t Http1Parser::Feed(std::string_view bytes) {
  const State before = state_;
  std::size_t used = 0;
  while (used < bytes.size() && state_ == before &&
         (state_ == State::kHead || state_ == State::kBody)) {
    const std::string_view rest = bytes.substr(used);
    const bool raw = part_ == Part::kFixedBody || part_ == Part::kChunkData;
    used += raw ? FeedBody(rest) : FeedLine(rest);
  }
  return used;
}

std::size_t Http1Parser::FeedBody(std::string_view bytes) {
  const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(body_left_, bytes.size()));
  request_.body.append(bytes.substr(0, take));
  body_left_ -= take;
  if (body_left_ == 0) {
    if (part_ == Part::kFixedBody) {
      Complete();
    } else {
      part_ = Part::kChunkEnd;
    }
  }
  return take;
}

std::size_t Http1Parser::FeedLine(std::string_view bytes) {
  started_ = true;
  const std::size_t newline = bytes.find('\n');
  const std::size_t take = newline == std::string_view::npos ? bytes.size() : newline + 1;
  // The bound is checked before the bytes are kept, so a line without an end costs no memory.
  const bool chunk = part_ == Part::kChunkSize || part_ == Part::kChunkEnd;
  const std::size_t bound = part_ == Part::kRequestLine ? limits_.request_line_bytes
                            : chunk                     ? kMaxChunkLineBytes
                                                        : limits_.header_bytes;
  if (line_.size() + take > bound + 2) {
    if (part_ == Part::kRequestLine) {
      Failed(414, "The request line is too long.");
    } else if (chunk) {
      Failed(400, "A chunk size line is too long.");
    } else {
      Failed(431, "A header is too long.");
    }
    return take;
  }
  if (newline == std::string_view::npos) {
    line_.append(bytes);
    return take;
  }
  std::string_view line = bytes.substr(0, take);
  if (!line_.empty()) {
    line_.append(line);
    line = line_;
  }
  if (line.size() < 2 || line[line.size() - 2] != '\r') {
    Failed(400, "A line ends in a bare LF.");
    return take;
  }
  OnLine(line.substr(0, line.size() - 2));
  line_.clear();
  return take;
}

void Http1Parser::OnLine(std::string_view line) {
  switch (part_) {
    case Part::kRequestLine:
      // RFC 9112, 2.2: one empty line before the request line is forgiven.
      if (line.empty() && !skipped_blank_line_) {
        skipped_blank_line_ = true;
        started_ = false;
        return;
      }
      OnRequestLine(line);
      return;
    case Part::kHeaders:
      if (line.empty()) {
        OnHeadComplete();
      } else {
        OnHeader(line, /*keep=*/true);
      }
      return;
    case Part::kChunkSize:
      OnChunkSize(line);
      return;
    case Part::kChunkEnd:
      if (!line.empty()) {
        Failed(400, "A chunk is longer than its size says.");
        return;
      }
      part_ = Part::kChunkSize;
      return;
    case Part::kTrailers:
      if (line.empty()) {
        Complete();
      } else {
        OnHeader(line, /*keep=*/false);
      }
      return;
    case Part::kFixedBody:
    case Part::kChunkData:
      return;  // not made of lines
  }
}

void Http1Parser::OnRequestLine(std::string_view line) {
  const std::size_t first = line.find(' ');
  const std::size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos) {
    return Failed(400, "The request line is malformed.");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, second - first - 1);
  const std::string_view version = line.substr(second + 1);
  if (method.empty() || method.size() > kMaxMethodBytes ||
      !std::all_of(method.begin(), method.end(), IsTokenChar)) {
    return Failed(400, "The method is malformed.");
  }
  if (version.size() != 8 || !version.starts_with("HTTP/") || HexDigit(version[5]) < 0 ||
      version[6] != '.' || HexDigit(version[7]) < 0) {
    return Failed(400, "The request line is malformed.");
  }
  if (version[5] != '1' || (version[7] != '0' && version[7] != '1')) {
    return Failed(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.");
  }
  request_.method = std::string(method);
  request_.minor_version = version[7] - '0';
  request_.keep_alive = request_.minor_version == 1;
  OnTarget(target);
}

void Http1Parser::OnTarget(std::string_view target) {
  const auto visible = [](char c) { return c > 0x20 && c < 0x7F; };
  if (target.empty() || !std::all_of(target.begin(), target.end(), visible)) {
    return Failed(400, "The request target is malformed.");
  }
  // A proxy's form, http://host/path: the authority is dropped, Host decides.
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (ToLower(target.substr(0, scheme.size())) == scheme) {
      target.remove_prefix(scheme.size());
      const std::size_t slash = target.find('/');
      target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
      break;
    }
  }
  if (target.front() != '/' && target != "*") {
    return Failed(400, "The request target is malformed.");
  }
  const std::size_t question = std::min(target.find('?'), target.size());
  auto path = PercentDecode(target.substr(0, question));
  if (!path || !IsUtf8(*path)) {
    return Failed(400, "The request target has a bad percent escape.");
  }
  request_.path = std::move(*path);
  request_.query = std::string(target.substr(std::min(question + 1, target.size())));
  part_ = Part::kHeaders;
}

bool Http1Parser::OnHeader(std::string_view line, bool keep) {
  head_bytes_ += line.size() + 2;
  if (head_bytes_ > limits_.all_headers_bytes || ++num_headers_ > limits_.header_count) {
    Failed(431, "Too many headers.");
    return false;
  }
  if (line.front() == ' ' || line.front() == '\t') {
    Failed(400, "A header is folded over two lines.");
    return false;
  }
  const std::size_t colon = line.find(':');
  const std::string_view name = line.substr(0, std::min(colon, line.size()));
  if (colon == std::string_view::npos || name.empty() ||
      !std::all_of(name.begin(), name.end(), IsTokenChar)) {
    Failed(400, "A header's name is malformed.");
    return false;
  }
  const std::string_view value = TrimBlanks(line.substr(colon + 1));
  if (!std::all_of(value.begin(), value.end(), IsValueChar)) {
    Failed(400, "A header's value holds a control character.");
    return false;
  }
  if (keep) {
    request_.headers.push_back({.name = ToLower(name), .value = std::string(value)});
  }
  return true;
}

void Http1Parser::OnHeadComplete() {
  int hosts = 0;
  int lengths = 0;
  int codings = 0;
  std::string_view length_text;
  std::string_view coding_text;
  for (const HttpHeader& header : request_.headers) {
    if (header.name == "host") {
      ++hosts;
    } else if (header.name == "content-length") {
      ++lengths;
      length_text = header.value;
    } else if (header.name == "transfer-encoding") {
      ++codings;
      coding_text = header.value;
    } else if (header.name == "connection") {
      ForEachElement(header.value, [&](const std::string& option) {
        if (option == "close") {
          request_.keep_alive = false;
        } else if (option == "keep-alive" && request_.minor_version == 0) {
          request_.keep_alive = true;
        }
      });
    } else if (header.name == "expect") {
      if (ToLower(header.value) != "100-continue") {
        return Failed(417, "Only the expectation 100-continue is known.");
      }
      request_.expects_continue = true;
    }
  }
  if (hosts > 1 || (hosts == 0 && request_.minor_version == 1)) {
    return Failed(400, "HTTP/1.1 wants exactly one Host header.");
  }
  if (lengths + codings > 1) {
    return Failed(400, "The request has more than one length.");
  }
  if (codings == 1) {
    if (ToLower(coding_text) != "chunked" || request_.minor_version == 0) {
      return Failed(400, "The transfer coding is unknown.");
    }
    state_ = State::kBody;
    part_ = Part::kChunkSize;
    return;
  }
  if (lengths == 1) {
    const auto length = ParseDecimal(length_text);
    if (!length) {
      return Failed(400, "Content-Length is not a number.");
    }
    if (*length > limits_.body_bytes) {
      return Failed(413, "The request body is too large.");
    }
    body_left_ = *length;
  }
  if (body_left_ == 0) {
    return Complete();
  }
  state_ = State::kBody;
  part_ = Part::kFixedBody;
}

void Http1Parser::OnChunkSize(std::string_view line) {
  const std::size_t end = std::min(line.find(';'), line.size());
  if (!std::all_of(line.begin(), line.end(), IsValueChar) || end == 0 || end > 8) {
    return Failed(400, "A chunk size is malformed.");
  }
  std::uint64_t size = 0;
  for (const char c : line.substr(0, end)) {
    const int digit = HexDigit(c);
    if (digit < 0) {
      return Failed(400, "A chunk size is malformed.");
    }
    size = size * 16 + static_cast<std::uint64_t>(digit);
  }
  if (request_.body.size() + size > limits_.body_bytes) {
    return Failed(413, "The request body is too large.");
  }
  body_left_ = size;
  part_ = size == 0 ? Part::kTrailers : Part::kChunkData;
}

}  // namespace nibble
