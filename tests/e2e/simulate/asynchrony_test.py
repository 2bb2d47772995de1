"""Gate T8: asynchronous strategies under unequal delays: where they end, how they swing, how fast they are.
usage: asynchrony_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import math  # noqa: E402

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import FAILED, check, main  # noqa: E402

CLIENTS, STEPS, LR, SECONDS = 10, 10, .002, 2000
G = reference.g(CLIENTS, 5)
DELAYS = {"kind": "linear_spread", "slowest": 1, "spread": .8}
TIMES = [1 - .8 * i / (CLIENTS - 1) for i in range(CLIENTS)]
LIMIT = reference.fixed_point(G, LR, STEPS)


def fixed_delay_frequencies(name, interval=None, buffer=1):
    """Contributions of each client per commit."""
    if name == "fedfix":
        return [1 / max(1, math.ceil(t / interval - 1e-12)) for t in TIMES]
    total = sum(1 / t for t in TIMES)
    return [buffer / t / total for t in TIMES]


def strategies(weight):
    """(what, strategy, mean seconds between commits)"""
    arrivals = sum(1 / t for t in TIMES)
    listed = [("fedavg", {"name": "fedavg"}, 1.0)]
    listed += [(f"fedfix {dt}", {"name": "fedfix", "interval_s": dt, "weight": weight}, dt) for dt in (.8, .5, .2)]
    listed.append(("async", {"name": "async_fedavg", "weight": weight}, 1 / arrivals))
    return listed


def simulated(simulator, strategy, lr=LR, seconds=SECONDS, interval=1.0, delay=None, code=0, flags=()):
    return simulator.run(G, trajectory=True, code=code, strategy=strategy, local={"steps": STEPS, "lr": lr}, flags=flags,
                         stop={"versions": max(1, round(seconds / interval))}, simulate={"delay": delay or DELAYS})


def tail(document):
    models = document["models"]
    return models[-len(models) // 5:]


def relative(x, y):
    return float(np.linalg.norm(x - y) / np.linalg.norm(LIMIT))


def known_frequencies_give_fedavgs_limit_and_the_orders_of_speed_and_swing(simulator):
    first, swing = {}, {}
    rounds = None
    for what, strategy, interval in strategies("known"):
        document = simulated(simulator, strategy, interval=interval)
        mean = tail(document).mean(axis=0)
        check(relative(mean, LIMIT) <= .03, f"{what}: the tail's mean is {mean}, {relative(mean, LIMIT):.3f} from fedavg's limit {LIMIT}")
        swing[what] = max(float(np.linalg.norm(x - mean)) for x in tail(document))
        errors = [relative(x, LIMIT) for x in document["models"]]
        at = next(i for i, error in enumerate(errors) if error < .3)
        first[what] = document["seconds"][at]
        rounds = at if what == "fedavg" else rounds
        check(abs(first[what] - rounds * interval) <= .2 * rounds * interval,
              f"{what}: below 30 % after {first[what]} s, expected {rounds} × {interval:.3f} s ± 20 %")
    order = ["fedavg", "fedfix 0.8", "fedfix 0.5", "fedfix 0.2", "async"]
    check(swing["fedavg"] < 1e-9, f"fedavg does not swing, got {swing['fedavg']}")
    for before, after in zip(order, order[1:]):
        check(swing[before] <= swing[after] * (1 + 1e-9), f"{before} must not swing more than {after}: {swing}")
        check(first[before] >= first[after], f"{before} must not be faster than {after}: {first}")


def without_correction_they_end_at_their_surrogate(simulator):
    for what, strategy, interval in strategies("none")[1:]:
        name = strategy["name"]
        frequency = fixed_delay_frequencies(name, strategy.get("interval_s"))
        expected = reference.fixed_point(G, LR, STEPS, frequency)
        mean = tail(simulated(simulator, strategy, interval=interval, seconds=SECONDS)).mean(axis=0)
        error = float(np.linalg.norm(mean - expected) / np.linalg.norm(expected))
        check(error <= .03, f"{what}: expected the surrogate's limit {expected}, the tail's mean is {mean} ({error:.3f})")


def async_diverges_where_fedfix_does_not(simulator):
    document = simulated(simulator, {"name": "async_fedavg", "weight": "known"}, lr=.3, interval=.02, seconds=400, code=None)
    check(document["state"] == "failed" or not np.all(np.abs(document["x"]) < 1e3), f"async at a high rate: {document['state']}, x = {document.get('x')}")


def contributions_come_as_often_as_the_law_of_delays_says(simulator):
    laws = [({"kind": "fixed", "seconds": TIMES}, lambda i, dt: max(1, math.ceil(TIMES[i] / dt - 1e-12))),
            ({"kind": "exponential", "mean": TIMES}, lambda i, dt: 1 / (1 - math.exp(-dt / TIMES[i]))),
            ({"kind": "uniform", "low": [.5 * t for t in TIMES], "high": [1.5 * t for t in TIMES]},
             lambda i, dt: sum(min(1, max(0, (1.5 * TIMES[i] - k * dt) / TIMES[i])) for k in range(100))),
            ({"kind": "half_normal", "sd": TIMES}, lambda i, dt: sum(math.erfc(k * dt / (TIMES[i] * math.sqrt(2))) for k in range(400)))]
    dt, ticks = .5, 30000  # a debug build affords no more; the allowance is four times the sampling error of the rarest client
    for delay, intervals in laws:
        document = simulator.run(G, flags=["--contributors"], strategy={"name": "fedfix", "interval_s": dt, "weight": "none"},
                                 local={"steps": 1, "lr": 1e-4}, stop={"versions": ticks}, simulate={"delay": delay})
        counts = np.zeros(CLIENTS)
        for version in document["versions"]:
            for contributor in version["contributors"]:
                counts[int(contributor["client"].split("-")[1])] += 1
        elapsed = document["virtual_s"] / dt
        for i in range(CLIENTS):
            expected = 1 / intervals(i, dt)
            check(abs(counts[i] / elapsed - expected) <= .03 * expected,
                  f"{delay['kind']}, client {i}: expected {expected:.5f} contributions a tick, got {counts[i] / elapsed:.5f}")


if __name__ == "__main__":
    main(sys.argv[1], [known_frequencies_give_fedavgs_limit_and_the_orders_of_speed_and_swing, without_correction_they_end_at_their_surrogate,
                       async_diverges_where_fedfix_does_not, contributions_come_as_often_as_the_law_of_delays_says])
