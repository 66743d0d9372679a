#include "eval/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "template/pystring.h"

namespace nibble {
namespace {

constexpr double kWidth = 600, kHeight = 340;
constexpr double kLeft = 76, kRight = 20, kTop = 36, kBottom = 52;
constexpr double kLegendWidth = 110;
constexpr double kLineHeight = 14;  // between two labels
// Okabe and Ito: told apart by people with any colour vision.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#000000"};

struct Axis {
  double low = 0.0, high = 1.0;   // of the data, widened to ticks
  double step = 1.0;              // between ticks
  double begin = 0.0, end = 1.0;  // in the picture
  double At(double value) const { return begin + (value - low) / (high - low) * (end - begin); }
};

// Ticks at 1, 2 or 5 times a power of ten, about five of them.
Axis MakeAxis(double low, double high, double begin, double end) {
  if (!(high > low)) {
    const double room = low == 0.0 ? 1.0 : std::abs(low) * 0.1;
    low -= room;
    high += room;
  }
  const double rough = (high - low) / 5.0;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double factor = rough / power;
  const double step = power * (factor < 1.5 ? 1.0 : factor < 3.5 ? 2.0 : factor < 7.5 ? 5.0 : 10.0);
  return {.low = std::floor(low / step) * step,
          .high = std::ceil(high / step) * step,
          .step = step,
          .begin = begin,
          .end = end};
}

// As many digits as the step between ticks needs.
std::string TickText(double value, double step) {
  const int digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return fmt::format("{:.{}f}", std::abs(value) < step * 1e-6 ? 0.0 : value, digits);
}

class Drawing {
 public:
  Drawing(const Plot& plot, const Axis& x, const Axis& y) : plot_(plot), x_(x), y_(y) {}

  std::string Draw() {
    Put("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth, kHeight,
        jinja::EscapeHtml(plot_.title));
    Text(kLeft, 18, "start", "title", plot_.title);
    DrawAxes();
    for (std::size_t s = 0; s < plot_.series.size(); ++s) {
      DrawSeries(plot_.series[s], kColours[s % std::size(kColours)]);
    }
    DrawLabels();
    if (plot_.series.size() > 1) {
      DrawLegend();
    }
    out_ += "</svg>\n";
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void Put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
  }
  void Text(double x, double y, const char* anchor, const char* style, const std::string& text) {
    Put("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y, anchor,
        style, jinja::EscapeHtml(text));
  }
  void Line(double x1, double y1, double x2, double y2, const char* style) {
    Put("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1, y1, x2, y2,
        style);
  }

  void DrawAxes() {
    const auto ticks = [](const Axis& axis) {
      return static_cast<int>(std::lround((axis.high - axis.low) / axis.step));
    };
    for (int i = 0; i <= ticks(y_); ++i) {
      const double value = y_.low + i * y_.step;
      Line(x_.begin, y_.At(value), x_.end, y_.At(value), "class=\"grid\"");
      Text(x_.begin - 8, y_.At(value) + 4, "end", "tick", TickText(value, y_.step));
    }
    for (int i = 0; i <= ticks(x_); ++i) {
      const double value = x_.low + i * x_.step;
      Line(x_.At(value), y_.begin, x_.At(value), y_.begin + 4, "class=\"axis\"");
      Text(x_.At(value), y_.begin + 18, "middle", "tick", TickText(value, x_.step));
    }
    Line(x_.begin, y_.begin, x_.end, y_.begin, "class=\"axis\"");
    Line(x_.begin, y_.begin, x_.begin, y_.end, "class=\"axis\"");
    Text((x_.begin + x_.end) / 2, kHeight - 10, "middle", "name", plot_.x_label);
    Put("<text transform=\"translate(16 {:.1f}) rotate(-90)\" text-anchor=\"middle\" "
        "class=\"name\">{}</text>\n",
        (y_.begin + y_.end) / 2, jinja::EscapeHtml(plot_.y_label));
  }

  void DrawSeries(const PlotSeries& series, const char* colour) {
    if (plot_.lines) {
      Put("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"", colour);
      for (const PlotPoint& point : series.points) {
        Put("{:.1f},{:.1f} ", x_.At(point.x), y_.At(point.y));
      }
      out_ += "\"/>\n";
    }
    for (const PlotPoint& point : series.points) {
      const double x = x_.At(point.x);
      if (point.error > 0.0) {
        Line(x, y_.At(point.y - point.error), x, y_.At(point.y + point.error),
             fmt::format("stroke=\"{}\"", colour).c_str());
      }
      Put("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\"><title>{}</title></circle>\n",
          x, y_.At(point.y), plot_.lines ? 2.5 : 4.5, colour,
          jinja::EscapeHtml(fmt::format("{}{}{:.5g}, {:.5g}", series.name,
                                        series.name.empty() ? "" : ": ", point.x, point.y)));
    }
  }

  // Beside the points, moved down where two would lie over each other.
  void DrawLabels() {
    struct Label {
      double x, y;
      std::string text;
    };
    std::vector<Label> labels;
    for (const PlotSeries& series : plot_.series) {
      for (const PlotPoint& point : series.points) {
        if (!point.label.empty()) {
          labels.push_back({x_.At(point.x), y_.At(point.y) + 4, point.label});
        }
      }
    }
    std::ranges::sort(labels, {}, &Label::y);
    for (std::size_t i = 0; i < labels.size(); ++i) {
      for (std::size_t before = 0; before < i; ++before) {
        const bool near = std::abs(labels[before].x - labels[i].x) < 160;
        if (near && labels[i].y - labels[before].y < kLineHeight) {
          labels[i].y = labels[before].y + kLineHeight;
        }
      }
      const bool left = labels[i].x > (x_.begin + x_.end) / 2;
      Text(labels[i].x + (left ? -9 : 9), labels[i].y, left ? "end" : "start", "label",
           labels[i].text);
    }
  }

  void DrawLegend() {
    const double x = x_.end + 18;
    for (std::size_t s = 0; s < plot_.series.size(); ++s) {
      const double y = kTop + 10 + 20 * static_cast<double>(s);
      Put("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\" fill=\"{}\"/>\n", x, y,
          kColours[s % std::size(kColours)]);
      Text(x + 10, y + 4, "start", "label", plot_.series[s].name);
    }
  }

  const Plot& plot_;
  Axis x_, y_;
  std::string out_;
};

void DropWhatIsNotFinite(Plot& plot) {
  for (PlotSeries& series : plot.series) {
    std::erase_if(series.points, [](const PlotPoint& point) {
      return !std::isfinite(point.x) || !std::isfinite(point.y) || !std::isfinite(point.error);
    });
  }
  std::erase_if(plot.series, [](const PlotSeries& series) { return series.points.empty(); });
}

}  // namespace

std::string RenderSvg(const Plot& plot) {
  Plot finite = plot;
  DropWhatIsNotFinite(finite);
  if (finite.series.empty()) {
    return {};
  }
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double x_low = kInfinity, x_high = -kInfinity, y_low = kInfinity, y_high = -kInfinity;
  for (const PlotSeries& series : finite.series) {
    for (const PlotPoint& point : series.points) {
      x_low = std::min(x_low, point.x);
      x_high = std::max(x_high, point.x);
      y_low = std::min(y_low, point.y - point.error);
      y_high = std::max(y_high, point.y + point.error);
    }
  }
  const double right = kWidth - kRight - (finite.series.size() > 1 ? kLegendWidth : 0.0);
  return Drawing(finite, MakeAxis(x_low, x_high, kLeft, right),
                 MakeAxis(y_low, y_high, kHeight - kBottom, kTop))
      .Draw();
}

}  // namespace nibble
