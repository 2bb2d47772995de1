"""A job's shape, timing, transport and number of workers are invisible in a reproducible model: 36 combinations for each transport over
real daemons give one hash, that of `tributary aggregate` from the same files.

usage: hierarchy_test.py BIN_DIR
"""
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, known_hash, transports, write_known_files  # noqa: E402

WEIGHTS = [1.0, 3.0, 600.0, 17.5, 0.25]
SHAPES = ["flat", "shard", "tree"]
TIMINGS = ["eager", "lazy", "batch:4", "jit"]


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
        assert runs == 36 * len(ways), runs
    print(f"{runs} combinations of shape, timing, workers and transport ({', '.join(ways)}): one hash, {reference[:16]}…")


if __name__ == "__main__":
    main()
