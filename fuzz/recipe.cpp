#include "compress/recipe.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

// What parses must resolve, or say why not; a complaint names the file.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto recipe = ParseRecipe(text, "recipe.yaml");
  if (!recipe) {
    if (!recipe.error().message.starts_with("recipe.yaml:")) {
      std::abort();
    }
    return 0;
  }
  const ExpectedWeight weights[] = {{"model.layers.0.self_attn.q_proj.weight", 64, 64, true},
                                    {"model.layers.0.mlp.up_proj.weight", 64, 64, true},
                                    {"lm_head.weight", 64, 64, false}};
  const auto plans = Resolve(*recipe, weights);
  if (plans && plans->size() < 2) {
    std::abort();
  }
  return 0;
}
