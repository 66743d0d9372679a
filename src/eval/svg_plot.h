#pragma once

#include <string>
#include <vector>

namespace nibble {

struct PlotPoint {
  double x = 0.0, y = 0.0;
  double error = 0.0;   // half the length of its error bar; 0: none
  std::string label{};  // beside it; empty: none
};

struct PlotSeries {
  std::string name{};
  std::vector<PlotPoint> points{};
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<PlotSeries> series{};
  bool lines = false;  // join the points of a series
};

/// A plot as one <svg> element for an HTML page: axes from round numbers, error bars, a legend
/// where there is more than one series. All text is escaped. Points that are no finite numbers are
/// left out; with none left, an empty string.
std::string RenderSvg(const Plot& plot);

}  // namespace nibble
