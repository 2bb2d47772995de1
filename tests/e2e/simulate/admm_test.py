"""Gates T9 and T11: RERCE is consensus ADMM on least squares, quadratics and softmax; what it cannot do over noisy links and what the table can.
usage: admm_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]


import numpy as np  # noqa: E402

import generate as reference  # noqa: E402

from harness import read_safetensors, write_safetensors  # noqa: E402
from simulations import FULL, check, close, main  # noqa: E402

L, CLIENTS = 4, 8


def problem(seed=7):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=L)
    data = []
    for _ in range(CLIENTS):
        x = rng.normal(size=(int(rng.integers(6, 12)), L))
        data.append((x, x @ truth + .5 * rng.normal(size=len(x))))
    return data


DATA = problem()
HESSIANS = [2 * x.T @ x for x, _ in DATA]
MOMENTS = [2 * x.T @ y for x, y in DATA]
BEST = np.linalg.solve(sum(HESSIANS), sum(MOMENTS))


def simulated(simulator, strategy, versions, flags=(), simulate=None, local=None, model=None):
    folder = simulator.work / "wls"
    if not folder.exists():
        folder.mkdir()
        for i, (x, y) in enumerate(DATA):
            write_safetensors(folder / f"{i}.safetensors", {"x": ("F64", x.shape, x.tobytes()), "y": ("F64", y.shape, y.tobytes())})
    job = simulator.job(folder, CLIENTS, model=model or {"zoo": "wls"}, strategy=strategy, local=local or {"solver": "exact"}, stop={"versions": versions},
                        simulate=simulate or {})
    file = simulator.work / "trajectory.safetensors"
    simulator.command("simulate", job, "--json", "--trajectory", file, *flags)
    _, shape, values = read_safetensors(file)["models"]
    return np.frombuffer(values, "<f8").reshape(shape)


def consensus_admm(versions, rho, clients, d, argmin, start=None):
    """The dual-first iteration, with duals; argmin(i, v, s): of f_i + <v, w> + ρ/2 ‖w − s‖²."""
    x, w, dual, out = np.zeros(d) if start is None else np.array(start, float), [None] * clients, np.zeros((clients, d)), []
    for r in range(versions):
        for i in range(clients):
            if r > 0:
                dual[i] += rho * (w[i] - x)
            w[i] = argmin(i, dual[i], x)
        x = np.mean([w[i] + dual[i] / rho for i in range(clients)], axis=0)
        out.append(x)
    return out


RHOS = [.5, 1, 10, 50]


def rerce_is_consensus_admm(simulator):
    """T9 on least squares, 1e-12, from 0 and from elsewhere."""
    init = simulator.work / "init.safetensors"
    start = np.array([2.0, -1.0, .5, 3.0])
    write_safetensors(init, {"w": ("F64", [L], start.tobytes())})
    for rho in RHOS:
        for begin, model in [(None, {"zoo": "wls"}), (start, {"zoo": "wls", "init": str(init)})]:
            got = simulated(simulator, {"name": "rerce_admm", "rho": rho}, 30, model=model)[1:]
            argmin = lambda i, v, s: np.linalg.solve(HESSIANS[i] + rho * np.eye(L), MOMENTS[i] - v + rho * s)
            for version, (x, expected) in enumerate(zip(got, consensus_admm(30, rho, CLIENTS, L, argmin, begin)), 1):
                close(x, expected, 1e-12, f"wls, rho {rho}, from {begin}, version {version}")


def rerce_is_consensus_admm_on_quadratics(simulator):
    for problem in [reference.q4(), reference.random_spd(5, 3, 2)]:
        d = len(problem[1][0])
        for rho in RHOS:
            for begin in [None, [2.0, -1.0, .5][:d]]:
                options = {} if begin is None else {"options": {"init": begin}}
                models, _ = simulator.trajectory(problem, strategy={"name": "rerce_admm", "rho": rho}, local={"solver": "exact"}, stop={"versions": 30}, **options)
                argmin = lambda i, v, s: np.linalg.solve(problem[0][i] + rho * np.eye(d), problem[0][i] @ problem[1][i] - v + rho * s)
                for version, (x, expected) in enumerate(zip(models, consensus_admm(30, rho, len(problem[0]), d, argmin, begin)), 1):
                    close(x, expected, 1e-12, f"quadratic, d {d}, rho {rho}, from {begin}, version {version}")


def softmax_argmin(x, y, classes, l2, v, rho, s):
    """Newton's method on mean cross-entropy + l2/2 ‖W‖² + <v, W> + ρ/2 ‖W − s‖²."""
    n, features = x.shape
    w = s.copy()
    targets = np.eye(classes)[y]
    for _ in range(100):
        scores = x @ w.reshape(classes, features).T
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = ((p - targets).T @ x / n).ravel() + l2 * w + v + rho * (w - s)
        if np.linalg.norm(gradient) < 1e-14:
            break
        hessian = (l2 + rho) * np.eye(classes * features)
        for k in range(n):
            hessian += np.kron(np.diag(p[k]) - np.outer(p[k], p[k]), np.outer(x[k], x[k])) / n
        w = w - np.linalg.solve(hessian, gradient)
    return w


def rerce_is_consensus_admm_on_softmax(simulator):
    rng, clients, classes, features, l2 = np.random.default_rng(3), 3, 3, 2, 1e-2
    folder, data = simulator.work / "softmax", []
    folder.mkdir()
    for i in range(clients):
        x, y = rng.normal(size=(12, features)), rng.integers(0, classes, size=12)
        data.append((x, y))
        write_safetensors(folder / f"{i}.safetensors", {"x": ("F64", x.shape, x.tobytes()), "y": ("I64", y.shape, y.astype("<i8").tobytes())})
    for rho in [.5, 10]:
        job = simulator.job(folder, clients, model={"zoo": "softmax", "params": {"classes": classes, "l2": l2}}, strategy={"name": "rerce_admm", "rho": rho},
                            local={"solver": "exact"}, stop={"versions": 10})
        file = simulator.work / "trajectory.safetensors"
        simulator.command("simulate", job, "--json", "--trajectory", file)
        _, shape, values = read_safetensors(file)["models"]
        argmin = lambda i, v, s: softmax_argmin(*data[i], classes, l2, v, rho, s)
        expected = consensus_admm(10, rho, clients, classes * features, argmin)
        for version, got in enumerate(np.frombuffer(values, "<f8").reshape(shape)[1:]):
            close(got, expected[version], 1e-10, f"softmax, rho {rho}, version {version + 1}")


def clean_links_reach_least_squares_unless_the_authors_slip_is_copied(simulator):
    close(simulated(simulator, {"name": "rerce_admm", "rho": 10}, 3000)[-1], BEST, 1e-9, "rerce_admm")
    five = {"steps": 5, "lr": .02}
    close(simulated(simulator, {"name": "fedadmm", "rho": 10}, 6000, simulate={"participation": {"kind": "fixed", "size": 2}}, local=five)[-1], BEST, 1e-9,
          "fedadmm with 2 of 8 and five SGD steps")
    slipped = simulated(simulator, {"name": "rerce_admm", "rho": 10, "compat_authors": True}, 3000)[-1]
    check(np.linalg.norm(slipped - BEST) > 1e-6, f"compat_authors must miss the solution {BEST}, got {slipped}")
    two = {"participation": {"kind": "fixed", "size": 2}}
    partial = simulated(simulator, {"name": "rerce_admm", "rho": 10}, 3000, simulate=two)[-1]
    check(np.linalg.norm(partial - BEST) > 1e-6, f"rerce_admm with 2 of 8 must miss the solution {BEST}, got {partial}")
    close(simulated(simulator, {"name": "fedadmm", "rho": 10}, 6000, simulate=two)[-1], BEST, 1e-9, "fedadmm with 2 of 8")


def link_noise_walks_under_rerce_and_stays_flat_under_fedadmm(simulator):
    rho, variance, seeds = 10, 1e-3, 80
    channel = {"channel": {"uplink_var": variance, "downlink_var": variance}}
    marks = [200, 500, 1000, 2000]
    squares = np.zeros(len(marks))
    for seed in range(seeds):
        models = simulated(simulator, {"name": "rerce_admm", "rho": rho}, max(marks), ["--seed", seed], channel)
        squares += [float(((models[n] - BEST)**2).sum()) / seeds for n in marks]
    inverse = np.linalg.inv(sum(HESSIANS))
    for n, got in zip(marks, squares):
        expected = n * rho**2 * CLIENTS * 2 * variance * np.trace(inverse @ inverse)
        decibels = 10 * np.log10(got / expected)
        check(abs(decibels) <= 1, f"after {n} rounds: expected {expected:.3g} ± 1 dB, got {got:.3g} ({decibels:+.2f} dB)")
    windows = np.zeros(12)
    two = {**channel, "participation": {"kind": "fixed", "size": 2}}
    for seed in range(60 if FULL else 24):
        models = simulated(simulator, {"name": "fedadmm", "rho": rho}, 3000, ["--seed", seed], two)
        windows += [float(((models[n:n + 200] - BEST)**2).sum(axis=1).mean()) for n in range(500, 2900, 200)]
    levels = 10 * np.log10(windows / windows.mean())
    check(np.max(np.abs(levels)) <= .5, f"fedadmm's level must stay within 0.5 dB, got {levels}")


if __name__ == "__main__":
    main(sys.argv[1], [rerce_is_consensus_admm, rerce_is_consensus_admm_on_quadratics, rerce_is_consensus_admm_on_softmax,
                       clean_links_reach_least_squares_unless_the_authors_slip_is_copied,
                       ], long=[link_noise_walks_under_rerce_and_stays_flat_under_fedadmm])
