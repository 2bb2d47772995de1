"""`tributary aggregate` against NumPy: float mode within 1e-6 (max norm) of a float64 mean, reproducible mode bit for bit over
permutations of the updates and bit for bit equal to fixed point done with NumPy's int64.

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
    print("aggregate agrees with NumPy")


main()
