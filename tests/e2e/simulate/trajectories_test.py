"""Gate T1: every deterministic strategy on the four quadratics against the reference, version by version, the worked values among them;
and T7, FedBuff's golden events. usage: trajectories_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import generate as reference  # noqa: E402
from simulations import check, close, main  # noqa: E402

Q4 = reference.q4()
VERSIONS = 20
WORKED = [(0.569165596600, -0.270651496025), (0.878665411869, -0.395952336956), (1.046747043318, -0.454419238418),
          (1.137932672002, -0.481936038292), (1.187359801895, -0.495006690313)]
GOLDEN_EVENTS = "D0 D1 D2 D3 U0 D0 U1 D1 U0 D0 U1 D1 U0 U2 D0 D2 U1 U3 D1 D3 U2 U0"


def schedule(r):
    return [[0, 1], [2, 3], [0, 3], [1, 2]][r % 4]


PARTICIPATION = {"participation": {"kind": "trace", "rounds": [schedule(r) for r in range(4)]}}


def compare(simulator, name, expected, tolerance=1e-9, **keys):
    models, _ = simulator.trajectory(Q4, stop={"versions": len(expected)}, **keys)
    check(len(models) == len(expected), f"{name}: expected {len(expected)} versions, got {len(models)}")
    for version, (got, want) in enumerate(zip(models, expected), 1):
        close(got, want, tolerance, f"{name}, version {version}")


def fedavg_gives_the_worked_values(simulator):
    compare(simulator, "fedavg", WORKED)
    compare(simulator, "fedavg in float32", WORKED, tolerance=2e-5, dtype="float32")
    compare(simulator, "fedavg, reproducible", WORKED, reproducible=True)


def every_server_side_strategy_follows_the_reference(simulator):
    for strategy in [{"name": "fedavg", "server_lr": .7}, {"name": "fedprox", "mu": .5}, {"name": "fednova"}, {"name": "fedavgm", "beta": .8},
                     {"name": "qfedavg", "q": 2.0}, {"name": "fedadam", "server_lr": .1}, {"name": "fedyogi", "server_lr": .1},
                     {"name": "fedadagrad", "server_lr": .1, "initial_v": .25}]:
        name, params = strategy["name"], {k: v for k, v in strategy.items() if k != "name"}
        compare(simulator, name, reference.trajectory(name, Q4, VERSIONS, .1, 5, params), strategy=strategy)
        compare(simulator, f"{name}, two of four", reference.trajectory(name, Q4, VERSIONS, .1, 5, params, schedule), strategy=strategy,
                simulate=PARTICIPATION)


def steps_and_rates_differ_by_client(simulator):
    steps, lr = [1, 2, 5, 10], [.1, .05, .02, .03]
    for name in ["fedavg", "fednova", "fedprox"]:
        compare(simulator, name, reference.trajectory(name, Q4, VERSIONS, lr, steps), strategy={"name": name}, local={"steps": steps, "lr": lr})


def odd_but_legal_problems_follow_the_reference(simulator):
    """One unknown, one client, three hundred clients; everything that can differ by client differs."""
    for clients, d in [(1, 1), (1, 7), (3, 1), (300, 2)]:
        problem = reference.random_spd(clients, d, 10 * clients + d)
        steps, lr = [1 + i % 4 for i in range(clients)], [.02 + .01 * (i % 5) for i in range(clients)]
        weights = [1 + .5 * (i % 3) for i in range(clients)]
        keys = {"local": {"steps": steps, "lr": lr}, "options": {"weights": weights}}
        for name in ["fedavg", "fednova", "fedprox", "fedavgm"]:
            expected = reference.trajectory(name, problem, 8, lr, steps, weights=weights)
            models, _ = simulator.trajectory(problem, strategy={"name": name}, stop={"versions": 8}, **keys)
            for version, (got, want) in enumerate(zip(models, expected), 1):
                close(got, want, 1e-9, f"{name}, {clients} clients, d = {d}, version {version}")
        for name in ["scaffold", "fedavg_m", "scaffold_m_vr"]:
            warm = name.endswith("_vr")
            expected = reference.momentum_trajectory(name, problem, 8, .05, 3, 1.0 if name == "scaffold" else .3, warm)
            strategy = {"name": name, **({} if name == "scaffold" else {"beta": .3})}
            models, _ = simulator.trajectory(problem, strategy=strategy, local={"steps": 3, "lr": .05}, stop={"versions": 8})
            for version, (got, want) in enumerate(zip(models, expected), 1):
                close(got, want, 1e-9, f"{name}, {clients} clients, d = {d}, version {version}")


def weights_of_the_files_count_unless_the_job_says_uniform(simulator):
    weights = [1, 2, 3, 10]
    for weighting, n in [("examples", weights), ("uniform", None)]:
        compare(simulator, weighting, reference.trajectory("fedavg", Q4, 5, .1, 5, weights=n), options={"weights": weights},
                strategy={"name": "fedavg", "weighting": weighting})


def a_job_starts_where_the_first_file_says(simulator):
    compare(simulator, "init", reference.trajectory("fedavg", Q4, 5, .1, 5, start=[3, -1]), options={"init": [3, -1]})


def the_exact_solver_averages_the_minimisers(simulator):
    models, _ = simulator.trajectory(Q4, stop={"versions": 1}, local={"solver": "exact"})
    close(models[0], sum(Q4[1]) / 4, 1e-12, "mean of the minimisers")


def scaffold_gives_the_worked_values(simulator):
    worked = [(0.345368427237, -0.170744434251), (0.621733956304, -0.297408023552), (0.825185643939, -0.383816213620)]
    for uplink in ["full", "delta"]:
        compare(simulator, f"scaffold, {uplink} uplink", worked, strategy={"name": "scaffold", "uplink": uplink}, local={"steps": 5, "lr": .05})


def the_momentum_family_follows_the_reference(simulator):
    for name in ["fedavg_m", "fedavg_m_vr", "scaffold", "scaffold_m", "scaffold_m_vr"]:
        for warm in [True, False] if name.endswith("_vr") else [False]:
            params = {} if name == "scaffold" else {"beta": .3}
            strategy = {"name": name, **params, **({"warm_start": warm} if name.endswith("_vr") else {})}
            for what, chosen, simulate in [("all", None, {}), ("two of four", schedule, PARTICIPATION)]:
                expected = reference.momentum_trajectory(name, Q4, VERSIONS, .05, 5, params.get("beta", 1.0), warm, chosen)
                compare(simulator, f"{name}, warm {warm}, {what}", expected, strategy=strategy, local={"steps": 5, "lr": .05}, simulate=simulate)


def admm_follows_the_reference(simulator):
    for rho in [.5, 10]:
        for start in [None, [2, -1]]:
            options = {} if start is None else {"options": {"init": start}}
            exact = {"local": {"solver": "exact"}, **options}
            compare(simulator, f"rerce_admm, rho {rho}", reference.admm(Q4, VERSIONS, rho, start), tolerance=1e-12,
                    strategy={"name": "rerce_admm", "rho": rho}, **exact)
            compare(simulator, f"fedadmm, rho {rho}", reference.fedadmm(Q4, VERSIONS, rho, start, schedule), tolerance=1e-12,
                    strategy={"name": "fedadmm", "rho": rho}, simulate=PARTICIPATION, **exact)


def fedbuff_follows_the_golden_events(simulator):
    for staleness in [{"kind": "constant"}, {"kind": "polynomial", "a": .5}]:
        expected, commits = reference.fedbuff(Q4, GOLDEN_EVENTS, .1, 5, 2, staleness=staleness)
        params = {"staleness": staleness}
        models, document = simulator.trajectory(Q4, strategy={"name": "fedbuff", "buffer": 2, **params}, stop={"versions": 100},
                                                simulate={"delay": {"kind": "trace", "events": GOLDEN_EVENTS}})
        for version, (got, want) in enumerate(zip(models, expected), 1):
            close(got, want, 1e-9, f"fedbuff {staleness}, version {version}")
        check(document["version"] == 5, f"expected 5 commits, got {document['version']}: {document['state_reason']}")
        if staleness["kind"] == "polynomial":
            close(models[-1], (1.617261206746, -0.151282065492), 1e-9, "the worked value")
        history = simulator.run(Q4, flags=["--contributors"], strategy={"name": "fedbuff", "buffer": 2, **params}, stop={"versions": 100},
                                simulate={"delay": {"kind": "trace", "events": GOLDEN_EVENTS}})["versions"]
        got = [sorted((int(c["client"].split("-")[1]), c["staleness"]) for c in version["contributors"]) for version in history]
        check(got == [sorted(members) for members in commits], f"(client, staleness) by commit: expected {commits}, got {got}")


if __name__ == "__main__":
    main(sys.argv[1], [fedavg_gives_the_worked_values, scaffold_gives_the_worked_values, the_momentum_family_follows_the_reference, admm_follows_the_reference, every_server_side_strategy_follows_the_reference, steps_and_rates_differ_by_client,
                       odd_but_legal_problems_follow_the_reference,
                       weights_of_the_files_count_unless_the_job_says_uniform, a_job_starts_where_the_first_file_says,
                       the_exact_solver_averages_the_minimisers, fedbuff_follows_the_golden_events])
