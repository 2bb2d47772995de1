"""Of gates T9 and T11: RERCE is consensus ADMM; what it cannot do over noisy links and what the table can; on weighted least squares.
usage: admm_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]


import numpy as np  # noqa: E402

from harness import read_safetensors, write_safetensors  # noqa: E402
from simulations import check, close, main  # noqa: E402

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


def simulated(simulator, strategy, versions, flags=(), simulate=None, local=None):
    folder = simulator.work / "wls"
    if not folder.exists():
        folder.mkdir()
        for i, (x, y) in enumerate(DATA):
            write_safetensors(folder / f"{i}.safetensors", {"x": ("F64", x.shape, x.tobytes()), "y": ("F64", y.shape, y.tobytes())})
    job = simulator.job(folder, CLIENTS, model={"zoo": "wls"}, strategy=strategy, local=local or {"solver": "exact"}, stop={"versions": versions},
                        simulate=simulate or {})
    file = simulator.work / "trajectory.safetensors"
    simulator.command("simulate", job, "--json", "--trajectory", file, *flags)
    _, shape, values = read_safetensors(file)["models"]
    return np.frombuffer(values, "<f8").reshape(shape)


def consensus_admm(versions, rho):
    x, w, dual, out = np.zeros(L), [None] * CLIENTS, np.zeros((CLIENTS, L)), []
    for r in range(versions):
        for i in range(CLIENTS):
            if r > 0:
                dual[i] += rho * (w[i] - x)
            w[i] = np.linalg.solve(HESSIANS[i] + rho * np.eye(L), MOMENTS[i] - dual[i] + rho * x)
        x = np.mean([w[i] + dual[i] / rho for i in range(CLIENTS)], axis=0)
        out.append(x)
    return out


def rerce_is_consensus_admm(simulator):
    for rho in [.5, 1, 10, 50]:
        got = simulated(simulator, {"name": "rerce_admm", "rho": rho}, 30)[1:]
        for version, (x, expected) in enumerate(zip(got, consensus_admm(30, rho)), 1):
            close(x, expected, 1e-11, f"rho {rho}, version {version}")


def clean_links_reach_least_squares_unless_the_authors_slip_is_copied(simulator):
    close(simulated(simulator, {"name": "rerce_admm", "rho": 10}, 3000)[-1], BEST, 1e-9, "rerce_admm")
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
    for seed in range(20):
        models = simulated(simulator, {"name": "fedadmm", "rho": rho}, 3000, ["--seed", seed], channel)
        windows += [float(((models[n:n + 200] - BEST)**2).sum(axis=1).mean()) for n in range(500, 2900, 200)]
    levels = 10 * np.log10(windows / windows.mean())
    check(np.max(np.abs(levels)) <= .5, f"fedadmm's level must stay within 0.5 dB, got {levels}")


if __name__ == "__main__":
    main(sys.argv[1], [rerce_is_consensus_admm, clean_links_reach_least_squares_unless_the_authors_slip_is_copied,
                       link_noise_walks_under_rerce_and_stays_flat_under_fedadmm])
