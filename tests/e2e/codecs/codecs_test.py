"""Jobs with every codec through real daemons: fewer bytes, the right sums, the same bits however the work is split, and top-k's client
state in step with what the server counted.

usage: codecs_test.py BIN_DIR
"""
import array
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, from_f32, read_safetensors, write_safetensors  # noqa: E402

BIN = Path(sys.argv[1])
ELEMENTS, CLIENTS = 100_003, 3  # no multiple of any block
JOB = ("name: {name}\nmodel: {{tensors: {folder}/model.safetensors}}\ncohort: {{size: {clients}}}\nstop: {{versions: {versions}}}\n"
       "strategy: {{name: fedavg, weighting: uniform}}\ncodec: {codec}\nreproducible: true\nseed: 11\n")


def write_files(folder):
    rng = random.Random(3)
    write_safetensors(folder / "model.safetensors", {"w": ("F32", [ELEMENTS], f32([0.0] * ELEMENTS))})
    updates = []
    for i in range(CLIENTS):
        updates.append([rng.gauss(0, 0.01) for _ in range(ELEMENTS)])
        write_safetensors(folder / f"c-{i}.safetensors", {"w": ("F32", [ELEMENTS], f32(updates[-1]))})
    return [sum(values) / CLIENTS for values in zip(*(array.array("f", u) for u in updates))]


def run(folder, codec, workers=1, versions=1, flags=(), restart_client=False):
    """(the job as shown, the model of the last version)."""
    with Federation(BIN, workers=workers, aggregator_flags=flags) as federation:
        federation.start_aggregator()
        start = lambda: federation.start_client("c", "--identities", CLIENTS, "--learner", "file", "--updates", folder)
        client = start()
        job = federation.submit(JOB.format(name="codec", folder=folder, clients=CLIENTS, versions=versions, codec=codec))
        if restart_client:
            federation.wait_version(job, versions // 2)
            client.kill()
            client.wait()
            start()
        shown = federation.wait_job(job)
        assert shown["state"] == "done", shown
        assert shown["updates_rejected"] == {}, shown["updates_rejected"]
        federation.cli("state", "export", job, "--out", federation.work / "out.safetensors")
        return shown, from_f32(read_safetensors(federation.work / "out.safetensors")["w"][2])


def main():
    with Federation(BIN) as scratch:  # for its folder
        folder = scratch.work
        mean = write_files(folder)
        plain, model = run(folder, "f32")
        assert max(abs(a - b) for a, b in zip(model, mean)) < 1e-8
        # The largest element is below 0.06; a step of int8 is a 127th of a block's largest, of int4 a 7th; bf16 keeps 8 bits, f16 11.
        for codec, fewer, error in (("bf16", 1.99, 0.06 / 256), ("f16", 1.99, 0.06 / 2048), ("int8", 3.8, 0.06 / 127), ("int4", 7.5, 0.06 / 7)):
            shown, model = run(folder, codec)
            assert plain["bytes_up"] / shown["bytes_up"] >= fewer, (codec, plain["bytes_up"], shown["bytes_up"])
            worst = max(abs(a - b) for a, b in zip(model, mean))
            assert 0 < worst < error, (codec, worst, error)
            # Rounding is drawn by client, version and element: the same bits over other workers and another shape.
            for workers in (3,):
                again, _ = run(folder, codec, workers=workers)
                assert again["model_sha256"] == shown["model_sha256"], codec
            print(f"{codec}: {plain['bytes_up'] / shown['bytes_up']:.2f} times fewer bytes, largest error {worst:.2g}")
        # Each update carries a tenth of the elements; with error feedback 30 of them bring all of every one of them, but for what is on
        # its way. A client that is killed in between goes on with the state that belongs to what was counted.
        versions = 30
        shown, model = run(folder, "{kind: topk, fraction: 0.1}", versions=versions)
        assert plain["bytes_up"] * versions / shown["bytes_up"] >= 4.9, shown["bytes_up"]
        missing = max(abs(a - versions * b) for a, b in zip(model, mean)) / versions
        assert missing < 0.01, missing
        again, _ = run(folder, "{kind: topk, fraction: 0.1}", versions=versions, restart_client=True)
        assert again["model_sha256"] == shown["model_sha256"], "a client's restart changed the trajectory"
        print(f"topk: {plain['bytes_up'] * versions / shown['bytes_up']:.2f} times fewer bytes, largest rest per version {missing:.2g}")


main()
