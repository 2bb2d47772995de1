"""The wire result is right: scripted clients with known updates give exactly the weighted mean, over gRPC, shared memory and the
state store, for 1, 2 and 4 workers and any arrival order; `tributary aggregate` gives the same bytes from files. So over every transport,
with one hash (accept T15).

usage: wire_test.py BIN_DIR
"""
import itertools
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, from_f32, transports, read_safetensors, write_safetensors  # noqa: E402

SHAPES = {"layer.weight": [300, 170], "layer.bias": [300], "scalar": []}
WEIGHTS = [1.0, 3.0, 600.0, 17.5]
FIXED_POINT_BITS = 40


def elements(shape):
    count = 1
    for extent in shape:
        count *= extent
    return count


def make_files(folder, seed):
    rng = random.Random(seed)
    model = {name: ("F32", shape, f32(rng.uniform(-1, 1) for _ in range(elements(shape)))) for name, shape in SHAPES.items()}
    updates = [{name: ("F32", shape, f32(rng.gauss(0, 0.01) for _ in range(elements(shape)))) for name, shape in SHAPES.items()}
               for _ in WEIGHTS]
    write_safetensors(folder / "model.safetensors", model)
    for i, update in enumerate(updates):
        write_safetensors(folder / f"site-{i}.safetensors", update)
    return model, updates


def expected(model, updates):
    """fp64 mean, and the fixed-point rule round-half-even(w·x·2^40) summed in integers, divided once."""
    plain, fixed = {}, {}
    total = sum(WEIGHTS)
    for name in SHAPES:
        old = from_f32(model[name][2])
        parts = [from_f32(u[name][2]) for u in updates]
        scale = 2.0 ** FIXED_POINT_BITS
        plain[name], fixed[name] = [], []
        for i, base in enumerate(old):
            plain[name].append(base + sum(w * p[i] for w, p in zip(WEIGHTS, parts)) / total)
            sums = sum(round(w * p[i] * scale) for w, p in zip(WEIGHTS, parts))
            fixed[name].append(base + (sums / scale) / total)
        fixed[name] = f32(fixed[name])
    return plain, fixed


def run_job(bin_dir, folder, workers, order, reproducible, transfer, transport):
    with Federation(bin_dir, workers=workers, aggregator_flags=["--local-transfer", transfer, "--transport", transport]) as federation:
        federation.start_aggregator()
        assert federation.cli("nodes", "show")["transport"] == transport
        job = federation.submit(
            f"name: wire\nmodel: {{tensors: {folder}/model.safetensors}}\nstrategy: fedavg\ncohort: {{size: {len(WEIGHTS)}}}\n"
            f"stop: {{versions: 1}}\nreproducible: {str(reproducible).lower()}\n")
        for position, i in enumerate(order):  # training times set the arrival order
            federation.start_client(f"site-{i}", "--learner", "file", "--updates", folder, "--weight", WEIGHTS[i],
                                    "--train-ms", 60 * position)
        shown = federation.wait_job(job)
        assert shown["state"] == "done", shown
        assert shown["updates_committed"] == len(WEIGHTS), shown
        federation.cli("state", "export", job, "--out", folder / "out.safetensors")
        got = {name: data for name, (_, _, data) in read_safetensors(folder / "out.safetensors").items()}
        return got, shown["model_sha256"]


def aggregate(federation, folder, order, reproducible):
    flags = ["--reproducible"] if reproducible else []
    for i in order:
        flags += ["--update", f"{folder}/site-{i}.safetensors:{WEIGHTS[i]}"]
    document = federation.cli("aggregate", "--strategy", "fedavg", "--model", folder / "model.safetensors", *flags,
                              "--out", folder / "files.safetensors", server=False)
    got = {name: data for name, (_, _, data) in read_safetensors(folder / "files.safetensors").items()}
    return got, document["model_sha256"]


def max_norm_error(got, reference):
    worst = biggest = 0.0
    for name, values in reference.items():
        for a, b in zip(from_f32(got[name]), values):
            worst, biggest = max(worst, abs(a - b)), max(biggest, abs(b))
    return worst / biggest


def main():
    bin_dir = Path(sys.argv[1])
    with Federation(bin_dir) as scratch:
        folder = scratch.work / "files"
        folder.mkdir()
        model, updates = make_files(folder, seed=11)
        plain, fixed = expected(model, updates)
        orders = list(itertools.permutations(range(len(WEIGHTS))))
        hashes = set()
        cases = [(1, orders[0], "on"), (2, orders[7], "off"), (4, orders[23], "on"), (1, orders[14], "off")]
        for transport, (workers, order, transfer) in itertools.product(transports(bin_dir), cases):
            got, sha = run_job(bin_dir, folder, workers, order, True, transfer, transport)
            what = f"{transport}, {workers} workers, order {order}, local transfer {transfer}"
            for name in SHAPES:
                assert got[name] == fixed[name], f"{name} differs from the fixed-point mean: {what}"
            hashes.add(sha)
            got, _ = run_job(bin_dir, folder, workers, order, False, transfer, transport)
            error = max_norm_error(got, plain)
            print(f"{what}: max-norm relative error {error:.2e}")
            assert error <= 1e-6, error
        for order in orders[::5]:
            got, sha = aggregate(scratch, folder, order, reproducible=True)
            assert all(got[name] == fixed[name] for name in SHAPES), f"tributary aggregate differs, order {order}"
            hashes.add(sha)
            assert max_norm_error(aggregate(scratch, folder, order, reproducible=False)[0], plain) <= 1e-6
        assert len(hashes) == 1, f"reproducible model hashes differ: {hashes}"
    print("wire result: daemons, files and the reference agree")


if __name__ == "__main__":
    main()
