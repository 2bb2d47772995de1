"""A job's shape, timing, transport and number of workers are invisible in a reproducible model: 36 combinations for each transport over
real daemons give one hash, that of `tributary aggregate` from the same files. Gate T17: so it is for the other strategies that sum, and
without fixed point shapes differ by rounding only.

usage: hierarchy_test.py BIN_DIR
"""
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, from_f32, known_hash, read_safetensors, transports, write_known_files  # noqa: E402

WEIGHTS = [1.0, 3.0, 600.0, 17.5, 0.25]
SHAPES = ["flat", "shard", "tree"]
TIMINGS = ["eager", "lazy", "batch:4", "jit"]


STRATEGIES = ["{name: fedavgm}", "{name: fedadam, server_lr: 0.1}", "{name: fedyogi, server_lr: 0.1}", "{name: fedau}", "{name: known_p, p: 0.5}", "{name: fedprox}"]


def other_strategies(federation, folder):
    """On the clients of this federation."""
    def run(strategy, shape, reproducible):
        job = federation.submit(f"name: s\nmodel: {{tensors: {folder}/model.safetensors}}\nstrategy: {strategy}\ncohort: {{size: {len(WEIGHTS)}}}\n"
                                f"stop: {{versions: 2}}\nlocal: {{steps: 3, lr: 0.1}}\nreproducible: {reproducible}\n"
                                f"hierarchy: {{shape: {shape}, plan: \"static:2\"}}\n")
        shown = federation.wait_job(job, timeout=60)
        assert shown["state"] == "done", (strategy, shape, shown)
        return shown

    for strategy in STRATEGIES:
        hashes = {run(strategy, shape, "true")["model_sha256"] for shape in SHAPES}
        assert len(hashes) == 1, (strategy, hashes)
        models = []
        for shape in SHAPES:
            out = federation.work / "out.safetensors"
            federation.cli("state", "export", run(strategy, shape, "false")["id"], "--out", out)
            models.append(from_f32(read_safetensors(out)["w"][2]))
        # Sums are fp64; a float32 model may round to either side of what differs in the last bit of a sum.
        worst = max(abs(a - b) for model in models[1:] for a, b in zip(model, models[0]))
        assert worst <= 1e-6, (strategy, worst)


def main():
    bin_dir = Path(sys.argv[1])
    with Federation(bin_dir) as scratch:
        folder = scratch.work / "files"
        folder.mkdir()
        write_known_files(folder, len(WEIGHTS))
        reference = known_hash(scratch, folder, WEIGHTS)
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
                if workers == 4 and transport == ways[0]:
                    other_strategies(federation, folder)
        assert runs == 36 * len(ways), runs
    print(f"{runs} combinations of shape, timing, workers and transport ({', '.join(ways)}): one hash, {reference[:16]}…")


if __name__ == "__main__":
    main()
