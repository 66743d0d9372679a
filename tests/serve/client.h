#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::testing {

struct ClientResponse {
  int status = 0;
  std::string head;
  std::string body;                 // without chunk framing
  std::vector<std::string> chunks;  // of a chunked body
  bool complete = false;
};

/// A blocking HTTP/1.1 client that sends exactly the bytes it is told to. Every wait ends after
/// five seconds.
class Client {
 public:
  explicit Client(std::uint16_t port, int receive_buffer_bytes = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer_bytes > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(receive_buffer_bytes));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~Client() { Close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) {
        return;
      }
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  void Close() {
    if (fd_ >= 0) {
      ::close(fd_);
      fd_ = -1;
    }
  }
  void HalfClose() { ::shutdown(fd_, SHUT_WR); }

  /// Reads at least one byte into the buffer; false at the end or after five seconds.
  bool Receive(int timeout_ms = 5000) {
    pollfd entry{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&entry, 1, timeout_ms) <= 0) {
      return false;
    }
    char bytes[65536];
    const auto count = ::recv(fd_, bytes, sizeof(bytes), 0);
    if (count <= 0) {
      closed_ = true;
      return false;
    }
    buffer_.append(bytes, static_cast<std::size_t>(count));
    return true;
  }
  /// The server has ended the connection (waits for it).
  bool AtEnd() {
    while (Receive()) {
    }
    return closed_;
  }
  bool WaitFor(std::string_view text) {
    while (buffer_.find(text) == std::string::npos) {
      if (!Receive()) {
        return false;
      }
    }
    return true;
  }

  ClientResponse Read() {
    ClientResponse response;
    if (!WaitFor("\r\n\r\n")) {
      return response;
    }
    const std::size_t end = buffer_.find("\r\n\r\n") + 4;
    response.head = buffer_.substr(0, end);
    buffer_.erase(0, end);
    response.status = std::stoi(response.head.substr(9, 3));
    if (response.status == 100) {
      return Read();
    }
    const std::size_t length = response.head.find("Content-Length: ");
    if (length != std::string::npos) {
      const std::size_t count = std::stoul(response.head.substr(length + 16));
      while (buffer_.size() < count && Receive()) {
      }
      response.complete = buffer_.size() >= count;
      response.body = buffer_.substr(0, count);
      buffer_.erase(0, count);
    } else if (response.head.find("chunked") != std::string::npos) {
      for (;;) {
        if (!WaitFor("\r\n")) {
          return response;
        }
        const std::size_t line = buffer_.find("\r\n");
        const std::size_t size = std::stoul(buffer_.substr(0, line), nullptr, 16);
        while (buffer_.size() < line + 2 + size + 2) {
          if (!Receive()) {
            return response;
          }
        }
        if (size > 0) {
          response.chunks.push_back(buffer_.substr(line + 2, size));
          response.body += response.chunks.back();
        }
        buffer_.erase(0, line + 2 + size + 2);
        if (size == 0) {
          response.complete = true;
          return response;
        }
      }
    } else {
      response.complete = true;
    }
    return response;
  }

  ClientResponse Get(std::string_view path, std::string_view headers = "") {
    Send("GET " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n" + std::string(headers) +
         "\r\n");
    return Read();
  }
  void SendPost(std::string_view path, std::string_view body, std::string_view headers = "") {
    Send("POST " + std::string(path) +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + std::string(headers) + "\r\n" + std::string(body));
  }
  ClientResponse Post(std::string_view path, std::string_view body, std::string_view headers = "") {
    SendPost(path, body, headers);
    return Read();
  }

 private:
  int fd_ = -1;
  bool connected_ = false;
  bool closed_ = false;
  std::string buffer_;
};

}  // namespace nibble::testing
