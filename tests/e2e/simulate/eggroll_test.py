"""EGGROLL against a party that never fetches weights after the first: NumPy, which knows the definition alone (tests/support/eggroll_reference.py), makes
noise, losses and steps itself and has the server's weights after 20 versions, in float32 bit for bit. e2e.simulate.daemons and
e2e.client_state.restart compare daemons, also killed ones, with these simulations.
usage: eggroll_test.py BIN_DIR [TEST…]
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from eggroll_reference import Server, philox4x32  # noqa: E402
from harness import write_safetensors  # noqa: E402
from simulations import REFUSED, check, close, main  # noqa: E402

VERSIONS, CLIENTS, FEATURES = 20, 4, 140  # more than 128: two groups of signs
SETTINGS = [dict(population=64, sigma=.1, lr=.3), dict(population=64, sigma=.1, lr=.1, rank=3, center="client"),
            dict(population=128, sigma=.05, lr=.02, server="adamw", weight_decay=.1), dict(population=128, sigma=.05, lr=.02, rank=2, server="adamw", beta1=.5)]


def philox_has_its_known_answers(_simulator):
    """Random123's kat_vectors, philox 4x32 10."""
    for key, counter, words in [(0, (0, 0, 0, 0), (0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8)),
                                (0xffffffffffffffff, (0xffffffff,) * 4, (0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd)),
                                (0x299f31d0a4093822, (0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), (0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1))]:
        got = tuple(int(w) for w in philox4x32(key, counter))
        check(got == words, f"philox of {counter}: expected {words}, got {got}")


def regressions(folder, dtype):
    """½ mean squared error of xᵀw + b, a client a file."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    w, data = rng.normal(size=FEATURES), []
    for i in range(CLIENTS):
        x = rng.normal(size=(20 + 7 * i, FEATURES)) / np.sqrt(FEATURES)
        y = x @ w + .5 + .1 * rng.normal(size=len(x))
        write_safetensors(folder / f"{i}.safetensors", {"x": (dtype, x.shape, x.astype("<f8").tobytes()), "y": (dtype, y.shape, y.astype("<f8").tobytes())})
        data.append((x, y))
    return data


def a_party_without_the_weights_has_them(simulator):
    folder = simulator.work / "regressions"
    data = regressions(folder, "F64")

    def loss(weights, x, y):
        error = x @ weights[0][0] + weights[1][0] - y
        return .5 * float(error @ error) / len(y)

    for dtype in ("float32", "float64"):
        kind = np.dtype("<f4" if dtype == "float32" else "<f8")
        for settings in SETTINGS:
            job = simulator.job(folder, CLIENTS, model={"zoo": "linear"}, dtype=dtype, seed=11, strategy={"name": "eggroll", **settings}, local={"solver": "eggroll"},
                                stop={"versions": VERSIONS}, evaluate={"every": VERSIONS})
            shown = json.loads(simulator.command("simulate", job, "--json").stdout)
            party = Server([np.zeros((1, FEATURES), kind), np.zeros(1, kind)], job_seed=11, **settings)
            members = settings["population"] // CLIENTS
            first = sum(loss(party.weights, *shard) for shard in data)
            for _ in range(VERSIONS):
                fitness = {f"client-{i}": np.array([-loss(party.perturbed(f"client-{i}", m), x, y) for m in range(members)]).astype(kind)
                           for i, (x, y) in enumerate(data)}
                party.step(fitness)
            last = sum(loss(party.weights, *shard) for shard in data)
            check(last < .9 * first, f"{settings}: the loss went from {first} to {last}")
            if dtype == "float32":
                check(party.sha256() == shown["model_sha256"], f"{settings}: the party has {party.sha256()}, the server {shown['model_sha256']}")
            total = [len(y) for _, y in data]
            mean = sum(n * loss(party.weights, *shard) for n, shard in zip(total, data)) / sum(total)
            close(shown["metrics"][-1]["loss"], mean, 1e-9, f"{settings}, {dtype}: the last loss")
            up = VERSIONS * settings["population"] * kind.itemsize
            check(shown["bytes_up"] == up, f"{settings}: expected {up} bytes up, got {shown['bytes_up']}")


def one_commit_of_files_is_numpys(simulator):
    rng, shapes = np.random.default_rng(8), {"b": (5,), "w": (5, 130)}
    model = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    file = simulator.work / "model.safetensors"
    write_safetensors(file, {name: ("F32", value.shape, value.tobytes()) for name, value in model.items()})
    fitness = {name: rng.normal(size=6).astype("<f4") for name in ("north", "south")}
    updates = []
    for name, values in fitness.items():
        write_safetensors(simulator.work / f"{name}.safetensors", {"fitness": ("F32", [6], values.tobytes())})
        updates.append(["--update", f"{simulator.work / name}.safetensors:1,client={name}"])
    for settings in (dict(population=12, rank=2, lr=.7), dict(population=12, server="adamw", center="client")):
        party = Server(list(model.values()), **settings)
        party.step(fitness)
        params = [word for name, value in settings.items() for word in ("--param", f"{name}={value}")]
        for order in (updates, updates[::-1]):
            got = json.loads(simulator.command("aggregate", "--json", "--strategy", "eggroll", *params, "--model", file, *sum(order, []), "--out", simulator.work / "out.safetensors").stdout)
            check(got["model_sha256"] == party.sha256(), f"{settings}: expected {party.sha256()}, got {got}")
    done = simulator.command("aggregate", "--strategy", "eggroll", "--param", "population=14", "--model", file, *sum(updates, []), "--out", simulator.work / "out.safetensors", code=REFUSED)
    check("expected a multiple of 4, got 14" in done.stdout + done.stderr, done.stdout + done.stderr)


def any_cohort_and_any_order_of_arrival(simulator):
    """Reproducible or not, the bits are the same: sums are of integers. A part of the clients at a time, and unequal delays."""
    problem = reference.g(5, 4)
    keys = {"strategy": {"name": "eggroll", "population": 40}, "local": {"solver": "eggroll"}, "dtype": "float32", "cohort": {"size": 2, "population": 5}}
    hashes = {simulator.run(problem, clients=2, reproducible=reproducible, simulate={"delay": {"kind": "uniform", "low": 1, "high": high}}, **keys)["model_sha256"]
              for reproducible in (True, False) for high in (1.5, 9)}
    check(len(hashes) == 1, f"{len(hashes)} models of one job")


def what_cannot_be_is_refused_by_name(simulator):
    problem = reference.g(4, 3)
    base = {"strategy": {"name": "eggroll", "population": 32}, "local": {"solver": "eggroll"}, "dtype": "float32"}
    for words, change in [("privacy: strategy 'eggroll' looks at every update by itself", {"privacy": {"clip": 1, "noise_multiplier": 1, "delta": 1e-5}}),
                          ("codec: strategy 'eggroll' needs its updates as they are", {"codec": "int8"}),
                          ("local.solver: clients of strategy 'eggroll'", {"local": {"steps": 2}}),
                          ("local.solver: eggroll returns fitness values", {"strategy": {"name": "fedbuff"}}),
                          ("expected a multiple of 8, got 30", {"strategy": {"name": "eggroll", "population": 30}}),
                          ("cohort.sampling: strategy 'eggroll'", {"cohort": {"sampling": "poisson", "rate": .5, "population": 4}})]:
        job = simulator.job(simulator.problem(problem), 4, **{**base, **change})
        done = simulator.command("simulate", job, code=REFUSED)
        check(words in done.stdout + done.stderr, f"expected '{words}', got {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main(sys.argv[1], [philox_has_its_known_answers, one_commit_of_files_is_numpys, a_party_without_the_weights_has_them, any_cohort_and_any_order_of_arrival, what_cannot_be_is_refused_by_name])
