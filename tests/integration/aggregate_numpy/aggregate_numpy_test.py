"""`tributary aggregate` against NumPy: float mode within 1e-6 (max norm) of a float64 mean, reproducible mode bit for bit over
permutations of the updates and bit for bit equal to fixed point done with NumPy's int64. Every further strategy that one commit can
show, in float64, against its rule in NumPy within 1e-9 (geometric median 1e-9 too), exactly where it only selects.

usage: aggregate_numpy_test.py TRIBUTARY CACHE. numpy and safetensors are installed once into CACHE; without a package index the
test is skipped with its reason, unless TRIBUTARY_REQUIRE names "safetensors".
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from python_packages import require_safetensors  # noqa: E402

TRIBUTARY, CACHE = sys.argv[1], Path(sys.argv[2])
FIXED_POINT_BITS = 40


def main():
    require_safetensors(CACHE)
    import numpy as np
    from safetensors.numpy import load_file, save_file

    def aggregate(folder, model, updates, *flags):
        out = folder / "out.safetensors"
        args = [x for path, weight in updates for x in ("--update", f"{path}:{weight!r}")]
        done = subprocess.run([TRIBUTARY, "aggregate", "--json", "--model", str(model), *args, "--out", str(out), *flags],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return load_file(out), json.loads(done.stdout)

    def mean_float(deltas, weights):
        return sum(w * d.astype(np.float64) for d, w in zip(deltas, weights)) / sum(weights)

    # acc += rint(w * x * 2^40) in int64; mean = acc * 2^-40 / sum of the weights in ascending order.
    def mean_fixed(deltas, weights):
        acc = np.zeros(deltas[0].shape, np.int64)
        for d, w in zip(deltas, weights):
            acc += np.rint(np.float64(w) * d.astype(np.float64) * np.float64(2.0**FIXED_POINT_BITS)).astype(np.int64)
        total = 0.0
        for w in sorted(weights):
            total += w
        return acc.astype(np.float64) * np.float64(2.0**-FIXED_POINT_BITS) / np.float64(total)

    random = np.random.default_rng(11)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for dtype, shapes in ((np.float32, {"conv": (16, 3, 5, 5), "fc": (300, 211), "bias": (7,), "scalar": (), "none": (0, 3)}),
                              (np.float64, {"w": (123, 77), "b": (5,)})):
            model = {name: np.asarray(random.standard_normal(shape), dtype) for name, shape in shapes.items()}
            model["steps"] = np.asarray([3, 4], np.int64)
            save_file(model, folder / "model.safetensors")
            deltas, updates = [], []
            weights = [float(w) for w in random.uniform(0.01, 900, 9)]
            for k, weight in enumerate(weights):
                delta = {name: np.asarray(random.standard_normal(shape) * 10.0**random.integers(-6, 1), dtype) for name, shape in shapes.items()}
                delta["steps"] = random.integers(0, 100, 2, dtype=np.int64)
                path = folder / f"u{k}.safetensors"
                save_file(delta, path)
                deltas.append(delta)
                updates.append((path, weight))
            steps = np.maximum.reduce([d["steps"] for d in deltas])

            for flags, mean, exact in ((["--strategy", "fedavg"], mean_float, False),
                                       (["--strategy", "fedavg", "--param", "server_lr=0.3"], mean_float, False),
                                       (["--strategy", "fedavg", "--reproducible"], mean_fixed, True),
                                       (["--strategy", "fedavgm", "--param", "beta=0.9", "--reproducible"], mean_fixed, True)):
                rate = 0.3 if "server_lr=0.3" in flags else 1.0
                result, answer = aggregate(folder, folder / "model.safetensors", updates, *flags)
                assert answer["updates"] == len(updates)
                assert set(result) == set(model)
                assert (result["steps"] == steps).all(), result["steps"]
                for name in shapes:
                    step = mean([d[name] for d in deltas], weights)
                    expected = (model[name].astype(np.float64) + rate * step).astype(dtype)
                    assert result[name].dtype == dtype and result[name].shape == expected.shape, name
                    if exact:
                        assert result[name].tobytes() == expected.tobytes(), (flags, name, np.abs(result[name] - expected).max())
                    elif expected.size:
                        worst = np.abs(result[name].astype(np.float64) - expected.astype(np.float64)).max()
                        assert worst <= 1e-6, (flags, name, worst)

            hashes = set()
            for _ in range(12):
                order = [updates[i] for i in random.permutation(len(updates))]
                hashes.add(aggregate(folder, folder / "model.safetensors", order, "--strategy", "fedavg", "--reproducible")[1]["model_sha256"])
            assert len(hashes) == 1, f"{len(hashes)} results of 12 orders"
        rules(folder, np, aggregate, save_file, random)
    print("aggregate agrees with NumPy")


# One model, seven updates of float64; the rules of the strategies, written out.
def rules(folder, np, aggregate, save_file, random):
    n, d = 7, 40
    x = random.standard_normal(d)
    deltas = random.standard_normal((n, d)) * np.linspace(0.2, 3, n)[:, None]
    deltas[5] = deltas[2]  # ties
    weights = random.uniform(1, 50, n)
    norms = random.uniform(1, 9, n)
    losses = random.uniform(0, 4, n)
    losses[3] = 0.0
    save_file({"w": x}, folder / "x.safetensors")
    for k in range(n):
        save_file({"w": deltas[k].copy()}, folder / f"d{k}.safetensors")

    def run(strategy, params=(), extra=lambda k: "", flags=()):
        updates = [(folder / f"d{k}.safetensors", weights[k]) for k in range(n)]
        args = [x for k, (path, weight) in enumerate(updates) for x in ("--update", f"{path}:{float(weight)!r}{extra(k)}")]
        out = folder / "out.safetensors"
        command = [TRIBUTARY, "aggregate", "--json", "--strategy", strategy, "--model", str(folder / "x.safetensors"), *args, "--out", str(out), *flags]
        for key, value in params:
            command += ["--param", f"{key}={value}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (strategy, done.stdout + done.stderr)
        from safetensors.numpy import load_file
        return load_file(out)["w"]

    def check(name, got, expected, tolerance=1e-9):
        worst = np.abs(got - expected).max()
        assert worst <= tolerance, (name, worst)

    mean = (weights[:, None] * deltas).sum(0) / weights.sum()
    check("fedprox", run("fedprox", [("mu", 0.3)]), x + mean)
    p = weights / weights.sum()
    nova = (p * norms).sum() * (p[:, None] * deltas / norms[:, None]).sum(0)
    check("fednova", run("fednova", [("server_lr", 0.7)], lambda k: f",step_norm={float(norms[k])!r}"), x + 0.7 * nova)
    for q in (0.0, 1.0, 2.5):
        lipschitz = 1 / 0.05
        f = losses + 1e-10
        h = q * f ** (q - 1) * ((lipschitz * deltas) ** 2).sum(1) + lipschitz * f**q
        step = (f[:, None] ** q * lipschitz * deltas).sum(0) / h.sum()
        check(f"qfedavg {q}", run("qfedavg", [("q", q)], lambda k: f",initial_loss={float(losses[k])!r}"), x + step)
        check(f"qfedavg {q}, rate", run("qfedavg", [("q", q), ("lipschitz", lipschitz)], lambda k: f",initial_loss={float(losses[k])!r}",
                                        ["--local-lr", "0.5"]), x + step)
    for name in ("fedadam", "fedyogi", "fedadagrad"):
        beta1 = 0.0 if name == "fedadagrad" else 0.9
        m, v0 = (1 - beta1) * mean, 0.01
        v = {"fedadam": 0.99 * v0 + 0.01 * mean**2, "fedyogi": v0 - 0.01 * mean**2 * np.sign(v0 - mean**2), "fedadagrad": v0 + mean**2}[name]
        check(name, run(name, [("initial_v", v0)]), x + 0.01 * m / (np.sqrt(v) + 1e-3))
    plain = deltas.mean(0)
    for name in ("fedau", "mifa", "fedvarp"):  # the first round of all clients: plain averaging
        check(name, run(name), x + plain)
    probabilities = random.uniform(0.1, 1, n)
    listed = ", ".join(repr(float(v)) for v in probabilities)
    check("known_p", run("known_p", [("p", listed)]), x + (deltas / probabilities[:, None]).sum(0) / n)
    check("known_p by name", run("known_p", [("p", "c0=0.5, " + ", ".join(f"c{k}=0.25" for k in range(1, n))), ("clients", 20)], lambda k: f",client=c{k}"),
          x + (deltas / np.array([0.5] + [0.25] * (n - 1))[:, None]).sum(0) / 20)

    check("median", run("median"), x + np.median(deltas, 0), 1e-15)
    ordered = np.sort(deltas, 0)
    for trim in (0, 1, 3):
        check(f"trimmed_mean {trim}", run("trimmed_mean", [("trim", trim)]), x + ordered[trim:n - trim].mean(0), 1e-14)
    for f in (0, 1, 2):  # n = 7 is at the bound for f = 2
        squares = ((deltas[:, None, :] - deltas[None, :, :]) ** 2).sum(2)
        scores = np.array([np.sort(np.delete(squares[a], a))[:n - f - 2].sum() for a in range(n)])
        order = np.argsort(scores, kind="stable")
        check(f"krum {f}", run("krum", [("byzantine", f)]), x + deltas[order[0]], 0)
        check(f"multi_krum {f}", run("multi_krum", [("byzantine", f)]), x + deltas[order[:n - f]].mean(0), 1e-14)
        check(f"multi_krum {f}, 3", run("multi_krum", [("byzantine", f), ("keep", 3)]), x + deltas[order[:3]].mean(0), 1e-14)
    center = deltas.mean(0)
    for _ in range(200):
        factors = 1 / np.maximum(1e-6, np.linalg.norm(deltas - center, axis=1))
        center = (factors[:, None] * deltas).sum(0) / factors.sum()
    check("geometric_median", run("geometric_median"), x + center)
    for radius in (0.5, 5.0, 1e6):
        v = np.zeros(d)
        for _ in range(3):
            gaps = deltas - v
            v = v + (gaps * np.minimum(1, radius / np.linalg.norm(gaps, axis=1))[:, None]).mean(0)
        check(f"centered_clipping {radius}", run("centered_clipping", [("radius", radius)]), x + v)
    check("fedbuff", run("fedbuff", [("buffer", n), ("server_lr", 0.5)], lambda k: f",staleness={k}"),
          x + 0.5 * ((1.0 + np.arange(n)) ** -0.5 @ deltas) / n)
    check("async_fedavg", run("async_fedavg"), x + plain)
    check("async_fedavg none", run("async_fedavg", [("weight", "none")]), x + deltas.sum(0))
    check("fedfix", run("fedfix", [("interval_s", 0.5), ("weight", "known"), ("frequency", 0.25)]), x + plain / 0.25)

    # The golden Krum vectors of the seven.
    golden = np.array([(1, 2, 3), (1.1, 1.9, 3.2), (.9, 2.1, 2.9), (1.05, 2.05, 3.05), (.95, 1.95, 3.1), (100, -100, 50), (-80, 90, -60)])
    save_file({"w": np.zeros(3)}, folder / "zero.safetensors")
    for k, row in enumerate(golden):
        save_file({"w": row.copy()}, folder / f"g{k}.safetensors")
    for order in (range(7), random.permutation(7)):
        updates = [(folder / f"g{k}.safetensors", 1.0) for k in order]
        result, _ = aggregate(folder, folder / "zero.safetensors", updates, "--strategy", "krum", "--param", "byzantine=2")
        assert (result["w"] == golden[0]).all(), result["w"]
    # One update mixed with the model it started from.
    done = subprocess.run([TRIBUTARY, "aggregate", "--strategy", "fedasync", "--model", str(folder / "x.safetensors"), "--update",
                           f"{folder / 'd0.safetensors'}:1,staleness=3,base={folder / 'd1.safetensors'}", "--out", str(folder / "mixed.safetensors")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from safetensors.numpy import load_file
    check("fedasync", load_file(folder / "mixed.safetensors")["w"], x + 0.3 * (deltas[1] + deltas[0] - x))
    for bad, words in (((["--strategy", "fednova"], ""), "step_norm"), ((["--strategy", "fedavg"], ",step_norm=3"), "step_norm"),
                       ((["--strategy", "krum", "--param", "byzantine=3"], ""), "at least 9"),
                       ((["--strategy", "known_p", "--param", "p=0.5, 0.5"], ""), "2 values, 7 clients")):
        (flags, suffix) = bad
        args = [a for k in range(n) for a in ("--update", f"{folder / f'd{k}.safetensors'}:1{suffix}")]
        done = subprocess.run([TRIBUTARY, "aggregate", *flags, "--model", str(folder / "x.safetensors"), *args, "--out", str(folder / "no.safetensors")],
                              capture_output=True, text=True)
        assert done.returncode != 0 and words in done.stderr, (flags, done.stderr)
        assert not (folder / "no.safetensors").exists()


main()
