"""Judges the lines of the data plane's measurements by the rules of dataplane.md §13: pure functions, tested by dataplane_judge_test.py.

A measurement has a baseline arm, an arm of ours, or both, each with its runs. It passes when every rule laid on it holds:
  at_least(limit)   the medians' ratio, in favour of ours, is >= limit; the quartile ranges do not overlap, ours on the better side
  ceiling(limit)    the median of ours is <= limit (strict: < limit); floor(limit) likewise from below
Where it has a baseline, quartiles have to be apart unless the rule says otherwise: a floor is no comparison, so a pass there says it when the
baseline is the better one, or as good. Fewer than five runs an arm are never a pass.
"""
import dataclasses
import math
import re

MIN_RUNS = 5
PASS, FAIL, FEW_RUNS, NOT_BUILT, NOT_RUN = "pass", "fail", "too few runs", "not built", "not run"


@dataclasses.dataclass(frozen=True)
class Arm:
    name: str
    runs: tuple = ()
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @staticmethod
    def of(name, runs):
        runs = tuple(float(run) for run in runs)
        if not runs:
            raise ValueError(f"arm '{name}': at least one run expected, got none")
        return Arm(name, runs, quantile(runs, 0.5), quantile(runs, 0.25), quantile(runs, 0.75))


@dataclasses.dataclass(frozen=True)
class Rule:
    kind: str                # at_least | ceiling | floor
    limit: float
    better: str = "low"      # of the metric: low | high
    apart: bool = True       # quartile ranges may not overlap, where there is a baseline
    strict: bool = False

    def text(self):
        if self.kind == "at_least":
            return f"ratio >= {self.limit:g}"
        sign = {"ceiling": "<", "floor": ">"}[self.kind] + ("" if self.strict else "=")
        return f"ours {sign} {self.limit:g}"


def at_least(limit, better="low"):
    return Rule("at_least", limit, better)


def ceiling(limit, apart=True, strict=False):
    return Rule("ceiling", limit, "low", apart, strict)


def floor(limit, apart=False):
    return Rule("floor", limit, "high", apart)


def quantile(values, part):
    """Linear interpolation between neighbours, as numpy's default."""
    values = sorted(values)
    at = part * (len(values) - 1)
    below = int(at)
    above = min(below + 1, len(values) - 1)
    return values[below] + (at - below) * (values[above] - values[below])


def ratio_of(baseline, ours, better):
    """> 1 where ours is better; None where it is not a number."""
    above, below = (baseline.median, ours.median) if better == "low" else (ours.median, baseline.median)
    return above / below if below > 0 else None


def ahead(baseline, ours, better):
    return ours.high < baseline.low if better == "low" else ours.low > baseline.high


def judge(rule, baseline, ours):
    """(verdict, why it is not a pass, or what has to be said of one)."""
    arms = [arm for arm in (baseline, ours) if arm is not None]
    if ours is None or any(not math.isfinite(arm.median) for arm in arms):
        return FAIL, "no figure of ours" if ours is None else "a figure is not a number"
    if rule.kind == "at_least":
        if baseline is None:
            return FAIL, "no baseline to compare with"
        ratio = ratio_of(baseline, ours, rule.better)
        if ratio is None or not ratio >= rule.limit:
            return FAIL, f"{rule.text()} missed"
    else:
        below = ours.median < rule.limit if rule.kind == "ceiling" else ours.median > rule.limit
        if not (below or (ours.median == rule.limit and not rule.strict)):
            return FAIL, f"{rule.text()} missed"
    note = ""
    if baseline is not None and not ahead(baseline, ours, rule.better):
        if rule.apart:
            return FAIL, "quartile ranges overlap"
        note = "the baseline is better" if ahead(ours, baseline, rule.better) else "the baseline is as good"
    if any(arm.runs and len(arm.runs) < MIN_RUNS for arm in arms):
        return FEW_RUNS, f"{min(len(arm.runs) for arm in arms if arm.runs)} runs an arm, {MIN_RUNS} expected"
    return PASS, note


def rule_of_text(text):
    """The rule of a line's own threshold ('ratio >= 1.3', '>= 5', 'ours <= 4'), None where it is prose."""
    match = re.fullmatch(r"(?:ratio )?>= ([0-9.]+)", text)
    if match:
        return at_least(float(match.group(1)))
    match = re.fullmatch(r"ours <= ([0-9.]+)", text)
    return ceiling(float(match.group(1)), apart=False) if match else None


def arm_of(line, side):
    """The arm 'baseline' or 'ours' of a line in any of the forms our programs write; None if the line has none."""
    value = line.get(side)
    if isinstance(value, dict):
        if value.get("runs"):
            return Arm.of(value.get("arm", side), value["runs"])
        return None
    name = str(line.get("baseline_arm" if side == "baseline" else "our_arm", side))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = line.get(side + "_iqr", [value, value])
        return Arm(name, (), float(value), float(low), float(high))
    if side == "ours" and value is None and isinstance(line.get("value"), (int, float)):
        return Arm("ours", (), float(line["value"]), float(line["value"]), float(line["value"]))
    return None


@dataclasses.dataclass
class Measurement:
    case: str
    metric: str
    baseline: object
    ours: object
    ratio: object
    threshold: str           # "": for the record
    verdict: str             # "": for the record
    why: str = ""
    facts: dict = dataclasses.field(default_factory=dict)  # what else the line says


FIELDS = {"id", "case", "what", "mechanism", "metric", "baseline", "ours", "baseline_arm", "our_arm", "baseline_iqr", "ours_iqr", "ratio",
          "threshold", "pass", "iqr_disjoint", "quartiles_apart", "machine", "value", "fixed"}


def measure(line, rules=None):
    """A program's line as a measurement; None for a line without figures (a heading). `rules`: of the runner; they take the place of
    the program's own verdict. A program's 'pass' without a rule we can read is believed; with one, both have to hold."""
    baseline, ours = arm_of(line, "baseline"), arm_of(line, "ours")
    judged = rules is not None or ("pass" in line and line.get("threshold", "-") != "-")
    if not judged and baseline is None and ours is None and not isinstance(line.get("baseline"), list) and "arm" not in line:
        return None
    if "arm" in line and "runs" in line:
        ours = Arm.of(line["arm"], line["runs"])
    facts = {key: value for key, value in line.items() if key not in FIELDS and key not in ("arm", "runs", "median", "q1", "q3")}
    for side in ("baseline", "ours"):  # two figures at a time (T10) stay as they are
        if isinstance(line.get(side), list):
            facts[side] = line[side]
            facts[side + "_arm"] = line.get("baseline_arm" if side == "baseline" else "our_arm", side)
    better = next((rule.better for rule in rules or ()), "low")
    ratio = ratio_of(baseline, ours, better) if baseline is not None and ours is not None else line.get("ratio")
    result = Measurement(str(line.get("case") or line.get("what") or line.get("mechanism") or ""), str(line.get("metric", "")), baseline, ours,
                         ratio, "", "", facts=facts)
    if rules is not None:
        verdicts = [judge(rule, baseline, ours) for rule in rules]
        if line.get("fixed") is not None:  # a fact that has to hold beside the figures: {"what": ..., "holds": bool}
            verdicts += [(PASS, "") if fact["holds"] else (FAIL, fact["what"]) for fact in line["fixed"]]
        result.threshold = ", ".join(rule.text() for rule in rules)
        result.verdict, result.why = worst(verdicts)
    elif judged:
        result.threshold = str(line["threshold"])
        rule = rule_of_text(result.threshold)
        verdicts = [(PASS, "") if line["pass"] else (FAIL, "the program says so")]
        if rule is not None and (baseline is not None if rule.kind == "at_least" else ours is not None):
            verdicts.insert(0, judge(rule, baseline, ours))  # its reason says more
        result.verdict, result.why = worst(verdicts)
    return result


def worst(verdicts):
    for wanted in (FAIL, FEW_RUNS, PASS):
        whys = [why for verdict, why in verdicts if verdict == wanted]
        if whys:
            return wanted, next((why for why in whys if why), "")
    return FAIL, "nothing was judged"


def overall(measurements):
    """(verdict, why) of one id."""
    judged = [(m.verdict, f"{m.case}: {m.why}" if m.why else "") for m in measurements if m.verdict]
    return worst(judged)
