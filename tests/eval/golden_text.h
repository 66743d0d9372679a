#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "json/value.h"

namespace nibble {

/// A file of tests/golden/text_metrics.
inline json::Value GoldenText(const std::string& name) {
  const auto path =
      std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/text_metrics" / (name + ".json");
  auto value = json::ParseFile(path.string());
  EXPECT_TRUE(value) << value.error().message;
  return value ? *value : json::Value();
}

inline std::vector<std::string> Strings(const json::Value& array) {
  std::vector<std::string> out;
  for (const json::Value& element : *array.AsArray()) {
    out.push_back(*element.AsString());
  }
  return out;
}

}  // namespace nibble
