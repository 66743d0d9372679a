#include "eval/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/text.h"
#include "eval/svg_plot.h"
#include "template/pystring.h"

namespace nibble {
namespace {

using jinja::EscapeHtml;

constexpr const char* kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Quality of quantized models</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
.error { color: #666; font-size: .85em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
         gap: 1rem; }
svg { width: 100%; max-width: 860px; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif; fill: #1a1a1a; font-size: 12px; }
svg .title { font-size: 14px; font-weight: 600; } svg .tick { fill: #555; font-size: 11px; }
svg .label { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round; }
svg .grid { stroke: #e6e6e6; } svg .axis { stroke: #777; }
code { font-size: .85em; overflow-wrap: anywhere; }
</style></head><body>
)";

// A number with its standard error, NaN where it has none.
struct Number {
  double value = 0.0;
  double error = std::nan("");
};

std::optional<double> Double(const json::Value* value) {
  return value == nullptr ? std::nullopt : value->AsDouble();
}

// One column of the table, one plot.
struct Column {
  std::string name;
  std::string task;  // empty: measured on the text
  std::string key;   // member of the result, or of the task's metrics
  std::string error_key;
  double factor = 1.0;
  int digits = 4;
};

// What is measured on a text, and what of it a plot is worth.
const std::vector<Column>& TextColumns() {
  static const std::vector<Column> columns = {
      {.name = "perplexity", .key = "perplexity", .error_key = "nll_stderr", .digits = 3},
      {.name = "KL mean, nats", .key = "kl_mean", .error_key = "kl_stderr"},
      {.name = "KL 99 %", .key = "kl_p99", .digits = 3},
      {.name = "same top-1, %", .key = "top1", .factor = 100.0, .digits = 2}};
  return columns;
}

std::optional<Number> Find(const EvaluatedModel& model, const Column& column) {
  if (column.task.empty()) {
    const auto value = Double(model.result.Find(column.key));
    if (!value) {
      return std::nullopt;
    }
    Number number{.value = *value * column.factor};
    if (const auto error = Double(model.result.Find(column.error_key))) {
      // The error is that of the mean log-likelihood.
      number.error = column.key == "perplexity" ? *error * number.value : *error * column.factor;
    }
    return number;
  }
  const json::Value* tasks = model.result.Find("tasks");
  const json::Value* task = tasks == nullptr ? nullptr : tasks->Find(column.task);
  const json::Value* metrics = task == nullptr ? nullptr : task->Find("metrics");
  const json::Value* metric = metrics == nullptr ? nullptr : metrics->Find(column.key);
  if (metric == nullptr || !Double(metric->Find("value"))) {
    return std::nullopt;
  }
  return Number{.value = *Double(metric->Find("value")),
                .error = Double(metric->Find("stderr")).value_or(std::nan(""))};
}

// Calls visit(name, task) for each task of a result.
template <typename Visit>
void ForEachTask(const EvaluatedModel& model, const Visit& visit) {
  const json::Value* tasks = model.result.Find("tasks");
  if (tasks == nullptr || tasks->AsObject() == nullptr) {
    return;
  }
  for (const auto& [name, task] : *tasks->AsObject()) {
    visit(name, task);
  }
}

// Those that any model has a number for, in the order of their first appearance.
std::vector<Column> ColumnsOf(std::span<const EvaluatedModel> models) {
  std::vector<Column> columns;
  for (const Column& column : TextColumns()) {
    if (std::ranges::any_of(models, [&](const auto& m) { return Find(m, column).has_value(); })) {
      columns.push_back(column);
    }
  }
  std::set<std::pair<std::string, std::string>> seen;
  for (const EvaluatedModel& model : models) {
    ForEachTask(model, [&](const std::string& task, const json::Value& value) {
      const json::Value* metrics = value.Find("metrics");
      if (metrics == nullptr || metrics->AsObject() == nullptr) {
        return;
      }
      for (const auto& [metric, estimate] : *metrics->AsObject()) {
        if (seen.insert({task, metric}).second) {
          columns.push_back({.name = task + " " + metric, .task = task, .key = metric});
        }
      }
    });
  }
  return columns;
}

std::string Table(std::span<const EvaluatedModel> models, std::span<const Column> columns) {
  std::string out =
      "<div class=\"wide\"><table>\n<tr><th>model</th><th>weights</th>"
      "<th>bits per weight</th>";
  for (const Column& column : columns) {
    out += fmt::format("<th>{}</th>", EscapeHtml(column.name));
  }
  out += "</tr>\n";
  for (const EvaluatedModel& model : models) {
    const auto bytes = Double(model.result.Find("weight_bytes"));
    const auto bits = Double(model.result.Find("bits_per_weight"));
    out += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td>", EscapeHtml(model.name),
                       bytes ? HumanBytes(*bytes) : "", bits ? fmt::format("{:.2f}", *bits) : "");
    for (const Column& column : columns) {
      const auto number = Find(model, column);
      out += "<td>";
      if (number) {
        out += fmt::format("{:.{}f}", number->value, column.digits);
        if (std::isfinite(number->error)) {
          out += fmt::format(" <span class=\"error\">&plusmn; {:.{}f}</span>", number->error,
                             column.digits);
        }
      }
      out += "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

// Quality against the megabytes of the weights; empty with less than two models that have both.
std::string PlotAgainstBytes(std::span<const EvaluatedModel> models, const Column& column) {
  PlotSeries series;
  for (const EvaluatedModel& model : models) {
    const auto bytes = Double(model.result.Find("weight_bytes"));
    const auto number = Find(model, column);
    if (bytes && number) {
      series.points.push_back({.x = *bytes / 1e6,
                               .y = number->value,
                               .error = std::isfinite(number->error) ? number->error : 0.0,
                               .label = model.name});
    }
  }
  if (series.points.size() < 2) {
    return {};
  }
  return RenderSvg({.title = column.name + " against the size of the weights",
                    .x_label = "weights, MB",
                    .y_label = column.name,
                    .series = {series}});
}

// "model.layers.12.mlp.down_proj.weight": the layer 12 and "down_proj".
std::optional<std::pair<int, std::string>> LayerAndKind(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) {
    return std::nullopt;
  }
  name.remove_prefix(kLayers.size());
  int layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc{}) {
    return std::nullopt;
  }
  name.remove_prefix(static_cast<std::size_t>(end - name.data()));
  name.remove_suffix(name.ends_with(".weight") ? 7 : 0);
  return std::pair(layer, std::string(name.substr(name.rfind('.') + 1)));
}

std::string PlotOfLayers(const EvaluatedModel& model) {
  const json::Value* errors = model.result.Find("layer_errors");
  if (errors == nullptr || errors->AsObject() == nullptr) {
    return {};
  }
  std::map<std::string, std::map<int, double>> by_kind;
  for (const auto& [name, error] : *errors->AsObject()) {
    const auto where = LayerAndKind(name);
    if (where && error.AsDouble()) {
      by_kind[where->second][where->first] = *error.AsDouble() * 100.0;
    }
  }
  Plot plot{.title = model.name + ": error of each layer's weights",
            .x_label = "layer",
            .y_label = "relative RMS error, %",
            .lines = true};
  for (const auto& [kind, layers] : by_kind) {
    PlotSeries series{.name = kind};
    for (const auto& [layer, error] : layers) {
      series.points.push_back({.x = static_cast<double>(layer), .y = error});
    }
    plot.series.push_back(std::move(series));
  }
  return RenderSvg(plot);
}

std::string Text(const json::Value* value) {
  if (value == nullptr) {
    return {};
  }
  return value->AsString() != nullptr ? *value->AsString() : json::Dump(*value);
}

// What the numbers of a model are to be read with.
std::string Details(const EvaluatedModel& model) {
  std::string out = fmt::format("<h3>{}</h3>\n<ul>\n", EscapeHtml(model.name));
  for (const char* key : {"model", "nibble", "weights_sha256", "activations", "kv_cache_dtype",
                          "device", "cpu", "text", "text_sha256", "context", "windows"}) {
    if (const std::string text = Text(model.result.Find(key)); !text.empty()) {
      out += fmt::format("<li>{}: <code>{}</code></li>\n", key, EscapeHtml(text));
    }
  }
  ForEachTask(model, [&](const std::string& name, const json::Value& task) {
    out += fmt::format(
        "<li>{}: {} items of {} <code>{}</code>, {}-shot", EscapeHtml(name),
        EscapeHtml(Text(task.Find("num_items"))), EscapeHtml(Text(task.Find("data"))),
        EscapeHtml(Text(task.Find("data_sha256"))), EscapeHtml(Text(task.Find("num_fewshot"))));
    if (const json::Value* notes = task.Find("notes"); notes != nullptr && notes->AsArray()) {
      for (const json::Value& note : *notes->AsArray()) {
        out += fmt::format("; {}", EscapeHtml(Text(&note)));
      }
    }
    out += "</li>\n";
  });
  return out + "</ul>\n";
}

}  // namespace

std::string RenderHtml(std::span<const EvaluatedModel> models) {
  std::string out = kHead;
  out +=
      "<h1>Quality of quantized models</h1>\n<p>Measured by nibble eval. &plusmn;: one standard "
      "error.</p>\n";
  const std::vector<Column> columns = ColumnsOf(models);
  out += Table(models, columns);
  std::string plots;
  for (const Column& column : columns) {
    plots += PlotAgainstBytes(models, column);
  }
  if (!plots.empty()) {
    out += "<h2>Quality against bytes</h2>\n<div class=\"plots\">\n" + plots + "</div>\n";
  }
  std::string layers;
  for (const EvaluatedModel& model : models) {
    layers += PlotOfLayers(model);
  }
  if (!layers.empty()) {
    out += "<h2>Error per layer</h2>\n" + layers;
  }
  out += "<h2>What was measured</h2>\n";
  for (const EvaluatedModel& model : models) {
    out += Details(model);
  }
  return out + "</body></html>\n";
}

}  // namespace nibble
