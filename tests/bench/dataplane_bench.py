"""The acceptance measurements T1-T20 of the data plane (dataplane.md §13), in one sitting.

    dataplane_bench.py [ID ...] [--runs N] [--quick] [--out DIR] [--no-build] [--build DIR] [--dev-build DIR]

Runs for each id the program that measures it, judges its lines (dataplane_judge.py), writes DIR/table.md, DIR/lines.jsonl (what the programs
said) and prints one JSON document on stdout. An id whose program does not exist is "not built". T5b, T13 and T15 are tests, run where crash
points are compiled in (the dev build). --quick: three runs and smaller sizes, to see that everything works; what counts runs cannot
pass by it, and nothing of it is to be quoted. Exit: 0 every id asked for passed, 1 one failed, 3 none failed but one was not built, not run, or had too few runs; 2 usage.
"""
import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dataplane_judge import (FAIL, FEW_RUNS, NOT_BUILT, NOT_RUN, PASS, Arm, at_least, ceiling, floor, measure, overall)  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
S_MIB = 42.72


@dataclasses.dataclass
class Id:
    mechanism: str
    program: str = ""        # in the release build's tests/
    args: tuple = ()         # {worker} {runs} {id} are filled in
    more: tuple = ()         # further (program, args), whose lines are for the record
    label: str = ""          # instead of a program: ctest's label, in the dev build
    targets: tuple = ()      # of the dev build, for the label
    rules: dict = dataclasses.field(default_factory=dict)  # by case; lines of other cases are for the record. Empty: the program judges
    missing: str = ""        # what has to exist first
    shares: str = ""         # lines come from another id's run
    simulated: bool = False
    processes: int = 1       # more: each run that was asked for is that many processes with one run each, whose lines are put together
    script: str = ""         # instead of a program: a script beside this file, which the product is built for


def rig(mechanism, rules, shares="", processes=1):
    return Id(mechanism, "dataplane_rigs", ("{worker}", "{id}", "--runs", "{runs}", "{quick}"), rules=rules, shares=shares, processes=processes)


def transport(mechanism):
    return Id(mechanism, "transport_bench", ("--only", "{id}", "--runs", "{runs}", "--idle-seconds", "{idle}"))


def worker(mechanism, name):
    return Id(mechanism, "worker_bench", ("{worker}", name, "{runs}", "{mib}"))


def planner(mechanism, simulated=True):
    return Id(mechanism, "planner_bench", ("{id}", "--seeds", "{seeds}"), simulated=simulated)


IDS = {
    "T1": transport("SK_MSG path"),
    "T1b": transport("fallback path"),
    # A loopback connection is fast (10 ms for S) or slow (20) for as long as it lives, about one in five fast: a process has one.
    "T2": rig("object hand-off", {"object hand-off, S": [at_least(2.0)], "object hand-off, L": [at_least(1.7)]}, processes=2),
    "T2b": rig("hop between workers", {"hop between workers, S": [at_least(200)]}, shares="T2"),
    "T3": rig("CPU per update, incl. aggregation", {"copy-in": [at_least(1.4)], "key only": [at_least(1.4)]}),
    "T3b": rig("broker + sidecar chain", {"latency, first byte to folded": [at_least(4)]}),
    "T4": dataclasses.replace(worker("eager", "t4"), more=(("planner_bench", ("T4",)),)),
    "T4b": worker("eager is correct", "t4b"),
    "T5": rig("in-place queue", {"64 pending updates of 8 MiB": [ceiling(64 * 8 + 2 * 16), at_least(2)]}),
    "T5b": Id("zero copy", label="accept_T5b", targets=("dataplane_accept_test",)),
    "T6": transport("back-pressure"),
    "T7": transport("idle cost"),
    "T8": planner("placement quality"),
    "T8b": planner("placement speed", simulated=False),
    "T9": Id("locality end to end", script="nodes_rig.py", args=("{bin}", "{id}", "--runs", "{runs}", "{quick}"),
             rules={"20 updates of 4 MiB, 3 nodes, 1 Gbit/s": [at_least(1.3)]}),
    "T10": planner("hierarchy plan"),
    "T10b": planner("EWMA", simulated=False),
    "T11": worker("warm reuse", "t11"),
    "T12": transport("isolation"),
    "T13": Id("crash", label="accept_T13", targets=("dataplane_crash_test",)),
    "T14": transport("sticky drop"),
    "T15": Id("fallback equivalence", label="accept_T15", targets=("transport_conformance_test", "transport_helper")),
    "T16": transport("BPF budget"),
    "T17": rig("node throughput", {"in the pool": [floor(60)], "over TCP": [floor(15)]}),
    "T18": worker("shape in node", "t18"),
    "T19": worker("memory ceiling", "t19"),
    "T20": rig("head of line", {"heart-beat beside an update, tributary-client": [ceiling(100, strict=True)]}),
}
PROGRAM_SECONDS = 300
PRODUCT = ("tributary-aggregator", "tributary-worker", "tributary", "trib-scripted-client")
# T7 idles 4 s an arm and run, not the note's 10, and scales its threshold: three transports, two arms and five runs would take five minutes.


@dataclasses.dataclass
class Result:
    id: str
    verdict: str
    why: str = ""
    seconds: float = 0.0
    measurements: list = dataclasses.field(default_factory=list)


class Runner:
    def __init__(self, options):
        self.options = options
        self.build, self.dev = options.build, options.dev_build
        self.lines = {}        # id -> what its program said
        self.codes = {}        # and its exit code
        self.built = {}        # (build folder, target) -> whether it is there and current

    # ---- building ----

    def have(self, folder, target, file):
        """Builds the target; False if there is no such target (or it does not build, or may not be built and is not there)."""
        key = (folder, target)
        if key not in self.built:
            good = True
            if not self.options.no_build:
                if not (folder / "build.ninja").exists():
                    self.say(f"configuring {folder.name}")
                    subprocess.run(["cmake", "--preset", folder.name], cwd=ROOT, stdout=sys.stderr, check=True)
                known = subprocess.run(["ninja", "-C", str(folder), "-t", "query", target], capture_output=True, text=True)
                good = known.returncode == 0
                if good:
                    good = subprocess.run(["cmake", "--build", str(folder), "-j", str(os.cpu_count()), "--target", target], cwd=ROOT,
                                          stdout=sys.stderr).returncode == 0
                    if not good:
                        raise SystemExit(f"dataplane_bench: {target} does not build in {folder}")
            self.built[key] = good and (file is None or file.exists())
        return self.built[key]

    # ---- measuring ----

    def run(self, name):
        what = IDS[name]
        start = time.monotonic()
        if what.missing:
            return Result(name, NOT_BUILT, what.missing)
        result = self.run_label(name, what) if what.label else self.run_program(name, what)
        result.seconds = time.monotonic() - start
        return result

    def fill(self, name, args, runs=None):
        options = self.options
        values = {"worker": str(self.build / "bin" / "tributary-worker"), "bin": str(self.build / "bin"), "id": name, "runs": str(runs or options.runs), "quick": "--quick" if options.quick else "",
                  "idle": "2" if options.quick else "4", "mib": "8" if options.quick else str(S_MIB), "seeds": "2" if options.quick else "5"}
        return [text for text in (arg.format(**values) for arg in args) if text]

    def run_program(self, name, what):
        source = what.shares or name
        if source not in self.lines:
            program = self.build / "tests" / what.program
            if not what.script and not self.have(self.build, what.program, program):
                return Result(name, NOT_BUILT, f"there is no {what.program}")
            for target in PRODUCT if what.script else ():
                if not self.have(self.build, target, self.build / "bin" / target):
                    return Result(name, NOT_BUILT, f"there is no {target}")
            if "{worker}" in what.args and not self.have(self.build, "tributary-worker", self.build / "bin" / "tributary-worker"):
                return Result(name, NOT_BUILT, "there is no tributary-worker")
            command = [sys.executable, str(Path(__file__).with_name(what.script))] if what.script else [str(program)]
            self.codes[source], self.lines[source] = self.call_often(source, IDS[source], command)
        code = self.codes[source]
        measurements = []
        for line in self.lines[source]:
            if "skipped" in line:
                return Result(name, NOT_RUN, str(line.get("reason", "the program gives no reason")))
            if str(line.get("id", "")).lower() != name.lower():
                continue
            rules = what.rules.get(line.get("case")) if what.rules else None
            if what.rules and rules is None:
                line = {key: value for key, value in line.items() if key not in ("pass", "threshold")}
            found = measure(line, rules)
            if found is not None:
                measurements.append(found)
        for program, args in what.more:
            if self.have(self.build, program, self.build / "tests" / program):
                for line in self.call([str(self.build / "tests" / program)] + self.fill(name, args))[1]:
                    found = measure({key: value for key, value in line.items() if key not in ("pass", "threshold")})
                    if found is not None:
                        found.case = "simulated: " + found.case
                        measurements.append(found)
        verdict, why = overall(measurements)
        unseen = [case for case in what.rules if case not in {m.case for m in measurements}]
        if verdict != FAIL and unseen:
            verdict, why = (FEW_RUNS, "left out by --quick: " + ", ".join(unseen)) if self.options.quick else (FAIL, "no figures: " + ", ".join(unseen))
        if code != 0 and not any(m.verdict == FAIL for m in measurements):  # a program that judges exits 1 for what it calls a fail, which its lines then say too
            verdict, why = FAIL, f"{what.program or what.script} ended with {code}"
        return Result(name, verdict, why, measurements=measurements)

    def call_often(self, name, what, command):
        if what.processes == 1:
            return self.call(command + self.fill(name, what.args))
        together = {}
        for _ in range(what.processes * self.options.runs):
            code, lines = self.call(command + self.fill(name, what.args, runs=1))
            if code != 0:
                return code, []
            for line in lines:
                first = together.setdefault((line["id"], line["case"]), line)
                for arm in ("baseline", "ours") if first is not line else ():
                    first[arm]["runs"] += line[arm]["runs"]
        return 0, list(together.values())

    def call(self, command):
        environment = dict(os.environ, TRIBUTARY_REVISION=machine_revision())
        self.say(" ".join([Path(command[0]).name] + command[1:]))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            try:
                out = child.communicate(timeout=PROGRAM_SECONDS)[0]
                code = child.returncode
            except subprocess.TimeoutExpired:
                child.kill()
                out, code = child.communicate()[0], f"a kill after {PROGRAM_SECONDS} s"
        lines = []
        for text in out.splitlines():
            if text.startswith("{"):
                lines.append(json.loads(text))
        return code, lines

    def run_label(self, name, what):
        for target in what.targets:
            if not self.have(self.dev, target, None):
                return Result(name, NOT_BUILT, f"there is no {target}")
        if not self.have(self.dev, "tributary-worker", self.dev / "bin" / "tributary-worker"):
            return Result(name, NOT_BUILT, "there is no tributary-worker with crash points")
        with tempfile.NamedTemporaryFile(suffix=".xml") as report:
            self.say(f"ctest -L {what.label}")
            subprocess.run(["ctest", "--test-dir", str(self.dev), "-L", f"^{what.label}$", "--output-junit", report.name, "--timeout", "120"],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
            text = Path(report.name).read_text()
        verdict, why, counts = judge_tests(text)
        if verdict == NOT_BUILT:
            why = f"no test has the label {what.label}"
        found = measure({"id": name, "case": f"tests labelled {what.label}", "threshold": "all pass, none skipped", "pass": verdict == PASS, **counts})
        found.verdict, found.why = verdict, why
        return Result(name, verdict, why, measurements=[found])

    @staticmethod
    def say(text):
        print(text, file=sys.stderr, flush=True)


def judge_tests(junit):
    """(verdict, why, counts) of ctest's report."""
    cases = list(ElementTree.fromstring(junit).iter("testcase")) if junit.strip() else []
    status = [case.get("status", "") for case in cases]
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled")]
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.get("status") == "fail"]
    counts = {"tests": len(cases), "failed": len(failed), "skipped": len(skipped), "ran": sum(text == "run" for text in status)}
    if not cases:
        return NOT_BUILT, "there are no such tests", counts
    if failed:
        return FAIL, "failed: " + ", ".join(failed[:3]), counts
    if skipped:
        return NOT_RUN, "skipped: " + ", ".join(skipped[:3]), counts
    return PASS, "", counts


# ---- the machine ----

def git(*args):
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine_revision():
    revision = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return revision + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def machine():
    processor = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown")
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {"cores": os.cpu_count(), "processor": processor, "memory_gib": round(memory / 2**20, 1), "kernel": platform.release(),
            "revision": machine_revision()}


def load():
    return [round(value, 2) for value in os.getloadavg()]


# ---- the table ----

def number(value):
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def arm_text(arm):
    if not isinstance(arm, Arm):
        return "–"
    spread = "" if arm.low == arm.high == arm.median else f" [{number(arm.low)} – {number(arm.high)}]"
    return f"{arm.name}: {number(arm.median)}{spread}"


def ratio_text(ratio):
    return ", ".join(number(value) for value in ratio) if isinstance(ratio, list) else number(ratio)


def row_of(name, m):
    baseline, ours = arm_text(m.baseline), arm_text(m.ours)
    for side in ("baseline", "ours"):
        if side in m.facts and not (m.baseline if side == "baseline" else m.ours):
            text = f"{m.facts[side + '_arm']}: " + ", ".join(number(value) for value in m.facts[side])
            baseline, ours = (text, ours) if side == "baseline" else (baseline, text)
    if m.baseline is None and m.ours is None and "ours" not in m.facts:
        ours = ", ".join(f"{key} {value if not isinstance(value, dict) else number(value.get('median'))}" for key, value in m.facts.items()
                         if key not in ("simulated", "seeds", "runs") and not isinstance(value, list)) or "–"
    cells = [name, m.case, baseline, ours, m.metric, ratio_text(m.ratio), m.threshold, (m.verdict + (f": {m.why}" if m.why else "")) if m.verdict else ""]
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def table(results, facts):
    head = (f"# Data plane: acceptance measurements\n\n{facts['started']}, {facts['minutes']:.1f} minutes, {facts['runs']} runs an arm"
            f"{' (quick: no result)' if facts['quick'] else ''}. {facts['cores']} cores ({facts['processor']}), {facts['memory_gib']} GiB, Linux {facts['kernel']}; "
            f"load {facts['load_before'][0]} before, {facts['load_after'][0]} after; revision {facts['revision']}.\n\n"
            "Figures are medians with [quartiles]; a ratio is baseline / ours, or ours / baseline where more is better.\n\n")
    count = {verdict: sum(result.verdict == verdict for result in results) for verdict in (PASS, FAIL, FEW_RUNS, NOT_BUILT, NOT_RUN)}
    text = head + ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n) + ".\n\n| id | mechanism | result | seconds |\n|---|---|---|---|\n"
    for result in results:
        kind = " (simulated)" if IDS[result.id].simulated else ""
        text += f"| {result.id} | {IDS[result.id].mechanism}{kind} | {result.verdict}{': ' + result.why if result.why else ''} | {result.seconds:.0f} |\n"
    columns = "| id | case | baseline | ours | metric | ratio | threshold | result |\n|---|---|---|---|---|---|---|---|\n"
    judged = [row_of(result.id, m) for result in results for m in result.measurements if m.verdict]
    record = [row_of(result.id, m) for result in results for m in result.measurements if not m.verdict]
    text += "\n## Judged\n\n" + columns + "\n".join(judged) + "\n"
    if record:
        text += "\n## For the record\n\n" + columns + "\n".join(record) + "\n"
    return text


def plain(value):
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh dataplane", description="Runs T1-T20 of the data plane and writes one table.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="T1 T1b T2 … T20; all by default")
    parser.add_argument("--runs", type=int, help="of each arm (5; with --quick 3)")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: shows that everything works, proves nothing")
    parser.add_argument("--out", type=Path, help="folder of the table (build/dataplane-DATE)")
    parser.add_argument("--no-build", action="store_true", help="take the programs that are there")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release", help="optimised build")
    parser.add_argument("--dev-build", type=Path, default=ROOT / "build" / "dev", help="build with crash points, for T5b, T13 and T15")
    options = parser.parse_args()
    by_name = {name.lower(): name for name in IDS}
    unknown = [name for name in options.ids if name.lower() not in by_name]
    if unknown:
        parser.error(f"unknown id '{unknown[0]}'; known: {' '.join(IDS)}")
    if options.runs is None:
        options.runs = 3 if options.quick else 5
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: at least 1 expected")
    wanted = {by_name[name.lower()] for name in options.ids} or set(IDS)
    started = datetime.datetime.now()
    out = options.out or ROOT / "build" / f"dataplane-{started:%Y-%m-%d-%H%M%S}"
    out.mkdir(parents=True, exist_ok=True)
    runner = Runner(options)
    for name in IDS:  # before the clock runs
        what = IDS[name]
        if name in wanted and what.program:
            for program in [what.program] + [program for program, _ in what.more]:
                runner.have(options.build, program, options.build / "tests" / program)
        if name in wanted and what.label:
            for target in what.targets:
                runner.have(options.dev_build, target, None)
    before, begin = load(), time.monotonic()
    results = []
    for name in IDS:
        if name in wanted:
            results.append(runner.run(name))
            runner.say(f"  {name}: {results[-1].verdict}{': ' + results[-1].why if results[-1].why else ''} ({results[-1].seconds:.0f} s)")
    facts = {**machine(), "started": f"{started:%Y-%m-%d %H:%M}", "minutes": (time.monotonic() - begin) / 60, "runs": options.runs, "quick": options.quick,
             "load_before": before, "load_after": load()}
    (out / "table.md").write_text(table(results, facts))
    (out / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for lines in runner.lines.values() for line in lines))
    document = {"machine": facts, "table": str(out / "table.md"),
                "results": [{"mechanism": IDS[result.id].mechanism, "simulated": IDS[result.id].simulated, **plain(result)} for result in results]}
    print(json.dumps(document))
    verdicts = {result.verdict for result in results}
    return 1 if FAIL in verdicts else 0 if verdicts == {PASS} else 3


if __name__ == "__main__":
    sys.exit(main())
