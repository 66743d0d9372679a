// A tokenizer.json from outside: loading it fails with an Error or gives a tokenizer that encodes,
// decodes and can be written again. The last line of the input, if any, is the text to encode.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace {

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t line = input.rfind('\n');
  const std::string_view file = input.substr(0, line);
  std::string text = " Hello  it's 123\n\u00e9\u6f22 <s>\xff the";
  if (line != std::string_view::npos) {
    text += input.substr(line + 1, 256);
  }
  const auto tokenizer = nibble::Tokenizer::FromJson(file);
  if (!tokenizer) {
    Require(!tokenizer.error().message.empty());
    return 0;
  }
  const nibble::Tokenizer& t = **tokenizer;
  std::vector<nibble::TokenId> ids =
      t.Encode(text, {.add_special_tokens = true, .parse_special = true});
  for (const nibble::TokenId id : ids) {
    Require(t.Has(id) && nibble::Raw(id) < t.vocab_size());
  }
  // Control tokens in the text stay text for those who may not write them.
  (void)t.Encode(text, {});
  for (std::int32_t id = -1; id < 40; ++id) {
    ids.push_back(nibble::TokenId{id});
  }
  nibble::IncrementalDecoder decoder(t);
  std::string steps;
  for (const nibble::TokenId id : ids) {
    steps += decoder.Push(id);
  }
  steps += decoder.Finish();
  Require(steps == t.Decode(ids));
  const auto written = t.ToTokenizerJson();
  Require(written.has_value());
  const auto again = nibble::Tokenizer::FromJson(*written);
  Require(again.has_value());
  Require((*again)->Encode(text) == t.Encode(text));
  return 0;
}
