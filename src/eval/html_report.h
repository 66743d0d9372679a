#pragma once

#include <span>
#include <string>

#include "json/value.h"

namespace nibble {

/// What `nibble eval` found of one model, as in its JSON.
struct EvaluatedModel {
  std::string name;    // in tables and plots
  json::Value result;  // nibble eval's object
};

/// One HTML page that needs nothing else: a table of all numbers, plots of quality against bytes
/// (as far as the results have both), the error of each layer, notes and hashes. All text is
/// escaped.
std::string RenderHtml(std::span<const EvaluatedModel> models);

}  // namespace nibble
