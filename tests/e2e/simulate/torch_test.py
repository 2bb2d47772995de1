"""`tributary simulate` with LibTorch models: a thousand clients of the CNN, one round against NumPy, equal bits for equal seeds, errors.
usage: torch_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import json  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402

from harness import read_safetensors, write_safetensors  # noqa: E402
from simulations import FAILED, REFUSED, check, close, main  # noqa: E402

NOT_FOUND = 3
FASHION = {"source": "fashion-mnist", "partition": {"kind": "dirichlet", "alpha": .3}, "seed": 7}


def job(simulator, **keys):
    """A job whose model is trained by LibTorch."""
    file = simulator.work / "job.yaml"
    content = {"name": "test", "model": {"zoo": "linear"}, "data": FASHION, "cohort": {"size": 10}, "local": {"epochs": 1, "batch": 20, "lr": .05},
               "stop": {"versions": 2}, "evaluate": {"every": 1_000_000}, "seed": 3}
    content.update(keys)
    file.write_text(json.dumps(content))
    return file


def simulated(simulator, flags=(), code=0, **keys):
    return json.loads(simulator.command("simulate", job(simulator, **keys), "--json", *flags, code=code).stdout)


def a_thousand_clients_train_the_cnn(simulator):
    store = simulator.work / "store"
    shown = simulated(simulator, model={"zoo": "cnn"}, cohort={"size": 100}, local={"epochs": 1, "batch": 10, "lr": .1}, stop={"versions": 4},
                      evaluate={"every": 2}, flags=["--clients", 1000, "--out", store])
    check(shown["clients"] == 1000 and shown["state"] == "done" and shown["clients_trained"] == shown["updates_committed"] == 400, f"{shown}")
    check([m["version"] for m in shown["metrics"]] == [2, 4] and all(m["examples"] == 10000 for m in shown["metrics"]), f"{shown['metrics']}")
    first, last = shown["metrics"]
    check(last["accuracy"] > .4 and last["loss"] < first["loss"], f"it learns: measured 0.49, got {shown['metrics']}")
    out = simulator.work / "model.safetensors"
    simulator.command("state", "export", "--store", store, "--out", out)
    check(sum(int(np.prod(shape)) for _, shape, _ in read_safetensors(out).values()) == 207_178, "the exported model is the CNN")
    simulator.command("state", "verify", "--store", store)


def equal_seeds_give_equal_bits_whatever_the_threads(simulator):
    keys = {"model": {"zoo": "cnn"}, "simulate": {"participation": {"kind": "bernoulli", "p": .5}, "delay": {"kind": "exponential", "mean": 1}}}
    run = lambda *flags: simulated(simulator, flags=["--clients", 500, *flags], evaluate={"every": 1}, **keys)
    one, again, two, other = run("--threads", 1), run("--threads", 1), run("--threads", 2), run("--seed", 4)
    check(one["model_sha256"] == again["model_sha256"] == two["model_sha256"], "the same seed, one and two threads: the models differ")
    check(one["metrics"] == two["metrics"], f"one and two threads measure differently: {one['metrics']}, {two['metrics']}")
    check(one["model_sha256"] != other["model_sha256"], "two seeds give one model")


def mlp_loss(layers, x, y):
    """Mean cross-entropy of dense - ReLU - dense, and its gradients."""
    (w1, b1), (w2, b2) = layers
    h = np.maximum(x @ w1.T + b1, 0)
    scores = h @ w2.T + b2
    scores -= scores.max(axis=1, keepdims=True)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    loss = -np.mean(np.log(p[np.arange(len(y)), y]))
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    back = (p @ w2) * (h > 0)
    return loss, [(back.T @ x, back.sum(axis=0)), (p.T @ h, p.sum(axis=0))]


def rounds_of_full_batches_are_those_of_numpy(simulator):
    rng, clients, features, hidden, classes, steps, lr = np.random.default_rng(5), 3, 6, 5, 4, 3, .2
    folder = simulator.work / "data"
    folder.mkdir()

    def write(name, x, y):
        write_safetensors(folder / f"{name}.safetensors", {"x": ("F32", x.shape, x.tobytes()), "y": ("I64", y.shape, y.astype("<i8").tobytes())})
        return x.astype(float), y

    shards = [write(i, rng.normal(size=(8 + 5 * i, features)).astype("<f4"), np.arange(8 + 5 * i) % classes) for i in range(clients)]
    test = write("test", rng.normal(size=(20, features)).astype("<f4"), np.arange(20) % classes)
    layers = [(rng.normal(size=(hidden, features)), rng.normal(size=hidden)), (rng.normal(size=(classes, hidden)), rng.normal(size=classes))]
    layers = [(w.astype("<f4").astype(float), b.astype("<f4").astype(float)) for w, b in layers]
    names = [("fc1.weight", "fc1.bias"), ("fc2.weight", "fc2.bias")]
    init = simulator.work / "init.safetensors"
    write_safetensors(init, {name: ("F32", value.shape, value.astype("<f4").tobytes()) for pair, layer in zip(names, layers) for name, value in zip(pair, layer)})
    out = simulator.work / "store"
    shown = simulated(simulator, model={"zoo": "mlp", "params": {"input": str(features), "classes": classes, "hidden": hidden}, "init": str(init)},
                      data={"source": "safetensors", "path": str(folder), "partition": {"kind": "by_file"}}, cohort={"size": clients},
                      local={"steps": steps, "batch": 100, "lr": lr}, stop={"versions": 5}, flags=["--out", out])
    for _ in range(5):
        changes = [[np.zeros_like(value) for value in layer] for layer in layers]
        for x, y in shards:
            mine = layers
            for _ in range(steps):
                mine = [tuple(v - lr * g for v, g in zip(layer, gradient)) for layer, gradient in zip(mine, mlp_loss(mine, x, y)[1])]
            for change, before, after in zip(changes, layers, mine):
                for i in range(2):
                    change[i] += len(y) * (after[i] - before[i])
        examples = sum(len(y) for _, y in shards)
        layers = [tuple(value + c / examples for value, c in zip(layer, change)) for layer, change in zip(layers, changes)]
    exported = simulator.work / "model.safetensors"
    simulator.command("state", "export", "--store", out, "--out", exported)
    tensors = read_safetensors(exported)
    for pair, layer in zip(names, layers):
        for name, value in zip(pair, layer):
            close(np.frombuffer(tensors[name][2], "<f4").reshape(value.shape), value, 2e-5, name)  # fp32: 15 steps of 1e-7 at values of 1
    close(shown["metrics"][-1]["loss"], mlp_loss(layers, *test)[0], 2e-5, "the last loss")


def strategies_that_keep_client_state_and_those_without_rounds_run(simulator):
    for strategy in ({"name": "scaffold_m"}, {"name": "fedbuff", "buffer": 5}, {"name": "fedprox", "mu": .1}):
        shown = simulated(simulator, flags=["--clients", 20], strategy=strategy, stop={"versions": 6}, local={"steps": 20, "batch": 20, "lr": .05},
                          simulate={"delay": {"kind": "uniform", "low": 1, "high": 2}})
        check(shown["state"] == "done" and shown["metrics"][-1]["accuracy"] > .3, f"{strategy}: {shown['state']}, {shown['metrics']}")


def what_cannot_be_is_refused_by_name(simulator):
    def refused(words, code, flags=("--clients", 4), **keys):
        file = job(simulator, **keys)
        done = simulator.command("simulate", file, *flags, code=None)
        said = done.stdout + done.stderr
        check(done.returncode == code and all(word in said for word in words), f"{keys} {flags}: expected exit {code} and {words}, got {done.returncode}: {said}")

    refused(["cnnn", "cnn"], NOT_FOUND, model={"zoo": "cnnn"})
    refused(["60001", "60000"], REFUSED, flags=("--clients", 60001), data={"source": "fashion-mnist"})
    refused(["/nowhere"], NOT_FOUND, data={"source": "idx", "path": "/nowhere"})
    refused(["client 'client-", "version 0", "lower local.lr"], FAILED, model={"zoo": "mlp"}, local={"steps": 20, "lr": 1e6})
    if not Path("/dev/nvidia0").exists():
        refused(["CUDA"], REFUSED, flags=("--clients", 4, "--device", "cuda"))


def an_interrupt_ends_it_soon_and_says_so(simulator):
    file = job(simulator, model={"zoo": "cnn"}, cohort={"size": 1000}, stop={"versions": 1000})
    process = subprocess.Popen([simulator.bin / "tributary", "simulate", file, "--clients", "1000", "--json"], stdout=subprocess.PIPE, text=True)
    time.sleep(4)  # whatever it is doing then
    process.send_signal(signal.SIGINT)
    begin = time.time()
    output, _ = process.communicate(timeout=60)
    check(time.time() - begin < 20, f"an interrupt took {time.time() - begin:.1f} s")
    check(process.returncode == FAILED and json.loads(output)["state"] == "cancelled", f"exit {process.returncode}: {output[:300]}")


if __name__ == "__main__":
    main(sys.argv[1], [a_thousand_clients_train_the_cnn, equal_seeds_give_equal_bits_whatever_the_threads, rounds_of_full_batches_are_those_of_numpy,
                       strategies_that_keep_client_state_and_those_without_rounds_run, what_cannot_be_is_refused_by_name,
                       an_interrupt_ends_it_soon_and_says_so])
