"""Codecs in `simulate` (gate T16): rounding without bias and within its variance, top-k with error feedback against NumPy, and fewer bytes.
usage: codecs_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import json  # noqa: E402

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import REFUSED, check, close, main  # noqa: E402

D = 300                       # more than a block of 256
RNG = np.random.default_rng(2)
CENTRE = RNG.normal(size=D)
LONE = ([np.eye(D)], [CENTRE])  # one client; with one step of rate η from x = 0 the update is η·CENTRE
RATE, SERVER_RATE = .5, 1e-9    # the model hardly moves: every version encodes the same update anew


def rounded(simulator, codec, versions, d=LONE):
    """What arrived of the same update in each version, and the update."""
    document = simulator.run(d, trajectory=True, dtype="float32", codec=codec, strategy={"name": "fedavg", "server_lr": SERVER_RATE},
                             local={"steps": 1, "lr": RATE}, stop={"versions": versions})
    return np.diff(document["models"], axis=0) / SERVER_RATE, RATE * CENTRE, document


def stochastic_rounding_has_no_bias_and_a_bounded_variance(simulator):
    versions = 1000
    for codec, levels in [("int8", 127), ("int4", 7)]:
        got, update, _ = rounded(simulator, codec, versions)
        for first in range(0, D, 256):
            block = slice(first, min(D, first + 256))
            step = np.abs(update[block]).max() / levels
            # float32 models that grow to versions·SERVER_RATE·|update| round what is read off them by half a unit of their last place.
            reading = versions * np.abs(update[block]).max() * 2.0**-24
            bias = np.abs(got[:, block].mean(axis=0) - update[block])
            sigma = np.sqrt((step**2 / 4 + reading**2) / versions)
            check(bias.max() <= 6 * sigma, f"{codec}, elements from {first}: bias {bias.max()}, allowed {6 * sigma}")
            variance = got[:, block].var(axis=0)
            check(variance.max() <= (step**2 / 4) * 1.15 + reading**2, f"{codec}: variance {variance.max()}, at most h²/4 = {step**2 / 4}")
            mean = step**2 / 6
            check(.75 * mean <= variance.mean() <= 1.25 * mean, f"{codec}: mean variance {variance.mean()}, expected about h²/6 = {mean}")
            off = np.abs(got[:, block] - update[block])
            check(off.max() <= step + 3 * reading, f"{codec}: an element is off by {off.max()}, a step is {step}")


def short_floats_round_to_nearest(simulator):
    for codec, bits in [("bf16", 8), ("f16", 11)]:
        got, update, _ = rounded(simulator, codec, 1)
        worst = np.max(np.abs(got[0] - update) / np.abs(update))
        check(2.0**-bits / 8 < worst <= 2.0**-bits * (1 + 1e-3), f"{codec}: relative error {worst}, half a unit is {2.0**-bits}")


def fewer_bytes_travel(simulator):
    plain = rounded(simulator, "f32", 2)[2]["bytes_up"]
    for codec, fewer in [("bf16", 2), ("f16", 2), ("int8", 3.8), ("int4", 4), ({"kind": "topk", "fraction": .05}, 9.9)]:
        got = rounded(simulator, codec, 2)[2]["bytes_up"]
        check(plain / got >= fewer, f"{codec}: {plain / got:.2f} times fewer bytes, expected {fewer}")


def topk_reference(problem, versions, lr, steps, kept, schedule):
    x, errors, models = np.zeros(len(problem[1][0])), {}, []
    for r in range(versions):
        sums = np.zeros_like(x)
        chosen = schedule(r)
        for i in chosen:
            v = reference.train(problem[0][i], problem[1][i], x, lr, steps) - x + errors.get(i, 0)
            sent = np.zeros_like(v)
            largest = np.argsort(-np.abs(v), kind="stable")[:kept]
            sent[largest] = v[largest]
            errors[i] = v - sent
            sums += sent
        x = x + sums / len(chosen)
        models.append(x)
    return models


def topk_brings_later_what_it_left_out(simulator):
    """Of 20 elements one travels; the residual is a client's own, kept while it is away."""
    problem = reference.random_spd(4, 20, 5)
    rounds = [[0, 1], [2, 3], [0, 3], [1, 2], [0, 1, 2, 3]]
    models, document = simulator.trajectory(problem, dtype="float32", codec={"kind": "topk", "fraction": .05}, local={"steps": 3, "lr": .05},
                                            stop={"versions": 200}, simulate={"participation": {"kind": "trace", "rounds": rounds}})
    expected = topk_reference(problem, 200, .05, 3, 1, lambda r: rounds[r % len(rounds)])
    for version in [0, 1, 5, 20, 60, 199]:
        close(models[version], expected[version], 1e-4, f"version {version + 1}")
    check(document["bytes_up"] == 8 * document["updates_committed"], f"one index and one value an update: {document['bytes_up']} bytes")


def what_reads_updates_as_they_are_refuses_codes(simulator):
    folder = simulator.problem(reference.q4())
    for words, keys in [("as they are", {"strategy": {"name": "median"}}), ("as they are", {"strategy": {"name": "scaffold"}}),
                        ("is a model", {"strategy": {"name": "rerce_admm"}, "codec": {"kind": "topk", "fraction": .5}, "local": {"solver": "exact"}}),
                        ("noise on the uplink", {"simulate": {"channel": {"uplink_var": .1, "downlink_var": 0}}}),
                        ("f32 or a smaller one", {"codec": "f64"})]:
        job = simulator.job(folder, 4, **{"dtype": "float32", "codec": "int8", **keys})
        message = json.loads(simulator.command("simulate", job, "--json", code=REFUSED).stdout)["error"]["message"]
        check(words in message, f"expected a message with '{words}', got '{message}'")


def a_coded_job_is_folded_again(simulator):
    for codec in ["int8", {"kind": "topk", "fraction": .5}]:
        store = simulator.work / f"store-{len(str(codec))}"
        document = simulator.run(reference.q4(), flags=["--out", store], dtype="float32", codec=codec, record=True, reproducible=True)
        replayed = json.loads(simulator.command("replay", "--store", store, "--json").stdout)
        check(replayed["equal"] and replayed["versions"][-1]["sha256"] == document["model_sha256"], f"{codec}: the replay is not the record")
        simulator.command("replay", "--store", store, "--strategy", "median", code=REFUSED)


if __name__ == "__main__":
    main(sys.argv[1], [stochastic_rounding_has_no_bias_and_a_bounded_variance, short_floats_round_to_nearest, fewer_bytes_travel,
                       topk_brings_later_what_it_left_out, what_reads_updates_as_they_are_refuses_codes, a_coded_job_is_folded_again])
