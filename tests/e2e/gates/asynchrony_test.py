"""Gate T8: asynchronous strategies under unequal delays: where they end, how they swing, how fast they are.
usage: asynchrony_test.py BIN_DIR [TEST…]     TRIBUTARY_GATES=full: contributions counted over more ticks
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import math  # noqa: E402

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import FULL, check, main  # noqa: E402

CLIENTS, STEPS, LR, SECONDS = 10, 10, .002, 2000
G = reference.g(CLIENTS, 5)
DELAYS = {"kind": "linear_spread", "slowest": 1, "spread": .8}
TIMES = [1 - .8 * i / (CLIENTS - 1) for i in range(CLIENTS)]
LIMIT = reference.fixed_point(G, LR, STEPS)
# Mean seconds between commits; of fedbuff's found by the schedule.
SCHEMES = {"fedavg": ({"name": "fedavg"}, 1.0),
           "fedfix .8": ({"name": "fedfix", "interval_s": .8}, .8),
           "fedfix .5": ({"name": "fedfix", "interval_s": .5}, .5),
           "fedbuff 5": ({"name": "fedbuff", "buffer": 5, "restart": "commit", "staleness": {"kind": "constant"}}, None),
           "fedfix .2": ({"name": "fedfix", "interval_s": .2}, .2),
           "fedbuff 3": ({"name": "fedbuff", "buffer": 3, "restart": "commit", "staleness": {"kind": "constant"}}, None),
           "async": ({"name": "async_fedavg"}, 1 / sum(1 / t for t in TIMES))}


def simulated(simulator, strategy, lr=LR, versions=1, flags=(), code=0, delay=None, trajectory=True, steps=STEPS):
    return simulator.run(G, trajectory=trajectory, code=code, strategy=strategy, local={"steps": steps, "lr": lr}, flags=flags,
                         stop={"versions": versions}, simulate={"delay": delay or DELAYS})


def contributions(document):
    counts = np.zeros(CLIENTS)
    for version in document["versions"]:
        for contributor in version["contributors"]:
            counts[int(contributor["client"].split("-")[1])] += 1
    return counts


class Schedule:
    """Mean interval and contributions per commit of a scheme. Delays are fixed, so a buffer's schedule is found by running it once."""

    def __init__(self, simulator, what):
        strategy, interval = SCHEMES[what]
        name = strategy["name"]
        if name == "fedavg":
            self.interval, self.frequency = interval, np.ones(CLIENTS)
        elif name == "fedfix":
            self.interval, self.frequency = interval, np.array([1 / max(1, math.ceil(t / interval - 1e-12)) for t in TIMES])
        elif name == "async_fedavg":
            self.interval, self.frequency = interval, interval / np.array(TIMES)
        else:
            document = simulated(simulator, strategy, versions=4000, flags=["--contributors"], trajectory=False)
            self.interval = document["virtual_s"] / 4000
            self.frequency = contributions(document) / 4000
        self.versions = round(SECONDS / self.interval)


def tail(document):
    models = document["models"]
    return models[-(len(models) // 5):]


def distance(x, y, scale):
    return float(np.linalg.norm(x - y) / np.linalg.norm(scale))


def known(strategy, schedule):
    if strategy["name"] == "fedavg":
        return strategy
    if strategy["name"] == "fedbuff":
        return {**strategy, "weight": "known", "frequency": [float(f) for f in schedule.frequency]}
    return {**strategy, "weight": "known"}


def known_frequencies_give_fedavgs_limit_and_the_orders_of_speed_and_swing(simulator):
    first, swing, rounds = {}, {}, None
    for what, (strategy, _) in SCHEMES.items():
        schedule = Schedule(simulator, what)
        document = simulated(simulator, known(strategy, schedule), versions=schedule.versions)
        end = tail(document)
        mean = end.mean(axis=0)
        off = distance(mean, LIMIT, LIMIT)
        swing[what] = max(float(np.linalg.norm(x - mean)) for x in end)
        at = next(i for i, x in enumerate(document["models"]) if distance(x, LIMIT, LIMIT) < .3)
        first[what] = document["seconds"][at]
        rounds = at if what == "fedavg" else rounds
        expected = rounds * schedule.interval
        print(f"   {what}: off by {off:.4f}, swing {swing[what]:.3g}, below 30 % after {first[what]:.1f} s, expected {expected:.1f}")
        check(off <= .03, f"{what}: the tail's mean is {mean}, {off:.3f} from fedavg's limit {LIMIT}")
        check(abs(first[what] - expected) <= .2 * expected, f"{what}: below 30 % after {first[what]} s, expected {expected} s ± 20 %")
    order = list(SCHEMES)
    check(swing["fedavg"] < 1e-9, f"fedavg does not swing, got {swing['fedavg']}")
    for before, after in zip(order, order[1:]):
        check(swing[before] <= swing[after] * (1 + 1e-9), f"{before} must not swing more than {after}: {swing}")
        check(first[before] >= first[after], f"{before} must not be faster than {after}: {first}")


def without_correction_they_end_at_their_surrogate(simulator):
    for what, (strategy, _) in SCHEMES.items():
        if what == "fedavg":
            continue
        schedule = Schedule(simulator, what)
        expected = reference.fixed_point(G, LR, STEPS, schedule.frequency)
        mean = tail(simulated(simulator, {**strategy, "weight": "none"}, versions=schedule.versions)).mean(axis=0)
        off, away = distance(mean, expected, expected), distance(expected, LIMIT, LIMIT)
        print(f"   {what}: off by {off:.4f} of its surrogate's limit, which lies {away:.2f} from fedavg's")
        check(off <= .03, f"{what}: expected the surrogate's limit {expected}, the tail's mean is {mean} ({off:.3f})")
        check(away >= .5, f"{what}: the surrogate's limit lies {away:.2f} from fedavg's, expected at least 0.5")


def at_a_high_rate_async_diverges_where_fedfix_does_not(simulator):
    for what, diverges in [("async", True), ("fedfix .5", False)]:
        schedule = Schedule(simulator, what)
        document = simulated(simulator, known(SCHEMES[what][0], schedule), lr=.03, versions=round(400 / schedule.interval), code=None)
        failed = document["state"] == "failed" or not np.all(np.abs(document["models"][-1]) < 1e3)
        check(failed == diverges, f"{what} at rate 0.03: {document['state']}, x = {document['models'][-1]}")


def contributions_come_as_often_as_the_law_of_delays_says(simulator):
    laws = [({"kind": "fixed", "seconds": TIMES}, lambda i, dt: max(1, math.ceil(TIMES[i] / dt - 1e-12))),
            ({"kind": "exponential", "mean": TIMES}, lambda i, dt: 1 / (1 - math.exp(-dt / TIMES[i]))),
            ({"kind": "uniform", "low": [.5 * t for t in TIMES], "high": [1.5 * t for t in TIMES]},
             lambda i, dt: sum(min(1, max(0, (1.5 * TIMES[i] - k * dt) / TIMES[i])) for k in range(100))),
            ({"kind": "half_normal", "sd": TIMES}, lambda i, dt: sum(math.erfc(k * dt / (TIMES[i] * math.sqrt(2))) for k in range(400)))]
    dt, ticks = .5, 200_000 if FULL else 30_000
    for delay, intervals in laws:
        document = simulated(simulator, {"name": "fedfix", "interval_s": dt, "weight": "none"}, lr=1e-4, versions=ticks, delay=delay, trajectory=False,
                             flags=["--contributors"], steps=1)
        counts = contributions(document)
        elapsed = document["virtual_s"] / dt
        for i in range(CLIENTS):
            expected = 1 / intervals(i, dt)
            # 1 %, and what the rarest client's count may be off by chance (three deviations of a renewal process, at most Poisson's).
            allowed = max(.01 * expected, 3 * math.sqrt(expected / elapsed))
            check(abs(counts[i] / elapsed - expected) <= allowed,
                  f"{delay['kind']}, client {i}: expected {expected:.5f} contributions a tick, got {counts[i] / elapsed:.5f}")


if __name__ == "__main__":
    main(sys.argv[1], [known_frequencies_give_fedavgs_limit_and_the_orders_of_speed_and_swing, without_correction_they_end_at_their_surrogate,
                       at_a_high_rate_async_diverges_where_fedfix_does_not, contributions_come_as_often_as_the_law_of_delays_says])
