"""Gate T2: where strategies end, against the fixed-point formula, on the four quadratics, on G(10,5) and on random problems.
usage: limits_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import check, close, main  # noqa: E402

Q4, G = reference.q4(), reference.g(10, 5)
PROBLEMS = {"Q4": Q4, "G(10,5)": G, "random": reference.random_spd(6, 4, 3)}
LR, LONG = .05, 3000


def limit(simulator, problem, strategy, steps=5, lr=LR, versions=LONG, **keys):
    return simulator.run(problem, strategy=strategy, local={"steps": steps, "lr": lr}, stop={"versions": versions}, **keys)["x"]


def fedavg_ends_at_its_fixed_point(simulator):
    for name, problem in PROBLEMS.items():
        for steps in [1, 2, 5, 20]:
            expected = reference.fixed_point(problem, LR, steps)
            close(limit(simulator, problem, {"name": "fedavg"}, steps), expected, 1e-9, f"fedavg on {name}, K = {steps}")
        close(reference.fixed_point(problem, LR, 1), reference.optimum(*problem), 1e-9, f"{name}: the fixed point at K = 1 is the optimum")
    for name, problem in PROBLEMS.items():
        steps = ([1, 2, 5, 10] * 3)[:len(problem[0])]
        close(limit(simulator, problem, {"name": "fedavg"}, steps), reference.fixed_point(problem, LR, steps), 1e-9, f"fedavg with unequal steps on {name}")
    close(limit(simulator, Q4, {"name": "fedavg"}, options={"weights": [1, 2, 3, 4]}), reference.fixed_point(Q4, LR, 5, [1, 2, 3, 4]), 1e-9,
          "fedavg with weights")


def fedprox_shrinks_the_bias_and_keeps_some(simulator):
    for name, problem in PROBLEMS.items():
        close(limit(simulator, problem, {"name": "fedprox", "mu": .5}), reference.fixed_point(problem, LR, 5, mu=.5), 1e-9, f"fedprox on {name}")


def fednova_divides_by_the_steps_and_ends_nearer(simulator):
    for name, problem in PROBLEMS.items():
        steps = ([1, 2, 5, 10] * 3)[:len(problem[0])]
        got = limit(simulator, problem, {"name": "fednova"}, steps)
        close(got, reference.fixed_point(problem, LR, steps, [1 / k for k in steps]), 1e-9, f"fednova on {name}")
    steps = [1, 2, 5, 10]
    got = limit(simulator, Q4, {"name": "fednova"}, steps)
    best = reference.optimum(*Q4)
    averaged = limit(simulator, Q4, {"name": "fedavg"}, steps)
    check(np.linalg.norm(averaged - best) >= 2 * np.linalg.norm(got - best), f"fedavg ends at {averaged}, fednova at {got}, the optimum is {best}")


def server_optimizers_change_the_path_not_the_limit(simulator):
    for name, problem in PROBLEMS.items():
        expected = reference.fixed_point(problem, LR, 5)
        close(limit(simulator, problem, {"name": "fedavgm", "beta": .5}), expected, 1e-9, f"fedavgm on {name}")
    # Adaptive rates keep v: with a small rate they settle where the mean update is zero.
    for name, problem in PROBLEMS.items():
        expected = reference.fixed_point(problem, LR, 5)
        for strategy in [{"name": "fedadagrad", "server_lr": .3}, {"name": "fedadam", "server_lr": .05, "tau": .5},
                         {"name": "fedyogi", "server_lr": .05, "tau": .5}]:
            close(limit(simulator, problem, strategy, versions=20000), expected, 1e-9, f"{strategy['name']} on {name}")


def qfedavg_trades_the_sum_for_fairness(simulator):
    spreads, largest = [], []
    for q in [0, 1, 2, 5]:
        x = limit(simulator, Q4, {"name": "qfedavg", "q": q}, steps=1, versions=20000)
        losses = np.array([reference.loss(a, b, x) for a, b in zip(*Q4)])
        gradient = sum(f**q * a @ (x - b) for f, a, b in zip(losses, *Q4))
        close(gradient / max(losses)**q, np.zeros(2), 1e-6, f"q = {q}: the weighted gradient")
        spreads.append(losses.var())
        largest.append(losses.max())
    for values, what in [(spreads, "variance"), (largest, "maximum")]:
        check(all(x > y for x, y in zip(values, values[1:])), f"the {what} of the client losses must fall as q = 0, 1, 2, 5, got {values}")


def momentum_ends_at_fedavgs_limit_and_control_variates_at_the_optimum(simulator):
    """Gate T3."""
    two_of_four = {"participation": {"kind": "trace", "rounds": [[0, 1], [2, 3], [0, 3], [1, 2]]}}
    best = reference.optimum(*Q4)
    for beta in [.3, .7]:
        got = limit(simulator, Q4, {"name": "fedavg_m", "beta": beta})
        close(got, reference.fixed_point(Q4, beta * LR, 5), 1e-9, f"fedavg_m, beta {beta}")
        for warm in [True, False]:
            got = limit(simulator, Q4, {"name": "fedavg_m_vr", "beta": beta, "warm_start": warm})
            close(got, reference.fixed_point(Q4, LR, 5), 1e-9, f"fedavg_m_vr, beta {beta}, warm start {warm}")
    for simulate in [{}, two_of_four]:
        for strategy in [{"name": "scaffold"}, {"name": "scaffold", "uplink": "full"}, {"name": "scaffold_m", "beta": .3}, {"name": "scaffold_m_vr", "beta": .3}]:
            close(limit(simulator, Q4, strategy, simulate=simulate), best, 1e-9, f"{strategy} under {simulate}")
    biased = limit(simulator, Q4, {"name": "fedavg_m", "beta": .3}, simulate=two_of_four)
    check(np.linalg.norm(biased - best) > 1e-3, f"fedavg_m under partial participation must not end at the optimum, got {biased}")


def control_variates_survive_unequal_steps_and_dropped_updates(simulator):
    """Of gate T20: clients with other numbers of steps, and updates that come too late, whose staged c_i must not count."""
    best = reference.optimum(*Q4)
    two = {"participation": {"kind": "fixed", "size": 2}}
    close(limit(simulator, Q4, {"name": "scaffold"}, [1, 2, 5, 10], simulate=two), best, 1e-9, "scaffold with unequal steps")
    late = {"delay": {"kind": "exponential", "mean": [1, 2, 3, 4]}}
    document = simulator.run(Q4, strategy={"name": "scaffold"}, local={"steps": 5, "lr": LR}, cohort={"size": 4, "quorum": 1, "deadline_s": 2},
                             stop={"versions": 4000}, simulate=late)
    dropped = document["clients_trained"] - document["updates_committed"]
    check(dropped > 500, f"updates must come too late: {dropped} of {document['clients_trained']} did")
    close(document["x"], best, 1e-9, f"scaffold with {dropped} dropped updates")


def halving_the_uplink_changes_nothing(simulator):
    """Gate T4."""
    for simulate in [{}, {"participation": {"kind": "bernoulli", "p": .5}}]:
        for strategy in [{"name": "scaffold"}, {"name": "scaffold_m", "beta": .3}]:
            full, halved = (simulator.run(Q4, strategy={**strategy, "uplink": uplink}, stop={"versions": 60}, simulate=simulate) for uplink in ("full", "delta"))
            close(halved["x"], full["x"], 1e-12, f"{strategy} under {simulate}")
            check(2 * halved["bytes_up"] == full["bytes_up"], f"bytes up: {halved['bytes_up']} and {full['bytes_up']}")


def admm_with_a_table_is_exact_under_partial_participation(simulator):
    """Of gate T11: fedadmm ends at the optimum with exact solves and with five SGD steps; RERCE with everybody does too."""
    best = reference.optimum(*Q4)
    two = {"participation": {"kind": "fixed", "size": 2}}
    for local in [{"solver": "exact"}, {"steps": 5, "lr": .1}]:
        got = simulator.run(Q4, strategy={"name": "fedadmm", "rho": 2}, local=local, stop={"versions": 3000}, simulate=two)["x"]
        close(got, best, 1e-9, f"fedadmm, {local}")
        got = simulator.run(Q4, strategy={"name": "rerce_admm", "rho": 2}, local=local, stop={"versions": 3000})["x"]
        close(got, best, 1e-9, f"rerce_admm, {local}")


if __name__ == "__main__":
    main(sys.argv[1], [fedavg_ends_at_its_fixed_point, fedprox_shrinks_the_bias_and_keeps_some, fednova_divides_by_the_steps_and_ends_nearer,
                       momentum_ends_at_fedavgs_limit_and_control_variates_at_the_optimum,
                       control_variates_survive_unequal_steps_and_dropped_updates, halving_the_uplink_changes_nothing, admm_with_a_table_is_exact_under_partial_participation, qfedavg_trades_the_sum_for_fairness],
         long=[server_optimizers_change_the_path_not_the_limit])
