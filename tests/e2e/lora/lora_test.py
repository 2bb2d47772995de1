"""A small language model is trained whole, exported, and fine-tuned by clients' adapters through daemons: only the adapters travel, fedit's error is not 0 and
fedex's is, AdaLoRA's budget falls, and what is exported is what PEFT writes (tests/golden/peft_lora.json): names, types, shapes, keys. Where
TRIBUTARY_PEFT_PYTHON names a Python with peft, transformers and torch (tests/golden/peft_lora.py says how to make one), PEFT loads each export, and its
loss is the one that the job's evaluation gave.

usage: lora_test.py BIN_DIR
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from safetensors.numpy import load_file

BIN = Path(sys.argv[1])
GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PEFT_PYTHON = os.environ.get("TRIBUTARY_PEFT_PYTHON")
TEXTS = {"de": "der hund lief durch den wald und die katze ", "en": "the cat sat on the mat and the dog ran ",
         "fr": "le chat dort sur le tapis et le chien court ", "pl": "kot spi na macie a pies biega po lesie "}
SHAPE = "layers: 2, width: 64, heads: 4, hidden: 128"
WHOLE, TUNED = 2, 3
LORA = "kind: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]"
# b(1) = int(6 + 18·(2/3)³) = 11, b(2) = int(6 + 18·(1/3)³) = 6 … of 24 triplets; version 3 fixes the pattern.
ADALORA = "kind: adalora, rank: 4, target_rank: 1, alpha: 8, orthogonal: 2, targets: [q_proj, v_proj, down_proj]"
TRIPLETS = {1: 11, 2: 6, 3: 6}

JOB = """
name: {name}
model: {{zoo: transformer, params: {{{shape}}}{model}}}
data: {{source: text, path: {texts}, partition: {{kind: by_file}}}}
strategy: {{name: fedavg{strategy}}}
cohort: {{size: {clients}}}
local: {{solver: sgd, steps: 20, batch: 8, lr: {lr}}}
stop: {{versions: {versions}}}
"""


def tributary(*args, code=0):
    # One thread each: several processes share the machine.
    done = subprocess.run([str(BIN / "tributary"), *map(str, args)], capture_output=True, text=True, timeout=200, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return done


def texts(folder, names):
    """A text a client, and one that the jobs are evaluated on."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.txt").write_text(TEXTS[name] * 300)
    (folder / "test.txt").write_text("".join(TEXTS[name] * 30 for name in names))
    return folder


def check_export(work, name, base, texts_folder, kind, loss):
    """The folder that a job's adapters are exported to, as PEFT would have written it."""
    out = work / f"peft-{name}"
    exported = json.loads(tributary("state", "export", name, "--store", work / name / "store", "--peft", out, "--json").stdout)
    assert exported["files"][:2] == ["adapter_config.json", "adapter_model.safetensors"], exported
    recorded = json.loads((GOLDEN / "peft_lora.json").read_text())["files"][kind]
    config, tensors = json.loads((out / "adapter_config.json").read_text()), load_file(out / "adapter_model.safetensors")
    assert {key: [str(value.dtype), list(value.shape)] for key, value in tensors.items()} == recorded["tensors"], sorted(tensors)
    assert set(config) <= set(recorded["config"]), set(config) - set(recorded["config"])
    own = {"target_modules", "tinit", "tfinal", "deltaT", "total_step", "orth_reg_weight"}  # of this job, not of the recorded one
    different = {key: (value, recorded["config"][key]) for key, value in config.items() if key not in own and value != recorded["config"][key]}
    assert not different and sorted(config["target_modules"]) == sorted(recorded["config"]["target_modules"]), (different, config["target_modules"])
    if PEFT_PYTHON:
        done = subprocess.run([PEFT_PYTHON, str(GOLDEN / "peft_lora.py"), "--load", str(out), str(base), str(texts_folder / "test.txt")], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        assert abs(answer["loss"] - loss) < 1e-5 and answer["without_adapters"] != answer["loss"], (name, answer, loss)
        print(f"{name}: PEFT {answer['peft']} loads {answer['tensors']} tensors; its loss {answer['loss']:.7f}, the job's {loss:.7f}, without adapters {answer['without_adapters']:.4f}")
    return out, tensors


def run(work, name, **values):
    job = work / f"{name}.yaml"
    job.write_text(JOB.format(name=name, shape=SHAPE, **values))
    shown = json.loads(tributary("run", job, "--clients", values["clients"], "--out", work / name, "--json").stdout)
    assert shown["state"] == "done" and shown["updates_committed"] == values["clients"] * values["versions"] and not shown["updates_rejected"], shown
    return shown


def check_adalora(work, base, all_texts):
    """The server takes triplets away as the budget says. The penalty brings A and B up from 0.02 first, hence its weight."""
    job = {"model": f", base: {base}, adapter: {{{ADALORA}}}", "texts": all_texts, "strategy": ", adapters: fedex", "clients": 4, "lr": 0.3, "versions": TUNED}
    shown = run(work, "adalora", **job)
    metrics = {m["version"]: m for m in shown["metrics"]}
    assert {v: m["adapter_triplets"] for v, m in metrics.items() if v > 0} == TRIPLETS, metrics
    assert metrics[TUNED]["loss"] < metrics[1]["loss"] and all(m["adapter_error"] < 1e-5 for v, m in metrics.items() if v > 0), metrics
    # A, E, B and one importance a triplet.
    assert shown["bytes_up"] / shown["updates_committed"] == 4 * 2 * 4 * (64 + 64 + 64 + 64 + 128 + 64 + 3 * 2), shown["bytes_up"]
    _, tensors = check_export(work, "adalora", base, all_texts, "adalora", metrics[TUNED]["loss"])
    live = sum(int(numpy.count_nonzero(value)) for name, value in tensors.items() if name.endswith(".lora_E"))
    assert live == TRIPLETS[TUNED], live
    # A simulation obeys the same budget, and its record gives the same bits again.
    file = work / "adalora.yaml"
    file.write_text(file.read_text() + "record: true\n")
    simulated = json.loads(tributary("simulate", file, "--out", work / "simulated", "--json").stdout)
    assert {m["version"]: m["adapter_triplets"] for m in simulated["metrics"] if m["version"] > 0} == TRIPLETS, simulated["metrics"]
    replayed = json.loads(tributary("replay", simulated["id"], "--store", work / "simulated", "--json").stdout)
    assert replayed["equal"] and replayed["versions"][-1]["sha256"] == simulated["model_sha256"], replayed
    check_bytes_follow_the_budget(work, job)
    file.write_text(file.read_text().replace("fedex", "flora"))
    refused = tributary("simulate", file, "--out", work / "refused-adalora", code=5)
    assert "flora begins each version with fresh factors" in refused.stdout + refused.stderr, refused.stderr


def masks(work, name, store, version):
    """Of each layer of a version: how many triplets are in, and what one of them takes in an update."""
    file = work / f"{name}-{version}.safetensors"
    tributary("state", "export", name, "--store", store, "--version", version, "--out", file)
    tensors = load_file(file)
    layers = [key.removesuffix(".lora_mask") for key in tensors if key.endswith(".lora_mask")]
    return [(int(tensors[f"{layer}.lora_mask"].sum()), 4 * (tensors[f"{layer}.lora_A"].shape[1] + tensors[f"{layer}.lora_B"].shape[0] + 2)) for layer in layers]


def check_bytes_follow_the_budget(work, job):
    """Where triplets that are out are out for good, updates hold the others alone: through daemons, in a simulation, and in its record."""
    job = {**job, "model": job["model"].replace("target_rank: 1", "target_rank: 1, regrow: false")}
    shown = run(work, "pruned", **job)
    assert {m["version"]: m["adapter_triplets"] for m in shown["metrics"] if m["version"] > 0} == TRIPLETS, shown["metrics"]
    sizes = [sum(count * each for count, each in masks(work, "pruned", work / "pruned" / "store", version)) for version in range(TUNED)]
    assert sizes[0] == 4 * 2 * 4 * (64 + 64 + 64 + 64 + 128 + 64 + 3 * 2) and sizes[0] > sizes[1] > sizes[2] > 0, sizes
    assert shown["bytes_up"] == job["clients"] * sum(sizes), (shown["bytes_up"], sizes)
    file = work / "pruned.yaml"
    file.write_text(file.read_text() + "record: true\n")
    simulated = json.loads(tributary("simulate", file, "--out", work / "simulated-pruned", "--json").stdout)
    sizes = [sum(count * each for count, each in masks(work, "pruned", work / "simulated-pruned", version)) for version in range(TUNED)]
    assert simulated["bytes_up"] == job["clients"] * sum(sizes), (simulated["bytes_up"], sizes)
    replayed = json.loads(tributary("replay", simulated["id"], "--store", work / "simulated-pruned", "--json").stdout)
    assert replayed["equal"] and replayed["versions"][-1]["sha256"] == simulated["model_sha256"], replayed
    print(f"without regrowth: an update has {sizes} bytes")


def main():
    with tempfile.TemporaryDirectory(prefix="tributary-lora-") as folder:
        work = Path(folder)
        few, all_texts = texts(work / "few", ["de", "en"]), texts(work / "all", TEXTS)
        whole = run(work, "whole", model="", texts=few, strategy="", clients=2, lr=0.3, versions=WHOLE)
        base = work / "base.safetensors"
        tributary("state", "export", "whole", "--store", work / "whole" / "store", "--out", base)

        adapter = f", base: {base}, adapter: {{{LORA}}}"
        tuned = {mode: run(work, mode, model=adapter, texts=all_texts, strategy=f", adapters: {mode}", clients=4, lr=0.1, versions=TUNED) for mode in ("fedit", "fedex")}
        for mode, shown in tuned.items():
            losses = {m["version"]: m["loss"] for m in shown["metrics"]}
            assert losses[TUNED] < losses[1], (mode, losses)
            errors = {m["version"]: m["adapter_error"] for m in shown["metrics"] if m["version"] > 0}
            assert all(error > 1e-3 if mode == "fedit" else error < 1e-5 for error in errors.values()), (mode, errors)
            assert {r["version"]: r["adapter_error"] for r in shown["rounds"]}[TUNED] == errors[TUNED], shown["rounds"]
            print(f"{mode}: losses {losses}, errors {errors}")

        # Adapters up: A and B of three layers twice, 4-byte floats; the whole model goes up otherwise.
        whole_bytes, adapter_bytes = whole["bytes_up"] / whole["updates_committed"], tuned["fedex"]["bytes_up"] / tuned["fedex"]["updates_committed"]
        parameters = sum(t.size for t in load_file(base).values())
        assert whole_bytes == 4 * parameters and adapter_bytes == 4 * 2 * 4 * (64 + 64 + 64 + 64 + 128 + 64), (whole_bytes, adapter_bytes)
        print(f"an update: {whole_bytes:.0f} bytes whole, {adapter_bytes:.0f} as adapters: {whole_bytes / adapter_bytes:.1f} times fewer")

        for mode, shown in tuned.items():
            out, _ = check_export(work, mode, base, all_texts, "lora", shown["metrics"][-1]["loss"])
            assert (out / "base_delta.safetensors").exists() == (mode == "fedex")
        delta = load_file(work / "peft-fedex" / "base_delta.safetensors")
        assert all(numpy.abs(value).max() > 0 and name in load_file(base) for name, value in delta.items()) and len(delta) == 6
        check_adalora(work, base, all_texts)

        # Refused where the job is submitted, with the reason.
        job = work / "refused.yaml"
        job.write_text(JOB.format(name="refused", shape=SHAPE, model=adapter, texts=all_texts, strategy="", clients=4, lr=0.3, versions=1))
        refused = tributary("run", job, "--clients", 4, "--out", work / "refused", code=5)
        assert "nothing says how its factors are combined" in refused.stdout + refused.stderr, refused.stderr


if __name__ == "__main__":
    main()
