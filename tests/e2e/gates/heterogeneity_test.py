"""Gate T12: momentum and control variates under heterogeneous clients, without and with gradient noise, all clients and 2 of 20.
usage: heterogeneity_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import check, main  # noqa: E402

CLIENTS, LR, STEPS, ROUNDS = 20, .02, 10, 2000
G = reference.g(CLIENTS, 20)
FAMILY = ["fedavg", "fedavg_m", "fedavg_m_vr", "scaffold", "scaffold_m", "scaffold_m_vr"]


def squared_gradient(simulator, name, simulate, seed=0):
    """Mean of ‖∇F‖² over the last quarter of the rounds."""
    strategy = {"name": name, **({"beta": .1} if "_m" in name else {})}
    models = simulator.run(G, trajectory=True, flags=["--seed", seed], strategy=strategy, local={"steps": STEPS, "lr": LR},
                           stop={"versions": ROUNDS}, simulate=simulate)["models"][-ROUNDS // 4:]
    a, b = np.array([np.diag(m) for m in G[0]]), np.array(G[1])
    gradients = np.array([(a * (x - b)).mean(axis=0) for x in models])
    return float((gradients**2).sum(axis=1).mean())


def without_noise_momentum_divides_the_drift_by_the_square_of_beta(simulator):
    got = {name: squared_gradient(simulator, name, {}) for name in FAMILY}
    ratio = got["fedavg"] / got["fedavg_m"]
    check(80 <= ratio <= 120, f"fedavg over fedavg_m(0.1): expected 80 to 120, got {ratio}: {got}")
    check(abs(got["fedavg_m_vr"] - got["fedavg"]) <= 1e-6 * got["fedavg"], f"fedavg_m_vr must end where fedavg does: {got}")
    for name in FAMILY[3:]:
        check(got[name] < 1e-12, f"{name}: expected below 1e-12, got {got[name]}")


def with_noise_and_two_of_twenty_control_variates_win(simulator):
    simulate = {"participation": {"kind": "fixed", "size": 2}, "gradient_noise": 1.0}
    got = {name: np.mean([squared_gradient(simulator, name, simulate, seed) for seed in range(3)]) for name in FAMILY}
    for name, least in [("fedavg", 15), ("fedavg_m", 15), ("fedavg_m_vr", 5)]:
        check(got[name] >= least * got["scaffold"], f"{name}: expected at least {least} × scaffold: {got}")
    check(got["scaffold_m_vr"] <= .6 * got["scaffold"], f"scaffold_m_vr: expected at most 0.6 × scaffold: {got}")


if __name__ == "__main__":
    main(sys.argv[1], [without_noise_momentum_divides_the_drift_by_the_square_of_beta, with_noise_and_two_of_twenty_control_variates_win])
