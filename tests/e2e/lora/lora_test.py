"""A small language model is trained whole, exported, and fine-tuned by clients' adapters through daemons: only the adapters travel, fedit's error is not 0 and
fedex's is, and what is exported has PEFT's layout.

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
TEXTS = {"de": "der hund lief durch den wald und die katze ", "en": "the cat sat on the mat and the dog ran ",
         "fr": "le chat dort sur le tapis et le chien court ", "pl": "kot spi na macie a pies biega po lesie "}
SHAPE = "layers: 2, width: 64, heads: 4, hidden: 128"
WHOLE, TUNED = 2, 3

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
    folder.mkdir()
    for name in names:
        (folder / f"{name}.txt").write_text(TEXTS[name] * 300)
    return folder


def run(work, name, **values):
    job = work / f"{name}.yaml"
    job.write_text(JOB.format(name=name, shape=SHAPE, **values))
    shown = json.loads(tributary("run", job, "--clients", values["clients"], "--out", work / name, "--json").stdout)
    assert shown["state"] == "done" and shown["updates_committed"] == values["clients"] * values["versions"] and not shown["updates_rejected"], shown
    return shown


def main():
    with tempfile.TemporaryDirectory(prefix="tributary-lora-") as folder:
        work = Path(folder)
        few, all_texts = texts(work / "few", ["de", "en"]), texts(work / "all", TEXTS)
        whole = run(work, "whole", model="", texts=few, strategy="", clients=2, lr=0.3, versions=WHOLE)
        base = work / "base.safetensors"
        tributary("state", "export", "whole", "--store", work / "whole" / "store", "--out", base)

        adapter = f", base: {base}, adapter: {{kind: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj, up_proj, down_proj]}}"
        tuned = {mode: run(work, mode, model=adapter, texts=all_texts, strategy=f", adapters: {mode}", clients=4, lr=0.1, versions=TUNED) for mode in ("fedit", "fedex")}
        for mode, shown in tuned.items():
            losses = {m["version"]: m["loss"] for m in shown["metrics"]}
            assert losses[TUNED] < losses[1], (mode, losses)
            errors = {m["version"]: m["adapter_error"] for m in shown["metrics"] if m["version"] > 0}
            assert all(error > 1e-3 if mode == "fedit" else error < 1e-5 for error in errors.values()), (mode, errors)
            assert {r["version"]: r["adapter_error"] for r in shown["rounds"]}[TUNED] == errors[TUNED], shown["rounds"]
            print(f"{mode}: losses {losses}, errors {errors}")

        # Adapters up: A and B of four layers twice, 4-byte floats; the whole model goes up otherwise.
        whole_bytes, adapter_bytes = whole["bytes_up"] / whole["updates_committed"], tuned["fedex"]["bytes_up"] / tuned["fedex"]["updates_committed"]
        parameters = sum(t.size for t in load_file(base).values())
        assert whole_bytes == 4 * parameters and adapter_bytes == 4 * 2 * 4 * (64 + 64 + 64 + 64 + 64 + 128 + 128 + 64), (whole_bytes, adapter_bytes)
        print(f"an update: {whole_bytes:.0f} bytes whole, {adapter_bytes:.0f} as adapters: {whole_bytes / adapter_bytes:.1f} times fewer")

        for mode in tuned:
            out = work / f"peft-{mode}"
            exported = json.loads(tributary("state", "export", mode, "--store", work / mode / "store", "--peft", out, "--json").stdout)
            assert exported["files"][:2] == ["adapter_config.json", "adapter_model.safetensors"], exported
            config, tensors = json.loads((out / "adapter_config.json").read_text()), load_file(out / "adapter_model.safetensors")
            assert config["peft_type"] == "LORA" and config["r"] == 4 and config["lora_alpha"] == 8 and config["target_modules"] == ["q_proj", "v_proj", "up_proj", "down_proj"], config
            assert tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].shape == (4, 64) and len(tensors) == 16, sorted(tensors)
            assert (out / "base_delta.safetensors").exists() == (mode == "fedex")
        delta = load_file(work / "peft-fedex" / "base_delta.safetensors")
        assert all(numpy.abs(value).max() > 0 and name in load_file(base) for name, value in delta.items()) and len(delta) == 8

        # Refused where the job is submitted, with the reason.
        job = work / "refused.yaml"
        job.write_text(JOB.format(name="refused", shape=SHAPE, model=adapter, texts=all_texts, strategy="", clients=4, lr=0.3, versions=1))
        refused = tributary("run", job, "--clients", 4, "--out", work / "refused", code=5)
        assert "nothing says how its factors are combined" in refused.stdout + refused.stderr, refused.stderr


if __name__ == "__main__":
    main()
