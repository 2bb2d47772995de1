"""Gate T19: softmax regression under label skew: control variates, unknown participation, what privacy costs.
usage: softmax_test.py BIN_DIR [TEST…]     TRIBUTARY_GATES=full: three seeds in place of two
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import json  # noqa: E402

import numpy as np  # noqa: E402

from harness import write_safetensors  # noqa: E402
from simulations import FULL, check, main  # noqa: E402

CLASSES, D, CLIENTS, EACH, L2 = 10, 32, 100, 100, 1e-3
SEEDS = range(3 if FULL else 2)


class Problem:
    """Gaussian classes; every client has EACH examples, its labels from its own Dirichlet(alpha) draw."""

    def __init__(self, simulator, alpha, seed=11):
        rng = np.random.default_rng(seed)
        means = .55 * rng.normal(size=(CLASSES, D))
        self.simulator, self.rng = simulator, rng
        self.folder = simulator.work / f"softmax-{alpha}"
        self.folder.mkdir()
        self.shares, xs, ys = [], [], []
        for i in range(CLIENTS):
            self.shares.append(rng.dirichlet([alpha] * CLASSES))
            y = rng.choice(CLASSES, size=EACH, p=self.shares[-1])
            x = means[y] + rng.normal(size=(EACH, D))
            write_safetensors(self.folder / f"{i:03d}.safetensors", {"x": ("F64", x.shape, x.tobytes()), "y": ("I64", y.shape, y.astype("<i8").tobytes())})
            xs.append(x)
            ys.append(y)
        self.x, self.y = np.concatenate(xs), np.concatenate(ys)
        self.best = self.minimum()

    def value_and_gradient(self, w):
        scores = self.x @ w.T
        scores -= scores.max(axis=1, keepdims=True)
        p = np.exp(scores)
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(self.y)), self.y]).mean() + L2 / 2 * (w**2).sum()
        p[np.arange(len(self.y)), self.y] -= 1
        return loss, p.T @ self.x / len(self.y) + L2 * w

    def minimum(self):
        """Nesterov's method; the objective is L2-strongly convex and smooth."""
        smooth = np.linalg.norm(self.x, 2)**2 / len(self.y) / 2 + L2
        w = z = np.zeros((CLASSES, D))
        momentum = (1 - np.sqrt(L2 / smooth)) / (1 + np.sqrt(L2 / smooth))
        for _ in range(1500):
            loss, gradient = self.value_and_gradient(z)
            if np.linalg.norm(gradient) < 1e-7:
                break
            following = z - gradient / smooth
            z, w = following + momentum * (following - w), following
        check(np.linalg.norm(gradient) < 1e-5, f"the reference has not converged: ‖∇F‖ = {np.linalg.norm(gradient)}")
        return loss

    def last(self, strategy, rounds, seed, steps=10, **keys):
        """The last evaluation: F and accuracy over all examples."""
        job = self.simulator.job(self.folder, CLIENTS, model={"zoo": "softmax", "params": {"classes": CLASSES, "l2": L2}}, strategy=strategy,
                                 local={"steps": steps, "lr": .1, "batch": 16}, stop={"versions": rounds}, evaluate={"every": max(1, rounds // 20)}, **keys)
        return json.loads(self.simulator.command("simulate", job, "--json", "--seed", seed).stdout)["metrics"][-1]

    def gap(self, strategy, rounds, **keys):
        """F − F* after the last round, mean over the seeds."""
        return np.mean([self.last(strategy, rounds, seed, **keys)["loss"] - self.best for seed in SEEDS])


def control_variates_halve_the_gap_under_label_skew(simulator):
    problem = Problem(simulator, .1)
    keys = {"cohort": {"size": 10}}
    averaged = problem.gap({"name": "fedavg"}, 300, **keys)
    print(f"   F* {problem.best:.4f}; F − F*: fedavg {averaged:.4f}")
    for name in ["scaffold", "scaffold_m", "scaffold_m_vr"]:
        got = problem.gap({"name": name}, 300, **keys)
        print(f"   {name} {got:.4f}, {got / averaged:.3f} of fedavg's")
        check(got <= .5 * averaged, f"{name}: F − F* is {got}, fedavg's {averaged}: expected at most half of it")


def fedau_needs_no_probabilities(simulator):
    problem = Problem(simulator, .1)
    favour = np.random.default_rng(5).dirichlet([.1] * CLASSES)
    p = np.array(problem.shares) @ favour
    p = np.clip(p / p.mean() * .1, .02, 1)
    keys = {"simulate": {"participation": {"kind": "bernoulli", "p": [float(v) for v in p]}}}
    known = problem.gap({"name": "known_p"}, 600, **keys)
    averaged = problem.gap({"name": "fedavg"}, 600, **keys)
    estimated = problem.gap({"name": "fedau"}, 600, **keys)
    print(f"   F − F*: averaging the participants {averaged:.4f}, known_p {known:.4f}, fedau {estimated:.4f}")
    check(estimated <= .4 * averaged, f"fedau: F − F* is {estimated}, averaging the participants {averaged}: expected at most 0.4 of it")
    check(estimated <= 2.5 * known, f"fedau: F − F* is {estimated}, known_p {known}: expected at most 2.5 times it")


def noise_costs_accuracy_and_a_smaller_clip_saves_some(simulator):
    problem = Problem(simulator, .5)

    def accuracy(z, clip):
        private = {"clip": clip, "noise_multiplier": z, "delta": 1e-5}
        return np.mean([problem.last({"name": "fedavg", "weighting": "uniform"}, 100, seed, steps=5, cohort={"size": 10, "population": CLIENTS},
                                     privacy=private)["accuracy"] for seed in SEEDS])

    got = {z: accuracy(z, 1.0) for z in [0, .3, 1, 3]}
    small = accuracy(1, .3)
    print(f"   accuracy by z at C = 1: {got}; at z = 1, C = 0.3: {small:.4f}")
    values = list(got.values())
    check(all(a > b for a, b in zip(values, values[1:])), f"accuracy must fall as z rises: {got}")
    check(small > got[1], f"at z = 1 a clip of 0.3 must beat 1: {small} against {got[1]}")


if __name__ == "__main__":
    main(sys.argv[1], [control_variates_halve_the_gap_under_label_skew, fedau_needs_no_probabilities, noise_costs_accuracy_and_a_smaller_clip_saves_some])
