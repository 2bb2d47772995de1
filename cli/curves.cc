#include "cli/curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cli/job_json.h"

namespace tributary::cli {
namespace {

constexpr double kPanelWidth = 420, kPanelHeight = 280;
constexpr double kLeft = 70, kRight = 15, kTop = 30, kBottom = 45;
constexpr double kLegendLine = 18;
constexpr int kTicks = 5;
// Losses that span more than this factor are drawn on a logarithmic scale.
constexpr double kLogFrom = 50;
// Told apart by people who do not see all colours (Okabe and Ito 2008).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"};

struct Quantity {
  const char* title;
  double CurvePoint::*value;
};
constexpr Quantity kLoss = {"loss", &CurvePoint::loss};
constexpr Quantity kAccuracy = {"accuracy", &CurvePoint::accuracy};

Quantity QuantityOf(Axis axis) {
  switch (axis) {
    case Axis::kVersions: return {"version", &CurvePoint::version};
    case Axis::kSeconds: return {"seconds", &CurvePoint::seconds};
    case Axis::kBytes: return {"bytes up and down", &CurvePoint::bytes};
  }
  return {"", nullptr};
}

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '&') out += "&amp;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

// A range of values and where they lie between 0 and 1.
struct Scale {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool logarithmic = false;

  void Take(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
  void Finish(bool may_be_logarithmic) {
    if (empty()) low = high = 0;
    logarithmic = may_be_logarithmic && low > 0 && high / low > kLogFrom;
    if (low == high) {
      const double margin = low == 0 ? 1 : std::fabs(low) * 0.1;
      low -= margin;
      high += margin;
    }
  }
  double Place(double value) const {
    return logarithmic ? (std::log(value) - std::log(low)) / (std::log(high) - std::log(low)) : (value - low) / (high - low);
  }
  double ValueAt(double place) const { return logarithmic ? low * std::pow(high / low, place) : low + (high - low) * place; }
};

std::string TickText(Axis axis, bool is_x, double value) {
  if (is_x && axis == Axis::kBytes) return HumanBytes(static_cast<uint64_t>(std::max(0.0, value)));
  return fmt::format("{:.3g}", value);
}

std::string Panel(std::span<const CurveSet> jobs, Axis axis, const Quantity& quantity, double x0, double y0) {
  const Quantity along = QuantityOf(axis);
  Scale x, y;
  for (const CurveSet& job : jobs) {
    for (const CurvePoint& point : job.points) {
      if (!std::isfinite(point.*quantity.value)) continue;
      x.Take(point.*along.value);
      y.Take(point.*quantity.value);
    }
  }
  x.Finish(false);
  y.Finish(quantity.value == &CurvePoint::loss);
  const double width = kPanelWidth - kLeft - kRight, height = kPanelHeight - kTop - kBottom;
  const auto across = [&](double value) { return x0 + kLeft + width * x.Place(value); };
  const auto down = [&](double value) { return y0 + kTop + height * (1 - y.Place(value)); };
  std::string svg = fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\" class=\"t\">{}{} over {}</text>\n", x0 + kLeft + width / 2,
                                y0 + 18, quantity.title, y.logarithmic ? " (log)" : "", along.title);
  for (int i = 0; i <= kTicks; ++i) {
    const double place = static_cast<double>(i) / kTicks;
    const double px = x0 + kLeft + width * place, py = y0 + kTop + height * (1 - place);
    svg += fmt::format("<path class=\"g\" d=\"M{:.1f} {:.1f}h{:.1f}M{:.1f} {:.1f}v{:.1f}\"/>\n", x0 + kLeft, py, width, px, y0 + kTop, height);
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", x0 + kLeft - 6, py + 4, TickText(axis, false, y.ValueAt(place)));
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n", px, y0 + kTop + height + 18, TickText(axis, true, x.ValueAt(place)));
  }
  for (size_t j = 0; j < jobs.size(); ++j) {
    std::string path;
    for (const CurvePoint& point : jobs[j].points) {
      if (!std::isfinite(point.*quantity.value)) continue;
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", across(point.*along.value), down(point.*quantity.value));
    }
    if (!path.empty()) svg += fmt::format("<path class=\"c\" stroke=\"{}\" d=\"{}\"/>\n", kColours[j % std::size(kColours)], path);
  }
  return svg;
}

}  // namespace

std::string DrawCurves(std::span<const CurveSet> jobs, const std::vector<Axis>& axes) {
  std::vector<Quantity> rows = {kLoss};
  const bool classified = std::any_of(jobs.begin(), jobs.end(), [](const CurveSet& job) {
    return std::any_of(job.points.begin(), job.points.end(), [](const CurvePoint& point) { return std::isfinite(point.accuracy); });
  });
  if (classified) rows.push_back(kAccuracy);
  const double width = kPanelWidth * static_cast<double>(axes.size());
  const double height = kPanelHeight * static_cast<double>(rows.size()) + kLegendLine * static_cast<double>(jobs.size()) + 10;
  std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\">\n", width, height);
  svg += "<style>text{font:12px sans-serif;fill:#333}.t{font-size:14px}.g{stroke:#ddd;fill:none}.c{fill:none;stroke-width:1.6}</style>\n"
         "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  for (size_t row = 0; row < rows.size(); ++row) {
    for (size_t column = 0; column < axes.size(); ++column) {
      svg += Panel(jobs, axes[column], rows[row], kPanelWidth * static_cast<double>(column), kPanelHeight * static_cast<double>(row));
    }
  }
  for (size_t j = 0; j < jobs.size(); ++j) {
    const double y = kPanelHeight * static_cast<double>(rows.size()) + kLegendLine * (static_cast<double>(j) + 0.5);
    svg += fmt::format("<path class=\"c\" stroke=\"{}\" d=\"M{:.1f} {:.1f}h24\"/><text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                       kColours[j % std::size(kColours)], kLeft, y, kLeft + 32, y + 4, Escaped(jobs[j].name));
  }
  return svg + "</svg>\n";
}

}  // namespace tributary::cli
