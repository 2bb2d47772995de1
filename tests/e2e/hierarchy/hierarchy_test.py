"""A job's shape, timing, transport and number of workers are invisible in a reproducible model: 36 combinations for each transport over
real daemons give one hash, that of `tributary aggregate` from the same files.

usage: hierarchy_test.py BIN_DIR
"""
import itertools
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, transports, write_safetensors  # noqa: E402

ELEMENTS = 40_000  # more than two blocks of the accumulators, so that ranges differ with the number of workers
WEIGHTS = [1.0, 3.0, 600.0, 17.5, 0.25]
SHAPES = ["flat", "shard", "tree"]
TIMINGS = ["eager", "lazy", "batch:4", "jit"]


def make_files(folder):
    rng = random.Random(5)
    values = lambda spread: {"w": ("F32", [ELEMENTS], f32(rng.gauss(0, spread) for _ in range(ELEMENTS)))}
    write_safetensors(folder / "model.safetensors", values(1))
    for i in range(len(WEIGHTS)):
        write_safetensors(folder / f"site-{i}.safetensors", values(0.01))


def expected_hash(federation, folder):
    flags = []
    for i, weight in enumerate(WEIGHTS):
        flags += ["--update", f"{folder}/site-{i}.safetensors:{weight}"]
    return federation.cli("aggregate", "--strategy", "fedavg", "--model", folder / "model.safetensors", "--reproducible", *flags,
                          "--out", folder / "files.safetensors", server=False)["model_sha256"]


def main():
    bin_dir = Path(sys.argv[1])
    with Federation(bin_dir) as scratch:
        folder = scratch.work / "files"
        folder.mkdir()
        make_files(folder)
        reference = expected_hash(scratch, folder)
        runs = 0
        ways = transports(bin_dir)
        for transport, workers in itertools.product(ways, (1, 2, 4)):
            with Federation(bin_dir, workers=workers, aggregator_flags=["--transport", transport]) as federation:
                federation.start_aggregator()
                assert federation.cli("nodes", "show")["transport"] == transport
                for i, weight in enumerate(WEIGHTS):  # training times spread the arrivals
                    federation.start_client(f"site-{i}", "--learner", "file", "--updates", folder, "--weight", weight, "--train-ms", 15 * i)
                for shape, timing in itertools.product(SHAPES, TIMINGS):
                    what = f"{transport}, {workers} workers, shape {shape}, timing {timing}"
                    job = federation.submit(
                        f"name: h\nmodel: {{tensors: {folder}/model.safetensors}}\ncohort: {{size: {len(WEIGHTS)}}}\nstop: {{versions: 1}}\n"
                        f"reproducible: true\nhierarchy: {{shape: {shape}, plan: \"static:2\", timing: \"{timing}\"}}\n")
                    shown = federation.wait_job(job, timeout=60)
                    assert shown["state"] == "done", (what, shown)
                    assert shown["updates_committed"] == len(WEIGHTS), (what, shown)
                    assert shown["model_sha256"] == reference, f"{what}: {shown['model_sha256']}, expected {reference}"
                    runs += 1
        assert runs == 36 * len(ways), runs
    print(f"{runs} combinations of shape, timing, workers and transport ({', '.join(ways)}): one hash, {reference[:16]}…")


if __name__ == "__main__":
    main()
