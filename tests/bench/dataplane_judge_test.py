"""Self test of dataplane_judge.py and of what dataplane_bench.py adds: each rule lets the good case pass and names the bad one."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dataplane_judge import (FAIL, FEW_RUNS, PASS, Arm, at_least, ceiling, floor, judge, measure, overall, quantile, rule_of_text)  # noqa: E402
from dataplane_bench import IDS, NOT_BUILT, NOT_RUN, judge_tests, row_of  # noqa: E402


def arms(baseline, ours):
    return Arm.of("baseline", baseline), Arm.of("ours", ours)


class Judging(unittest.TestCase):
    def verdict(self, rule, baseline, ours):
        return judge(rule, *arms(baseline, ours))[0]

    def test_quartiles_are_those_of_numpy(self):
        self.assertEqual([quantile([4, 1, 3, 2], part) for part in (0, 0.25, 0.5, 0.75, 1)], [1, 1.75, 2.5, 3.25, 4])
        self.assertEqual(quantile([7], 0.75), 7)

    def test_a_ratio_at_its_threshold_with_quartiles_apart_passes(self):
        self.assertEqual(self.verdict(at_least(2), [20] * 5, [10] * 5), PASS)

    def test_a_ratio_below_its_threshold_fails(self):
        self.assertEqual(self.verdict(at_least(2), [19.9] * 5, [10] * 5), FAIL)

    def test_a_ratio_that_holds_while_quartile_ranges_overlap_fails(self):
        baseline, ours = arms([5, 9, 20, 21, 22], [8, 9, 10, 12, 30])
        self.assertGreaterEqual(baseline.median / ours.median, 2)
        self.assertEqual(judge(at_least(2), baseline, ours), (FAIL, "quartile ranges overlap"))

    def test_quartile_ranges_that_touch_overlap(self):
        self.assertEqual(self.verdict(at_least(1), [10, 10, 10, 10, 10], [10, 10, 10, 10, 10]), FAIL)

    def test_what_is_better_upwards_is_compared_upwards(self):
        self.assertEqual(self.verdict(at_least(2, "high"), [10] * 5, [20] * 5), PASS)
        self.assertEqual(self.verdict(at_least(2, "high"), [20] * 5, [10] * 5), FAIL)
        self.assertEqual(self.verdict(at_least(2, "low"), [10] * 5, [20] * 5), FAIL)

    def test_a_ceiling_holds_at_its_limit_and_a_strict_one_does_not(self):
        self.assertEqual(judge(ceiling(100), None, Arm.of("ours", [100] * 5))[0], PASS)
        self.assertEqual(judge(ceiling(100, strict=True), None, Arm.of("ours", [100] * 5))[0], FAIL)
        self.assertEqual(judge(ceiling(100), None, Arm.of("ours", [101] * 5))[0], FAIL)

    def test_a_floor_asks_for_its_limit_and_says_when_the_baseline_is_better(self):
        self.assertEqual(judge(floor(15), *arms([3] * 5, [15] * 5)), (PASS, ""))
        self.assertEqual(self.verdict(floor(15), [3] * 5, [14] * 5), FAIL)
        self.assertEqual(judge(floor(15), *arms([40] * 5, [20] * 5)), (PASS, "the baseline is better"))
        self.assertEqual(judge(floor(15), *arms([19, 20, 21, 22, 23], [18, 20, 21, 22, 24])), (PASS, "the baseline is as good"))
        self.assertEqual(self.verdict(floor(21.5), [19, 20, 21, 22, 23], [18, 20, 21, 22, 24]), FAIL)

    def test_what_has_to_be_said_of_a_pass_reaches_its_id(self):
        lines = [{"case": case, "metric": "updates/s", "baseline": {"runs": [base] * 5}, "ours": {"runs": [20] * 5}} for case, base in (("a", 3), ("b", 40))]
        measured = [measure(line, [floor(15)]) for line in lines]
        self.assertEqual(overall(measured), (PASS, "b: the baseline is better"))

    def test_a_ceiling_with_a_baseline_needs_quartiles_apart_unless_it_is_excepted(self):
        self.assertEqual(self.verdict(ceiling(100), [50] * 5, [50] * 5), FAIL)
        self.assertEqual(self.verdict(ceiling(100), [40] * 5, [50] * 5), FAIL)
        self.assertEqual(self.verdict(ceiling(100, apart=False), [50] * 5, [50] * 5), PASS)

    def test_fewer_than_five_runs_are_no_pass_and_a_fail_stays_a_fail(self):
        self.assertEqual(self.verdict(at_least(2), [30] * 3, [10] * 5), FEW_RUNS)
        self.assertEqual(self.verdict(at_least(2), [10] * 3, [10] * 3), FAIL)

    def test_what_is_not_a_number_or_missing_fails(self):
        self.assertEqual(self.verdict(at_least(2), [float("nan")] * 5, [10] * 5), FAIL)
        self.assertEqual(self.verdict(at_least(2), [10] * 5, [0] * 5), FAIL)
        self.assertEqual(judge(at_least(2), None, Arm.of("ours", [1] * 5))[0], FAIL)
        self.assertEqual(judge(ceiling(2), None, None)[0], FAIL)
        with self.assertRaises(ValueError):
            Arm.of("ours", [])

    def test_thresholds_in_prose_are_no_rules(self):
        self.assertEqual(rule_of_text("ratio >= 1.3"), at_least(1.3))
        self.assertEqual(rule_of_text(">= 5"), at_least(5))
        self.assertEqual(rule_of_text("ours <= 0.02"), ceiling(0.02, apart=False))
        self.assertIsNone(rule_of_text("0 % and 100 %"))
        self.assertIsNone(rule_of_text("none, for the record"))


class Lines(unittest.TestCase):
    def line(self, **more):
        return {"id": "T1", "mechanism": "latency", "metric": "us", "baseline": {"arm": "TCP", "runs": [10] * 5},
                "ours": {"arm": "lane", "runs": [5] * 5}, "threshold": "ratio >= 1.3", "pass": True, **more}

    def test_a_line_and_its_figures_have_to_agree(self):
        self.assertEqual(measure(self.line()).verdict, PASS)
        self.assertEqual(measure(self.line(ours={"arm": "lane", "runs": [9] * 5})).verdict, FAIL)
        self.assertEqual(measure(self.line(**{"pass": False})).verdict, FAIL)

    def test_a_line_without_pass_is_for_the_record(self):
        line = self.line(threshold="none, for the record")
        del line["pass"]
        self.assertEqual(measure(line).verdict, "")
        self.assertEqual(measure({"id": "T4", "arm": "lazy", "metric": "ms", "runs": [1, 2, 3]}).verdict, "")

    def test_a_heading_is_no_measurement(self):
        self.assertIsNone(measure({"id": "t4", "cores": 2, "runs": 5}))

    def test_a_ceiling_of_the_programs_reads_ours(self):
        self.assertEqual(measure(self.line(threshold="ours <= 4")).verdict, FAIL)
        self.assertEqual(measure(self.line(threshold="ours <= 5")).verdict, PASS)

    def test_the_runners_rules_take_the_place_of_the_programs_word(self):
        line = self.line()
        self.assertEqual(measure(line, [at_least(3)]).verdict, FAIL)
        self.assertEqual(measure(line, [at_least(2), ceiling(5)]).verdict, PASS)
        self.assertEqual(measure(line, [at_least(2), ceiling(4)]).verdict, FAIL)

    def test_a_fact_that_does_not_hold_fails_whatever_the_figures(self):
        line = self.line(fixed=[{"what": "1 false death", "holds": False}])
        self.assertEqual((measure(line, [at_least(2)]).verdict, measure(line, [at_least(2)]).why), (FAIL, "1 false death"))

    def test_figures_without_runs_are_judged_by_their_quartiles(self):
        line = {"id": "T8b", "case": "x", "baseline_arm": "Python", "baseline": 2.0, "baseline_iqr": [1.9, 2.1], "our_arm": "bestfit", "ours": 0.02,
                "ours_iqr": [0.01, 0.03], "threshold": ">= 50", "pass": True}
        self.assertEqual(measure(line).verdict, PASS)
        self.assertEqual(measure({**line, "ours_iqr": [0.01, 1.95]}).verdict, FAIL)

    def test_an_id_passes_only_if_something_was_judged_and_nothing_failed(self):
        good, bad, record = measure(self.line()), measure(self.line(**{"pass": False})), measure({"arm": "x", "runs": [1]})
        self.assertEqual(overall([good, record])[0], PASS)
        self.assertEqual(overall([good, bad])[0], FAIL)
        self.assertEqual(overall([record])[0], FAIL)
        self.assertEqual(overall([])[0], FAIL)


def junit(*cases):
    return "<testsuite>" + "".join(f'<testcase name="{name}" status="{status}">{inner}</testcase>' for name, status, inner in cases) + "</testsuite>"


class Tests(unittest.TestCase):
    def test_no_test_is_no_pass(self):
        self.assertEqual(judge_tests("")[0], NOT_BUILT)
        self.assertEqual(judge_tests(junit())[0], NOT_BUILT)

    def test_a_failure_fails_and_a_skip_is_not_run(self):
        good, bad, skipped = ("a", "run", ""), ("b", "fail", "<failure/>"), ("c", "notrun", "<skipped/>")
        self.assertEqual(judge_tests(junit(good))[0], PASS)
        self.assertEqual(judge_tests(junit(good, skipped))[0], NOT_RUN)
        self.assertEqual(judge_tests(junit(good, bad, skipped))[0], FAIL)


class Table(unittest.TestCase):
    def test_knows_every_id_of_the_note(self):
        self.assertEqual(list(IDS), "T1 T1b T2 T2b T3 T3b T4 T4b T5 T5b T6 T7 T8 T8b T9 T10 T10b T11 T12 T13 T14 T15 T16 T17 T18 T19 T20".split())
        for name, what in IDS.items():
            self.assertEqual(sum(bool(way) for way in (what.program, what.label, what.missing, what.script)), 1, name)

    def test_a_row_has_a_cell_a_column_whatever_the_line(self):
        two = {"id": "T10", "case": "a | b", "baseline_arm": "x", "baseline": [1, 2], "our_arm": "y", "ours": [1, 1], "ratio": [1.0, 0.5],
               "threshold": "prose", "pass": True}
        for line in (two, {"id": "T12", "mechanism": "m", "sent": 5, "threshold": "prose", "pass": True}, {"arm": "x", "runs": [1, 2]}):
            self.assertEqual(row_of("T", measure(line)).count("|"), 9)


if __name__ == "__main__":
    unittest.main()
