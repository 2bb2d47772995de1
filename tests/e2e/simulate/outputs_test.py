"""What `simulate` leaves and refuses: the state store, curves, TensorBoard events, `compare`, equal results for equal seeds, T20's bad days.
usage: outputs_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import json  # noqa: E402
import struct  # noqa: E402
import xml.etree.ElementTree as ElementTree  # noqa: E402

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from simulations import FAILED, REFUSED, check, close, main  # noqa: E402

Q4 = reference.q4()
NOISY = {"participation": {"kind": "bernoulli", "p": .6}, "delay": {"kind": "exponential", "mean": 2}, "gradient_noise": .3}


def equal_seeds_give_equal_bits(simulator):
    run = lambda *flags: simulator.run(Q4, flags=flags, strategy={"name": "fedavg"}, simulate=NOISY, stop={"versions": 50})
    first, again, other = run("--seed", 1), run("--seed", 1, "--threads", 2), run("--seed", 2)
    check(first["model_sha256"] == again["model_sha256"], "the same seed, one and two threads: the models differ")
    check(first["virtual_s"] == again["virtual_s"], "the same seed: times differ")
    check(first["model_sha256"] != other["model_sha256"], "two seeds give one model")
    exact = [simulator.run(Q4, flags=("--threads", n), simulate=NOISY, reproducible=True)["model_sha256"] for n in (1, 2)]
    check(exact[0] == exact[1], "reproducible: the models differ")


def the_store_reads_like_any_other(simulator):
    store = simulator.work / "store"
    document = simulator.run(Q4, flags=["--out", store], strategy={"name": "fedavgm"}, stop={"versions": 6}, evaluate={"every": 2})
    listed = json.loads(simulator.command("state", "ls", "--store", store, "--json").stdout)
    check(listed["job"] == document["id"] and [v["version"] for v in listed["versions"]] == list(range(7)), f"state ls: {listed}")
    version = json.loads(simulator.command("state", "get", "--store", store, "--version", 4, "--json").stdout)
    check({c["client"] for c in version["contributors"]} == {f"client-{i}" for i in range(4)}, f"contributors: {version['contributors']}")
    check(version["strategy_state"] == ["momentum"] and len(version["metrics"]) == 1, f"state get: {version}")
    expected = reference.trajectory("fedavgm", Q4, 6, .1, 5)
    for v in range(1, 7):
        close(simulator.export(store, v), expected[v - 1], 1e-9, f"exported version {v}")
    simulator.command("state", "verify", "--store", store)
    at_last = [m for m in document["metrics"] if m["version"] == 6][0]
    close(at_last["loss"], sum(reference.loss(a, b, document["x"]) for a, b in zip(*Q4)) / 4, 1e-12, "the last loss")
    check(at_last["bytes_up"] == 6 * 4 * 16 == document["bytes_up"], f"bytes up: {at_last}")
    simulator.run(Q4, flags=["--out", store], strategy={"name": "fedavgm"}, stop={"versions": 6}, evaluate={"every": 2}, code=REFUSED)


def curves_are_drawn_and_compared(simulator):
    store, plot = simulator.work / "store", simulator.work / "curves.svg"
    for name in ["fedavg", "fednova"]:
        simulator.run(Q4, flags=["--out", store, "--plot", plot], name=f"job-{name}", strategy={"name": name}, evaluate={"every": 1})
    svg = ElementTree.parse(plot).getroot()
    paths = [p for p in svg.iter("{http://www.w3.org/2000/svg}path") if p.get("class") == "c"]
    check(len(paths) == 3, f"one curve over versions, one over seconds, and the legend's line: got {len(paths)}")
    both = simulator.work / "both.svg"
    compared = json.loads(simulator.command("compare", "job-fedavg", "job-fednova", "--store", store, "--plot", both, "--json").stdout)
    check([job["version"] for job in compared["jobs"]] == [20, 20] and compared["goal"]["quantity"] == "loss", f"compare: {compared['goal']}")
    check(all(job["goal"]["version"] <= 20 for job in compared["jobs"]), "each job reaches what all reach")
    texts = [t.text for t in ElementTree.parse(both).getroot().iter("{http://www.w3.org/2000/svg}text")]
    check(any("job-fednova" in t for t in texts if t), f"the legend names the jobs: {texts}")
    simulator.command("compare", "job-fedavg", "nobody", "--store", store, code=3)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def tensorboard_events_have_their_framing(simulator):
    folder = simulator.work / "tb"
    document = simulator.run(Q4, flags=["--tensorboard", folder], evaluate={"every": 5})
    content = (folder / document["id"] / "events.out.tfevents.0.tributary").read_bytes()
    records, at = [], 0
    while at < len(content):
        length, length_crc = struct.unpack_from("<QI", content, at)
        data = content[at + 12:at + 12 + length]
        data_crc, = struct.unpack_from("<I", content, at + 12 + length)
        check(length_crc == masked(content[at:at + 8]) and data_crc == masked(data), f"record {len(records)}: wrong checksum")
        records.append(data)
        at += 16 + length
    check(b"brain.Event:2" in records[0], "the first record names the format")
    check(len(records) == 1 + len(document["metrics"]), f"expected a record for each of {len(document['metrics'])} evaluations")
    loss = np.float32(document["metrics"][-1]["loss"])
    check(b"loss" in records[-1] and struct.pack("<f", loss) in records[-1], "the last record has the last loss")


def wrong_jobs_are_refused_with_the_reason(simulator):
    folder = simulator.problem(Q4)
    def refused(words, code=REFUSED, **keys):
        document = json.loads(simulator.command("simulate", simulator.job(folder, 4, **keys), "--json", code=code).stdout)
        message = document["error"]["message"]
        check(words in message, f"expected a message with '{words}', got '{message}'")
    refused("did you mean 'participation'?", simulate={"participaton": {"kind": "all"}})
    refused("did you mean 'bernoulli'?", simulate={"participation": {"kind": "bernouli", "p": .5}})
    refused("expected one number, or one for each of 4 clients, got 3", simulate={"participation": {"kind": "bernoulli", "p": [.1, .2, .3]}})
    refused("at most 4 clients, got 5", simulate={"participation": {"kind": "fixed", "size": 5}})
    refused("for asynchronous strategies", simulate={"delay": {"kind": "trace", "events": "D0 U0"}})
    refused("one file for each client", data={"source": "safetensors", "path": str(folder), "partition": {"kind": "iid"}})
    refused("did you mean 'fednova'?", strategy={"name": "fednava"})
    refused("no parameter 'depth'", model={"zoo": "quadratic", "params": {"depth": 3}})
    document = json.loads(simulator.command("simulate", simulator.job(folder, 4), "--clients", 9, "--json", code=REFUSED).stdout)
    check("has 4 files" in document["error"]["message"], f"too many clients: {document}")


def a_run_that_diverges_fails_by_name(simulator):
    document = simulator.run(Q4, code=FAILED, local={"steps": 5, "lr": 40}, stop={"versions": 5000})
    check(document["state"] == "failed" and "not finite" in document["state_reason"] and "lower local.lr" in document["state_reason"],
          f"state: {document['state']}: {document['state_reason']}")


def a_trace_without_the_missing_is_the_same_run(simulator):
    """T20: empty rounds leave model and strategy state bit-identical to the run without them."""
    stores = {}
    for name, rounds in [("with", [[0, 1], [], [2, 3]]), ("without", [[0, 1], [2, 3]])]:
        stores[name] = simulator.work / name
        simulator.run(Q4, flags=["--out", stores[name]], strategy={"name": "fedavgm"}, stop={"versions": 9 if name == "with" else 6},
                      simulate={"participation": {"kind": "trace", "rounds": rounds}})
    hashes = {name: [v["sha256"] for v in json.loads(simulator.command("state", "ls", "--store", store, "--json").stdout)["versions"]]
              for name, store in stores.items()}
    kept = [h for v, h in enumerate(hashes["with"]) if v % 3 != 2]
    check(kept == hashes["without"], "empty rounds change later versions")


def a_recorded_job_is_folded_again(simulator):
    simulate = {"participation": {"kind": "bernoulli", "p": .6}}
    for name, keys in [("fedavgm", {}), ("fedau", {}), ("scaffold", {}), ("mifa", {}), ("fedadmm", {"local": {"solver": "exact"}})]:
        store = simulator.work / f"recorded-{name}"
        document = simulator.run(Q4, flags=["--out", store], name=name, strategy={"name": name}, record=True, reproducible=True, simulate=simulate, **keys)
        replayed = json.loads(simulator.command("replay", name, "--store", store, "--json").stdout)
        check(replayed["equal"] and len(replayed["versions"]) == 20 and replayed["versions"][-1]["sha256"] == document["model_sha256"],
              f"{name}: the replay is not the record: {replayed}")
    store = simulator.work / "asynchronous"
    simulator.run(Q4, flags=["--out", store], name="buffered", strategy={"name": "fedbuff", "buffer": 2}, record=True, reproducible=True,
                  simulate={"delay": {"kind": "exponential", "mean": [1, 2, 3, 4]}})
    replayed = json.loads(simulator.command("replay", "--store", store, "--json").stdout)
    check(replayed["equal"], f"fedbuff: the replay is not the record: {replayed}")

    # Under another strategy: the same updates, another mean. Of the first version it can be told from the record alone.
    out = simulator.work / "replayed.safetensors"
    other = json.loads(simulator.command("replay", "--store", simulator.work / "recorded-fedavgm", "--strategy", "fedavg", "--param", "server_lr=0.5",
                                         "--json", "--out", out).stdout)
    check(not other["equal"] and other["strategy"] == "fedavg" and out.exists(), f"replay under fedavg: {other}")
    simulator.command("replay", "--store", simulator.work / "recorded-fedavgm", "--strategy", "fednova", code=REFUSED)
    simulator.run(Q4, record=True, code=REFUSED)


if __name__ == "__main__":
    main(sys.argv[1], [a_recorded_job_is_folded_again, equal_seeds_give_equal_bits, the_store_reads_like_any_other, curves_are_drawn_and_compared,
                       tensorboard_events_have_their_framing, wrong_jobs_are_refused_with_the_reason, a_run_that_diverges_fails_by_name,
                       a_trace_without_the_missing_is_the_same_run])
