// Speed of encoding and decoding one text, on one thread.
//   encode_bench FOLDER TEXTFILE      FOLDER holds a tokenizer.json
// Prints the median and the best of 15 runs in processor time of the thread, which a busy machine
// disturbs least, and the rate of the median in MB of text.

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace nibble {
namespace {

double Seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <typename Once>
void Time(const char* name, std::size_t bytes, Once once) {
  constexpr int kRuns = 15;
  std::vector<double> times;
  for (int i = 0; i < kRuns; ++i) {
    const double begin = Seconds();
    once();
    times.push_back(Seconds() - begin);
  }
  std::sort(times.begin(), times.end());
  const double median = times[kRuns / 2];
  fmt::print("{:<8} median {:7.2f} ms  best {:7.2f} ms  {:6.1f} MB/s\n", name, 1e3 * median,
             1e3 * times.front(), 1e-6 * static_cast<double>(bytes) / median);
}

int Run(const std::string& folder, const std::string& text_file) {
  std::ifstream file(text_file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  double begin = Seconds();
  const auto tokenizer = Tokenizer::FromFolder(folder);
  if (!tokenizer || text.empty()) {
    fmt::print(stderr, "{}\n", tokenizer ? text_file + ": no text" : tokenizer.error().message);
    return 1;
  }
  fmt::print("load     {:.1f} ms\n", 1e3 * (Seconds() - begin));
  const std::vector<TokenId> ids = (*tokenizer)->Encode(text);
  fmt::print("{} bytes are {} tokens\n", text.size(), ids.size());
  Time("encode", text.size(), [&] { (void)(*tokenizer)->Encode(text); });
  Time("decode", text.size(), [&] { (void)(*tokenizer)->Decode(ids); });
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: encode_bench FOLDER TEXTFILE\n");
    return 2;
  }
  return nibble::Run(argv[1], argv[2]);
}
