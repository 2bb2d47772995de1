"""Gates T5 and T6: what unknown participation does to the limit, and what FedAU's weights are.
usage: participation_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import math  # noqa: E402

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import check, close, main  # noqa: E402

CLIENTS, D, LR, STEPS, ROUNDS = 100, 10, .02, 5, 4000
G = reference.g(CLIENTS, D)
SHARES = [.02 + .33 * (i / (CLIENTS - 1))**2 for i in range(CLIENTS)]
UNBIASED = reference.fixed_point(G, LR, STEPS)


def mean_iterate(simulator, strategy, kind, seed):
    """Mean model of the last half of the rounds."""
    document = simulator.run(G, flags=["--seed", seed], trajectory=True, strategy=strategy, local={"steps": STEPS, "lr": LR},
                             stop={"versions": ROUNDS}, simulate={"participation": {"kind": kind, "p": SHARES}, "gradient_noise": .5})
    return document["models"][ROUNDS // 2:].mean(axis=0)


def bias(simulator, strategy, kind="bernoulli", seeds=3):
    """Distance of the mean over seeds of the mean iterate from fedavg's limit with equal weights."""
    return np.linalg.norm(np.mean([mean_iterate(simulator, strategy, kind, seed) for seed in range(seeds)], axis=0) - UNBIASED)


def predicted_bias(multipliers):
    return np.linalg.norm(reference.fixed_point(G, LR, STEPS, multipliers) - UNBIASED)


def fedau_removes_the_bias_of_bernoulli_participation(simulator):
    plain = bias(simulator, {"name": "known_p", "p": 1})
    within = lambda got, expected, share, what: check(abs(got - expected) <= share * expected, f"{what}: expected {expected} ± {share:.0%}, got {got}")
    within(plain, predicted_bias(SHARES), .05, "averaging over N")
    unlimited = bias(simulator, {"name": "fedau", "cutoff": "inf"})
    check(unlimited <= .05 * plain, f"fedau: expected at most 5 % of the plain bias {plain}, got {unlimited}")
    known = bias(simulator, {"name": "known_p"})
    check(known <= .05 * plain, f"known_p: expected at most 5 % of the plain bias {plain}, got {known}")
    within(bias(simulator, {"name": "fedau", "cutoff": 10}), predicted_bias([1 - (1 - p)**10 for p in SHARES]), .05, "fedau, cutoff 10")
    within(bias(simulator, {"name": "fedau", "cutoff": 50}), predicted_bias([1 - (1 - p)**50 for p in SHARES]), .25, "fedau, cutoff 50")
    participants = bias(simulator, {"name": "fedavg", "server_lr": .1})
    check(participants >= 10 * unlimited, f"averaging the participants: expected a bias of at least 10 × {unlimited}, got {participants}")


def fedau_removes_the_bias_of_other_participation(simulator):
    for kind in ["markov", "cyclic"]:
        plain = bias(simulator, {"name": "known_p", "p": 1}, kind)
        unlimited = bias(simulator, {"name": "fedau", "cutoff": "inf"}, kind)
        check(unlimited <= .1 * plain, f"{kind}: expected at most a tenth of {plain}, got {unlimited}")


def fedau_weights_are_those_of_the_paper(simulator):
    rng = np.random.default_rng(4)
    bits = ["0001000001101000000000010000", "1" * 28] + ["".join(rng.choice(["0", "1"], 28, p=[.7, .3])) for _ in range(2)]
    for cutoff in [math.inf, 5, 3, 1]:
        document = simulator.run(reference.q4(), flags=["--contributors"], strategy={"name": "fedau", "cutoff": "inf" if cutoff == math.inf else cutoff},
                                 stop={"versions": 28}, simulate={"participation": {"kind": "trace", "bits": bits}})
        used = [reference.fedau_weights(text, cutoff) for text in bits]
        for version in document["versions"]:
            got = {int(c["client"].split("-")[1]): c["weight"] for c in version["contributors"]}
            r = version["version"] - 1
            expected = {i: used[i][r] for i in range(4) if bits[i][r] == "1"}
            check(got == expected, f"cutoff {cutoff}, round {r}: expected {expected}, got {got}")


def rounds_of_nobody_count_and_change_nothing(simulator):
    q4 = reference.q4()
    rounds = [[0, 1], [], [2], []]
    models, document = simulator.trajectory(q4, stop={"versions": 8}, simulate={"participation": {"kind": "trace", "rounds": rounds}})
    expected = reference.trajectory("fedavg", q4, 4, .1, 5, schedule=lambda r: [[0, 1], [2]][r % 2])
    for version, model in enumerate(models, 1):
        close(model, expected[(version - 1) // 2], 1e-12, f"version {version}")
    check(document["updates_committed"] == 6, f"expected 6 updates, got {document['updates_committed']}")


def fixed_participation_draws_so_many_each_round(simulator):
    document = simulator.run(G, flags=["--contributors"], stop={"versions": 200}, simulate={"participation": {"kind": "fixed", "size": 7}})
    counts = np.zeros(CLIENTS)
    for version in document["versions"]:
        clients = {int(c["client"].split("-")[1]) for c in version["contributors"]}
        check(len(clients) == 7, f"version {version['version']}: expected 7 clients, got {clients}")
        for client in clients:
            counts[client] += 1
    # χ² with 99 degrees of freedom, a little narrower as each round draws without replacement.
    statistic = float(((counts - 14)**2 / 14).sum())
    check(55 < statistic < 150, f"draws are not uniform: χ² = {statistic}")


if __name__ == "__main__":
    main(sys.argv[1], [fedau_weights_are_those_of_the_paper, rounds_of_nobody_count_and_change_nothing, fixed_participation_draws_so_many_each_round,
                       fedau_removes_the_bias_of_bernoulli_participation, fedau_removes_the_bias_of_other_participation])
