"""Gate T10: where ADMM over noisy links settles: the floors of algorithms.md §11 in decibels, and their order.
usage: noise_floors_test.py BIN_DIR [TEST…]     TRIBUTARY_GATES=full: all variances and seeds, and the authors' size as well
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import numpy as np  # noqa: E402

from harness import read_safetensors, write_safetensors  # noqa: E402
from simulations import FULL, check, main  # noqa: E402

ROUNDS = 2000
SEEDS = range(4 if FULL else 2)
PRIMAL, DUAL = {"name": "fedadmm"}, {"name": "fedadmm", "order": "dual_first"}
RERCE, CONTINUAL = {"name": "rerce_admm"}, {"name": "rerce_admm", "continual": True}


class Problem:
    """The authors' data: rows μ_i + √s²_i·N(0, 1), weights 1e4; every local problem has fewer rows than unknowns."""

    def __init__(self, simulator, clients, unknowns, fewest, most, seed=0):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=unknowns)
        truth *= np.sqrt(unknowns) / np.linalg.norm(truth)
        self.simulator, self.clients = simulator, clients
        self.folder = simulator.work / f"wls-{clients}"
        self.folder.mkdir()
        hessian, moment, rows = 0, 0, []
        for i in range(clients):
            n = int(rng.integers(fewest, most + 1))
            x = rng.uniform(-.5, .5) + np.sqrt(rng.uniform(.5, 1.5)) * rng.normal(size=(n, unknowns))
            y = x @ truth + .01 * rng.normal(size=n)
            hessian, moment = hessian + x.T @ x, moment + x.T @ y
            rows.append(n)
            weights = np.full(n, 1e4)
            write_safetensors(self.folder / f"{i:03d}.safetensors", {"x": ("F64", x.shape, x.tobytes()), "y": ("F64", y.shape, y.tobytes()),
                                                                      "weights": ("F64", [n], weights.tobytes())})
        self.solution = np.linalg.solve(hessian, moment)
        self.free = 1 - np.mean(rows) / unknowns   # share of directions that a client's own data leave free
        self.levels = {}

    def nmsd(self, strategy, scheduled, variance, seeds=SEEDS):
        """(1/N)Σ‖w_i − w*‖²/‖w*‖² of the clients after the last round, mean over seeds."""
        key = (repr(strategy), scheduled, variance, tuple(seeds))
        if key not in self.levels:
            self.levels[key] = np.mean([self.one(strategy, scheduled, variance, seed) for seed in seeds])
        return self.levels[key]

    def one(self, strategy, scheduled, variance, seed):
        everybody = scheduled == self.clients
        job = self.simulator.job(self.folder, self.clients, model={"zoo": "wls"}, strategy=strategy, local={"solver": "exact"}, stop={"versions": ROUNDS},
                                 simulate={"channel": {"uplink_var": variance, "downlink_var": variance},
                                           "participation": {"kind": "all"} if everybody else {"kind": "fixed", "size": scheduled}})
        file = self.simulator.work / "clients.safetensors"
        self.simulator.command("simulate", job, "--json", "--seed", seed, "--client-state", file)
        kept = read_safetensors(file)
        own = np.array([np.frombuffer(kept[f"client-{i}/w"][2], "<f8") for i in range(self.clients)])
        return float(((own - self.solution)**2).sum(axis=1).mean() / (self.solution**2).sum())

    def floor(self, strategy, scheduled, variance):
        f = self.free
        if strategy is PRIMAL or strategy is CONTINUAL:
            return f * variance
        if strategy is DUAL:
            return 5 * f * variance
        chi = (5 - 3 * f) / ((1 - f)**2 * (1 + 3 * f))
        return f * (variance + chi * (f * variance + variance) / scheduled)


def decibels(ratio):
    return 10 * np.log10(ratio)


def check_floors(problem, sizes, variances):
    clients = problem.clients
    for scheduled in sizes:
        for strategy in [PRIMAL, DUAL, RERCE]:
            got = {variance: problem.nmsd(strategy, scheduled, variance) for variance in variances}
            for variance, level in got.items():
                off = decibels(level / problem.floor(strategy, scheduled, variance))
                print(f"   N {clients}, C {scheduled}, variance {variance}, {strategy}: {decibels(level):.2f} dB, {off:+.2f} dB of the floor")
                check(abs(off) <= 1, f"{strategy}, {scheduled} of {clients}, variance {variance}: {off:+.2f} dB of the floor, allowed ±1")
            for variance in variances[1:]:
                expected = decibels(variances[0] / variance)
                rise = decibels(got[variances[0]] / got[variance])
                check(abs(rise - expected) <= .03 * expected, f"{strategy}: {rise:.2f} dB for {expected:.2f} dB of noise, allowed ±0.3 in 10")
        gap = decibels(problem.nmsd(DUAL, scheduled, variances[0]) / problem.nmsd(PRIMAL, scheduled, variances[0]))
        check(abs(gap - 7) <= .7, f"{scheduled} of {clients}: dual-first lies {gap:.2f} dB above primal-first, expected 7 ± 0.7")


def the_floors_lie_where_the_note_says(simulator):
    variances = [.1, 1e-2, 6.25e-4] if FULL else [1e-2, 6.25e-4]
    check_floors(Problem(simulator, 50, 32, 13, 22), [10, 25, 50] if FULL else [10, 50], variances)


def going_on_between_rounds_pays_at_few_clients(simulator):
    """4 of 50: the continual form ends at least 3 dB below the plain one."""
    problem = Problem(simulator, 50, 32, 13, 22)
    gap = decibels(problem.nmsd(RERCE, 4, 1e-2) / problem.nmsd(CONTINUAL, 4, 1e-2))
    print(f"   continual lies {gap:.2f} dB below")
    check(gap >= 3, f"4 of 50: continual lies {gap:.2f} dB below RERCE, expected at least 3")


def the_authors_size_too(simulator):
    if not FULL:
        print("   only with TRIBUTARY_GATES=full")
        return
    check_floors(Problem(simulator, 100, 128, 51, 90), [20, 100], [.1, 1e-2, 6.25e-4])


if __name__ == "__main__":
    main(sys.argv[1], [the_floors_lie_where_the_note_says, going_on_between_rounds_pays_at_few_clients, the_authors_size_too])
