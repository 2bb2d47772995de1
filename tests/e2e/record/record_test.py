"""`record: true` in daemons: the job's updates are kept as they came, through kill -9 of the aggregator, and `tributary replay` folds them
again bit for bit, or under another strategy; what would not fit is refused at submission.

usage: record_test.py BIN_DIR
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, write_safetensors  # noqa: E402

BIN = Path(sys.argv[1])
CLIENTS, REFUSED = 3, 5


def yaml(federation, name, strategy, versions, elements, rest=""):
    model = federation.work / f"model-{elements}.safetensors"
    if not model.exists():
        write_safetensors(model, {"w": ("F32", [elements], f32([0.0] * elements))})
    return (f"name: {name}\nmodel: {{tensors: {model}}}\nstrategy: {strategy}\ncohort: {{size: {CLIENTS}}}\nstop: {{versions: {versions}}}\n"
            f"reproducible: true\nrecord: true\nseed: 4\n{rest}")


def replayed(federation, job, *flags):
    return federation.cli("replay", job, "--store", federation.work / "store", *flags, server=False)


def main():
    with Federation(BIN) as federation:
        federation.start_aggregator()
        federation.start_client("c", "--identities", CLIENTS, "--learner", "onehot")
        jobs = {}
        # 200,003 elements are a file of their own in the store, 64 lie beside their row.
        for name, strategy, elements, rest in [("momentum", "{name: fedavgm}", 64, ""), ("large", "fedavg", 200_003, ""), ("coded", "fedavg", 5000, "codec: int8\n"),
                                               ("left-out", "fedavg", 5000, "codec: {kind: topk, fraction: 0.1}\n"),
                                               ("participation", "{name: fedau}", 64, ""), ("middle", "{name: median}", 64, ""),
                                               ("buffered", "{name: fedbuff, buffer: 2}", 64, "")]:
            versions = 6
            job = federation.submit(yaml(federation, name, strategy, versions, elements, rest))
            if name == "large":
                federation.wait_version(job, 2)
                federation.kill_aggregator()
                federation.start_aggregator()
            shown = federation.wait_job(job)
            assert shown["state"] == "done" and shown["version"] == versions, shown
            jobs[name] = shown

        # What would not fit is refused before anything is sent, with the numbers; so is what the record could not hold.
        path = federation.work / "refused.yaml"
        for rest, words in [(yaml(federation, "much", "fedavg", 1_000_000, 5000), ["record: true", "MiB", "record_mb"]),
                            (yaml(federation, "private", "{name: fedavg, weighting: uniform}", 3, 64, "privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5}\n"),
                             ["privacy", "record: true"])]:
            path.write_text(rest)
            code, document, _ = federation.cli("submit", path, check=False)
            message = document["error"]["message"]
            assert code == REFUSED and all(word in message for word in words), message
        federation.aggregator.terminate()
        federation.aggregator.wait()

        for name, shown in jobs.items():
            again = replayed(federation, shown["id"])
            assert again["equal"] and len(again["versions"]) == 6, (name, again)
            assert again["versions"][-1]["sha256"] == shown["model_sha256"], (name, again["versions"][-1], shown["model_sha256"])
        other = replayed(federation, jobs["momentum"]["id"], "--strategy", "median")
        assert not other["equal"] and other["strategy"] == "median" and len(other["versions"]) == 6, other
        # The first version of momentum is the plain mean.
        mean = replayed(federation, jobs["momentum"]["id"], "--strategy", "fedavg")
        assert mean["versions"][0]["sha256"] == mean["versions"][0]["recorded_sha256"] and not mean["equal"], mean
        federation.cli("state", "verify", "--store", federation.work / "store", server=False)
        print(f"replayed bit for bit: {', '.join(jobs)}")


main()
