// Learning curves as one SVG: a panel for loss and, where there is any, one for accuracy, over each axis asked for. A curve per job, with
// a legend; no script, no font, nothing from outside. Pure.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace tributary::cli {

struct CurvePoint {
  double version = 0;
  double seconds = 0;
  double bytes = 0;      // up and down
  double loss = 0;       // NaN: not measured
  double accuracy = 0;
};

struct CurveSet {
  std::string name;
  std::vector<CurvePoint> points;
};

enum class Axis { kVersions, kSeconds, kBytes };
std::string DrawCurves(std::span<const CurveSet> jobs, const std::vector<Axis>& axes);

}  // namespace tributary::cli
